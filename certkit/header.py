"""The header of a safetensors file, checked before any other reader opens it.

The format is eight bytes of length, a JSON object that says where each tensor lies, and the bytes of the tensors. Its own
reader allows headers of 100 MB, with which a file of a few megabytes can ask for gigabytes.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import torch

from certkit.errors import CheckpointError, one_line

PREFIX = 8
MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 10_000
MAX_AXES = 16
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def check(start: bytes, size: int, name: str) -> None:
    """``start`` holds at least the header of a file of ``size`` bytes. Raises CheckpointError, naming the first fault.

    Afterwards every tensor has a known dtype and a shape that its bytes fill, and the tensors fill the file without
    overlap or hole, so that no byte of it means nothing or two things.
    """

    def refuse(fault: str) -> NoReturn:
        raise CheckpointError(f"{name}: {fault}")

    if size < PREFIX:
        refuse(f"{size} bytes; the file is truncated or not safetensors")
    length = int.from_bytes(start[:PREFIX], "little")
    if length > size - PREFIX:
        refuse(f"the header claims {length} bytes but the file has {size}; the file is truncated or not safetensors")
    if length > MAX_HEADER_BYTES:
        refuse(f"the header claims {length} bytes; certkit reads at most {MAX_HEADER_BYTES}")
    table = _table(start[PREFIX : PREFIX + length], refuse)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse("the header's __metadata__ is not an object of texts")
    if not table:
        refuse("the file holds no tensors")
    if len(table) > MAX_TENSORS:
        refuse(f"the header lists {len(table)} tensors; certkit reads at most {MAX_TENSORS}")
    position, available = 0, size - PREFIX - length
    spans = sorted((*_span(key, entry, refuse), key) for key, entry in table.items())
    for begin, end, key in spans:
        if begin != position:
            refuse(f"tensor {one_line(key, 120)!r} starts at byte {begin} of the data, expected {position}")
        position = end
    if position != available:
        refuse(
            f"the tensors take {position} bytes but the file has {available} for them; the file is truncated or padded"
        )


def _table(text: bytes, refuse: Any) -> dict[str, Any]:
    """The JSON object of the header."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            refuse("a key stands twice in the header")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        refuse("the header is nested too deeply; not safetensors")
    except ValueError:
        refuse("the header is not JSON; the file is damaged or not safetensors")
    if not text.startswith(b"{") or not isinstance(value, dict):
        refuse("the header is not a JSON object; not safetensors")
    found: dict[str, Any] = value
    return found


def _span(key: str, entry: Any, refuse: Any) -> tuple[int, int]:
    """First byte and end of a tensor, once its entry makes sense."""
    tensor = f"tensor {one_line(key, 120)!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse(f"{tensor} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(f"{tensor} has dtype {one_line(repr(dtype), 40)}; expected one of {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > MAX_AXES or math.prod(max(n, 1) for n in shape) >= 2**63:
        refuse(f"{tensor} has an impossible shape; expected at most {MAX_AXES} non-negative integers")
    if not _counts(offsets) or len(offsets) != 2:
        refuse(f"{tensor} has impossible data_offsets; expected two non-negative integers")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        refuse(
            f"{tensor} of dtype {dtype} and shape {shape} takes {needed} bytes, but its data_offsets span {end - begin}"
        )
    return begin, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
