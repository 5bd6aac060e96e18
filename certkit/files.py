"""Reading and writing records: canonical JSON, digests, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from certkit.errors import CertkitError, RecordError, one_line

MAX_BYTES = 256 * 2**20

R = TypeVar("R", bound=BaseModel)


def digest(data: bytes) -> str:
    """The sha256 of the bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """The sha256 of a file, in hex, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical(record: BaseModel) -> str:
    """The record as JSON with sorted keys and shortest round-tripping numbers: equal records give equal bytes."""
    return (
        json.dumps(record.model_dump(mode="json"), sort_keys=True, allow_nan=False, indent=1, ensure_ascii=True) + "\n"
    )


def write_atomic(path: Path, data: bytes) -> None:
    """All of the bytes at ``path``, or the file that was there before: written beside it, synced, then renamed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CertkitError(f"{path.parent}: no folder can be made there ({error.strerror or error})") from None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CertkitError(f"{path}: could not be written ({error.strerror or error}); nothing was changed") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raises CertkitError for a path at which no folder can be made or written to; makes none."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "not writable" if there.is_dir() else f"{one_line(there)} is a file"
        raise CertkitError(f"{one_line(path)}: no folder can be made there ({reason})")


def save(record: BaseModel, path: Path) -> None:
    """Write the record as canonical JSON, atomically."""
    write_atomic(path, canonical(record).encode())


def read_json(path: Path) -> Any:
    """The JSON value in a file; refuses NaN, infinity (``1e999`` too), duplicate keys, great depth and great size.

    Raises RecordError naming the file.
    """

    def refuse(reason: str) -> NoReturn:
        raise RecordError(f"{one_line(path.name)}: {one_line(reason)}; expected a JSON record written by certkit")

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            refuse(f"the number {text} is not finite")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            refuse("a key stands twice in one object")
        return found

    try:
        if path.stat().st_size > MAX_BYTES:
            refuse(f"the file is larger than {MAX_BYTES // 2**20} MiB")
        text = path.read_text(encoding="utf-8")
        return json.loads(
            text,
            parse_float=finite,
            parse_constant=lambda name: refuse(f"{name} is not a finite number"),
            object_pairs_hook=unique,
        )
    except RecordError:
        raise
    except OSError as error:
        refuse(f"cannot be read ({error.strerror or error})")
    except RecursionError:
        refuse("nested too deeply")
    except ValueError as error:
        refuse(f"not JSON ({error})")


def load(kind: type[R], path: Path) -> R:
    """The record in a file, checked against its schema. Raises RecordError naming the file, the key and the fault."""
    value = read_json(path)
    try:
        return kind.model_validate_json(json.dumps(value), strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise RecordError(f"{one_line(path.name)}: {one_line(where)}: {one_line(first['msg'])}") from None
    except RecursionError:
        raise RecordError(
            f"{one_line(path.name)}: nested too deeply; expected a JSON record written by certkit"
        ) from None
