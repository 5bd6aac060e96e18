"""What is learned: labels of images, or the next token of a text. Each task draws batches and judges logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.config import Images, Language, Run, TrainingConfig
from certkit.data import Dataset, load
from certkit.errors import ConfigError, one_line
from certkit.text import Tokens, load_text
from certkit.training import losses
from certkit.training.augment import Change

PIECE = 256  # samples that are judged at once
WINDOWS = 64  # of text, for a validation or a training accuracy
TESTED = 4096  # of text at most, for the test accuracy


@dataclass(frozen=True, slots=True)
class Judged:
    """How a network did on some samples: sum of losses over ``total`` predictions, ``correct`` of them right."""

    loss: float
    correct: int
    total: int

    @property
    def mean_loss(self) -> float:
        """The loss per prediction."""
        return self.loss / max(self.total, 1)

    @property
    def accuracy(self) -> float:
        """The share of right predictions."""
        return self.correct / max(self.total, 1)


class Task(Protocol):
    """Where batches come from and what they are judged by."""

    def batch(self, generator: torch.Generator, part: slice) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one process's ``part`` of the next batch, all of which is drawn from ``generator``."""
        ...

    def probe(self) -> Tensor:
        """A few fixed training inputs, to measure activations on."""
        ...

    def held_out(self) -> tuple[Tensor, Tensor] | None:
        """Inputs and targets of the validation curve, or None when nothing was held out."""
        ...

    def seen(self) -> tuple[Tensor, Tensor]:
        """As many training inputs and targets as are judged for the training accuracy."""
        ...

    def tested(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the test split."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ImageTask:
    """Labelled images; a batch is drawn with replacement, moved and mirrored."""

    settings: TrainingConfig
    training: Dataset
    testing: Dataset
    images: Tensor
    labels: Tensor
    held: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, run: Run, training: Dataset, testing: Dataset, device: str) -> ImageTask:
        """The task on these data sets, on ``device`` in the precision of the run; validation samples set apart."""
        dtype = torch.float64 if run.training.precision == "float64" else torch.float32
        images, labels = training.images.to(device, dtype), training.labels.to(device)
        held = None
        if run.data.validation:
            count = round(run.data.validation * len(labels))
            if not 0 < count < len(labels):
                raise ConfigError(f"data.validation {run.data.validation:g} of {len(labels)} samples holds out {count}")
            # One order for every seed: the held-out samples are the same in all runs that are compared.
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(device)
            held = images[order[:count]], labels[order[:count]]
            images, labels = images[order[count:]], labels[order[count:]]
        return cls(run.training, training, testing, images, labels, held)

    def batch(self, generator: torch.Generator, part: slice) -> tuple[Tensor, Tensor]:
        """Images and labels."""
        size = self.settings.batch
        picked = torch.randint(len(self.labels), (size,), generator=generator)
        change = Change.drawn(size, self.settings.shift, self.settings.flip, generator)
        mine = picked[part].to(self.labels.device)
        return change.of(self.images[mine], part), self.labels[mine]

    def probe(self) -> Tensor:
        """The first images."""
        return self.images[:64]

    def held_out(self) -> tuple[Tensor, Tensor] | None:
        """The images that were set apart."""
        return self.held

    def seen(self) -> tuple[Tensor, Tensor]:
        """As many training images as there are test images, at most."""
        count = len(self.testing.labels)
        return self.images[:count], self.labels[:count]

    def tested(self) -> tuple[Tensor, Tensor]:
        """The test images."""
        return self.testing.images.to(self.images), self.testing.labels.to(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class TextTask:
    """Windows of a token sequence, each entry to be told from those before it.

    ``training`` and ``held`` are the two parts of one training text; their records name the whole of it.
    """

    settings: TrainingConfig
    training: Tokens
    testing: Tokens
    held: Tokens | None
    context: int
    device: str

    @classmethod
    def of(cls, run: Run, training: Tokens, testing: Tokens, context: int, device: str) -> TextTask:
        """The task on these texts; the end of the training text is set apart for validation."""
        held = None
        if run.data.validation:
            count = round(run.data.validation * len(training.ids))
            kept = len(training.ids) - count
            training, held = replace(training, ids=training.ids[:kept]), replace(training, ids=training.ids[kept:])
        return cls(run.training, training, testing, held, context, device)

    def batch(self, generator: torch.Generator, part: slice) -> tuple[Tensor, Tensor]:
        """Windows and the same windows one token later."""
        x, y = self.training.batch(generator, self.settings.batch, self.context)
        return x[part].to(self.device), y[part].to(self.device)

    def probe(self) -> Tensor:
        """The first windows of the training text."""
        return self.training.windows(self.context, 8)[0].to(self.device)

    def held_out(self) -> tuple[Tensor, Tensor] | None:
        """Windows of the end of the training text."""
        return None if self.held is None else self._windows(self.held, WINDOWS)

    def seen(self) -> tuple[Tensor, Tensor]:
        """The first windows of the training text."""
        return self._windows(self.training, WINDOWS)

    def tested(self) -> tuple[Tensor, Tensor]:
        """The whole windows of the test text, the first ``TESTED`` of them at most."""
        return self._windows(self.testing, TESTED)

    def _windows(self, tokens: Tokens, limit: int) -> tuple[Tensor, Tensor]:
        x, y = tokens.windows(self.context, limit)
        return x.to(self.device), y.to(self.device)


def task_of(run: Run, device: str) -> ImageTask | TextTask:
    """The task that a run names, its data read. Raises DataError for what is missing, ConfigError where it does not fit."""
    if run.data.train == run.data.test:
        raise ConfigError(
            f"data.test {one_line(run.data.test)!r} is the training split; the test split is never trained on"
        )
    if isinstance(run.model, Language):
        found = [
            load_text(run.data.name, split, tokenizer=run.data.tokenizer) for split in (run.data.train, run.data.test)
        ]
        if found[0].vocabulary > run.model.vocabulary:
            raise ConfigError(
                f"text {found[0].record.name!r} has {found[0].vocabulary} tokens, the model {run.model.vocabulary}; "
                f"set model.vocabulary"
            )
        if run.training.loss != "cross-entropy":
            raise ConfigError(f"training.loss {run.training.loss!r} is for images; expected 'cross-entropy' for text")
        task = TextTask.of(run, found[0], found[1], run.model.context, device)
        task.tested()  # raises for a text that is too short before anything is trained
        return task
    training, testing = load(run.data.name, run.data.train), load(run.data.name, run.data.test)
    for data in (training, testing):
        _fits(run.model, data)
    return ImageTask.of(run, training, testing, device)


def _fits(model: Images, data: Dataset) -> None:
    """The model must read these images and name these classes. Raises ConfigError saying what would."""
    shape = tuple(data.images.shape[1:])
    if shape != (model.channels, model.image_size, model.image_size):
        raise ConfigError(
            f"data set {data.record.name!r} has images of {' x '.join(map(str, shape))}, the model reads "
            f"{model.channels} x {model.image_size} x {model.image_size}; set model.image_size and model.channels"
        )
    if len(data.record.classes) != model.classes:
        raise ConfigError(
            f"data set {data.record.name!r} has {len(data.record.classes)} classes, the model {model.classes}; "
            "set model.classes"
        )


@torch.no_grad()
def judge(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Judged:
    """How the network does on inputs and targets, in eval mode, piece by piece; the loss is cross-entropy."""
    was_training = model.training
    model.eval()
    loss, correct, total = 0.0, 0, 0
    inputs, targets = samples
    size = PIECE if inputs.is_floating_point() else max(1, 2**14 // inputs.shape[-1])
    for x, y in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
        logits, wanted = model(x).flatten(0, -2), y.flatten()
        loss += float(F.cross_entropy(logits.float(), wanted, reduction="sum"))
        correct += losses.correct(logits, wanted)
        total += len(wanted)
    model.train(was_training)
    return Judged(loss, correct, total)
