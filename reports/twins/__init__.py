"""The twins of the report: the same audit in the formats that other programs read. Each is a pure function of it."""

from .writing import TWINS as TWINS
from .writing import write as write
