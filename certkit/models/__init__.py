"""Networks by name, each made from its settings; importing this loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certkit.config import (
    LanguageBaselineConfig,
    LanguageModelConfig,
    ModelConfig,
    MultilayerConfig,
    VisionBaselineConfig,
    VisionTransformerConfig,
    validate,
)
from certkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn


def create(config: ModelConfig) -> nn.Module:
    """A freshly initialised network of this architecture, in training mode."""
    from certkit.models import baseline, gpt, mlp, vit

    match config:
        case VisionTransformerConfig():
            return vit.VisionTransformer(config)
        case VisionBaselineConfig():
            return baseline.VisionBaseline(config)
        case MultilayerConfig():
            return mlp.Multilayer(config)
        case LanguageModelConfig():
            return gpt.language_model(config)
        case LanguageBaselineConfig():
            return baseline.language_baseline(config)


def describe(config: ModelConfig) -> str:
    """The architecture in a few words, for display."""
    match config:
        case MultilayerConfig():
            return f"{config.name} {'-'.join(map(str, config.widths))}, {config.activation}"
        case LanguageModelConfig() | LanguageBaselineConfig():
            text = f", {config.vocabulary} tokens, context {config.context}"
        case VisionTransformerConfig() | VisionBaselineConfig():
            text = ""
    return f"{config.name} {config.blocks}x{config.width}, {config.heads} heads{text}"


def activations(module: nn.Module) -> dict[str, nn.Module]:
    """The parts whose output a training run watches, by name and in the order in which they run; the last is ``logits``."""
    from torch import nn

    parts: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential) and name in {"blocks", "hidden"}:
            parts |= {f"{name}.{index}": part for index, part in child.named_children()}
        elif name != "patches":
            parts["logits" if name == "head" else name] = child
    return parts


def build(config: dict[str, Any]) -> tuple[nn.Module, str]:
    """The architecture that a checkpoint's config.json describes, and its name. Raises CheckpointError otherwise."""
    import torch

    try:
        run = validate(config, "config.json")
    except ConfigError as error:
        raise CheckpointError(f"{error}; for another architecture give --model package.module:factory") from None
    # Without memory: the weights come from the file, and a stranger's config must not be able to ask for more than it holds.
    with torch.device("meta"):
        module = create(run.model)
        if run.training.precision == "float64":
            module = module.double()
    return module, describe(run.model)
