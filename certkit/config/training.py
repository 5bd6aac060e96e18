"""The data, the optimiser, the constraint, the loss, and comparisons of several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from certkit.config.sections import Extent, Positive, Section, Seed, Share, Steps
from certkit.errors import one_line

Rates = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=64, strict=False)]
Texts = Annotated[tuple[str, ...], Field(max_length=64, strict=False)]


class DataConfig(Section):
    """The samples: digits, a Hugging Face name, or a local folder; for language models a folder of text."""

    name: str = Field("digits", description="digits, a Hugging Face data set name, or a folder.")
    train: str = Field("train", description="Split to train on.")
    test: str = Field("test", description="Split to report on; never trained on.")
    validation: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="Share of the training split that is held out for the validation curve."
    )
    tokenizer: str = Field("character", description="Of text: character, gpt2, or a folder with GPT-2's BPE files.")


class TrainingConfig(Section):
    """The optimiser, the constraint and the loss."""

    optimizer: Literal["muon", "adamw", "sgd"] = Field(
        "muon", description="Steps matrices and tables; under muon, biases and constant scores go by Adam."
    )
    scale: Literal["geometry", "rms", "original", "match-rms-adamw", "spectral"] = Field(
        "geometry",
        description="Length of a Muon step: steepest in the norm that each layer declares, or a published rule.",
    )
    constraint: Literal[
        "none",
        "weight-decay",
        "spectral-weight-decay",
        "spectral-normalize",
        "spectral-normalize-proved",
        "stiefel",
        "spectral-hammer",
        "spectral-soft-cap",
        "spectral-hard-cap",
        "svd-clip",
    ] = Field("stiefel", description="Holds every weight at or under its cap after every step.")
    cap: Positive = Field(1.0, description="Multiplies the cap that each layer declares.")
    learning_rate: Positive = Field(0.05, description="Norm of one Muon step; the rate of AdamW and SGD.")
    entry_learning_rate: Positive = Field(0.01, description="Adam's, for biases and constant scores beside Muon.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Decoupled: weights shrink by rate times this."
    )
    momentum: Share = Field(0.9, description="Of Muon and SGD; the first beta of AdamW.")
    nesterov: bool = Field(True, description="Whether Muon and SGD look ahead along their momentum.")
    beta2: Share = Field(0.99, description="The second beta of AdamW, and of Adam beside Muon.")
    sensitivity: bool = Field(False, description="Whether each layer's step is divided by its measured sensitivity.")
    steps: Steps = Field(800, description="Batches in all.")
    batch: Extent = Field(128, description="Samples per step, over all processes together.")
    pieces: Extent = Field(1, description="Parts that each process computes its share of a batch in, to save memory.")
    warmup: Annotated[int, Field(ge=0, le=10**7)] = Field(0, description="Steps over which the rate rises from 0.")
    decay_from: Annotated[float, Field(ge=0, le=1)] = Field(
        1 / 3, description="Share of the run after which the rate falls linearly to 0; 1 for never."
    )
    seed: Seed = Field(0, description="Of weights, batches and augmentation.")
    loss: Literal["offset-cross-entropy", "hinge", "cross-entropy"] = Field(
        "offset-cross-entropy", description="What is minimised; the first two ask for certified margins."
    )
    eps: Annotated[float, Field(ge=0)] = Field(0.35, description="l2 radius that the loss asks to be certified.")
    temperature: Positive = Field(0.1, description="Of the offset cross-entropy, in units of the Lipschitz bound.")
    shift: Annotated[float, Field(ge=0)] = Field(
        0.25, description="Largest random shift of a training image, in pixels."
    )
    flip: bool = Field(False, description="Whether training images are mirrored at random.")
    refresh: Steps = Field(50, description="Steps between two measurements: bound of the loss, norms, metrics.")
    save: Steps = Field(500, description="Steps between two states from which an interrupted run goes on.")
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="Of the forward pass; bfloat16 is autocast over float32 weights."
    )
    compile: bool = Field(False, description="Whether torch.compile translates the network first.")


class Contender(Section):
    """One row of a comparison: what it changes in the run, and the learning rates that it is given."""

    name: str = Field(description="What the row is called.")
    learning_rates: Rates = Field(description="Each is tried with every seed; the best on validation is reported.")
    set: dict[str, Any] = Field(
        default_factory=dict, description="What changes, as in a run file; a model is replaced."
    )

    @model_validator(mode="after")
    def _each_rate_once(self) -> Contender:
        for rate in _twice(self.learning_rates):
            raise ValueError(f"learning_rates: {rate!r} stands twice")
        return self


class ComparisonConfig(Section):
    """Several ways to train on the same samples, over seeds and learning rates."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=64, strict=False)] = Field(
        (0, 1, 2), description="Every row runs with each of them."
    )
    target: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="Validation accuracy to count steps to.")
    eps: Texts = Field((), description="l2 radii at which the best runs are certified and attacked.")
    limit: Extent = Field(360, description="Test samples that are certified and attacked.")
    rows: Annotated[tuple[Contender, ...], Field(min_length=1, max_length=64, strict=False)] = Field(
        description="The contenders."
    )

    @model_validator(mode="after")
    def _each_row_and_seed_once(self) -> ComparisonConfig:
        for seed in _twice(self.seeds):
            raise ValueError(f"seeds: {seed} stands twice")
        for name in _twice(row.name for row in self.rows):
            raise ValueError(f"rows: two rows are called {one_line(name, 80)!r}")
        return self


def _twice(values: Iterable[Any]) -> list[Any]:
    """What stands there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]
