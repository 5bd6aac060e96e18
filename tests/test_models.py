"""Architectures: each is made, described, saved, built again, exported and trained; and what a configuration may ask for."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.checkpoint import Checkpoint, load_into, serialized
from certkit.config import (
    ARCHITECTURES,
    LanguageBaselineConfig,
    LanguageModelConfig,
    ModelConfig,
    MultilayerConfig,
    VisionBaselineConfig,
    VisionTransformerConfig,
    parse,
    preset,
    presets,
)
from certkit.engine.certify import pair_matrix
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CheckpointError, ConfigError
from certkit.models import activations, build, create, describe
from certkit.models.geometry import Entries, norm_over_cap, weights
from certkit.models.gpt import LanguageModel
from certkit.models.layers import Embedding

VIT = VisionTransformerConfig()
VIT_LAYERNORM = VisionBaselineConfig()
MLP = MultilayerConfig(hidden=(32, 16))
GPT = LanguageModelConfig(vocabulary=11, context=8, width=16, heads=4, blocks=2, expansion=2)
GPT_LAYERNORM = LanguageBaselineConfig(vocabulary=11, context=8, width=16, heads=4, blocks=2, expansion=2)

CASES: dict[str, ModelConfig] = {
    "vit": VIT,
    "vit residual dropout": VIT.model_copy(update={"residual": 0.5, "dropout": 0.1, "mlp_layers": 2, "blocks": 2}),
    "vit colour": VIT.model_copy(update={"channels": 3, "patch": 4, "hidden_layers": 0}),
    "vit-layernorm": VIT_LAYERNORM,
    "vit-layernorm deep": VIT_LAYERNORM.model_copy(update={"blocks": 3, "dropout": 0.1, "channels": 3}),
    "vit-layernorm flat": VIT_LAYERNORM.model_copy(update={"blocks": 0}),
    "mlp": MLP,
    "mlp gelu": MLP.model_copy(update={"activation": "gelu", "bias": False, "units": "rms", "dropout": 0.1}),
    "mlp relu": MLP.model_copy(update={"activation": "relu", "centred": False, "channels": 3}),
    "mlp abs": MLP.model_copy(update={"activation": "abs", "hidden": ()}),
    "gpt": GPT,
    "gpt one head": GPT.model_copy(update={"heads": 1, "activation": "maxmin", "dropout": 0.1, "final_scale": 8.0}),
    "gpt flat": GPT.model_copy(update={"blocks": 0, "scale": 0.5}),
    "gpt-layernorm": GPT_LAYERNORM,
    "gpt-layernorm dropout": GPT_LAYERNORM.model_copy(update={"dropout": 0.1, "blocks": 3}),
}


def each(*names: str) -> pytest.MarkDecorator:
    """Every case of these architectures."""
    found = {case: config for case, config in CASES.items() if config.name in names}
    return pytest.mark.parametrize("config", found.values(), ids=found.keys())


every_case = each(*ARCHITECTURES)


def made(config: ModelConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create(config)


def inputs(config: ModelConfig, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(config, LanguageModelConfig | LanguageBaselineConfig):
        return torch.randint(config.vocabulary, (batch, config.context), generator=generator)
    return torch.rand(batch, config.channels, config.image_size, config.image_size, generator=generator)


def test_every_architecture_has_a_case() -> None:
    assert {config.name for config in CASES.values()} == ARCHITECTURES.keys()


@every_case
def test_every_weight_declares_a_geometry_and_is_counted(config: ModelConfig) -> None:
    declared = list(weights(made(config)))
    assert sum(weight.numel() for _, weight, _ in declared) == config.weights


@each("vit", "mlp", "gpt")
def test_a_lipschitz_network_starts_at_its_caps(config: ModelConfig) -> None:
    for name, weight, geometry in weights(made(config)):
        if not isinstance(geometry, Entries):
            assert 1 - 1e-4 < norm_over_cap(weight, geometry) < 1 + 1e-5, name


@every_case
def test_logits_come_one_per_class_or_per_token_of_the_vocabulary(config: ModelConfig) -> None:
    x = inputs(config)
    expected = (3, 8, 11) if isinstance(config, LanguageModelConfig | LanguageBaselineConfig) else (3, config.classes)
    assert made(config)(x).shape == expected


@every_case
def test_a_checkpoint_is_built_without_memory_and_answers_alike(config: ModelConfig) -> None:
    model = made(config).eval()
    built, name = build({"model": config.model_dump(mode="json")})
    assert all(parameter.is_meta for parameter in built.parameters())
    load_into(built, Checkpoint(state=model.state_dict(), config=None, sha256="", name="model.safetensors"))
    built.eval()
    with torch.no_grad():
        assert torch.equal(built(inputs(config)), model(inputs(config)))
    assert serialized(built.state_dict()) == serialized(model.state_dict())
    assert name == describe(config)


@every_case
def test_a_checkpoint_holds_weights_and_nothing_else(config: ModelConfig) -> None:
    model = made(config)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


@every_case
def test_every_network_can_be_exported(config: ModelConfig) -> None:
    model, x = made(config).eval(), inputs(config, batch=1)
    if isinstance(config, LanguageModelConfig | LanguageBaselineConfig):
        program = torch.export.export(model, (x,), strict=False).run_decompositions({})
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)
    else:
        assert export(model, tuple(x.shape[1:])).input_shape == x.shape[1:]


@each("vit", "mlp")
def test_the_engine_bounds_vision_transformers_and_perceptrons(
    config: VisionTransformerConfig | MultilayerConfig,
) -> None:
    shape = tuple(inputs(config).shape[1:])
    gains = pair_matrix(Interpreter(export(made(config).eval(), shape))("l2", (0.0, 1.0)))
    assert 0 < float(gains.max()) < math.inf
    if isinstance(config, MultilayerConfig) and config.units == "l2":
        # every layer is 1-Lipschitz, and no two logits are further apart than sqrt(2) times the move of both
        assert float(gains.max()) < math.sqrt(2) * (1 + 1e-5)


@every_case
def test_activations_are_named_in_the_order_in_which_they_run(config: ModelConfig) -> None:
    model, ran = made(config).eval(), []
    for name, part in activations(model).items():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(inputs(config))
    assert ran == list(activations(model))
    assert ran[-1] == "logits"
    assert config.name == "mlp" or ran[0] == "embed"


@every_case
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_network_learns_in_either_precision(config: ModelConfig, precision: torch.dtype) -> None:
    model, x = made(config), inputs(config)
    labels = x.flatten() % 5 if x.dtype is torch.int64 else torch.arange(3)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            loss = F.cross_entropy(model(x).flatten(0, -2).float(), labels)
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        adam.step()
    assert losses[-1] < losses[0]


def test_the_preset_is_the_network_that_it_always_was() -> None:
    """Checkpoints written before stay readable, certificates before stay those of this graph."""
    model = made(preset("digits-vit").model).eval()
    assert list(model.state_dict()) == [
        "embed.0.weight",
        "embed.0.bias",
        "blocks.0.position_HTT",
        "blocks.0.q.weight",
        "blocks.0.k.weight",
        "blocks.0.v.weight",
        "blocks.0.out.weight",
        "blocks.0.out.bias",
        "blocks.2.weight",
        "blocks.2.bias",
        "hidden.0.weight",
        "hidden.0.bias",
        "head.weight",
        "head.bias",
    ]
    assert export(model, (1, 8, 8)).sha256 == "a57bf7098d674be274de6cd02ff57a8215fea44b2d05e1b608122b2d160f5fe2"
    first = "22bdfd28213b9dd3d6f06e39f73e93e91bfb5165c220798072e9521f6336707c"
    assert hashlib.sha256(serialized(model.state_dict())).hexdigest() == first


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (VIT, "vit 1x16, 4 heads"),
        (VIT_LAYERNORM, "vit-layernorm 1x16, 4 heads"),
        (MLP, "mlp 64-32-16-10, maxmin"),
        (GPT, "gpt 2x16, 4 heads, 11 tokens, context 8"),
        (GPT_LAYERNORM, "gpt-layernorm 2x16, 4 heads, 11 tokens, context 8"),
    ],
)
def test_an_architecture_is_described_in_a_line(config: ModelConfig, text: str) -> None:
    assert describe(config) == text


# Language models


def language(config: LanguageModelConfig | LanguageBaselineConfig, seed: int = 0) -> LanguageModel:
    model = made(config, seed)
    assert isinstance(model, LanguageModel)
    return model.double().eval().requires_grad_(False)  # type: ignore[return-value]


@pytest.mark.parametrize("config", [GPT, GPT_LAYERNORM], ids=["gpt", "gpt-layernorm"])
def test_later_tokens_change_no_earlier_logits(config: LanguageModelConfig | LanguageBaselineConfig) -> None:
    model, tokens_BT = language(config), inputs(config)
    before = model(tokens_BT)
    for place in range(1, config.context):
        changed_BT = tokens_BT.clone()
        changed_BT[:, place] = (changed_BT[:, place] + 1) % config.vocabulary
        after = model(changed_BT)
        assert torch.allclose(after[:, :place], before[:, :place], atol=1e-12)
        assert not torch.allclose(after[:, place], before[:, place], atol=1e-6)
    assert torch.allclose(model(tokens_BT[:, :3]), before[:, :3], atol=1e-12)


@pytest.mark.parametrize("config", [GPT, GPT_LAYERNORM], ids=["gpt", "gpt-layernorm"])
def test_a_text_longer_than_the_context_is_refused(config: LanguageModelConfig | LanguageBaselineConfig) -> None:
    with pytest.raises(ValueError, match=r"^9 tokens are more than the context of 8$"):
        language(config)(torch.zeros(1, 9, dtype=torch.int64))


def test_a_language_model_runs_from_its_embeddings() -> None:
    model, tokens_BT = language(GPT), inputs(GPT)
    assert torch.equal(model.from_embeddings(model.embed(tokens_BT)), model(tokens_BT))


def test_embeddings_start_with_rms_1() -> None:
    torch.manual_seed(0)
    assert torch.allclose(Embedding(7, 12).weight.square().mean(1), torch.ones(7), atol=1e-6)


def test_outputs_that_start_at_zero_leave_a_token_to_its_shortcuts() -> None:
    model = language(GPT.model_copy(update={"zero_outputs": True}))
    x_BTD = model.embed(inputs(GPT))
    assert torch.allclose(model.blocks(x_BTD), (3 / 4) ** 4 * x_BTD)


def test_a_head_that_starts_at_zero_answers_zero() -> None:
    model = made(MLP.model_copy(update={"zero_head": True}))
    assert not bool(model(inputs(MLP)).any())


# What a configuration may ask for


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'vit'\nwidth = 18", "width 18 must be even and divisible by heads, 4"),
        ("name = 'vit-layernorm'\npatch = 3", "patch 3 does not divide image_size 8"),
        ("name = 'mlp'\nhidden = [8, 7]", "hidden [8, 7] must be even: maxmin sorts entries in pairs"),
        ("name = 'gpt'\nwidth = 30", "width 30 must be divisible by heads, 4, into even parts"),
        ("name = 'gpt-layernorm'\nwidth = 20", "width 20 must be divisible by heads, 4, into even parts"),
        (
            "name = 'vit-layernorm'\nimage_size = 512\npatch = 1\nwidth = 2\nheads = 1",
            "68719476736 scores in one attention layer; certkit builds at most 268435456",
        ),
        (
            "name = 'vit'\nimage_size = 256\npatch = 8\nwidth = 1024",
            "1099535810570 weights in all; certkit builds at most 2147483648",
        ),
        ("name = 'vit'\nblocks = 256\nmlp_layers = 256", "65792 layers in all blocks; certkit builds at most 1024"),
        ("name = 'mlp'\nimage_size = 1025", "1050625 pixels; certkit builds at most 1048576"),
        (
            "name = 'mlp'\nhidden = [65536, 65536]",
            "4299948042 weights in all; certkit builds at most 2147483648",
        ),
        (
            "name = 'gpt'\ncontext = 65536\nwidth = 512",
            "33554432 entries in all tokens together; certkit builds at most 16777216",
        ),
        (
            "name = 'gpt'\ncontext = 65536",
            "17179869184 scores in one attention layer; certkit builds at most 268435456",
        ),
        (
            "name = 'gpt'\nexpansion = 65536",
            "4294967296 entries inside one MLP; certkit builds at most 268435456",
        ),
        (
            "name = 'gpt'\ncontext = 8192\nheads = 1\nwidth = 2\nvocabulary = 65536",
            "536870912 logits of one text; certkit builds at most 268435456",
        ),
        (
            "name = 'gpt-layernorm'\nwidth = 16384\ncontext = 8\nblocks = 4",
            "12888047616 weights in all; certkit builds at most 2147483648",
        ),
    ],
)
def test_a_network_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"[model]\n{text}".encode(), "run.toml")
    assert str(caught.value) == f"run.toml: model: {message}"


def test_a_checkpoint_of_an_unknown_architecture_says_what_to_do() -> None:
    with pytest.raises(CheckpointError) as caught:
        build({"model": {"name": "vti"}})
    assert str(caught.value) == (
        "config.json: model.name: expected 'vit' or 'vit-layernorm' or 'mlp' or 'gpt' or 'gpt-layernorm', got 'vti'; "
        "did you mean 'vit'?; for another architecture give --model package.module:factory"
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_defaults_of_every_architecture_are_one(name: str) -> None:
    assert parse(f"model.name = {name!r}".encode(), "run.toml").model == ARCHITECTURES[name]()


@pytest.mark.parametrize("name", presets())
def test_the_network_of_every_preset_is_built_with_the_weights_that_it_counts(name: str) -> None:
    config = preset(name).model
    model, _ = build({"model": config.model_dump(mode="json")})
    assert sum(parameter.numel() for parameter in model.parameters()) == config.weights
