"""What every record is made of: numbers that are rounded outward, subjects, data, threats, files. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from certkit.errors import ConfigError, one_line

FORMAT = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Norm = Literal["l2", "linf"]
Arithmetic = Literal["float32", "float64"]
Refutes = Literal["exact arithmetic", "float execution", "float gap"]
AttackNorm = Literal["l2", "linf", "l1", "l0", "token"]
Role = Literal["floor", "minimum", "bounded", "guided"]
Verdict = Literal["REFUTED", "NOT REFUTED", "INCONCLUSIVE", "NOT EVALUATED"]


class Record(BaseModel):
    """A frozen value that knows every one of its keys and holds only finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Subject(Record):
    """Which network: ``sha256`` is its identity, ``architecture`` is for display only and is never imported."""

    sha256: Sha256
    architecture: str
    parameters: Count


class Data(Record):
    """Which samples: ``sha256`` is over the images and labels as used, in order."""

    name: str
    split: str
    count: Count
    sha256: Sha256
    classes: tuple[str, ...]


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?|[+-]?\d+/\d+", re.ASCII)
MAX_NUMBER = 100


def rounded_up(text: str) -> float:
    """The smallest float64 that is not below the number: ``36/255`` and ``0.3`` lie between two floats.

    Raises ConfigError for anything negative, beyond float64, or not a number.
    """
    shown = one_line(text, 40)
    if len(text) > MAX_NUMBER or not _NUMBER.fullmatch(text):
        raise ConfigError(f"eps {shown!r} is not a number; expected 0.25 or 36/255")
    try:
        exact = Fraction(text)
    except ZeroDivisionError:
        raise ConfigError(f"eps {shown!r} is not a number; expected 0.25 or 36/255") from None
    if exact < 0:
        raise ConfigError(f"eps {shown} is negative; a radius is 0 or more")
    try:
        value = float(exact)
    except OverflowError:
        value = math.inf
    value = math.nextafter(value, math.inf) if value < math.inf and Fraction(value) < exact else value
    if math.isinf(value):
        raise ConfigError(f"eps {shown} is too large for a float64")
    return value


class Eps(Record):
    """A radius as it was asked for, and the smallest float64 that is not below it."""

    text: str
    value: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _agrees(self) -> Eps:
        try:
            if rounded_up(self.text) == self.value:
                return self
        except ConfigError as error:
            raise ValueError(str(error)) from None
        raise ValueError(f"value {self.value} is not {one_line(self.text, 40)} rounded up")

    @classmethod
    def of(cls, given: str | float | Fraction) -> Eps:
        """The radius of a text or number; a float means the decimal it is printed as. Raises ConfigError."""
        if isinstance(given, bool) or not isinstance(given, (str, int, float, Fraction)):
            raise ConfigError(f"eps {one_line(repr(given), 40)} is not a number; expected 0.25 or 36/255")
        text = str(given).strip()
        return cls(text=text, value=rounded_up(text))


def radii(given: Sequence[str | float | Fraction]) -> tuple[Eps, ...]:
    """The radii in ascending order, each value once. Raises ConfigError for none, or for one that cannot be meant."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"eps {one_line(given, 40)!r} is no list; expected radii such as ['0.25', '36/255']")
    found = {eps.value: eps for eps in map(Eps.of, given)}
    if not found:
        raise ConfigError("no eps was given; expected at least one radius such as 0.25 or 36/255")
    return tuple(found[value] for value in sorted(found))


class Threat(Record):
    """What an attacker may do: move the input by at most eps in ``norm``, inside ``box``, knowing everything."""

    norm: Norm
    eps: Annotated[tuple[Eps, ...], Field(min_length=1)]
    box: tuple[float, float]
    goal: Literal["untargeted"] = "untargeted"
    knowledge: Literal["white-box"] = "white-box"


class Rate(Record):
    """A share with its denominator and its two-sided 95 % Clopper-Pearson interval."""

    count: Count
    total: Count
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _is_a_share(self) -> Rate:
        if self.count > self.total or self.low > self.high:
            raise ValueError(f"{self.count} of {self.total} in [{self.low}, {self.high}] is no share with its interval")
        return self


class File(Record):
    """A file beside this record, by name and digest."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w-]+(\.[\w-]+)*(/[\w-]+(\.[\w-]+)*)*$")]
    sha256: Sha256


class Environment(Record):
    """What the figures were computed with; equal on a second run on the same machine."""

    certkit: str
    python: str
    torch: str
    numpy: str
    platform: str
    device: str
    threads: Count


class Provenance(Record):
    """The one block in which two identical runs differ; ``files`` are those that hold such a block themselves."""

    created: str
    seconds: Annotated[float, Field(ge=0)]
    files: tuple[File, ...] = ()
