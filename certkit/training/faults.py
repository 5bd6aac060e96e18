"""What can go wrong while a network trains."""

from __future__ import annotations

from certkit.errors import CertkitError


class Diverged(CertkitError):
    """The loss or a weight is no longer finite."""
