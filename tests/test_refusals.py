"""What the engine refuses, and in which words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CertkitError, NoRule, Refusal
from tests.modules import BOX, Net, attends, prove, small

REMEDY = "replace it by covered operators, or add a rule: docs/rules.md"
W = torch.tensor([[1.0, 2.0], [3.0, -1.0]])


class Tangent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tan(x)


class Nested(nn.Module):
    """The unknown operator stands two modules deep."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(2, 2), Tangent())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, -x


class Counting(nn.Module):
    """Changes its own state while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + 1


def in_place(x: Tensor) -> Tensor:
    h = F.linear(x, W)
    h[:, :1].mul_(100)
    return h


def by_itself(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, attn_mask=F.linear(x, W)).flatten(1)


def norule(op: str, where: str = "the model") -> str:
    return f"{where}: no rule for {op}; certkit refuses what it cannot bound. To certify this model, {REMEDY}"


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, tuple[int, ...]]], str]] = {
    "an unknown operator": (lambda: small(torch.tan), norule("aten.tan.default")),
    "an unknown operator inside": (
        lambda: (Nested(), (2,)),
        norule("aten.tan.default", "block.1"),
    ),
    "a slice changed in place": (
        lambda: small(in_place),
        norule("aten.slice_scatter.default"),
    ),
    "a batch norm in training": (
        lambda: (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), (2,)),
        "the model is in training mode; call model.eval() before certifying",
    ),
    "one part in training": (
        lambda: (training_part(), (2,)),
        "1 is in training mode; call model.eval() before certifying",
    ),
    "a state that changes": (
        lambda: (Counting(), (2,)),
        "the model changes its own state ('seen') while it runs; certkit refuses that",
    ),
    "an active dropout": (
        lambda: small(F.dropout),
        (
            "the model: dropout is active in the exported graph, so that the output is random; "
            "use nn.Dropout and model.eval(), or pass training=self.training"
        ),
    ),
    "a dropped weight": (
        lambda: small(lambda x: F.linear(x, F.dropout(W))),
        "the model: aten.native_dropout.default is random; a network that draws has no certificate",
    ),
    "a drawn constant": (
        lambda: small(lambda x: x + torch.randn(2)),
        "the model: aten.randn.default is random; a network that draws has no certificate",
    ),
    "a weight of NaN": (
        lambda: (Net(lambda net, x: F.linear(x, net.w), w=W * math.nan), (2,)),
        "weight 'w' holds NaN or infinity; a network with such a weight has no bound",
    ),
    "an infinite constant": (
        lambda: small(lambda x: x * (torch.ones(2) / 0)),
        "the model: aten.mul.Tensor has no bound here: inf is not finite",
    ),
    "rows whose difference leaves float64": (
        lambda: (
            Net(lambda net, x: F.linear(x, net.w), w=torch.tensor([[1.0] * 5, [-1.0] * 5]).double() * 2e307),
            (5,),
        ),
        "the differences of the logits have no bound here: inf is not finite",
    ),
    "complex numbers": (
        lambda: small(lambda x: (x * torch.tensor(100j)).abs()),
        "the model: aten.mul.Tensor gives torch.complex64 in a torch.float32 model; that has no rule",
    ),
    "a lower precision inside": (
        lambda: small(lambda x: x.mean(1, keepdim=True, dtype=torch.float16)),
        "the model: aten.mean.dim gives torch.float16 in a torch.float32 model; that has no rule",
    ),
    "half precision": (
        lambda: (nn.Linear(2, 2).half().eval(), (2,)),
        "the weights are torch.float16; expected all float32 or all float64",
    ),
    "two outputs": (
        lambda: (Two().eval(), (2,)),
        "the model has 1 inputs and 2 outputs; expected one tensor in, logits out",
    ),
    "a constant output": (
        lambda: small(lambda x: torch.ones(1, 2) * 2),
        "the model's output does not depend on its input; there is nothing to certify",
    ),
    "a value without entries": (
        lambda: small(lambda x: torch.cat([x[:, :0], x], 1)),
        "the model: aten.slice.Tensor gives a value without entries; that has no rule",
    ),
    "no classes": (
        lambda: small(lambda x: x.unsqueeze(1)),
        "the output must be one logit per class, shape (1, classes), got (1, 1, 2)",
    ),
    "a view over the batch": (
        lambda: small(lambda x: x.view(-1, 2), (3, 2)),
        "the model: aten.view.default merges the batch axis with others; that has no rule",
    ),
    "a permuted batch": (
        lambda: small(lambda x: x.transpose(0, 1), (3,)),
        "the model: aten.transpose.int moves the batch axis; that has no rule",
    ),
    "a mean over the batch": (
        lambda: small(lambda x: x.mean(0, keepdim=True)),
        "the model: a mean over the batch axis has no rule; name the axes of one sample",
    ),
    "a piece of the batch": (
        lambda: small(lambda x: x.select(0, 0).unsqueeze(0)),
        "the model: a selection along the batch axis has no rule",
    ),
    "samples joined": (
        lambda: small(lambda x: torch.cat([x, x], 0)),
        "the model: joining along the batch axis has no rule",
    ),
    "a factor that enlarges": (
        lambda: small(lambda x: (x * torch.ones(5, 2)).flatten(1), (1, 2)),
        (
            "the model: aten.mul.Tensor has no bound here: "
            "a constant factor must not enlarge its operand: (1, 1, 2) became (1, 5, 2)"
        ),
    ),
    "a sum with alpha": (
        lambda: small(lambda x: torch.add(x, x, alpha=100)),
        "the model: aten.add.Tensor with alpha has no rule; multiply first",
    ),
    "a division by zero": (
        lambda: small(lambda x: x / torch.tensor([1.0, 0.0])),
        "the model: a division by zero has no bound",
    ),
    "a weight that depends on the input": (
        lambda: small(lambda x: F.linear(torch.ones(1, 2), x)),
        "the model: a linear map whose weight depends on the input has no rule",
    ),
    "one bias for all outputs": (
        lambda: small(lambda x: F.linear(x, W, torch.tensor(5.0))),
        (
            "the model: aten.linear.default of (1, 2) with weight (2, 2) and bias () has no rule; "
            "expected weight (outputs, inputs) and bias (outputs,)"
        ),
    ),
    "a weight without rows": (
        lambda: small(lambda x: F.linear(x, torch.ones(2)).flatten(1), (3, 2)),
        (
            "the model: aten.linear.default of (1, 3, 2) with weight (2,) and bias None has no rule; "
            "expected weight (outputs, inputs) and bias (outputs,)"
        ),
    ),
    "a linear map of the batch": (
        lambda: small(lambda x: F.linear(x.mean(1), torch.ones(1, 1))),
        (
            "the model: aten.linear.default of (1,) with weight (1, 1) and bias None has no rule; "
            "expected weight (outputs, inputs) and bias (outputs,)"
        ),
    ),
    "a mask from the input": (
        lambda: small(by_itself, (2, 2)),
        "the model: an attention mask that depends on the input has no rule",
    ),
    "a mask of NaN": (
        lambda: small(attends(attn_mask=torch.tensor([[0.0, math.nan], [0.0, 0.0]])), (2, 2)),
        "the model: an attention mask that holds NaN or +infinity has no defined output",
    ),
    "a query that sees nothing": (
        lambda: small(attends(attn_mask=torch.tensor([[True, True], [False, False]])), (2, 2)),
        "attention with a query that may look at no key has no defined output",
    ),
    "a mask that scores may outweigh": (
        lambda: small(lambda x: attends(attn_mask=torch.tensor([[0.0, -1e30], [0.0, 0.0]]))(x * 1e16), (2, 2)),
        (
            "the model: scores may reach 1.41e+32, so that a mask of -1e+30 need not leave a key out; "
            "mask with -inf or a boolean mask"
        ),
    ),
    "attention with dropout": (
        lambda: small(attends(dropout_p=0.1), (2, 2)),
        "the model: attention with active dropout is random; set dropout_p to 0 in eval mode",
    ),
    "attention without tokens": (
        lambda: small(attends()),
        "the model: attention needs values of shape (batch, ..., tokens, features)",
    ),
}


def training_part() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    model[1].train()
    return model


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_outside_the_rules_is_refused_in_these_words(what: str) -> None:
    make, message = REFUSED[what]
    module, shape = make()
    with pytest.raises(CertkitError) as caught:
        Interpreter(export(module, shape))("l2", BOX)
    assert str(caught.value) == message
    assert isinstance(caught.value, NoRule if "no rule for" in message else Refusal)


def test_a_branch_on_the_input_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        export(*small(lambda x: x if x.sum() > 0 else -x))
    assert str(caught.value).startswith("torch.export cannot capture this model on an input of shape (1, 2) (")
    assert str(caught.value).endswith("; certkit needs a forward without data-dependent branches that takes one tensor")
    assert "\n" not in str(caught.value)


def test_a_second_input_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^torch\.export cannot capture this model .* that takes one tensor$"):
        export(nn.Bilinear(2, 2, 2).eval(), (2,))


def test_the_factor_of_a_slice_changed_in_place_is_never_missed() -> None:
    # On the raw export the factor 100 of the view is invisible. Should slice_scatter get a rule, the gain must be 100.
    def scaled(net: Any, x: Tensor) -> Tensor:
        h = F.linear(x, net.w)
        v = h[:, :2]
        v.mul_(100)
        return h

    with pytest.raises(NoRule, match=r"^the model: no rule for aten\.slice_scatter\.default; "):
        prove(Net(scaled, w=torch.eye(4)), (4,))


def test_an_unknown_norm_or_arithmetic_is_refused() -> None:
    module, shape = small(lambda x: -x)
    with pytest.raises(Refusal, match="the threat's norm must be one of l2, linf, token, got 'l1'"):
        prove(module, shape, norm="l1")
    with pytest.raises(Refusal, match="arithmetic must be one of float64, float32, got 'bfloat16'"):
        prove(module, shape, arithmetic="bfloat16")
