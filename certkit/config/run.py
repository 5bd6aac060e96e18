"""One training run, or a comparison of several."""

from __future__ import annotations

from pydantic import Field

from certkit.config.models import ModelConfig, VisionTransformerConfig
from certkit.config.sections import Section
from certkit.config.training import ComparisonConfig, DataConfig, TrainingConfig


class Run(Section):
    """One training run. With ``compare`` it is the common part of many."""

    description: str = Field("", description="One line for certkit presets.")
    model: ModelConfig = VisionTransformerConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    compare: ComparisonConfig | None = None
