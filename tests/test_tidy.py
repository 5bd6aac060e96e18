"""A graph made plain computes what the module computes, and what cannot be made plain is refused as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from certkit.engine.execute import centres
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export, operator_name
from certkit.errors import Refusal

SHAPE = (5, 4)  # tokens, features


class Of(nn.Module):
    """A function of x (batch, 5, 4) and of two fixed weights, to logits (batch, 3)."""

    def __init__(self, function: Callable[[Of, Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.function = function
        self.w = nn.Parameter(torch.randn(4, 12, generator=generator))
        self.b = nn.Parameter(torch.randn(12, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv1d(net: Of, x: Tensor) -> Tensor:
    """As GPT-2 writes a linear map: all tokens of all samples in one matrix."""
    return torch.addmm(net.b, x.view(-1, 4), net.w).view(x.shape[0], 5, 12)


def joint(net: Of, x: Tensor) -> Tensor:
    """(parts, batch, tokens, features) of one projection."""
    return (x @ net.w + net.b).view(x.shape[0], 5, 3, 4).permute(2, 0, 1, 3)


TIDIED: dict[str, Callable[[Of, Tensor], Tensor]] = {
    "addmm of all tokens": lambda net, x: conv1d(net, x).mean(1)[:, :3],
    "mm of all tokens": lambda net, x: (x.view(-1, 4) @ net.w).view(x.shape[0], 5, 12).mean(1)[:, :3],
    "parts unbound": lambda net, x: sum(part.mean(1)[:, :3] for part in joint(net, x)),  # type: ignore[misc]
    "parts selected": lambda net, x: (joint(net, x)[0] - joint(net, x)[2]).mean(1)[:, :3],
    "parts split and squeezed": lambda net, x: sum(  # type: ignore[misc]
        part.squeeze(0).mean(1)[:, :3] for part in joint(net, x).split(1)
    ),
    "the same type": lambda net, x: torch.softmax(x, -1, dtype=x.dtype).to(x.dtype).mean(1)[:, :3],
}


@pytest.mark.parametrize("name", TIDIED)
def test_a_tidied_graph_computes_what_the_module_computes(name: str) -> None:
    module = Of(TIDIED[name]).double().eval()
    program = export(module, SHAPE)
    x = torch.rand(6, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(centres(program, x), module(x), rtol=1e-12, atol=1e-12)
    assert Interpreter(program)("l2", (0.0, 1.0)).pairs.gain[0][1].to_float() > 0


def test_a_matrix_of_all_tokens_is_bounded_as_the_linear_map_that_it_is() -> None:
    def direct(net: Of, x: Tensor) -> Tensor:
        return nn.functional.linear(x, net.w.T, net.b).mean(1)[:, :3]

    module, same = Of(TIDIED["addmm of all tokens"]).eval(), Of(direct).eval()
    found, expected = (Interpreter(export(net, SHAPE))("l2", (0.0, 1.0)).pairs.gain for net in (module, same))
    assert found == expected
    assert "aten.addmm.default" not in [operator_name(node) for node in export(module, SHAPE).nodes]


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: joint(net, x).mean(0).mean(1)[:, :3],
        lambda net, x: torch.flip(joint(net, x), (0,))[0].mean(1)[:, :3],
        lambda net, x: x.view(-1, 4).softmax(0).view(x.shape).mean(1)[:, :3],
    ],
    ids=["mean over the parts", "parts turned round", "softmax over the tokens of all samples"],
)
def test_a_batch_axis_that_is_really_moved_is_refused(function: Callable[[Of, Tensor], Tensor]) -> None:
    program = export(Of(function).eval(), SHAPE)
    with pytest.raises(Refusal, match=r"batch axis"):
        Interpreter(program)("l2", (0.0, 1.0))


def test_another_precision_is_not_taken_for_the_same() -> None:
    module = Of(lambda net, x: torch.softmax(x, -1, dtype=torch.float64).to(x.dtype).mean(1)[:, :3]).eval()
    with pytest.raises(
        Refusal, match=r"^the model: aten\.softmax\.int with another precision \(torch\.float64\) has no rule"
    ):
        Interpreter(export(module, SHAPE))("l2", (0.0, 1.0))


def test_a_constant_of_the_code_is_part_of_the_graphs_identity() -> None:
    def net(value: float) -> nn.Module:
        module = Of(lambda net, x: (x + net.shift).mean(1)[:, :3])  # type: ignore[operator]
        module.register_buffer("shift", torch.full((4,), value), persistent=False)
        return module.eval()

    one, same, other = (export(net(value), SHAPE).sha256 for value in (0.5, 0.5, 0.25))
    assert one == same != other


@pytest.mark.parametrize("shape", [(5, 3), (2**40, 2**20)], ids=["another shape", "more than there is memory"])
def test_an_input_that_the_model_cannot_read_is_one_line(
    shape: tuple[int, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        Refusal, match=r"^torch\.export cannot capture this model on an input of shape \(1, \d+, \d+\) \("
    ):
        export(Of(lambda net, x: (x + net.w.T[0]) @ net.w).eval(), shape)
    assert capfd.readouterr().err == ""
