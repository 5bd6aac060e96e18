"""The audit report: one HTML file that is a pure function of audit.json. No torch here."""

from .page import render as render
from .page import report as report
