"""The claim about a float execution: within its error the program really stays, and what is not covered has no claim."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from certkit.bounds.elementary import CHARGED, MEASURED, Figure
from certkit.bounds.ledger import Ledger
from certkit.bounds.rules import RULES
from certkit.certified import Certified, radii
from certkit.engine.certify import pair_matrix, proved_rows
from certkit.engine.execute import centres
from certkit.engine.floats import FUNCTIONS, PEAKS, FloatClaim, float_claim, running
from certkit.engine.interpret import Interpreter
from certkit.engine.kernels import COVERED, DIFFERENCE, UNCOVERED, deployed
from certkit.engine.program import Program, export, operator_name
from certkit.engine.readers import READERS
from tests import family_convolution, family_curves, family_normalisation, family_products, modules
from tests.laws import module_of, program_of
from tests.modules import BOX, Case, Net, points, small

FAMILIES = (modules, family_curves, family_products, family_normalisation, family_convolution)
EVERY = [
    (rule, case)
    for family in FAMILIES
    for rule, cases in family.CASES.items()
    for case in cases[: None if rule == "attention" else 1]
    if case.fixed is None  # a module cannot fix its attention
]
every_case = pytest.mark.parametrize(("rule", "case"), EVERY, ids=lambda v: getattr(v, "name", v))


def ledger_of(program: Program, box: tuple[float, float], arithmetic: str, norm: str = "l2") -> Ledger:
    return Interpreter(program)(norm, box, arithmetic=arithmetic)


def claim_of(
    module: nn.Module, shape: tuple[int, ...], *, arithmetic: str = "float32", box: tuple[float, float] = BOX
) -> FloatClaim:
    program = export(module, shape)
    return float_claim(program, ledger_of(program, box, arithmetic))


def in_float32(module: nn.Module, xs: Tensor) -> Tensor:
    """What the deployed program gives, one sample at a time and all at once, in float64."""
    with torch.no_grad(), deployed():
        alone = torch.cat([module(x[None].float()) for x in xs])
        return torch.stack([alone, module(xs.float())]).double()


def in_float64(program: Program, x: Tensor) -> Tensor:
    """What torch's own operators give in float64 with the constants of the graph."""
    values: dict[Any, Any] = {**program.constants, program.input: x[None]}
    with torch.no_grad(), deployed():
        for node in program.nodes:
            args, kwargs = (map_arg(given, values.__getitem__) for given in (node.args, node.kwargs))
            view = node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
            values[node] = (torch.reshape if view else node.target)(*args, **kwargs)  # type: ignore[operator]
    return values[program.output]  # type: ignore[no-any-return]


# --- The law: the execution stays within the stated error -----------------------------------------------------------


def adversarial(shape: tuple[int, ...], box: tuple[float, float]) -> Tensor:
    """Inputs that round badly: nearly equal entries, nearly cancelling ones, subnormal ones, and one large among small."""
    generator = torch.Generator().manual_seed(7)
    low, high = box

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(6, *shape, generator=generator, dtype=torch.float64)

    nearly = torch.rand(6, *(1,) * len(shape), generator=generator, dtype=torch.float64).expand(6, *shape)
    signs = torch.where(torch.rand(6, *shape, generator=generator, dtype=torch.float64) < 0.5, -1.0, 1.0)
    one = torch.zeros(6, math.prod(shape), dtype=torch.float64)
    one[torch.arange(6), torch.arange(6) % math.prod(shape)] = high
    found = [
        low + (high - low) * nearly + noise(1e-6),
        signs * high + noise(1e-7),
        noise(1e-40),
        noise(1e-20),
        one.reshape(6, *shape) + noise(1e-7),
    ]
    return torch.cat(found).clamp(low, high).float().clamp(low, high).double()


@every_case
def test_the_deployed_program_stays_within_the_error_of_its_claim(rule: str, case: Case) -> None:
    module, program = module_of(case), program_of(case, 0)
    xs = torch.cat([points(case.shape, case.box, 24, 5).float().double(), adversarial(case.shape, case.box)])
    double, single = (float_claim(program, ledger_of(program, case.box, name)) for name in ("float64", "float32"))
    covered = {operator_name(node) for node in program.nodes} <= {*COVERED}
    assert single.holds is double.holds is covered, single.reasons
    if single.pair_error is None or double.pair_error is None:
        return
    exact = centres(program, xs)  # off by no more than the float64 claim
    assert float((in_float32(module, xs) - exact).abs().max()) <= (single.pair_error + double.pair_error) / 2
    for x, near in zip(xs[::8], exact[::8], strict=True):
        assert float((in_float64(program, x) - near).abs().max()) <= double.pair_error


def random(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(2)) / size[-1] ** 0.5


# Wide enough that torch takes its vectorised, blocked and threaded paths, and odd, so that each has a rest.
WIDE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear and GELU": (Net(lambda net, x: F.gelu(F.linear(x, net.a, net.b)), a=random(67, 515), b=random(67)), (515,)),
    "layer norm": (
        Net(lambda net, x: F.layer_norm(x, (301,), net.g, net.b).flatten(1), g=random(301), b=random(301)),
        (9, 301),
    ),
    "RMS norm": (Net(lambda net, x: F.rms_norm(x, (301,), net.g, 1e-5).flatten(1), g=random(301)), (9, 301)),
    "attention": (
        Net(
            lambda net, x: F.scaled_dot_product_attention(F.linear(x, 9 * net.q), F.linear(x, 9 * net.k), x).flatten(1),
            q=random(33, 33),
            k=random(33, 33).flip(0),
        ),
        (70, 33),
    ),
    "softmax of rows and columns": (
        Net(lambda net, x: (torch.softmax(8 * x, -1) + torch.softmax(8 * x, 1)).flatten(1)),
        (35, 131),
    ),
    "means, sums, variances, lengths": (
        Net(
            lambda net, x: torch.stack(
                [
                    x.mean((1, 2)),
                    x.sum((1, 2)) / 64,
                    x.var((1, 2), correction=0),
                    x.var(2).mean(1),
                    x.norm(dim=(1, 2)),
                    x.norm(dim=2).mean(1),
                ],
                1,
            )
        ),
        (37, 71),
    ),
    "convolutions and pooling": (
        Net(
            lambda net, x: F.avg_pool2d(
                F.relu(F.conv2d(F.silu(F.conv2d(x, net.a, padding=1)), net.b, groups=5)), 3
            ).flatten(1),
            a=random(20, 3, 3, 3),
            b=random(10, 4, 3, 3),
        ),
        (3, 17, 17),
    ),
    "batch norm, sigmoid and a power": (
        Net(
            lambda net, x: torch.sigmoid(F.batch_norm(x, net.m, net.v, net.w, net.m)).pow(5).flatten(1),
            m=random(33),
            v=random(33).square() + 0.01,
            w=random(33),
        ),
        (33, 19),
    ),
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_values_stay_within_the_error_of_the_claim(name: str) -> None:
    module, shape = WIDE[name]
    program = export(module, shape)
    double, single = (float_claim(program, ledger_of(program, BOX, kind)) for kind in ("float64", "float32"))
    assert single.pair_error is not None, single.reasons
    assert double.pair_error is not None
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(18, *shape, generator=generator, dtype=torch.float64)
    level = torch.rand(6, *(1,) * len(shape), generator=generator, dtype=torch.float64)
    xs = torch.cat([noise[:6] / 2, level + 1e-4 * noise[6:12], noise[12:].sign() * 0.99 + 1e-6 * noise[12:]])
    xs = xs.clamp(*BOX).float().double()
    exact = centres(program, xs)
    observed = float((in_float32(module, xs) - exact).abs().max())
    assert 1e-9 < observed <= (single.pair_error + double.pair_error) / 2
    assert float((in_float64(program, xs[7]) - exact[7]).abs().max()) <= double.pair_error


@pytest.mark.parametrize("width", [64, 1024])
def test_products_that_underflow_and_are_enlarged_afterwards_stay_within_the_error(width: int) -> None:
    # Attention written out: every product of the scores is 2^-150, which float32 rounds to 0, and the factor is 2^127.
    tiny, (factor, back) = 2.0**-75, (torch.tensor(2.0**127), torch.tensor(2.0**75))
    module = Net(
        lambda net, x: (
            torch.softmax((x @ x.transpose(1, 2)) * net.factor, -1) @ torch.clamp(x * net.back, -1, 1)[..., :1]
        ).flatten(1),
        factor=factor,
        back=back,
    )
    claim, program = claim_of(module, (2, width), box=(-tiny, tiny)), export(module, (2, width))
    assert claim.pair_error is not None
    x = tiny * torch.tensor([1.0, -1.0]).reshape(1, 2, 1).expand(1, 2, width)
    off = (in_float32(module, x.double())[0] - centres(program, x.double()))[0]
    assert 2.0**-18 < float((off[0] - off[1]).abs()) <= claim.pair_error


def test_most_of_the_error_can_be_met_where_rounding_conspires() -> None:
    # The sum of 4096 entries a little above 1, one by one in float32: each step rounds up by nearly half a unit.
    wide = 4096
    module = Net(lambda net, x: F.linear(x, net.w), w=torch.ones(1, wide))
    claim = claim_of(module, (wide,), box=(0.0, 1.0))
    assert claim.pair_error is not None
    x = torch.rand(1, wide, generator=torch.Generator().manual_seed(0))
    total = np.float32(0)
    for entry in x[0].numpy():
        total = np.float32(total + entry)
    observed = abs(float(total) - float(x.double().sum()))
    assert 0 < observed <= claim.pair_error / 2


# --- What has no claim ------------------------------------------------------------------------------------------------


def test_every_operator_with_a_reader_is_covered_or_told_why_not() -> None:
    names = {"getitem" if not isinstance(t, torch._ops.OpOverload) else str(t) for t in READERS}
    assert names == {*COVERED, *UNCOVERED}
    assert not {*COVERED} & {*UNCOVERED}


def test_every_rule_knows_how_large_a_number_on_the_way_gets() -> None:
    assert {*RULES} - {*PEAKS} == {"fixed-attention"}  # of the ablations, which are not deployed
    assert {*PEAKS} <= {*RULES}


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, tuple[int, ...]]], tuple[float, float], str]] = {
    "group norm": (
        lambda: small(lambda x: F.group_norm(x, 2, eps=0.1).flatten(1), (4, 3)),
        BOX,
        f"the model: aten.group_norm.default: {DIFFERENCE}",
    ),
    "a product that overflows": (
        lambda: small(lambda x: x * 1e20),
        (-1e20, 1e20),
        "the model: aten.mul.Tensor: a number on the way may reach 1.00e+40; float32 is claimed up to 2.13e+37",
    ),
    "a square on the way to a norm": (
        lambda: small(lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True)),
        (-1e19, 1e19),
        "the model: aten.linalg_vector_norm.default: a number on the way may reach 1.60e+39; float32 is claimed up to 2.13e+37",
    ),
    "partial sums that overflow": (
        lambda: (Net(lambda net, x: F.linear(x, net.w), w=torch.tensor([[1e38, -1e38]])), (2,)),
        BOX,
        "the model: aten.linear.default: a number on the way may reach 2.00e+38; float32 is claimed up to 2.13e+37",
    ),
    "a number that float32 cannot round relatively": (
        lambda: small(lambda x: x * 1e-42),
        BOX,
        "the model: aten.mul.Tensor with the number 1e-42; expected 0 or an absolute value from 7.89e-31 to 1.27e+30",
    ),
    "a filling number that is no normal one": (
        lambda: small(lambda x: x.masked_fill(torch.tensor([True, False]), 1e-42)),
        BOX,
        "the model: aten.masked_fill.Scalar with the number 1e-42; expected 0 or an absolute value from 7.89e-31 to 3.4e+38",
    ),
    "an exponential below its threshold": (
        lambda: small(lambda x: F.softplus(x, threshold=200.0)),
        (-100.0, 100.0),
        "the model: aten.softplus.default: its exponential may overflow below the threshold",
    ),
    "attention whose products underflow": (
        lambda: small(lambda x: F.scaled_dot_product_attention(x, x, x).flatten(1), (2, 2)),
        (-1e-38, 1e-38),
        "the model: aten.scaled_dot_product_attention.default: queries and keys are so small that their products may underflow",
    ),
    "weights of float64": (
        lambda: (nn.Linear(2, 2).double().eval(), (2,)),
        BOX,
        "the weights are float64; float32 would round them, which no rule charges for",
    ),
    "factors of a batch norm that are no normal numbers": (
        lambda: (
            Net(
                lambda net, x: F.batch_norm(x, net.m, net.v, net.w, eps=0.0),
                m=torch.zeros(2),
                v=torch.ones(2),
                w=torch.tensor([1.0, 1e-40]),
            ),
            (2,),
        ),
        BOX,
        "the model: aten._native_batch_norm_legit_no_training.default with weights outside 7.89e-31 to 1.27e+30: their rounding need not be relative",
    ),
    **{
        f"factors of a batch norm that {become}": (
            lambda weight=weight, variance=variance: (  # type: ignore[misc]
                Net(
                    lambda net, x: F.batch_norm(x, net.m, net.v, net.w, eps=0.0),
                    m=torch.zeros(2),
                    v=torch.full((2,), variance),
                    w=torch.full((2,), weight),
                ),
                (2,),
            ),
            (-(2.0**-60), 2.0**-60),
            "the model: aten._native_batch_norm_legit_no_training.default with factors outside 7.89e-31 to 1.27e+30: their rounding need not be relative",
        )
        for become, weight, variance in (
            ("overflow, no normal numbers", 2.0**100, 2.0**-100),
            ("underflow, no normal numbers", 2.0**-100, 2.0**100),
        )
    },
    "a single constant of float64": (
        lambda: (Net(lambda net, x: torch.maximum(x, net.c), c=torch.tensor(0.1, dtype=torch.float64)), (2,)),
        BOX,
        "the model: aten.maximum.default with a constant of float64 that float32 would round",
    ),
    **{
        f"{what} of float64 that is no float32": (
            lambda forward=forward, number=number: (  # type: ignore[misc]
                Net(forward, c=torch.tensor(number, dtype=torch.float64)),
                (2,),
            ),
            BOX,
            f"the model: aten.{op}.Tensor with a constant of float64 that float32 would round",
        )
        for what, op, number, forward in (
            ("a factor", "mul", 1e-44, lambda net, x: x * net.c),
            ("a divisor", "div", 1e34, lambda net, x: x / net.c),
        )
    },
    "a constant of int64": (
        lambda: (Net(lambda net, x: net.c - x, c=torch.tensor([2**24 + 1, 3])), (2,)),
        BOX,
        "the model: aten.sub.Tensor with a constant of int64 that float32 would round",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_there_is_no_claim_in_float32_and_a_reason(name: str) -> None:
    build, box, reason = REFUSED[name]
    module, shape = build()
    claim = claim_of(module, shape, box=box)
    assert claim.reasons == (reason,)
    assert (claim.holds, claim.pair_error) == (False, None)


@pytest.mark.parametrize("name", [n for n in REFUSED if n not in ("group norm", "an exponential below its threshold")])
def test_float64_has_the_range_that_float32_lacks(name: str) -> None:
    build, box, _ = REFUSED[name]
    module, shape = build()
    claim = claim_of(module, shape, box=box, arithmetic="float64")
    number = "number" in name or "normal" in name  # of the code: in doubt in both
    assert claim.holds is not number, claim.reasons


def test_a_constant_whose_own_rounding_is_charged_for_may_be_of_float64() -> None:
    third = torch.tensor(1 / 3, dtype=torch.float64)
    hidden = torch.tensor([True, False])
    for forward in (
        lambda net, x: net.c * x,
        lambda net, x: x / net.c,
        lambda net, x: torch.where(hidden, x, net.c),
    ):
        module = Net(forward, c=third)
        program, claim = export(module, (2,)), claim_of(module, (2,))
        assert claim.pair_error is not None
        xs = points((2,), BOX, 24, 5).float().double()
        off = (in_float32(module, xs) - centres(program, xs)).abs().max()
        assert 0 < float(off) <= claim.pair_error / 2
    assert not claim_of(Net(lambda net, x: net.c / x.exp(), c=third), (2,)).holds


def test_what_float32_overflows_is_wrong_indeed() -> None:
    # Partial sums beyond the largest number: infinity less infinity, where the exact value is 0.
    module, x = Net(lambda net, x: F.linear(x, net.w), w=torch.tensor([[3e38, 3e38, -3e38, -3e38]])), torch.ones(1, 4)
    assert not bool(torch.isfinite(module(x)).all()) or float(module(x)) == 0.0
    assert not claim_of(module, (4,)).holds


# --- What a claim rests on --------------------------------------------------------------------------------------------


def test_a_claim_names_the_kernels_and_the_functions_it_rests_on() -> None:
    module, shape = small(lambda x: torch.tanh(F.gelu(x)))
    single, double = (claim_of(module, shape, arithmetic=name).assumptions for name in ("float32", "float64"))
    assert single[0].startswith(
        "the program runs in float32, on inputs that are float32 numbers, in eager torch on a CPU, as"
    )
    assert double[-1] == (
        "exp, erf, tanh and the like are accurate to 4 units in the last place in float64 (not measured)"
    )
    names = [name for line in single[2:] for name in line.partition(": within what the rules charge")[0].split(", ")]
    assert sorted(names) == ["gelu", "gelu-tanh", "tanh"]
    assert claim_of(*small(lambda x: F.relu(x) * 2)).assumptions == single[:2]


def test_how_much_of_float32_was_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {name: Figure(1.0, 61 if name == "erf" else 1) for name in CHARGED}
    monkeypatch.setattr("certkit.engine.floats.MEASURED", {running(): figures})
    here = f"torch {running().torch} with {running().capability}"
    assert claim_of(*small(lambda x: torch.erf(torch.tanh(torch.exp(x))))).assumptions[2:] == (
        f"exp, tanh: within what the rules charge, measured on every float32 number for {here}",
        f"erf: within what the rules charge, measured on one float32 number in 61 for {here}",
    )


def test_constants_that_the_code_computes_are_named_where_float64_would_compute_others() -> None:
    computed = Net(lambda net, x: x / (net.w.abs() + 0.1).reshape(2), w=torch.tensor([0.3, 0.7]))
    moved = Net(lambda net, x: x * net.w.flip(0).reshape(2), w=torch.tensor([0.3, 0.7]))
    says = "constants that the code computes (view) are held as float32 gave them; the module converted to float64 would compute others"
    for module, arithmetic, expected in ((computed, "float64", 1), (computed, "float32", 0), (moved, "float64", 0)):
        assert claim_of(module, (2,), arithmetic=arithmetic).assumptions.count(says) == expected


def test_another_build_of_torch_is_an_assumption_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certkit.engine.floats.torch.__version__", "2.99.0")
    builds = " and ".join(f"torch {b.torch} with {b.capability}" for b in MEASURED)
    assert claim_of(*small(torch.exp)).assumptions[-1] == (
        f"exp: within what the rules charge (not measured for torch 2.99.0 with {running().capability}, "
        f"only for {builds})"
    )


def test_every_function_that_a_rule_charges_for_was_measured_and_errs_by_less() -> None:
    assert {name for names in FUNCTIONS.values() for name in names} == {*CHARGED}
    assert {*FUNCTIONS} <= {*RULES}
    for build, functions in MEASURED.items():
        assert {*functions} == {*CHARGED}, build
        for name, figure in functions.items():
            assert 0 <= figure.roundings <= CHARGED[name], (build, name)


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "elementary.json"


def test_the_figures_are_those_of_the_measurement() -> None:
    stored = json.loads(RESULTS.read_text())
    assert [(e["build"]["torch"], e["build"]["capability"]) for e in stored] == [tuple(build) for build in MEASURED]
    for entry, functions in zip(stored, MEASURED.values(), strict=True):
        for name, found in entry["functions"].items():
            paths = [found[path] for path in ("vectorised", "strided", "oneDNN") if found[path] != "as vectorised"]
            worst = max(max(path["roundings"], path["roundings_by_arb"]) for path in paths)
            assert functions[name] == (math.ceil(worst * 100) / 100, found["every"])
            assert found["charged"] == CHARGED[name]


def test_deployed_pins_the_kernels_and_gives_the_settings_back() -> None:
    q = torch.ones(1, 2, 4, 8)
    before = (torch._C._get_mkldnn_enabled(), torch._fused_sdp_choice(q, q, q), torch.get_float32_matmul_precision())
    with deployed():
        assert not torch._C._get_mkldnn_enabled()
        assert torch._fused_sdp_choice(q, q, q) == 0  # the math kernel
        assert not torch.backends.mha.get_fastpath_enabled()
        assert float(torch.tensor(1e-40) * 1.0) > 0
    assert before == (
        torch._C._get_mkldnn_enabled(),
        torch._fused_sdp_choice(q, q, q),
        torch.get_float32_matmul_precision(),
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_deployed_pins_products_beside_any_other_setting_of_their_precision() -> None:
    gpu, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = gpu.fp32_precision, cpu.fp32_precision
    try:
        gpu.fp32_precision, cpu.fp32_precision = "tf32", "bf16"
        with deployed():
            assert cpu.fp32_precision == "ieee"
        assert (gpu.fp32_precision, cpu.fp32_precision) == ("tf32", "bf16")
    finally:
        gpu.fp32_precision, cpu.fp32_precision = before


FLUSHING = """
import torch
torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(2**20) * 2
from certkit.engine.kernels import deployed
with deployed():
    pass
"""


def test_threads_that_flush_subnormal_numbers_are_refused() -> None:
    # Threads are born with the setting of the one that starts them, and it cannot be taken back from outside.
    found = subprocess.run([sys.executable, "-Ic", FLUSHING], capture_output=True, text=True, check=False)
    assert found.stderr.strip().endswith(
        "Refusal: a thread of torch flushes subnormal numbers to 0, and nothing is claimed of such an execution; "
        "start again without torch.set_flush_denormal(True)"
    )


# --- Radii ------------------------------------------------------------------------------------------------------------


def rows_of(
    program: Program, x: Tensor, box: tuple[float, float], arithmetic: str = "float32"
) -> tuple[FloatClaim, Certified]:
    """The claim about an execution of a program, and what certkit certifies of some samples, each labelled as it is seen."""
    ledgers = tuple(ledger_of(program, box, name) for name in ("float64", arithmetic))
    claim, logits = float_claim(program, ledgers[1]), centres(program, x).numpy()
    return claim, proved_rows(program, ledgers, claim, x, logits, index=np.arange(len(x)), label=logits.argmax(1))


def test_radii_of_the_float_claim_take_both_errors_off_and_never_exceed_the_exact_ones() -> None:
    program = export(biased(1e4), (64,))
    claim, rows = rows_of(program, digits(), (0.0, 1.0))
    ledger = ledger_of(program, (0.0, 1.0), "float64")
    assert claim.pair_error is not None
    least = radii(rows.logits, pair_matrix(ledger), ledger.pairs.error.to_float() + claim.pair_error * (1 + 1e-12))
    assert (least <= rows.float_radius).all()
    assert (rows.float_radius < rows.radius).all()
    assert 0 < (rows.float_radius == 0).sum() < len(rows.label)


@pytest.mark.parametrize("name", ["group norm", "weights of float64"])
def test_without_a_claim_no_sample_has_a_radius_of_the_execution(name: str) -> None:
    build, box, _ = REFUSED[name]
    module, shape = build()
    claim, rows = rows_of(export(module, shape), torch.rand(5, *shape), box)
    assert not claim.holds
    assert not rows.float_radius.any()


# --- Networks that float arithmetic breaks: Murray 2026, arXiv 2603.13334 ---------------------------------------------


def biased(bias: float) -> nn.Module:
    """A ReLU network without biases on digits, random features and a ridge regression, and one bias added to every logit at the end.

    The published networks add 1e6 (MNIST), 3e6 (Fashion MNIST) and 4e6 (CIFAR-10): float32 is then spaced by 1/16 and 1/4.
    """
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    first = rng.standard_normal((96, 64)) / 32
    hidden = np.maximum(images / 16 @ first.T, 0)
    wanted = np.eye(10)[labels] - 0.1
    last = np.linalg.solve(hidden.T @ hidden + 1e-3 * np.eye(96), hidden.T @ wanted).T
    weights = {"a": torch.from_numpy(first).float(), "b": torch.from_numpy(last).float()}
    return Net(lambda net, x: F.linear(F.relu(F.linear(x, net.a)), net.b, net.c), c=torch.full((10,), bias), **weights)


def digits() -> Tensor:
    images, _ = load_digits(return_X_y=True)
    return torch.from_numpy(images / 16).float()[:400]


@pytest.mark.parametrize("bias", [1e6, 3e6, 4e6])
def test_murray_networks_biased_at_the_end_are_certified_exactly_and_never_in_float32(bias: float) -> None:
    module, x = biased(bias), digits()
    program = export(module, (64,))
    claim, rows = rows_of(program, x, (0.0, 1.0))
    with torch.no_grad(), deployed():
        computed = module(x)
    top = computed.max(1, keepdim=True).values
    right = (computed == top)[torch.arange(len(x)), torch.from_numpy(rows.predicted)] & ((computed == top).sum(1) == 1)
    # What the exact claim certifies and float32 does not classify alike, a tie among it: the counterexamples.
    counterexamples = ~right.numpy() & (rows.radius > 0)
    assert counterexamples.sum() >= 20
    assert claim.holds
    assert not rows.float_radius[counterexamples].any()
    _, double = rows_of(program, x, (0.0, 1.0), "float64")
    assert (double.float_radius[counterexamples] > 0.9 * rows.radius[counterexamples]).all()


def test_murray_a_bias_that_makes_float64_tie_leaves_nothing_in_any_claim() -> None:
    module, x = biased(1e17), digits()
    program = export(module, (64,))
    for arithmetic in ("float64", "float32"):
        _, rows = rows_of(program, x, (0.0, 1.0), arithmetic)
        assert (rows.logits == rows.logits[:, :1]).all()
        assert not rows.radius.any()
        assert not rows.float_radius.any()


def test_murray_a_point_just_inside_its_exact_radius_flips_in_float32_and_has_no_float32_radius() -> None:
    # Unbiased networks: radii around 1e-7, where the exact margin is below what float32 rounds.
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(2, 64, generator=generator)
    module, program = Net(lambda net, x: F.linear(x, net.w), w=w), None
    program = export(module, (64,))
    x = torch.rand(4000, 64, generator=generator)
    normal = (w[0] - w[1]).double()
    on = (
        x.double() - ((x.double() @ normal) / (normal @ normal))[:, None] * normal
    )  # on the boundary, then rounded off it
    x = on.float()
    claim, rows = rows_of(program, x, (-4.0, 4.0))
    with torch.no_grad(), deployed():
        computed = module(x)
    lead, seen = rows.logits[:, 0] - rows.logits[:, 1], (computed[:, 0] - computed[:, 1]).numpy()
    flipped = np.sign(lead) != np.sign(seen)
    assert (flipped & (rows.radius > 0)).sum() >= 20
    assert claim.holds
    assert not rows.float_radius[flipped].any()


def test_no_attack_in_float32_succeeds_inside_a_float32_radius() -> None:
    module, x = biased(1e3), digits()
    program = export(module, (64,))
    _, rows = rows_of(program, x, (0.0, 1.0))
    radius, top = torch.from_numpy(rows.float_radius), torch.from_numpy(rows.predicted)
    assert int((radius > 0.05).sum()) >= 100
    moved = x.double()
    for _ in range(15):
        at = moved.float().requires_grad_(True)
        loss = F.cross_entropy(module(at) - 1e3, top, reduction="sum")
        (step,) = torch.autograd.grad(loss, at)
        away = moved + radius[:, None] / 4 * step.double() / step.double().norm(dim=1, keepdim=True).clamp(min=1e-300)
        away = away.clamp(0, 1) - x.double()
        inside = radius[:, None] * (1 - 1e-5) / away.norm(dim=1, keepdim=True).clamp(min=1e-300)
        moved = x.double() + away * inside.clamp(max=1.0)
        with torch.no_grad(), deployed():
            computed = module(moved.float())
        assert torch.equal(computed.argmax(1)[radius > 0], top[radius > 0])
