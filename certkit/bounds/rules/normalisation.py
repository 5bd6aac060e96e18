"""Rules for layers that divide by a measure of their own input: layer norm and its kin, softmax, and Euclidean norms."""

from __future__ import annotations

from collections.abc import Sequence

from certkit.bounds.bound import Axes, Bound, Reach, bound
from certkit.bounds.number import ONE, Interval, Up, gamma, least
from certkit.bounds.rules.linear import outcomes, reduced
from certkit.bounds.rules.pointwise import ELEMENTARY_ULPS
from certkit.bounds.rules.registry import Facts, alone, only, rule
from certkit.errors import RecordError

HALF = Up.of("0.5")


def _normalised_axes(x: Bound, facts: Facts) -> Axes:
    axes = frozenset(facts.integers("axes"))
    if not axes or not axes <= x.axes:
        raise RecordError(f"the normalised axes {sorted(axes)} are not axes of {x.shape}")
    return axes


def _joint(x: Bound, axes: Axes) -> set[Axes]:
    """The norms in which groups over ``axes`` are a direct sum: those that hold all of ``axes``."""
    return {axes, x.axes, *(known | axes for known in x.norms)}


def _normalised(x: Bound, axes: Axes, facts: Facts, share: Up, rounding: Up) -> Bound:
    """g f(x) + b for f with slope at most the inverse deviation and |f(x)| <= sqrt(d); one entry has a ``share`` of both.

    ``rounding`` is the error of computing f over ``axes`` at a float; that of the input is stretched by 1/sqrt(eps), as a
    computed value may lie where the deviation is smaller. The factor g and the shift b are up to six roundings more.
    """
    weight = facts.measured("weight")
    slope, steepest = facts.measured("inverse_deviation"), facts.measured("inverse_root")
    entries = x.count(axes)
    root = Up.of(entries).sqrt()

    def over(held: Axes) -> Reach:
        reach, groups = x.within(held), Up.of(x.count(held - axes)).sqrt()
        shift = groups * facts.measured("bias_l2")
        here = groups * (root + rounding)
        lost = facts.smallest * 8 * Up.of(x.count(held)).sqrt() * (ONE + weight)
        return Reach(
            size=weight * least(groups * root, slope * reach.size) + shift,
            gain=weight * slope * reach.gain,
            error=weight * (steepest * reach.error + groups * rounding) + gamma(6, facts.roundoff) * (weight * here + shift) + lost,
        )  # fmt: skip

    norms = {held: over(held) for held in _joint(x, axes)}
    joint = norms[axes]
    entry = weight * share * least(root, slope * x.within(axes).size) + facts.measured("bias_linf")
    norms[frozenset()] = Reach(least(entry, joint.size), share * joint.gain, joint.error)
    return bound(x.shape, norms)


def computed(x: Bound) -> Up:
    """The largest absolute value of a computed entry."""
    entry = x.within(frozenset())
    return entry.size + entry.error


def means_error(x: Bound, axes: Axes, facts: Facts) -> Up:
    """k of the layer norm's step (2): a variance v of computed values is off by (2 k sqrt(v) + k^2)(1 + g) + g v."""
    n = x.count(axes)
    return gamma(8 * n + 6, facts.roundoff) * computed(x) * Up.of(n.bit_length()).sqrt()


@rule("layer-norm")
def layer_norm(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Layer norm stretches by at most max|g| / sqrt(eps), and no normalised vector is longer than sqrt(d).

    With the projection P = I - 11'/d, z = Px, v = |z|^2/d and s = v + eps: f(x) = z / sqrt(s). Its derivative is
    s^(-1/2) (I - zz'/(d s)) P; the bracket is symmetric with eigenvalues 1 and eps/s, so the norm is at most
    1/sqrt(s) <= 1/sqrt(eps). Groups are a direct sum, so this holds in every norm over axes that hold the normalised ones.
    |f(x)|^2 = d v/s < d. One entry is e_i'f = (Pe_i)'f, and the bracket commutes with P: it has at most the share
    |Pe_i| = sqrt((d-1)/d) of size and slope.

    ``inverse_deviation`` is an upper bound of 1/sqrt(v + eps) wherever the input reaches; 1/sqrt(eps) always is. With a
    smaller one, 1/sqrt(v0 + eps), f agrees on the reachable values with z / sqrt(max(v, v0) + eps), which is linear below
    v0 and as above beyond it, hence has that slope everywhere: the reachable values need not be convex.
    ``inverse_root`` is the same for computed values and computed variances, and carries the errors; 1/sqrt(eps) always is.

    Execution, X the largest |x_i|, u the roundoff, n = d. Covered are the two-pass algorithm and every tree of updates of
    (count, mean M, sum of squares Q): Welford's, one entry at a time, and Chan's, for blocks; Q = E[x^2] - E[x]^2 is not.
    (1) Means. Joining blocks a, b with c = |b| / |a + b|: M = M_a + c (M_b - M_a) is rounded by at most (6c + 1) u' X,
    u' = u / (1 - (8n+2) u); so |S| times the error of the mean of S grows at each join by (6|b| + |S|) u' X, and
    e(S) <= 4 |S| u' X follows by induction, as 8|a||b| >= 6|b| + |a + b|. Hence e <= gamma_{8n+2} X / 2.
    (2) Squares. Q grows at a join by w (M_b - M_a)^2, w = |a||b| / |a + b| (or by Welford's (x - M)(x - M'), where
    w >= 1/2, each factor off by at most h/2); a difference of means is off by at most h = gamma_{8n+6} X. As the w D^2 add up to
    nv (Cauchy-Schwarz) and the w to at most n L, L = bit length of n (small joined to large), Q is off by at most
    2 sqrt(nv) sqrt(nL) h + nL h^2, before roundings relative to the summands of at most gamma_{2n+8}. With k = sqrt(L) h:
    |v^ - v| <= (2 k sqrt(v) + k^2) (1 + gamma_{2n+8}) + gamma_{2n+8} v, and v^ >= 0. The two-pass sum is within this.
    (3) |z| |1/sqrt(v^ + eps) - 1/sqrt(s)| <= |z| |v^ - v| / (sqrt(eps) s), where |z| = sqrt(dv): at most
    sqrt(d) (2q + q^2) (1 + gamma) + gamma |x| / sqrt(eps) with q = k / sqrt(eps).
    (4) x_i - M, or x_i r - M r, or with g and b folded in: off by gamma_{8n+2} X / 2 + gamma_16 X, times r; r itself and the
    product are eight roundings.
    Xiong et al. 2020, arXiv 2002.04745, for the layer; Chan, Golub and LeVeque 1983, The American Statistician 37(3).
    """
    x = alone(inputs, facts)
    axes = _normalised_axes(x, facts)
    n, u = x.count(axes), facts.roundoff
    root, steepest = Up.of(n).sqrt(), facts.measured("inverse_root")
    joint = x.within(axes)
    top, length = computed(x), joint.size + joint.error
    q = steepest * means_error(x, axes, facts)
    relative = gamma(2 * n + 8, u)
    variance = root * (q * 2 + q * q) * (ONE + relative) + relative * steepest * length
    centre = root * steepest * top * (gamma(8 * n + 2, u) / 2 + gamma(16, u)) * (ONE + gamma(8, u))
    rounding = centre + variance + gamma(8, u) * (root + centre + variance)
    rounding = rounding + facts.smallest * (4 * n) * root * (ONE + steepest) * (ONE + steepest) * (ONE + length)
    return _normalised(x, axes, facts, (Up.of(n - 1) / n).sqrt(), rounding)


@rule("rms-norm")
def rms_norm(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """RMS norm stretches by at most max|g| / sqrt(eps), and no normalised vector is longer than sqrt(d).

    f(x) = x / sqrt(s), s = |x|^2/d + eps, has the derivative s^(-1/2) (I - xx'/(d s)), symmetric with eigenvalues 1 and
    eps/s inside the bracket: the layer norm's without its projection. ``inverse_deviation`` bounds 1/sqrt(s) wherever the
    input reaches (see layer-norm). |f(x)|^2 = d (s - eps)/s < d. Execution: the sum of d squares is off by gamma_{d+2}
    relative to itself, its root and the products by a few roundings more, all relative to f(x).
    """
    x = alone(inputs, facts)
    axes = _normalised_axes(x, facts)
    n, u = x.count(axes), facts.roundoff
    root, steepest = Up.of(n).sqrt(), facts.measured("inverse_root")
    joint = x.within(axes)
    lost = facts.smallest * (4 * n) * root * (ONE + steepest) * (ONE + steepest) * (ONE + joint.size + joint.error)
    return _normalised(x, axes, facts, ONE, gamma(n + 16, u) * root + lost)


@rule("batch-norm")
def batch_norm(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Batch norm in eval mode is a x + c per channel: it stretches by the largest |a| = |g| / sqrt(var + eps).

    c = b - mean a, in norms over the channels joined in l2. Execution: the constants are rounded in the arithmetic that
    runs, and x a + c may cancel: 16 roundings of |a x| + |a mean| + |b|, the last two measured together as ``absolute``.
    """
    x = alone(inputs, facts)
    if len(x.shape) < 2:
        raise RecordError(f"batch norm reads channels, got {x.shape}")
    largest, relative = facts.measured("largest"), gamma(16, facts.roundoff)

    def over(axes: Axes) -> Reach:
        reach, spread = x.within(axes), Up.of(x.count(axes - {1})).sqrt()
        kind = "l2" if 1 in axes else "linf"
        charged = largest * (reach.size + reach.error) + spread * facts.measured(f"absolute_{kind}")
        return Reach(
            size=largest * reach.size + spread * facts.measured(f"shift_{kind}"),
            gain=largest * reach.gain,
            error=largest * reach.error + relative * charged + facts.smallest * 8 * Up.of(x.count(axes)).sqrt(),
        )

    norms = {axes: over(axes) for axes in {*x.norms, x.axes, frozenset[int]()}}
    if x.range is None:
        return bound(x.shape, norms)
    factor, shift = (
        Interval.of(facts.attributes[f"{name}_low"], facts.attributes[f"{name}_high"]) for name in ("factor", "shift")
    )
    return bound(x.shape, norms, x.range * factor + shift)


@rule("softmax")
def softmax(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Softmax moves by at most half of what its input moves, in l2 over its axis and in linf; its entries lie in [0, 1].

    The derivative J = diag(p) - pp' is symmetric. u'Ju is the variance of u under p, at most (max u - min u)^2/4 <= |u|^2/2;
    a row of |J| sums to 2 p_i (1 - p_i) <= 1/2. A constant mask only takes entries out, which get weight 0. For inputs up
    to ``score`` without the mask, no weight exceeds ``top`` and all but one add up to at most ``rest`` (measured as for
    attention): then |J| <= p1 (1 - p1 + p2) <= min(top, 2 rest), p1 >= p2 the largest weights, and twice that in linf.
    |p|^2 <= max p. Rows are a direct sum in norms that hold the axis. Nair 2025, arXiv 2510.23012.

    Execution: an error d of every logit moves a row by at most d in l1; exp, sum and division are relative. A computed and
    an exact row are no longer than 1 each, up to rounding.
    """
    x = alone(inputs, facts)
    axis, score, mask = facts.integer("axis"), facts.measured("score"), facts.measured("mask_size")
    if axis not in x.axes:
        raise RecordError(f"softmax over axis {axis} of {x.shape} has no rule")
    entry = x.within(frozenset())
    if entry.size > score:
        raise RecordError("softmax was measured for smaller scores than this graph reaches")
    top = least(facts.measured("top"), ONE)
    slope = least(HALF, top, facts.measured("rest") * 2)
    keys, u, own = x.shape[axis], facts.roundoff, frozenset({axis})
    # the mask is added and the largest logit subtracted: a few roundings of what they can reach
    logits = u * 8 * (entry.size + entry.error + mask) + facts.smallest * 4
    relative = gamma(keys + 2 * ELEMENTARY_ULPS + 4, u)
    underflow = facts.smallest * (2 * keys + 4)

    def over(axes: Axes) -> Reach:
        reach, rows = x.within(axes), Up.of(x.count(axes - own)).sqrt()
        carried = least(HALF * reach.error, rows * entry.error)
        moved = carried + rows * (logits + relative * (ONE + entry.error + logits) + underflow)
        return Reach(rows * top.sqrt(), slope * reach.gain, least(moved, rows * (relative + 2)))

    norms = {axes: over(axes) for axes in _joint(x, own)}
    norms[frozenset()] = Reach(top, least(HALF, slope * 2) * entry.gain, norms[own].error)
    return bound(x.shape, norms, Interval.upto(top))


@rule("variance")
def variance(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """A variance |Px|^2 / (n - correction) moves by at most 2 max|x| / (n - correction) times the move.

    |Px|^2 - |Py|^2 = <P(x + y), P(x - y)>, P the projection that takes the mean away. It is not negative. Execution: see
    layer-norm, steps (1) and (2).
    """
    (x,) = only(inputs, 1)
    shape, gone, remaining = reduced(x, facts)
    n, u = x.count(gone), facts.roundoff
    if not facts.integer("correction") < n:
        raise RecordError(f"a variance of {n} entries cannot be corrected by {facts.integer('correction')}")
    free = n - facts.integer("correction")
    entry, joint = x.within(frozenset()), x.within(gone)
    length = joint.size + joint.error
    k = gamma(8 * n + 6, u) * (entry.size + entry.error) * (Up.of(n.bit_length()) * n).sqrt()
    relative = gamma(2 * n + 10, u)
    rounding = (k * length * 2 + k * k) * (ONE + relative) + relative * length * length + facts.smallest * (4 * n)

    def pulled_back(out: Axes) -> Reach:
        kept = frozenset(remaining[axis] for axis in out)
        reach, outputs = x.within(kept | gone), Up.of(x.count(kept - gone)).sqrt()
        return Reach(
            size=joint.size * reach.size / free,
            gain=joint.size * 2 * reach.gain / free,
            error=((joint.size * 2 + joint.error) * reach.error + outputs * rounding) / free,
        )

    norms = {axes: pulled_back(axes) for axes in outcomes(x, shape, remaining)}
    return bound(shape, norms, Interval.upto(norms[frozenset()].size))


@rule("norm")
def norm(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The Euclidean norm over some axes moves by at most the norm of the move (reverse triangle inequality).

    It is not negative. Execution: a sum of n squares and a root, relative to the norm; squares may underflow.
    """
    (x,) = only(inputs, 1)
    shape, gone, remaining = reduced(x, facts)
    relative = gamma(x.count(gone) + 4, facts.roundoff)
    underflow = (facts.smallest * x.count(gone)).sqrt()

    def pulled_back(out: Axes) -> Reach:
        reach = x.within(frozenset(remaining[axis] for axis in out) | gone)
        outputs = Up.of(x.count(frozenset(remaining[axis] for axis in out) - gone)).sqrt()
        error = reach.error + relative * (reach.size + reach.error) + underflow * outputs
        return Reach(reach.size, reach.gain, error)

    norms = {axes: pulled_back(axes) for axes in outcomes(x, shape, remaining)}
    return bound(shape, norms, Interval.upto(norms[frozenset()].size))


@rule("unit")
def unit(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """x / max(|x|, eps) over some axes moves by at most 1/eps times the move, and is never longer than 1.

    It is the projection onto the ball of radius eps, divided by eps, and a projection onto a convex set moves no two
    points apart. ``inverse_floor`` is an upper bound of 1/max(|x|, eps) wherever the input reaches, as x / max(|x|, r) with
    a larger r is then the same function; 1/eps always is one. ``inverse_root`` is the same for computed values and carries errors.
    Execution: norm, maximum and division are relative to the result, and squares may underflow.
    """
    x = alone(inputs, facts)
    axes = _normalised_axes(x, facts)
    slope, steepest = facts.measured("inverse_floor"), facts.measured("inverse_root")
    n = x.count(axes)
    relative = gamma(n + 8, facts.roundoff)
    lost = steepest * (facts.smallest * n).sqrt() + facts.smallest * 4 * Up.of(n).sqrt()

    def over(held: Axes) -> Reach:
        reach, groups = x.within(held), Up.of(x.count(held - axes)).sqrt()
        return Reach(
            size=least(groups, slope * reach.size),
            gain=slope * reach.gain,
            error=steepest * reach.error + groups * (relative + lost * 2),
        )

    return bound(x.shape, {held: over(held) for held in _joint(x, axes)}, Interval.around(ONE))


@rule("extreme")
def extreme(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The largest (or smallest) entry over some axes moves by at most the largest move among them; exact.

    |max a - max b| <= max|a - b|, which is at most the Euclidean norm over the reduced axes, in any norm of the others.
    """
    (x,) = only(inputs, 1)
    shape, gone, remaining = reduced(x, facts)

    def pulled_back(out: Axes) -> Reach:
        axes = frozenset(remaining[axis] for axis in out) - gone
        return x.within(axes | gone if axes else axes)

    return bound(shape, {axes: pulled_back(axes) for axes in outcomes(x, shape, remaining)}, x.range)
