"""What keeps every weight inside its cap after every step. Each entry says what it promises under which optimiser.

A matrix, or each of a stack (..., out, in), has the largest singular value that its geometry allows as its ``limit``.
Tables of rows are the same to all entries but "none" and "weight-decay": rows beyond their limit are scaled down to it.
Formulas, published names and the faults of the reference code: arXiv 2507.13338, section 3, and its appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from certkit.bounds.spectral import spectral_norm
from certkit.errors import ConfigError, suggestion
from certkit.models.geometry import Entries, Geometry, Rows
from certkit.training.faults import Diverged
from certkit.training.newton_schulz import as_wide, back, polar, quintics, symmetric

Project: TypeAlias = "Callable[[Tensor, float, Step], Tensor]"
Promise: TypeAlias = Literal["provable", "approximate", "refused", "none"]

OPTIMIZERS = ("muon", "adamw", "sgd")
SAFETY = 1e-6  # the least that is left below a limit for the rounding of float32: ``safety``
ROUNDINGS = 4  # of a whole matrix to float32, between one proof of its norm and the next
POWER_STEPS = 16
HIGHEST = 62 / 81  # of 1 - u + u(1 - u)³ at u = 1/3, where x - αx³ stops rising
WIDEST = math.sqrt(3) / HIGHEST  # 2.2628: at α = HIGHEST²/3 per cap², x - αx³ is positive up to here
LARGEST_ENTRY = 1e6  # of a matrix whose polar factor is wanted; a larger one is scaled down to it
HARD_RANGE = 3.0  # caps: the range that the hard cap's coefficients were made for; they diverge beyond 4.05

# Four quintics that follow min(1, x) to 0.034 on [0, 3.5]. Reference code of arXiv 2507.13338.
HARD_CAP = (
    (0.805032, 0.206361, -0.019763),
    (0.649867, 0.162935, -0.011150),
    (1.810259, -0.200265, 0.008251),
    (1.004384, -0.183490, 0.014413),
)


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of the step before a projection: a bound of its sigma norm, None if unknown, and lr·decay."""

    moved: float | None = None
    decay: float = 0.0


def safety(shape: Sequence[int]) -> float:
    """What is left below a limit, as a share of it, for the rounding of a matrix of this shape to float32.

    Rounding changes each entry by at most 2^-24 of it, and so the matrix by at most 2^-24 |W|_F <= 2^-24 sqrt(r) |W| in
    the spectral norm, r the smaller of its sides. Four of these are left, and at least 1e-6: 1e-6 up to r = 17, 6.6e-6 at
    768, 3.1e-5 at 16384. A projection in float64 needs one. In float32 a step rounds the weight once and a projection or
    decay once more, which leaves two for what is smaller: the roundings of the step itself, of (1 - safety) as a number,
    and of inner products in polynomials, of which the first-order size is measured and no worst case proved. A row of a
    table changes by 2^-24 of its norm alone. Below 1.2e-38 float32 rounds otherwise: limits must be well above.
    """
    return max(SAFETY, ROUNDINGS * 2.0**-24 * math.sqrt(min(shape[-2:])))


def clip_rows(table: Tensor, limit: float, step: Step) -> Tensor:
    """Rows whose l2 norm is above limit, scaled down to it in float64 and rounded once."""
    limit *= 1 - SAFETY
    norms = torch.linalg.vector_norm(table, dim=-1, keepdim=True, dtype=torch.float64)
    clipped: Tensor = (table * (limit / norms.clamp_min(limit))).to(table.dtype)
    return clipped


@dataclass(frozen=True, slots=True)
class Constraint:
    """``project(weight, limit, step)`` gives the weight that replaces one which a step moved; ``rows`` a table.

    Provable means: the largest singular value is at most cap * (1 + 1e-6) after every step, whatever the gradient.
    ``promises`` says for each optimiser what holds and why; with ``replaces_decay`` the optimiser itself must not.
    """

    project: Project
    promises: Mapping[str, tuple[Promise, str]]
    rows: Project = clip_rows
    replaces_decay: bool = False


def unchanged(weight: Tensor, limit: float, step: Step) -> Tensor:
    """The weight itself."""
    return weight


def shrunk(weight: Tensor, limit: float, step: Step) -> Tensor:
    """After a step of known length, less by ``safety``, for its rounding; decay has done the rest.

    Where lr·decay is near the precision of float32, small entries still decay while large ones no longer do. That alone
    takes an orthogonal matrix 4e-5 above its cap in 1500 steps of 1e-6.
    """
    return weight if step.moved is None else weight * (1 - safety(weight.shape))


def stiefel(weight: Tensor, limit: float, step: Step) -> Tensor:
    """limit times the polar factor: every singular value becomes limit. Cesista 2025; arXiv 2507.13338, section 3.

    A weight that was there before a step of known length is near it still, which saves most of the work. After any other
    it may be so large that its share of a small limit is beyond float32.
    """
    target = limit * (1 - safety(weight.shape))
    if step.moved is not None:
        return polar(weight / target, 1 + step.moved / target + step.decay + 1e-5) * target
    most = weight.abs().amax((-2, -1), keepdim=True).double() / LARGEST_ENTRY
    return polar(weight / most.clamp_min(target).to(weight.dtype)) * target


def soft_cap(weight: Tensor, limit: float, step: Step) -> Tensor:
    """x - αx³, then x + αx³ of that, on singular values: together x (1 - 3α²x⁴ + 3α³x⁶ - α⁴x⁸), as written here.

    α is the ``coupling``. Raises ConfigError outside the region where that is sound.
    """
    if step.moved is None:
        raise ConfigError(
            "training.constraint: spectral-soft-cap must know how far a step moved; use training.optimizer muon"
        )
    alpha = coupling(limit, step.moved, step.decay)
    if alpha == 0:
        return shrunk(weight, limit, step)
    x, tall = as_wide(weight)
    gram = symmetric(x, x.mT)
    square = symmetric(gram, gram)
    inner = gram.mul_(3 * alpha**3).sub_(square, alpha=alpha**4)
    rest = symmetric(square, inner, square, beta=-3 * alpha**2)
    share = 1 - safety(weight.shape)
    return back(torch.baddbmm(x, rest, x, beta=share, alpha=share), tall, weight.shape)


def coupling(limit: float, moved: float, decay: float) -> float:
    """The least α with which the soft cap puts every singular value that a step can reach, k, back to at most limit.

    A step from limit reaches k = limit·(1 - decay) + moved at most. If k <= limit, α is 0; the reference code takes 1
    there, and explodes. With u = αk² the largest becomes k·g(u), g(u) = 1 - u + u(1 - u)³; it is k's own image, and
    those of smaller values are smaller, while x - αx³ rises up to k: u <= 1/3, so k <= limit/g(1/3). Up to 2.2628
    limit, α = g(1/3)²/(3 limit²) puts the peak of the whole polynomial at limit. Beyond, no α is sound: ConfigError.
    ``moved`` is a bound in the same units as limit, undivided by any scale. arXiv 2507.13338, theorem 3.1, mended.
    """
    k = limit * abs(1 - decay) + moved
    if k <= limit:
        return 0.0
    if k > WIDEST * limit:
        raise ConfigError(
            f"training.constraint: spectral-soft-cap at {limit:g} cannot undo a step of {moved:g}; expected at most "
            f"{at_most(WIDEST * limit - limit * abs(1 - decay))}; lower training.learning_rate"
        )
    if k >= limit / HIGHEST:
        return HIGHEST**2 / (3 * limit**2)
    low, high = 0.0, 1 / 3
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if 1 - middle + middle * (1 - middle) ** 3 <= limit / k else (middle, high)
    return high / k**2


def hard_cap(weight: Tensor, limit: float, step: Step) -> Tensor:
    """Four quintics that follow min(limit, x), to 3.4 % of limit for x up to 3.5 limit."""
    x, tall = as_wide(weight / limit)
    for triple in HARD_CAP:
        x = quintics(x, [triple])
    return back(x * limit, tall, weight.shape)


def svd_clip(weight: Tensor, limit: float, step: Step) -> Tensor:
    """The nearest weight inside: singular values above limit lowered to it, by a float64 decomposition.

    Raises Diverged for a weight that is not finite.
    """
    _finite(weight)
    limit *= 1 - safety(weight.shape)
    u, values, v = torch.linalg.svd(weight.double(), full_matrices=False)
    clipped = ((u * values.clamp(max=limit)[..., None, :]) @ v).to(weight.dtype)
    return torch.where(values[..., :1, None] > limit, clipped, weight)


def _finite(weight: Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise Diverged("training: a weight is no longer finite")


def power_iteration(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(s, u, v) with s = |Wv| and u = Wv/s after 16 steps from a fixed start.

    s is never above the largest singular value, and up to 5 % below it for Gaussian matrices.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(weight.shape[-1], 1, generator=generator).to(weight).expand(*weight.shape[:-2], -1, -1)
    for _ in range(POWER_STEPS):
        u = torch.nn.functional.normalize(weight @ v, dim=-2, eps=torch.finfo(weight.dtype).tiny)
        v = torch.nn.functional.normalize(weight.mT @ u, dim=-2, eps=torch.finfo(weight.dtype).tiny)
    image = weight @ v
    s = torch.linalg.vector_norm(image, dim=(-2, -1), keepdim=True)
    return s, image / s.clamp_min(torch.finfo(weight.dtype).tiny), v


def spectral_weight_decay(weight: Tensor, limit: float, step: Step) -> Tensor:
    """W - lr·decay·s u v.T: decay of the largest singular value alone."""
    s, u, v = power_iteration(weight)
    return weight - step.decay * s * u * v.mT


def spectral_normalize(weight: Tensor, limit: float, step: Step) -> Tensor:
    """W over max(1, s/limit), with s from power iteration."""
    s, _, _ = power_iteration(weight)
    return weight / (s / limit).clamp_min(1.0)


def spectral_normalize_proved(weight: Tensor, limit: float, step: Step) -> Tensor:
    """W over max(1, s/limit) in float64, with the proved norm s; not computed where the Frobenius norm is inside.

    Raises Diverged for a weight that is not finite.
    """
    _finite(weight)
    limit *= 1 - safety(weight.shape)
    stack = weight.reshape(-1, *weight.shape[-2:])
    norms = torch.linalg.vector_norm(stack, dim=(-2, -1), dtype=torch.float64).tolist()
    for index, whole in enumerate(norms):
        if not whole <= limit * (1 - 1e-9):
            norms[index] = spectral_norm(stack[index].detach().cpu().double().numpy())
    shares = torch.tensor([limit / max(norm, limit) for norm in norms], dtype=torch.float64)
    return (stack * shares.to(stack.device)[:, None, None]).to(weight.dtype).reshape(weight.shape)


def spectral_hammer(weight: Tensor, limit: float, step: Step) -> Tensor:
    """W + (limit - s) u v.T: the largest singular value becomes limit, also from below. Hess and Hutchison."""
    s, u, v = power_iteration(weight)
    return weight + (limit - s) * u * v.mT


def _all(promise: Promise, reason: str) -> dict[str, tuple[Promise, str]]:
    return dict.fromkeys(OPTIMIZERS, (promise, reason))


CONSTRAINTS = {
    "none": Constraint(unchanged, _all("none", "weights move freely"), rows=unchanged),
    "weight-decay": Constraint(
        shrunk,
        _all("approximate", "no step of this optimiser is bounded in the norm of a weight for decay to balance")
        | {
            "muon": (
                "provable",
                "c(1 - lr·decay) + 0.99934 lr <= c when decay·c >= 1, and as much is taken off as a step can round",
            )
        },
        rows=shrunk,
    ),
    "spectral-weight-decay": Constraint(
        spectral_weight_decay,
        _all("approximate", "one direction decays per step, found by power iteration, while a step may raise all"),
        replaces_decay=True,
    ),
    "spectral-normalize": Constraint(
        spectral_normalize,
        _all("approximate", "power iteration gives a lower bound of the norm, up to 5 % below it for Gaussian matrices"),
    ),
    "spectral-normalize-proved": Constraint(
        spectral_normalize_proved,
        _all("provable", "the divisor is an upper bound of the norm: a float64 Cholesky certificate with its rounding"),
    ),
    "stiefel": Constraint(
        stiefel,
        _all("provable", "1.5x - 0.5x³ and the longer series of its kind never exceed 1, and room is left for float32"),
    ),
    "spectral-hammer": Constraint(
        spectral_hammer,
        _all("approximate", "one direction is set to the cap per step, while a step may raise several above it"),
    ),
    "spectral-soft-cap": Constraint(
        soft_cap,
        _all("refused", "it undoes steps of a bounded length, and this optimiser's are not bounded")
        | {"muon": ("provable", "its polynomial takes the most that a step of known length can reach back to the cap")},
    ),
    "spectral-hard-cap": Constraint(
        hard_cap,
        _all("refused", "it diverges beyond 4 caps, and the steps of this optimiser are not bounded")
        | {"muon": ("approximate", "its polynomial follows min(1, x) to 0.034 only, and reaches 1.0109 at x = 1.185")},
    ),
    "svd-clip": Constraint(
        svd_clip, _all("provable", "singular values are clipped in float64, and room is left for float32")
    ),
}  # fmt: skip


def promise(name: str, optimizer: str, *, scale: str = "geometry") -> Promise:
    """What a constraint promises under an optimiser, of which ``refuse`` has accepted the settings."""
    if name == "weight-decay" and optimizer == "muon" and scale != "geometry":
        return "approximate"
    return CONSTRAINTS[name].promises[optimizer][0]


def reason(name: str, optimizer: str) -> str:
    """Why: the second half of a row of the table of promises."""
    return CONSTRAINTS[name].promises[optimizer][1]


def refuse(
    name: str,
    optimizer: str,
    *,
    learning_rate: float,
    weight_decay: float,
    cap: float,
    scale: str = "geometry",
    longest: float = 1.0,
) -> None:
    """Raise ConfigError for settings with which the constraint cannot do what it is there for.

    ``cap`` is the smallest of all weights, in the norm that each declares, and so is the learning rate under muon. One
    step is at most ``longest`` times the learning rate. Other scales depend on shapes: ``largest_rate``.
    """
    if name not in CONSTRAINTS:
        raise ConfigError(f"training.constraint: unknown {name!r}{suggestion(name, CONSTRAINTS)}")
    decay = learning_rate * weight_decay
    if decay > 1:
        raise ConfigError(
            f"training: learning_rate {learning_rate:g} times weight_decay {weight_decay:g} is above 1, so that every "
            "step would turn the weights round; lower either"
        )
    if promise(name, optimizer) == "refused":
        raise ConfigError(
            f"training.constraint: {name} needs training.optimizer muon, not {optimizer}: {reason(name, optimizer)}"
        )
    if name in ("weight-decay", "spectral-weight-decay") and weight_decay == 0:
        raise ConfigError(
            f"training.constraint: {name} with weight_decay 0 does nothing; expected training.weight_decay > 0"
        )
    if name == "weight-decay" and optimizer == "muon" and weight_decay * cap < 1:
        raise ConfigError(
            f"training.constraint: weight-decay with weight_decay {weight_decay:g} cannot hold cap {cap:g}; expected "
            f"training.weight_decay >= 1/cap = {1 / cap:g}"
        )
    most = largest_rate(name, limit=cap, longest=longest, weight_decay=weight_decay)
    if scale == "geometry" and learning_rate > most:
        raise ConfigError(
            f"training.learning_rate {learning_rate:g} is beyond the range of {name} at cap {cap:g}: "
            f"at most {at_most(most)}"
        )


def largest_rate(name: str, *, limit: float, longest: float, weight_decay: float) -> float:
    """The largest learning rate at which the constraint can undo every step, and every shorter one of the schedule.

    A step takes limit to limit·(1 - lr·decay) + lr·longest, linear in lr. ``limit`` and ``longest`` are in one unit.
    """
    reach = {"spectral-soft-cap": WIDEST, "spectral-hard-cap": HARD_RANGE}.get(name, math.inf)
    slope = longest - weight_decay * limit
    return (reach - 1) * limit / slope if slope > 0 else math.inf


def at_most(value: float) -> str:
    """In six digits, rounded down: what a message names must be accepted."""
    power = 10.0 ** (5 - math.floor(math.log10(value)))
    return f"{math.floor(value * power) / power:.6g}"


def start_(name: str, weight: Tensor, geometry: Geometry) -> None:
    """Put a weight inside its cap before the first step, exactly: clipped, or on the manifold for stiefel."""
    if name == "none" or isinstance(geometry, Entries) or not weight.numel():
        return
    limit = geometry.limit(weight.shape)
    with torch.no_grad():
        if isinstance(geometry, Rows):
            weight.copy_(clip_rows(weight, limit, Step()))
        elif name == "stiefel":
            _finite(weight)
            u, _, v = torch.linalg.svd(weight.double(), full_matrices=False)
            weight.copy_(u @ v * (limit * (1 - safety(weight.shape))))
        else:
            weight.copy_(svd_clip(weight, limit, Step()))


@torch.no_grad()
def constrain_(constraint: Constraint, held: Iterable[tuple[Tensor, Geometry, Step]]) -> None:
    """Replace weights by their projections: all matrices of one shape, limit and step as one batch."""
    batches: dict[tuple[Any, ...], list[Tensor]] = {}
    for weight, geometry, step in held:
        if isinstance(geometry, Entries) or not weight.numel():
            continue
        table = isinstance(geometry, Rows)
        key = (constraint.rows if table else constraint.project, weight.shape[-2:], geometry.limit(weight.shape), step,
               weight.dtype, weight.device)  # fmt: skip
        batches.setdefault(key, []).append(weight)
    for (project, _, limit, step, *_), same in batches.items():
        if project is unchanged:
            continue
        stack = torch.cat([weight.reshape(-1, *weight.shape[-2:]) for weight in same])
        found = torch.split(project(stack, limit, step), [weight.shape[:-2].numel() for weight in same])
        torch._foreach_copy_(same, [piece.view_as(weight) for piece, weight in zip(found, same, strict=True)])
