"""What every section of a run file has in common, and the ranges that its numbers come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_ENTRIES = 2**20  # a configuration from a stranger must not be able to ask for all memory

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Extent = Annotated[int, Field(ge=1, le=2**16)]
Depth = Annotated[int, Field(ge=0, le=256)]
Steps = Annotated[int, Field(ge=1, le=10**7)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Classes = Annotated[int, Field(ge=2, le=2**16)]


class Section(BaseModel):
    """Settings that know every one of their keys; types are not coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
