"""What a training run is: one TOML file, read into frozen models. Every field is written to the checkpoint.

One default per setting stands here; a key that nobody reads is refused with a suggestion.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from certkit.errors import ConfigError, one_line, suggestion

MAX_BYTES = 2**16
MAX_LINE = 1000  # a dotted key costs tomllib the square of its parts: 6 s for 16,000 of them
MAX_ENTRIES = 2**20  # a configuration from a stranger must not be able to ask for all memory

Positive = Annotated[float, Field(gt=0)]
Extent = Annotated[int, Field(ge=1, le=2**16)]
Depth = Annotated[int, Field(ge=0, le=256)]
Steps = Annotated[int, Field(ge=1, le=10**7)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Settings that know every one of their keys; types are not coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class VisionTransformerConfig(Section):
    """The architecture of a Lipschitz vision transformer."""

    name: Literal["vit"] = "vit"
    image_size: Extent = Field(8, description="Pixels along one side of the square image.")
    channels: Extent = Field(1, description="1 for grey, 3 for colour.")
    classes: Annotated[int, Field(ge=2, le=2**16)] = Field(10, description="Logits.")
    patch: Extent = Field(2, description="Pixels along one side of a patch; divides image_size.")
    width: Extent = Field(16, description="Entries of one token; even, and divisible by heads.")
    heads: Extent = Field(4, description="Attention heads.")
    blocks: Depth = Field(1, description="Blocks of attention and tokenwise layers.")
    mlp_layers: Depth = Field(1, description="Tokenwise linear layers after the attention of each block.")
    hidden_layers: Depth = Field(1, description="Layers over all tokens before the head.")
    residual: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Weight a of (1-a)x + a attention(x).")
    scale: Positive = Field(0.5, description="Attention scores are scale / head width times q·k.")
    position: float = Field(9.0, description="First constant score of each head for its own neighbour of a token.")

    @model_validator(mode="after")
    def _divides(self) -> VisionTransformerConfig:
        if self.image_size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide image_size {self.image_size}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and divisible by heads, {self.heads}")
        entries = (self.image_size // self.patch) ** 2 * self.width
        if entries > MAX_ENTRIES:
            raise ValueError(f"{entries} entries in all tokens together; certkit builds at most {MAX_ENTRIES}")
        return self


class DataConfig(Section):
    """The samples: digits, a Hugging Face name, or a local folder."""

    name: str = Field("digits", description="digits, a Hugging Face data set name, or a folder.")
    train: str = Field("train", description="Split to train on.")
    test: str = Field("test", description="Split to report on; never trained on.")


class TrainingConfig(Section):
    """The optimiser, the constraint and the loss."""

    optimizer: Literal["muon"] = Field("muon", description="Steps matrices; biases and constant scores go by Adam.")
    constraint: Literal["stiefel"] = Field("stiefel", description="Holds every matrix at its cap after every step.")
    learning_rate: Annotated[float, Field(gt=0, le=0.5)] = Field(0.05, description="Spectral norm of one Muon step.")
    entry_learning_rate: Positive = Field(0.01, description="Adam's, for biases and constant scores.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Of Muon.")
    steps: Steps = Field(800, description="Batches in all.")
    batch: Extent = Field(128, description="Samples per step.")
    seed: Seed = Field(0, description="Of weights, batches and augmentation.")
    eps: Annotated[float, Field(ge=0)] = Field(0.35, description="l2 radius that the loss asks to be certified.")
    temperature: Positive = Field(0.1, description="Of the cross-entropy, in units of the Lipschitz bound.")
    shift: Annotated[float, Field(ge=0)] = Field(
        0.25, description="Largest random shift of a training image, in pixels."
    )
    refresh: Steps = Field(50, description="Steps between two certificates of the bound that the loss uses.")


class Run(Section):
    """One training run."""

    description: str = Field("", description="One line for certkit presets.")
    model: VisionTransformerConfig = VisionTransformerConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()


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
    key = ".".join(str(part) for part in first["loc"])
    where = f"{one_line(name)}: {one_line(key)}: " if key else f"{one_line(name)}: "
    if first["type"] == "extra_forbidden":
        raise ConfigError(f"{one_line(name)}: unknown key {one_line(key)!r}{suggestion(key, _keys(Run))}")
    if first["type"] == "value_error":
        raise ConfigError(where + one_line(first["msg"].removeprefix("Value error, ")))
    expected = _expected(first["loc"]) or first["msg"]
    raise ConfigError(f"{where}expected {expected}, got {_shown(first['input'])}")


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key that a run file may hold, dotted."""
    found = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        found.append(prefix + name)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _keys(inner, f"{prefix}{name}.")
    return found


_KINDS: dict[Any, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _expected(location: Sequence[int | str]) -> str | None:
    """What a field takes, in words, read from its declaration: ``an integer >= 1``. None for types it has no words for."""
    kind: Any = Run
    limits: list[str] = []
    for part in location:
        if not (isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields):
            return None
        field = kind.model_fields[str(part)]
        kind = field.annotation
        limits = [
            f"{sign} {getattr(rule, name)}"
            for rule in field.metadata
            for name, sign in _BOUNDS.items()
            if getattr(rule, name, None) is not None
        ]
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
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
    """The run with some keys changed, each as ``training.steps=3`` with a TOML value; a bare word is a text."""
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
            raise ConfigError(f"--set: unknown key {one_line(key)!r}{suggestion(key, _keys(Run))}")
        target[last] = _value(text)
    return validate(value, "--set")


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
