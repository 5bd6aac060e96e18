"""Token files and the cache of them.

The layout is that of the public NanoGPT speedrun: 256 int32 (magic, version, number of tokens, then free), then the ids as
uint16, all little-endian. In the cache, eight of the free words hold the sha256 of the ids.
https://github.com/KellerJordan/modded-nanogpt
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from certkit.errors import DataError, one_line
from certkit.files import digest
from certkit.text.tokenizers import GPT2

if TYPE_CHECKING:
    from certkit.text.tokenizers import Ids

MAGIC, VERSION, HEADER = 20240520, 1, 1024
MAX_BYTES = 4 * 2**30  # of one text file
MAX_COUNT = 2**31 - 1  # of tokens in one file: the header holds int32
DIGEST = slice(32, 64)  # bytes of the header
RECIPE = "1"  # part of every name in the cache; another number when the same source is to give other tokens


def sha256(ids: Ids) -> bytes:
    """Over the ids in order, as little-endian uint16."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<u2").data).digest()


def read_text(path: Path, where: str) -> tuple[str, str]:
    """The text of a file, and the sha256 of its bytes. Raises DataError for what is no UTF-8, empty or too large."""
    shown = f"{where}: {one_line(path.name, 80)}"
    if _size(path, shown) > MAX_BYTES:
        raise DataError(f"{shown} is larger than {MAX_BYTES // 2**30} GiB")
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise DataError(f"{shown} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x} ({error.reason})"
        ) from None
    if not text:
        raise DataError(f"{shown} is empty")
    return text, digest(data)


def read_tokens(path: Path, vocabulary: int, where: str) -> tuple[Ids, bytes]:
    """The ids of a token file, mapped read-only, and its header. Raises DataError unless every part of it agrees."""
    shown = f"{where}: {one_line(path.name, 80)}"
    size = _size(path, shown)
    try:
        with path.open("rb") as stream:
            header = stream.read(HEADER)
        if len(header) < HEADER:
            raise DataError(f"{shown} has {size} bytes; expected a header of {HEADER}")
        magic, version, count = np.frombuffer(header, dtype="<i4", count=3).tolist()
        if (magic, version) != (MAGIC, VERSION):
            raise DataError(
                f"{shown} starts with magic {magic} and version {version}; "
                f"expected {MAGIC} and {VERSION}, GPT-2's tokens in the layout of the NanoGPT speedrun"
            )
        if count < 1 or size != HEADER + 2 * count:
            raise DataError(f"{shown} states {count} tokens in {size} bytes; expected {HEADER} + 2 per token, and one")
        ids: Ids = np.asarray(np.memmap(path, dtype="<u2", mode="r", offset=HEADER, shape=(count,)))
    except OSError as error:
        raise DataError(f"{shown} cannot be read ({error.strerror or error})") from None
    if (largest := int(ids.max())) >= vocabulary:
        raise DataError(f"{shown} holds token {largest}, outside 0 to {vocabulary - 1}")
    return ids, header


def cached(folder: Path, source: Iterable[str], vocabulary: int, make: Callable[[], Iterable[Ids]]) -> Ids:
    """The tokens that ``source`` names: from the cache when whole there, else made, written and read back."""
    path = folder / f"{digest(chr(10).join((RECIPE, *source)).encode())}.bin"
    with suppress(DataError):  # absent, damaged or foreign: made again
        return _read_back(path, vocabulary)
    _write(path, make())
    return _read_back(path, vocabulary)


def joined(paths: Iterable[Path], limit: int | None, cache: Path, where: str) -> Ids:
    """The ids of token files one after the other, of no more files than ``limit`` tokens need.

    A single one is mapped where it lies; several are joined in the cache, as a map is of one file.
    """
    pieces: list[Ids] = []
    for path in paths:
        pieces.append(read_tokens(path, GPT2.vocabulary, where)[0])
        if limit is not None and sum(map(len, pieces)) >= limit:
            break
    if len(pieces) == 1:
        return pieces[0]
    if (total := sum(map(len, pieces))) > MAX_COUNT:
        raise DataError(f"{where}: {len(pieces)} files hold {total} tokens; expected at most {MAX_COUNT}: give a limit")
    return cached(
        cache, ("joined", GPT2.name, *(sha256(piece).hex() for piece in pieces)), GPT2.vocabulary, lambda: pieces
    )


def cache_folder() -> Path:
    """Where tokens are kept unless a folder is given; a relative XDG_CACHE_HOME is ignored, as its specification asks."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "certkit", "tokens")


def _size(path: Path, shown: str) -> int:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{shown} cannot be read ({error.strerror or error})") from None
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device could give bytes for ever
        raise DataError(f"{shown} is not a regular file")
    return found.st_size


def _read_back(path: Path, vocabulary: int) -> Ids:
    ids, header = read_tokens(path, vocabulary, "cache")
    if header[DIGEST] != sha256(ids):
        raise DataError(f"cache: {path.name} is damaged")
    return ids


def _write(path: Path, pieces: Iterable[Ids]) -> None:
    """The pieces as one token file, whole or not at all; piece by piece, as together they may not fit into memory."""
    temporary: Path | None = None
    header = bytearray(HEADER)
    found = hashlib.sha256()
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as stream:
            temporary = Path(stream.name)
            stream.write(header)
            for piece in pieces:
                data = np.ascontiguousarray(piece, dtype="<u2").data
                found.update(data)
                stream.write(data)
                count += len(piece)
            if not 1 <= count <= MAX_COUNT:
                raise DataError(f"{count} tokens; a token file holds 1 to {MAX_COUNT}")
            header[:12] = np.array([MAGIC, VERSION, count], dtype="<i4").tobytes()
            header[DIGEST] = found.digest()
            stream.seek(0)
            stream.write(header)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"tokens cannot be kept in {one_line(path.parent)} ({error.strerror or error}); give another folder as cache"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
