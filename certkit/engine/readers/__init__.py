"""One reader per operator of the exported graph, by family; importing this fills the table."""

from certkit.engine.readers import attention, linear, pointwise, shape
from certkit.engine.readers.table import READERS as READERS
from certkit.engine.readers.table import argument as argument
from certkit.engine.readers.table import read as read

__all__ = ["READERS", "argument", "attention", "linear", "pointwise", "read", "shape"]
