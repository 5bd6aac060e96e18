"""The architectures that a run can name, each with its settings."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from certkit.config.sections import MAX_ENTRIES, Classes, Depth, Extent, Positive, Section, Share

MAX_WEIGHTS = 2**31  # 8 GiB in float32
MAX_VALUES = 2**28  # of one sample at one place: 1 GiB in float32
MAX_TEXT_ENTRIES = 2**24  # the tables of rotary positions take memory before any weight is read
MAX_LAYERS = 1024  # a layer takes 2 ms to make, even one without memory


def refuse_more(count: int, what: str, most: int) -> None:
    """Raises ValueError where a configuration asks for more than certkit builds."""
    if count > most:
        raise ValueError(f"{count} {what}; certkit builds at most {most}")


class Images(Section):
    """What every classifier of images is told of them."""

    image_size: Extent = Field(8, description="Pixels along one side of the square image.")
    channels: Extent = Field(1, description="1 for grey, 3 for colour.")
    classes: Classes = Field(10, description="Logits.")


class Patches(Images):
    """Images cut into square patches, each of which becomes a token."""

    patch: Extent = Field(2, description="Pixels along one side of a patch; divides image_size.")
    width: Extent = Field(16, description="Entries of one token; even, and divisible by heads.")
    heads: Extent = Field(4, description="Attention heads.")
    blocks: Depth = Field(1, description="Blocks of attention and tokenwise layers.")
    dropout: Share = Field(0.0, description="Share of entries dropped while training.")

    @model_validator(mode="after")
    def _divides(self) -> Patches:
        if self.image_size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide image_size {self.image_size}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and divisible by heads, {self.heads}")
        entries = self.tokens * self.width
        refuse_more(entries, "entries in all tokens together", MAX_ENTRIES)
        refuse_more(self.heads * self.tokens**2, "scores in one attention layer", MAX_VALUES)
        refuse_more(self.weights, "weights in all", MAX_WEIGHTS)
        return self

    @property
    def tokens(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def weights(self) -> int:
        """Entries of all weights together."""
        raise NotImplementedError


class VisionTransformerConfig(Patches):
    """A Lipschitz vision transformer."""

    name: Literal["vit"] = "vit"
    mlp_layers: Depth = Field(1, description="Tokenwise linear layers after the attention of each block.")
    hidden_layers: Depth = Field(1, description="Layers over all tokens before the head.")
    hidden_width: Annotated[int, Field(ge=0, le=2**16)] = Field(
        0, description="Width of those layers, even; 0 for as many entries as all tokens have."
    )
    residual: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Weight a of (1-a)x + a attention(x).")
    scale: Positive = Field(0.5, description="Attention scores are scale / head width times q·k.")
    position: float = Field(9.0, description="First constant score of each head for its own neighbour of a token.")
    position_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Share of entry_learning_rate at which constant scores move."
    )

    @model_validator(mode="after")
    def _shallow(self) -> VisionTransformerConfig:
        if self.hidden_width % 2:
            raise ValueError(f"hidden_width {self.hidden_width} must be even: maxmin sorts entries in pairs")
        refuse_more(self.blocks * (1 + self.mlp_layers), "layers in all blocks", MAX_LAYERS)
        return self

    @property
    def weights(self) -> int:
        tokens, width = self.tokens, self.width
        everything = tokens * width
        linear = width**2 + everything  # with a bias per token
        block = 3 * width**2 + self.heads * tokens**2 + (1 + self.mlp_layers) * linear
        embed = self.channels * self.patch**2 * width + everything
        layers = sum((width + 1) * out for width, out in pairwise((*self.hidden, self.classes)))
        return embed + self.blocks * block + layers

    @property
    def hidden(self) -> tuple[int, ...]:
        """The widths over all tokens: their entries together, then each hidden layer."""
        everything = self.tokens * self.width
        return (everything, *(self.hidden_width or everything,) * self.hidden_layers)


class VisionBaselineConfig(Patches):
    """A standard pre-normalised vision transformer with LayerNorm, biases and GELU: the honest baseline."""

    name: Literal["vit-layernorm"] = "vit-layernorm"
    expansion: Extent = Field(2, description="Hidden width of each MLP, as a multiple of width.")

    @property
    def weights(self) -> int:
        embed = (self.channels * self.patch**2 + 1 + self.tokens) * self.width
        return embed + normalised(self.width, self.expansion, self.blocks) + (self.width + 1) * self.classes


class MultilayerConfig(Images):
    """A multilayer perceptron over the flattened image."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Extent, ...], Field(max_length=64, strict=False)] = Field(
        (256, 256), description="Widths of the hidden layers."
    )
    activation: Literal["maxmin", "relu", "gelu", "abs"] = Field("maxmin", description="Between two layers.")
    bias: bool = Field(True, description="Whether layers add a bias.")
    centred: bool = Field(True, description="Whether 1/2 is subtracted from every pixel first.")
    units: Literal["l2", "rms"] = Field("l2", description="Norm of the caps: l2 -> l2, or RMS -> RMS.")
    zero_head: bool = Field(False, description="Whether the last layer starts at zero.")
    dropout: Share = Field(0.0, description="Share of entries dropped while training.")

    @model_validator(mode="after")
    def _pairs(self) -> MultilayerConfig:
        if self.activation == "maxmin" and any(width % 2 for width in self.hidden):
            raise ValueError(f"hidden {list(self.hidden)} must be even: maxmin sorts entries in pairs")
        refuse_more(self.widths[0], "pixels", MAX_ENTRIES)
        refuse_more(self.weights, "weights in all", MAX_WEIGHTS)
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Entries before, between and after the layers."""
        return (self.channels * self.image_size**2, *self.hidden, self.classes)

    @property
    def weights(self) -> int:
        """Entries of all weights together."""
        return sum((width + self.bias) * out for width, out in pairwise(self.widths))


class Language(Section):
    """What every causal language model is told of its text."""

    vocabulary: Annotated[int, Field(ge=2, le=2**16)] = Field(65, description="Tokens that the tokenizer knows.")
    context: Extent = Field(256, description="Tokens that the model reads at once.")
    width: Extent = Field(256, description="Entries of one token; even per head, and divisible by heads.")
    heads: Extent = Field(4, description="Attention heads.")
    blocks: Depth = Field(3, description="Blocks of attention and MLP.")
    expansion: Extent = Field(4, description="Hidden width of each MLP, as a multiple of width.")
    dropout: Share = Field(0.0, description="Share of entries dropped while training.")

    @model_validator(mode="after")
    def _divides(self) -> Language:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width {self.width} must be divisible by heads, {self.heads}, into even parts")
        refuse_more(self.context * self.width, "entries in all tokens together", MAX_TEXT_ENTRIES)
        refuse_more(self.heads * self.context**2, "scores in one attention layer", MAX_VALUES)
        refuse_more(self.context * self.width * self.expansion, "entries inside one MLP", MAX_VALUES)
        refuse_more(self.context * self.vocabulary, "logits of one text", MAX_VALUES)
        refuse_more(self.weights, "weights in all", MAX_WEIGHTS)
        return self

    @property
    def weights(self) -> int:
        """Entries of all weights together."""
        raise NotImplementedError


class LanguageModelConfig(Language):
    """A Lipschitz transformer for text: convex residuals, no normalisation, rotary positions, every head counted."""

    name: Literal["gpt"] = "gpt"
    scale: Positive = Field(1.0, description="Attention scores are scale / head width times q·k.")
    final_scale: Positive = Field(1.0, description="Factor of the logits.")
    activation: Literal["gelu", "maxmin", "abs", "relu"] = Field(
        "gelu", description="Inside the MLPs, slope at most 1."
    )
    zero_outputs: bool = Field(False, description="Whether the last layer of each attention and MLP starts at zero.")

    @property
    def weights(self) -> int:
        return 2 * self.vocabulary * self.width + self.blocks * (4 + 2 * self.expansion) * self.width**2


class LanguageBaselineConfig(Language):
    """A standard pre-normalised transformer for text with LayerNorm, biases and GELU: the honest baseline."""

    name: Literal["gpt-layernorm"] = "gpt-layernorm"

    @property
    def weights(self) -> int:
        tables = (2 * self.vocabulary + self.context) * self.width
        return tables + normalised(self.width, self.expansion, self.blocks)


def normalised(width: int, expansion: int, blocks: int) -> int:
    """Entries of the weights of pre-normalised blocks, biases and the last LayerNorm included."""
    matrices, biases, norms = (4 + 2 * expansion) * width**2, (5 + expansion) * width, 4 * width
    return blocks * (matrices + biases + norms) + 2 * width


ARCHITECTURES: dict[str, type[Section]] = {
    "vit": VisionTransformerConfig,
    "vit-layernorm": VisionBaselineConfig,
    "mlp": MultilayerConfig,
    "gpt": LanguageModelConfig,
    "gpt-layernorm": LanguageBaselineConfig,
}


def _architecture(value: Any) -> Any:
    """Which architecture a table describes; without a name, a vision transformer."""
    return value.get("name", "vit") if isinstance(value, dict) else getattr(value, "name", None)


ModelConfig: TypeAlias = Annotated[
    Annotated[VisionTransformerConfig, Tag("vit")]
    | Annotated[VisionBaselineConfig, Tag("vit-layernorm")]
    | Annotated[MultilayerConfig, Tag("mlp")]
    | Annotated[LanguageModelConfig, Tag("gpt")]
    | Annotated[LanguageBaselineConfig, Tag("gpt-layernorm")],
    Discriminator(_architecture),
]
ImageModelConfig: TypeAlias = VisionTransformerConfig | VisionBaselineConfig | MultilayerConfig
TextModelConfig: TypeAlias = LanguageModelConfig | LanguageBaselineConfig
