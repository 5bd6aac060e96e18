"""From a module to its graph and bounds: what is captured, what masks mean, what the centre computes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.number import Up
from certkit.engine.execute import attention_nodes, attention_statistics, centres
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import Refusal
from tests.modules import BOX, MASK, SOFT, MultiHead, Net, attends, points, prove, small

W = torch.tensor([[1.0, 2.0], [3.0, -1.0]])


def test_a_whole_tensor_changed_in_place_keeps_its_factor() -> None:
    proof = prove(*small(lambda x: F.linear(x, torch.eye(2)).mul_(100)))
    assert Up.of(100) <= proof.ledger.steps[-1].bound.within(frozenset({1})).gain <= Up.of("100.0000001")


def test_masks_of_minus_infinity_and_of_the_lowest_float_leave_the_same_keys_out() -> None:
    gains = [
        prove(Net(lambda net, x: attends(attn_mask=net.m)(x), m=mask), (3, 2)).ledger.pairs.gain
        for mask in (MASK, torch.where(MASK, 0.0, torch.finfo(torch.float32).min))
    ]
    infinite = prove(Net(lambda net, x: attends(attn_mask=torch.where(net.m, 0.0, -math.inf))(x), m=MASK), (3, 2))
    assert gains[0] == gains[1] == infinite.ledger.pairs.gain


def test_causal_attention_is_attention_under_a_lower_triangle() -> None:
    causal = prove(*small(attends(is_causal=True), (3, 2)))
    masked = prove(*small(attends(attn_mask=torch.ones(3, 3, dtype=torch.bool).tril()), (3, 2)))
    assert causal.ledger.pairs.gain == masked.ledger.pairs.gain


def test_attention_over_scores_beyond_float64_is_bounded_all_the_same() -> None:
    proof = prove(*small(lambda x: attends()(x * 1e30 * 1e30 * 1e30 * 1e30 * 1e30 * 1e30), (2, 2)))
    assert proof.ledger.pairs.gain[0][1] > Up.of("1E+500")


@pytest.mark.parametrize(
    "forward",
    [
        attends(),
        attends(attn_mask=MASK),
        attends(attn_mask=SOFT),
        attends(is_causal=True, scale=-0.3),
        lambda x: F.gelu(x.transpose(1, 2)).flatten(1),
        lambda x: torch.cat([x, x.abs()], 1).mean(1) / 3,
    ],
)
def test_a_centre_is_what_the_module_computes_in_float64(forward: Callable[[Tensor], Tensor]) -> None:
    module = Net(lambda net, x: forward(x))
    images = points((3, 2), (-2.0, 2.0), 70, 0)
    with torch.no_grad():
        own = torch.cat([module(image[None]) for image in images])
    torch.testing.assert_close(centres(export(module, (3, 2)), images), own, rtol=1e-13, atol=1e-13)


def test_constants_are_those_of_the_models_own_precision() -> None:
    # 0.1 in float32 is not 0.1: the function that is certified has the weights that run.
    program = export(Net(lambda net, x: x + net.w * 3, w=torch.tensor([0.1])), (1,))
    expected = float(torch.tensor([0.1]) * 3)
    assert float(centres(program, torch.zeros(1, 1))) == expected


def test_the_graphs_digest_knows_operators_and_not_weights() -> None:
    shas = [export(Net(lambda net, x: F.linear(x, net.w), w=w), (2,)).sha256 for w in (torch.eye(2), torch.ones(2, 2))]
    other = export(Net(lambda net, x: F.linear(x, net.w) * 2, w=W), (2,)).sha256
    assert shas[0] == shas[1] != other


def test_a_replaced_attention_is_bounded_and_run_with_its_weights() -> None:
    uniform = torch.full((2, 2), 0.5)
    proof = prove(MultiHead(2), (2, 4), fixed=uniform)
    (node,) = attention_nodes(proof.program)
    # Uniform weights average the two tokens: column sums 1, so that no gain is lost and none is added.
    assert Up.of(1) <= proof.ledger.steps[-1].bound.within(frozenset({1})).gain <= Up.of("1.000000001")
    x = torch.arange(8.0, dtype=torch.float64).reshape(1, 2, 4)
    assert torch.equal(proof.value(proof.program.output, x), x.mean(1, keepdim=True).expand(1, 2, 4).reshape(1, 8))
    assert [step.rule for step in proof.ledger.steps if step.node == node.name] == ["fixed-attention"]


def test_removed_attention_moves_nothing() -> None:
    proof = prove(MultiHead(2), (2, 4), fixed=torch.zeros(2, 2))
    assert proof.ledger.pairs.gain[0][1].to_float() <= 1e-100


def test_only_attention_can_be_replaced() -> None:
    program = export(*small(lambda x: F.linear(x, W)))
    with pytest.raises(Refusal, match=r"^linear is not an attention operator; its weights cannot be fixed$"):
        Interpreter(program)("l2", BOX, fixed={"linear": torch.eye(2)})


def test_the_mean_weights_of_attention_are_a_softmax_over_the_images() -> None:
    program = export(MultiHead(2, scale=1.0), (2, 4))
    (node,) = attention_nodes(program)
    found = attention_statistics(program, torch.zeros(5, 2, 4))
    assert torch.equal(found.weights[node.name].flatten(), torch.full((8,), 0.5, dtype=torch.float64))
    assert found.spread == 0.0


def test_a_last_linear_map_is_read_by_its_rows_with_the_factor_after_it() -> None:
    # |(3, 4) - (0, 0)| = 5, times 2, times the gain 1 of the input; -2 as well.
    for factor in (2.0, -2.0):
        net = Net(lambda net, x, f=factor: F.linear(x, net.w) * f, w=torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        gain = prove(net, (2,)).ledger.pairs.gain
        assert Up.of(10) <= gain[0][1] <= Up.of("10.00000001")
        assert gain[0][1] == gain[1][0]
        assert gain[0][0] == Up.of(0)
        # In linf the difference of the rows is 7 in l1.
        assert Up.of(14) <= prove(net, (2,), norm="linf").ledger.pairs.gain[0][1] <= Up.of("14.00000001")


def test_factors_after_the_last_linear_map_may_leave_the_range_of_float64() -> None:
    w = torch.eye(2, dtype=torch.float64)
    module = Net(lambda net, x: F.linear(x, net.w) * 1e308 * 1e308, w=w)
    assert Up.of("1.414e616") <= prove(module, (2,)).ledger.pairs.gain[0][1] <= Up.of("1.415e616")
    nothing = Net(lambda net, x: F.linear(x, net.w) * 1e308 * 1e308 * 0.0, w=w)
    assert prove(nothing, (2,)).ledger.pairs.gain[0][1] == Up.of(0)


def test_without_a_last_linear_map_pairs_cost_sqrt_2_and_2() -> None:
    module, shape = small(lambda x: -x)
    assert Up.of("1.41421356") <= prove(module, shape).ledger.pairs.gain[0][1] <= Up.of("1.41421357")
    assert prove(module, shape, norm="linf").ledger.pairs.gain[0][1] == Up.of(2)
