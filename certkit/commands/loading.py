"""From a checkpoint on disk to a module in eval mode."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certkit.errors import CheckpointError, ConfigError, one_line

if TYPE_CHECKING:
    from torch import nn

    from certkit.data import Dataset
    from certkit.records import Subject


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What certify, attack and audit work on: a network in eval mode on the CPU, its identity, and the samples."""

    model: nn.Module
    subject: Subject
    data: Dataset


def load_inputs(checkpoint: Path, given: dict[str, Any]) -> Inputs:
    """The network and the samples that the options name, read once."""
    from certkit.data import load
    from certkit.models.gpt import LanguageModel

    model, subject = load_model(
        checkpoint,
        factory=given["model"],
        allow_pickle=given["allow_pickle"],
        normalisation=given.get("normalisation"),
    )
    if isinstance(model, LanguageModel):
        raise CheckpointError(
            f"{one_line(checkpoint.name, 120)}: {subject.architecture} reads text, and this command reads images; "
            "run certkit language CHECKPOINT --data FOLDER_OF_TEXT --out FOLDER"
        )
    samples = load(given["data"], given["split"], limit=given["limit"])
    compare_runtime(checkpoint, model, samples)
    return Inputs(model, subject, samples)


def compare_runtime(checkpoint: Path, model: nn.Module, data: Dataset) -> None:
    """Raises Refusal when an ONNX file gives other logits under the runtime of others than as certkit reads it."""
    from certkit.foreign import onnx

    if isinstance(model, onnx.Network):
        onnx.compare(checkpoint, model, data)


def load_model(
    checkpoint: Path, *, factory: str | None = None, allow_pickle: bool = False, normalisation: str | None = None
) -> tuple[nn.Module, Subject]:
    """The network of a checkpoint, in eval mode, and its identity.

    The architecture comes from the checkpoint's config.json (of certkit or of Hugging Face), from an ONNX file's own graph,
    or from ``factory`` (``package.module:function``), which is imported because the user named it on the command line;
    nothing in a file is ever imported. ``normalisation`` is for folders of Hugging Face. Raises CheckpointError or
    ConfigError.
    """
    from certkit.checkpoint import load_into, read
    from certkit.foreign import huggingface, onnx
    from certkit.models import build
    from certkit.records import Subject

    checkpoint = Path(checkpoint)
    folder = factory is None and huggingface.is_folder(checkpoint)
    if normalisation is not None and not folder:
        raise ConfigError("--normalisation is for folders of Hugging Face; this checkpoint is none")
    if folder:
        foreign = huggingface.load(checkpoint, normalisation=normalisation)
        if foreign.embeddings is not None:
            raise CheckpointError(
                f"{one_line(checkpoint.name, 120)}: {foreign.subject.architecture} reads text, and these commands read images; "
                "certify its embeddings from Python with certkit.foreign.text (docs/certify.md)"
            )
        return foreign.module, foreign.subject
    if factory is None and onnx.is_file(checkpoint):
        return onnx.load(checkpoint)
    found = read(checkpoint, allow_pickle=allow_pickle)
    if factory is not None:
        module, architecture = _made(factory), factory
    elif found.config is None:
        raise CheckpointError(
            f"{one_line(found.name)}: no config.json beside it says which architecture this is; "
            "name one with --model package.module:factory"
        )
    else:
        module, architecture = build(found.config)
    load_into(module, found)
    module.eval()
    parameters = sum(p.numel() for p in module.parameters())
    return module, Subject(sha256=found.sha256, architecture=one_line(architecture, 120), parameters=parameters)


def _made(factory: str) -> nn.Module:
    """What the factory returns. Raises ConfigError unless it is an nn.Module."""
    from torch import nn

    module_name, colon, attribute = factory.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"--model {one_line(factory)!r} is not of the form package.module:factory")
    sys.path.insert(0, os.getcwd())  # as python -m does: the user's own module usually stands beside the checkpoint
    try:
        made = getattr(importlib.import_module(module_name), attribute)()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        raise ConfigError(f"--model {one_line(factory)}: {type(error).__name__}: {one_line(error)}") from None
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(made, nn.Module):
        raise ConfigError(f"--model {one_line(factory)} returned a {type(made).__name__}; expected a torch.nn.Module")
    return made
