"""Local certificates: the rules of the global ledger applied once more, on a ball around each sample."""

from certkit.engine.local.centre import measure
from certkit.engine.local.radii import LocalRadii, local_bounds, local_radii

__all__ = ["LocalRadii", "local_bounds", "local_radii", "measure"]
