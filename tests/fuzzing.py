"""Hostile files, by the thousand: a valid file of each kind, and seeded ways to spoil it.

Case i of a seed is the same bytes on every machine, so that a failure is named by two numbers.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from certkit import checkpoint, config
from certkit.bounds import ledger
from certkit.errors import CertkitError
from certkit.files import canonical, load
from certkit.records import Audit, Certificate
from tests.strategies import RUN_TOML, a_certificate, a_safetensors, an_audit

PREFIX = 8  # bytes of a safetensors file before its header
LONGEST_MESSAGE = 2000
TOKENS = (
    *(b"{}", b"[]", b"null", b"true", b'""', b"0", b"-1", b"1e999", b"-0.0", b"NaN", b"Infinity", b"9" * 400),
    *(
        b"9" * 5000,
        b"1e-400",
        b"0x" + b"f" * 300,
        b"18446744073709551616",
        b"9223372036854775807",
        b"\x00",
        b"\xff\xfe",
    ),
    *(b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\x1b[31m", "\u202e".encode(), b"\r\n", b"\n", b"\\"),
    *(
        b"[" * 3000,
        b'{"a":' * 3000,
        b"{a=" * 300,
        b"a." * 400,
        b"[[a]]",
        b"'''",
        b'"""',
        b"1979-05-27",
        b"__metadata__",
    ),
    *(b"__proto__", b"_target_", b"../../etc/passwd", b"PK\x03\x04", b"\x80\x04", b"F64", b"U64", b"BOOL"),
    *(b"data_offsets", b"1E+999999999", b"1E-999999999", b"sNaN", b"inf"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 5e-324, 1.7e308, "", "x", "\x00", "\u202e"),
    *("\ud800", "9" * 100, "1E+999999999", "1E-999999999", "nan", "-1", "a\nb", [], {}, [[]], [0, 0], ["x"], {"": 0}),
    *([2**62, 2**62], [0] * 50, "x" * 5000, [1, 2, 3, 4, 5], {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file: where it is put, a valid example, its reader, and the JSON inside it if there is any."""

    path: Path
    valid: bytes
    read: Callable[[Path], object]
    frame: Callable[[bytes], bytes] | None  # puts changed JSON text back into a file; None where the file is no JSON
    text: bytes = b""

    @property
    def name(self) -> str:
        return self.path.name


def targets(folder: Path) -> tuple[Target, ...]:
    """The five kinds of files that others can hand to certkit; each lies in a folder of its own in ``folder``."""
    weights = a_safetensors()
    header = int.from_bytes(weights[:PREFIX], "little")
    settings = json.dumps(config.Run().model_dump(mode="json")).encode()
    certificate, audit = canonical(a_certificate()).encode(), canonical(an_audit()).encode()
    at = {kind: folder / kind for kind in ("run", "config", "weights", "certificate", "audit")}
    for place in at.values():
        place.mkdir(exist_ok=True)
    (at["config"] / checkpoint.WEIGHTS).write_bytes(weights)

    def read_config(path: Path) -> object:
        return config.validate(checkpoint.read(path.parent).config, path.name)

    def read_certificate(path: Path) -> object:
        return ledger.checked(load(Certificate, path).ledger)

    def framed(text: bytes) -> bytes:
        return len(text).to_bytes(PREFIX, "little") + text + weights[PREFIX + header :]

    return (
        Target(at["run"] / "run.toml", RUN_TOML, config.load_run, None),
        Target(at["config"] / "config.json", settings, read_config, bytes, settings),
        Target(
            at["weights"] / "weights.safetensors", weights, checkpoint.read, framed, weights[PREFIX : PREFIX + header]
        ),
        Target(at["certificate"] / "certificate.json", certificate, read_certificate, bytes, certificate),
        Target(at["audit"] / "audit.json", audit, lambda path: load(Audit, path), bytes, audit),
    )


def case(target: Target, seed: int, number: int) -> bytes:
    """One spoilt file: bytes changed anywhere, or, where there is JSON, its text or one of its values changed."""
    draw = np.random.default_rng((seed, number))
    kind = int(draw.integers(3))
    if target.frame is None or kind == 0:
        return spoilt(target.valid, draw)
    if kind == 1:
        return target.frame(spoilt(target.text, draw))
    value = json.loads(target.text)
    for _ in range(int(draw.integers(1, 3))):
        value = replaced(value, draw)
    return target.frame(json.dumps(value).encode())


def spoilt(data: bytes, draw: np.random.Generator) -> bytes:
    """One to three of: a bit flipped, a stretch removed, doubled or moved, the end cut off, a token put in."""
    for _ in range(int(draw.integers(1, 4))):
        at = int(draw.integers(len(data) + 1))
        end = min(len(data), at + int(draw.integers(1, 40)))
        match int(draw.integers(7)):
            case 0 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << int(draw.integers(8))]) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:end] + data[at:end] + data[end:]
            case 4:
                elsewhere = int(draw.integers(len(data) + 1))
                data = data[:elsewhere] + data[at:end] + data[elsewhere:]
            case 5:
                data = data[:at] + TOKENS[int(draw.integers(len(TOKENS)))] + data[end:]
            case _:
                data = data[:at] + TOKENS[int(draw.integers(len(TOKENS)))] + data[at:]
    return data


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value, itself included."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The JSON value with another one at ``path``; the given one is changed on the way."""
    if not path:
        return new
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def replaced(value: Any, draw: np.random.Generator) -> Any:
    """The JSON value with one of its values replaced, removed, or joined by a stranger."""
    found = list(places(value))
    path = found[int(draw.integers(len(found)))]
    new = copy.deepcopy(VALUES[int(draw.integers(len(VALUES)))])
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    action = int(draw.integers(4))
    if path and action == 0:
        del inner[path[-1]]
        return value
    if path and action == 1 and isinstance(inner, dict):
        inner["stranger"] = new
        return value
    return put(value, path, new)


def fault(target: Target, data: bytes) -> tuple[str | None, float]:
    """What is wrong with how the reader takes these bytes, None if nothing is; and the seconds of CPU it took.

    Right is: it reads the file, or it raises a CertkitError of one line.
    """
    target.path.write_bytes(data)
    started = time.thread_time()
    found: str | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.read(target.path)
    except CertkitError as error:
        text = str(error)
        if not text or not text.isprintable() or len(text) > LONGEST_MESSAGE:
            found = f"{target.name}: a message that is not one line: {text[:300]!r}"
    except Exception as error:  # noqa: BLE001 - that nothing else is raised is the property
        found = f"{target.name}: {type(error).__name__}: {str(error)[:300]!r}"
    return found, time.thread_time() - started
