"""Lipschitz networks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from certkit.config import VisionTransformerConfig


def create(config: VisionTransformerConfig) -> nn.Module:
    """A freshly initialised network of this architecture, in training mode."""
    from certkit.models.vit import VisionTransformer

    return VisionTransformer(config)


def describe(config: VisionTransformerConfig) -> str:
    """The architecture in a few words, for display."""
    return f"{config.name} {config.blocks}x{config.width}, {config.heads} heads"


def build(config: dict[str, Any]) -> tuple[nn.Module, str]:
    """The architecture that a checkpoint's config.json describes, and its name. Raises CheckpointError otherwise."""
    import torch

    from certkit.config import validate

    try:
        run = validate(config, "config.json")
    except ConfigError as error:
        raise CheckpointError(f"{error}; for another architecture give --model package.module:factory") from None
    model = run.model
    # Without memory: the weights come from the file, and a stranger's config must not be able to ask for more than it holds.
    with torch.device("meta"):
        module = create(model)
    return module, describe(model)
