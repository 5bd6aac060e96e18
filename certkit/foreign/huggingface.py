"""Folders of Hugging Face: ``config.json`` that names a ``model_type``, with ``model.safetensors`` beside it.

The architecture comes from the ``transformers`` package, by a fixed table of classes; code of a checkpoint is never run and
nothing is downloaded. What the module reads are images in [0, 1], or the embeddings of tokens; what it gives are logits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certkit.checkpoint import CONFIG, WEIGHTS, Checkpoint, read, settings
from certkit.errors import CheckpointError, ConfigError, one_line, suggestion
from certkit.files import digest
from certkit.foreign.images import PREPROCESSOR, Normalised, normalisation_of
from certkit.records import Subject

IMAGES = {
    "beit": "BeitForImageClassification",
    "convnext": "ConvNextForImageClassification",
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "resnet": "ResNetForImageClassification",
    "vit": "ViTForImageClassification",
}
LANGUAGE = {"gpt2": "GPT2LMHeadModel"}
SEQUENCES = {
    "albert": "AlbertForSequenceClassification",
    "bert": "BertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
}
CLASSES = IMAGES | LANGUAGE | SEQUENCES
SHARDS = "model.safetensors.index.json"
FOREIGN_CODE = ("auto_map", "quantization_config", "custom_pipelines")
CHOSEN_HERE = ("attn_implementation", "_attn_implementation", "experts_implementation", "dtype", "torch_dtype")


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A network in eval mode, in float32, with its identity.

    ``embeddings`` (words, features) are the vectors that its tokens become, for a network that reads such; None for images.
    """

    module: nn.Module
    subject: Subject
    embeddings: Tensor | None


class Embedded(nn.Module):
    """Embeddings (batch, tokens, features) to logits (batch, classes), of the last token in a language model."""

    def __init__(self, network: nn.Module, *, language: bool) -> None:
        super().__init__()
        self.network, self.language = network, language

    def forward(self, x: Tensor) -> Tensor:
        if not self.language:
            logits: Tensor = self.network(inputs_embeds=x).logits
            return logits
        logits = self.network(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits
        return logits[:, -1]


def is_folder(path: Path) -> bool:
    """Whether the path is a folder whose config.json names a ``model_type``. Raises CheckpointError for a broken one."""
    if not os.path.isdir(path) or not os.path.isfile(Path(path) / CONFIG):
        return False
    found = settings(Path(path) / CONFIG)
    return found is not None and "model_type" in found


def load(path: Path, *, normalisation: str | None = None) -> Foreign:
    """The network in a folder of Hugging Face.

    Images are rescaled and normalised inside the module, as preprocessor_config.json says, so that its input is an image in
    [0, 1]; ``normalisation="none"`` leaves that out. The identity is the sha256 of the lines that ``sha256sum config.json
    model.safetensors preprocessor_config.json`` prints, the last only where it is read. Raises CheckpointError for a folder
    that is not complete, an architecture that is not in the table, or weights that are not exactly those of the network.
    """
    path = Path(path)
    if normalisation not in (None, "none"):
        raise ConfigError(f"--normalisation {one_line(normalisation, 40)!r} is unknown; expected none, or leave it out")
    config = settings(path / CONFIG)
    assert config is not None
    kind = _kind(config)
    if not (path / WEIGHTS).is_file():
        split = "its weights are split into several files; write them as one with save_pretrained(max_shard_size=...)"
        reason = split if (path / SHARDS).is_file() else "pickled weights (pytorch_model.bin) are not read"
        raise CheckpointError(f"{one_line(path.name, 120)}: no {WEIGHTS} in this folder; {reason}")
    found = read(path)
    network = _network(kind, config, found)
    digests = {CONFIG: digest((path / CONFIG).read_bytes()), WEIGHTS: found.sha256}
    embeddings: Tensor | None = None
    if kind in IMAGES:
        module: nn.Module = _Logits(network)
        if normalisation is None:
            module = Normalised(module, normalisation_of(path))
            digests[PREPROCESSOR] = digest((path / PREPROCESSOR).read_bytes())
    else:
        embeddings = network.get_input_embeddings().weight.detach()  # type: ignore[operator]
        module = Embedded(network, language=kind in LANGUAGE)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    subject = Subject(sha256=identity(digests), architecture=CLASSES[kind], parameters=parameters)
    return Foreign(module.eval(), subject, embeddings)


def identity(digests: Mapping[str, str]) -> str:
    """The sha256 of what ``sha256sum`` prints for these files, in the order of their names."""
    return digest("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode())


class _Logits(nn.Module):
    """The logits alone of an image classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def _kind(config: Mapping[str, Any]) -> str:
    """The ``model_type``, if its class is in the table. Raises CheckpointError."""
    for key in FOREIGN_CODE:
        if config.get(key):
            raise CheckpointError(f"{CONFIG}: {key!r} asks for code or formats that certkit does not read; remove it")
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in CLASSES:
        raise CheckpointError(
            f"{CONFIG}: model_type {one_line(repr(kind), 60)} is not one that certkit builds "
            f"({', '.join(sorted(CLASSES))}){suggestion(str(kind), CLASSES)}; for another, write a function that builds it and "
            "name it with --model package.module:factory"
        )
    if (problem := config.get("problem_type")) not in (None, "single_label_classification"):
        raise CheckpointError(
            f"{CONFIG}: problem_type {one_line(repr(problem), 60)} has an answer other than the largest logit, which is what a "
            "certificate speaks of"
        )
    named = config.get("architectures") or [CLASSES[kind]]
    if named != [CLASSES[kind]]:
        raise CheckpointError(
            f"{CONFIG}: the architecture is {one_line(named, 80)}; certkit certifies {CLASSES[kind]}, which gives logits"
        )
    return kind


def _network(kind: str, config: Mapping[str, Any], found: Checkpoint) -> nn.Module:
    """The class of the table with exactly these weights, in float32. Raises CheckpointError."""
    wide = [key for key, tensor in found.state.items() if tensor.dtype is torch.float64]
    if wide:
        raise CheckpointError(
            f"{found.name}: tensor {one_line(wide[0], 120)!r} is float64, which transformers would round to float32"
        )
    with _quiet() as transformers:
        try:
            cls = getattr(transformers, CLASSES[kind])
            given = {key: value for key, value in config.items() if key not in CHOSEN_HERE}
            network, report = cls.from_pretrained(
                None,
                config=cls.config_class.from_dict(given),
                state_dict=dict(found.state),
                dtype=torch.float32,
                attn_implementation="sdpa" if cls._supports_sdpa else "eager",
                output_loading_info=True,
                local_files_only=True,
            )
        except Exception as error:  # noqa: BLE001 - transformers raises anything on a configuration that cannot be meant
            raise CheckpointError(
                f"{CONFIG}: transformers cannot build {CLASSES[kind]} ({type(error).__name__}: {one_line(error, 160)})"
            ) from None
    for name, meaning in _FAULTS.items():
        if keys := sorted(map(str, report.get(name) or ())):
            shown = ", ".join(repr(one_line(key, 80)) for key in keys[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(f"{found.name}: {meaning.format(shown + more)}")
    made: nn.Module = network
    held = made.state_dict()
    for key in sorted(held.keys() & found.state.keys()):
        if not torch.equal(held[key].double(), found.state[key].double()):
            raise CheckpointError(
                f"{found.name}: tensor {one_line(key, 120)!r} is not what the model makes of it (rounded to float32, or tied to "
                "another tensor); it would be another network"
            )
    return made


_FAULTS = {
    "missing_keys": "the model needs {}, which the file lacks; they would be drawn at random",
    "mismatched_keys": "the model expects other shapes of {}; config.json is that of another network",
    "unexpected_keys": "the file holds {}, which the model does not have; it was written by another architecture",
    "error_msgs": "{}",
}


@contextmanager
def _quiet() -> Iterator[Any]:
    """The package ``transformers``, silent meanwhile. Raises ConfigError when it is not installed."""
    try:
        import transformers
    except ImportError:
        raise ConfigError("a folder of Hugging Face needs transformers: pip install 'certkit[hf]'") from None
    from transformers.utils import logging as told

    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity(logging.CRITICAL)
    told.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield transformers
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()  # type: ignore[no-untyped-call]
