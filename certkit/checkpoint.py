"""Checkpoints: ``model.safetensors`` with ``config.json`` beside it. Identity is the sha256 of the safetensors file.

A checkpoint is untrusted. Its bytes are read once; the header is checked here before any other reader sees it, and what
is hashed is what is parsed. Pickles are known by their content, whatever the file is called.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from certkit import header
from certkit.errors import CheckpointError, RecordError, one_line, suggestion
from certkit.files import digest, read_json, write_atomic
from certkit.records import Subject

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_BYTES = 64 * 2**30
MAX_CONFIG_BYTES = 2**20
NAMED = 3  # keys that a message lists before it only counts

Foreign = tuple[bytes, str, bool]
FOREIGN: tuple[Foreign, ...] = (
    (b"PK\x03\x04", "a zip archive, such as torch.save writes", True),
    *((b"\x80" + bytes([protocol]), "a Python pickle", True) for protocol in range(2, 6)),
    (b"\x93NUMPY", "a NumPy array", False),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", False),
    (b"\x1f\x8b", "a gzip archive", False),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", False),
    (b"GGUF", "a GGUF file", False),
    (b"version https://git-lfs", "a Git LFS pointer: the weights themselves were not downloaded", False),
)  # first bytes, what they mean, whether torch.load could read it


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Named tensors, all finite, with the configuration that was beside them; ``sha256`` is of the file they came from."""

    state: dict[str, Tensor]
    config: dict[str, Any] | None
    sha256: str
    name: str


def read(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint in a folder, or in one file with its config.json beside it if there is one.

    ``allow_pickle`` lets ``torch.load(weights_only=True)`` read what looks like a torch file; it must hold a flat
    dictionary of tensors, or one under ``state_dict``. Raises CheckpointError for anything that is not what it claims.
    """
    path = Path(path)
    folder = os.path.isdir(path)  # os.path and not Path, which raises for a name that is too long
    file = path / WEIGHTS if folder else path
    name = one_line(file.name, 120)
    if folder and not file.exists():
        raise CheckpointError(f"{one_line(path)}: no {WEIGHTS} in this folder; expected what certkit train --out wrote")
    raw = _bytes(file, name, allow_pickle=allow_pickle)
    foreign = _foreign(raw)
    state = _unpickled(raw, name) if foreign else _parsed(raw, name)
    for key, tensor in state.items():
        _finite(name, key, tensor)
    return Checkpoint(state=state, config=settings(file.with_name(CONFIG)), sha256=digest(raw), name=name)


def write(directory: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write ``config.json``, then ``model.safetensors``; the path of the latter. Equal weights give equal bytes.

    Older weights are removed first: a configuration never stands beside weights of another one.

    Raises CheckpointError for a weight that is not finite: nothing is written that could not be read back.
    """
    for key, tensor in state.items():
        _finite(WEIGHTS, key, tensor)
    settings = json.dumps(dict(config), sort_keys=True, indent=1, allow_nan=False) + "\n"
    path = directory / WEIGHTS
    with suppress(OSError):  # a folder that cannot be is told by the next line
        path.unlink(missing_ok=True)
    write_atomic(directory / CONFIG, settings.encode())
    write_atomic(path, serialized(state))
    return path


def serialized(state: Mapping[str, Tensor]) -> bytes:
    """The safetensors file of these tensors; tied weights are written once per name."""
    tensors = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def subject_of(module: nn.Module) -> Subject:
    """The identity of a module in memory: that of the checkpoint it would be written to."""
    return Subject(
        sha256=digest(serialized(module.state_dict())),
        architecture=one_line(type(module).__name__, 120),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )


def load_into(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy every tensor into the module, in the module's own types.

    Raises CheckpointError unless names and shapes are the module's, all of them, and no value would be rounded.
    """
    expected, given, name = module.state_dict(), checkpoint.state, checkpoint.name
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    if missing:
        hint = suggestion(missing[0], unexpected).replace("did you mean", "the file has")
        raise CheckpointError(f"{name}: the model needs {_listed(missing)}, which the file lacks{hint}")
    if unexpected:
        raise CheckpointError(
            f"{name}: the file holds {_listed(unexpected)}, which the model does not have; "
            "it was written by another architecture"
        )
    for key, tensor in expected.items():
        if tensor.shape != given[key].shape:
            raise CheckpointError(
                f"{name}: tensor {one_line(key, 120)!r} has shape {tuple(given[key].shape)}, "
                f"the model expects {tuple(tensor.shape)}"
            )
        if not _exact(given[key].dtype, tensor.dtype):
            raise CheckpointError(
                f"{name}: tensor {one_line(key, 120)!r} is {_dtype(given[key])}, the model expects {_dtype(tensor)}; "
                "a rounded copy would be another network"
            )
    exact = {key: given[key].to(tensor.dtype) for key, tensor in expected.items()}
    module.load_state_dict(exact, assign=any(tensor.is_meta for tensor in expected.values()))


def _exact(given: torch.dtype, expected: torch.dtype) -> bool:
    """Whether every value of the one type is a value of the other: equal types, or a wider float."""
    both = given.is_floating_point and expected.is_floating_point
    return given == expected or (both and torch.promote_types(given, expected) == expected)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(keys: list[str]) -> str:
    shown = ", ".join(repr(one_line(key, 80)) for key in keys[:NAMED])
    return shown if len(keys) <= NAMED else f"{shown} and {len(keys) - NAMED} more"


def _bytes(file: Path, name: str, *, allow_pickle: bool) -> bytes:
    """The whole file; its first bytes are judged before the rest is read. Raises CheckpointError."""
    if not os.path.isfile(file):
        reason = "not a regular file" if os.path.exists(file) else "no such file"
        raise CheckpointError(f"{one_line(file)}: {reason}; expected {WEIGHTS} or the folder that holds it")
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            start = stream.read(header.PREFIX + header.MAX_HEADER_BYTES)
            foreign = _foreign(start)
            if foreign is None:
                header.check(start, size, name)
            else:
                _refuse_foreign(foreign, name, allow_pickle=allow_pickle)
            if size > MAX_BYTES:
                raise CheckpointError(f"{name}: {size} bytes; certkit reads at most {MAX_BYTES // 2**30} GiB")
            raw = start + stream.read(size + 1)
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror or error})") from None
    if len(raw) != size:
        raise CheckpointError(f"{name}: the file changed while it was read; try again")
    return raw


def _foreign(start: bytes) -> Foreign | None:
    """What the first bytes say when they are those of another format; None when they may be safetensors.

    A header length of up to 8 MiB leaves bytes 3 to 7 zero and byte 8 opens the header: no other format does both.
    """
    if start[3:9] == b"\0\0\0\0\0{":
        return None
    return next((entry for entry in FOREIGN if start.startswith(entry[0])), None)


def _refuse_foreign(foreign: Foreign, name: str, *, allow_pickle: bool) -> None:
    _, meaning, torch_file = foreign
    if torch_file and allow_pickle:
        return
    remedy = "convert it with safetensors.torch.save_file"
    if torch_file:
        remedy += ", or give --allow-pickle for a torch file"
    raise CheckpointError(f"{name}: this is not safetensors but looks like {meaning}; {remedy}")


def _parsed(raw: bytes, name: str) -> dict[str, Tensor]:
    header.check(raw, len(raw), name)
    try:
        return safetensors.torch.load(raw)
    except SafetensorError as error:
        raise CheckpointError(f"{name}: not safetensors ({one_line(error, 160)})") from None


def _unpickled(raw: bytes, name: str) -> dict[str, Tensor]:
    """What torch's restricted unpickler finds, if it is tensors by name. Raises CheckpointError; no code of it runs."""
    if torch.__version__ < "2.10":
        raise CheckpointError(f"{name}: --allow-pickle needs torch 2.10 or later, this is {torch.__version__}")
    _refuse_bomb(raw, name)
    try:
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - hostile input raises anything
        reason = one_line(str(error).strip().split("\n")[0], 160)
        raise CheckpointError(
            f"{name}: torch.load(weights_only=True) refused it ({reason}); nothing of it was executed"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{name}: holds a {type(found).__name__}; expected a dictionary of tensors by name")
    state = {}
    for key, value in found.items():
        where = f"{name}: {one_line(repr(key), 120)}"
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{where} is a {type(value).__name__}; expected a dictionary of tensors by name")
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            raise CheckpointError(f"{where} is not an ordinary dense tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{where} claims {value.numel()} entries, more than the file stores for it")
        if value.dtype not in header.DTYPES.values():
            raise CheckpointError(f"{where} is {_dtype(value)}; expected one of {', '.join(header.DTYPES)}")
        state[key] = value.detach().contiguous().clone()
    return state


def _refuse_bomb(raw: bytes, name: str) -> None:
    """torch.save stores its members uncompressed: anything that would unpack to more than the file is refused."""
    if not raw.startswith(b"PK"):
        return
    try:
        members = zipfile.ZipFile(io.BytesIO(raw)).infolist()
    except Exception as error:  # noqa: BLE001 - hostile input raises anything
        raise CheckpointError(f"{name}: a damaged zip archive ({one_line(error, 120)})") from None
    unpacked = sum(member.file_size for member in members)
    if unpacked > len(raw) or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{name}: a compressed zip archive; torch.save writes its members uncompressed")


def _finite(name: str, key: str, tensor: Tensor) -> None:
    """Raises CheckpointError for a weight that is not a number, or a truth value that is neither 0 nor 1."""
    if tensor.dtype == torch.bool:
        sound = tensor.numel() == 0 or int(tensor.contiguous().view(torch.uint8).max()) <= 1
    else:
        sound = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
    if not sound:
        fault = "a truth value that is neither 0 nor 1" if tensor.dtype == torch.bool else "NaN or infinity"
        raise CheckpointError(f"{name}: tensor {one_line(key, 120)!r} holds {fault}; expected finite weights")


def settings(path: Path) -> dict[str, Any] | None:
    """The configuration in a file, or None. Raises CheckpointError unless it is a JSON object of sane size."""
    if not path.exists():
        return None
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path.name}: larger than {MAX_CONFIG_BYTES} bytes or not a regular file")
        value = read_json(path)
    except RecordError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror or error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name}: holds a {type(value).__name__}; expected a JSON object")
    return value
