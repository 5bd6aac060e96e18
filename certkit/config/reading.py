"""Run files and presets read into ``Run``, with one line for anything that cannot be meant."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from certkit.config.models import ARCHITECTURES
from certkit.config.run import Run
from certkit.errors import ConfigError, one_line, suggestion

MAX_BYTES = 2**16
MAX_LINE = 1000  # a dotted key costs tomllib the square of its parts: 6 s for 16,000 of them


def load_run(path: Path) -> Run:
    """The run in a TOML file. Raises ConfigError naming file, key and fault."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{one_line(path.name)}: cannot be read ({error.strerror or error})") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{one_line(path.name)}: larger than {MAX_BYTES} bytes; a run file is a page of TOML")
    return parse(raw, path.name)


def parse(raw: bytes, name: str) -> Run:
    """The run in TOML text; ``name`` stands in messages."""
    try:
        text = raw.decode("utf-8")
        if any(len(line) > MAX_LINE for line in text.split("\n")):
            raise ConfigError(f"{one_line(name)}: a line is longer than {MAX_LINE} characters")
        value = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{one_line(name)}: not TOML ({one_line(error)})") from None
    return validate(value, name)


def validate(value: Any, name: str) -> Run:
    """The run in plain values. Raises ConfigError for the first key or value that cannot be meant."""
    try:
        return Run.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    except RecursionError:
        raise ConfigError(f"{one_line(name)}: nested too deeply") from None
    place = _place(first["loc"])
    key = ".".join(str(part) for part in place)
    where = f"{one_line(name)}: {one_line(key)}: " if key else f"{one_line(name)}: "
    if first["type"] == "extra_forbidden":
        raise ConfigError(f"{one_line(name)}: {_unknown(key, _named(value))}")
    if first["type"] == "union_tag_invalid":
        given = _named(value)
        raise ConfigError(
            f"{where.removesuffix(': ')}.name: expected {_choice(ARCHITECTURES)}, got {_shown(given)}"
            f"{suggestion(str(given), ARCHITECTURES)}"
        )
    if first["type"] == "value_error":
        raise ConfigError(where + one_line(first["msg"].removeprefix("Value error, ")))
    if first["type"] in ("too_short", "too_long"):
        short = first["type"] == "too_short"
        count = first["ctx"]["min_length" if short else "max_length"]
        raise ConfigError(
            f"{where}expected at {'least' if short else 'most'} {count} entr{'y' if count == 1 else 'ies'}"
        )
    expected = _expected(first["loc"]) or first["msg"]
    raise ConfigError(f"{where}expected {expected}, got {_shown(first['input'])}")


def _place(location: Sequence[int | str]) -> tuple[int | str, ...]:
    """Where in the file: pydantic's location without the tag of the architecture."""
    tagged = len(location) > 1 and location[0] == "model" and location[1] in ARCHITECTURES
    return (location[0], *location[2:]) if tagged else tuple(location)


def _named(value: Any) -> Any:
    """The architecture that plain values name."""
    model = value.get("model") if isinstance(value, Mapping) else None
    return model.get("name", "vit") if isinstance(model, Mapping) else "vit"


def _unknown(key: str, architecture: Any) -> str:
    """What is wrong with a key that no section has, or that belongs to another architecture."""
    if key in _keys(Run):
        return f"model.name {architecture!r} has no setting {one_line(key)!r}"
    return f"unknown key {one_line(key)!r}{suggestion(key, _keys(Run, architecture=architecture))}"


def _choice(known: Mapping[str, Any] | Sequence[Any]) -> str:
    return " or ".join(repr(one) for one in known)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections inside a type: the one, those of a union, or those of a list's entries."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated, tuple):
        for inner in get_args(annotation):
            yield from _sections(inner)


def _keys(section: type[BaseModel], prefix: str = "", architecture: Any = None) -> list[str]:
    """Every key that a run file may hold, dotted; of the model's, those of one architecture if it is known."""
    found = []
    for name, field in section.model_fields.items():
        found.append(prefix + name)
        inner = list(_sections(field.annotation))
        if prefix + name == "model" and isinstance(architecture, str) and architecture in ARCHITECTURES:
            inner = [ARCHITECTURES[architecture]]
        for one in inner:
            found += _keys(one, f"{prefix}{name}.")
    return list(dict.fromkeys(found))


_KINDS: dict[Any, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _expected(location: Sequence[int | str]) -> str | None:
    """What a field takes, in words, read from its declaration: ``an integer >= 1``. None for types it has no words for."""
    kind: Any = Run
    limits: list[str] = []
    for part in location:
        if isinstance(part, int):
            return None
        sections = list(_sections(kind))
        if part in ARCHITECTURES and kind is Run.model_fields["model"].annotation:
            kind = ARCHITECTURES[part]
            continue
        holder = next((one for one in sections if part in one.model_fields), None)
        if holder is None:
            return None
        field = holder.model_fields[part]
        kind = field.annotation
        limits = [
            f"{sign} {getattr(rule, name)}"
            for rule in field.metadata
            for name, sign in _BOUNDS.items()
            if getattr(rule, name, None) is not None
        ]
    if get_origin(kind) is Literal:
        return _choice(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list"
    if list(_sections(kind)):
        return "a table"
    return f"{_KINDS[kind]} {' and '.join(limits)}".rstrip() if kind in _KINDS else None


def _shown(value: object) -> str:
    """A value from a file, short enough for a message; tables and lists by kind, as their text can be arbitrarily deep."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return one_line(repr(value), 60)


def override(run: Run, changes: Sequence[str]) -> Run:
    """The run with some keys changed, each as ``training.steps=3`` with a TOML value; a bare word is a text.

    ``model.name=mlp`` starts from that architecture's defaults; later changes are to those.
    """
    value = run.model_dump()
    for change in changes:
        key, equals, text = (part.strip() for part in change.partition("="))
        if not equals:
            raise ConfigError(f"--set {one_line(change)!r} is not of the form a.b=value")
        *path, last = key.split(".")
        target: Any = value
        for part in path:
            target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict) or last not in target:
            raise ConfigError(f"--set: {_unknown(key, _named(value))}")
        target[last] = _value(text)
        if key == "model.name" and target[last] in ARCHITECTURES:
            value["model"] = ARCHITECTURES[target[last]]().model_dump()
    return validate(value, "--set")


def changed(run: Run, changes: Mapping[str, Any], name: str) -> Run:
    """The run with the keys of some tables replaced; a model of another architecture replaces the whole table."""
    value = run.model_dump()
    for section, given in changes.items():
        held = value.get(section)
        if isinstance(held, dict) and isinstance(given, Mapping):
            fresh = section == "model" and given.get("name", held["name"]) != held["name"]
            value[section] = dict(given) if fresh else {**held, **given}
        else:
            value[section] = given
    return validate(value, name)


def _value(text: str) -> Any:
    """One TOML value, or the text itself where it is none."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def presets() -> dict[str, str]:
    """The presets by name, each with its one-line description."""
    return {name: preset(name).description for name in sorted(_preset_names())}


def preset(name: str) -> Run:
    """A preset by name. Raises ConfigError with a suggestion for an unknown one."""
    known = _preset_names()
    if name not in known:
        raise ConfigError(
            f"no preset is called {one_line(name)!r}{suggestion(name, known)}; certkit presets lists them"
        )
    return parse(resources.files("certkit.presets").joinpath(f"{name}.toml").read_bytes(), f"{name}.toml")


def _preset_names() -> list[str]:
    files = resources.files("certkit.presets").iterdir()
    return [file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")]
