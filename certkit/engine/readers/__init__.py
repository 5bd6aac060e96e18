"""One reader per operator of the exported graph, by family; importing this fills the table."""

from certkit.engine.readers import (
    attention,
    convolution,
    curves,
    fused,
    linear,
    normalisation,
    pointwise,
    products,
    shape,
)
from certkit.engine.readers.fused import read as read
from certkit.engine.readers.table import READERS as READERS
from certkit.engine.readers.table import argument as argument

__all__ = [
    "READERS",
    "argument",
    "attention",
    "convolution",
    "curves",
    "fused",
    "linear",
    "normalisation",
    "pointwise",
    "products",
    "read",
    "shape",
]
