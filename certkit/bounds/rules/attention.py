"""Rules for softmax attention: all heads counted, on the reachable sizes, with column sums."""

from __future__ import annotations

from collections.abc import Sequence

from certkit.bounds.bound import Axes, Bound, Reach, bound
from certkit.bounds.number import ONE, Interval, Up, gamma, least, most
from certkit.bounds.rules.pointwise import ELEMENTARY_ULPS
from certkit.bounds.rules.registry import Facts, only, rule
from certkit.errors import RecordError

HALF = Up.of("0.5")


def largest_score(q: Bound, k: Bound, scale: Up) -> Up:
    """How large scale · q.k can get, mask aside: the sizes per head and token multiplied (Cauchy-Schwarz)."""
    return scale * q.within(frozenset({len(q.shape) - 1})).size * k.within(frozenset({len(k.shape) - 1})).size


def weights_error(q: Bound, k: Bound, facts: Facts) -> Up:
    """How far a row of computed softmax weights may be off, in l1.

    A score: error of both factors, a dot product, the scale and the mask; a scale above 1, applied to the products, enlarges
    what they lose to underflow. Softmax: an error d of every logit moves the row by at most d in l1 (the mean absolute
    deviation of values in [-d, d] is at most d); exp, sum and division are relative.
    """
    last, u = len(q.shape) - 1, facts.roundoff
    scale, mask = facts.measured("scale"), facts.measured("mask_size")
    rq, rk = (x.within(frozenset({last})) for x in (q, k))
    a, b = rq.size + rq.error, rk.size + rk.error
    logits = scale * (rq.error * b + rq.size * rk.error)
    logits = logits + scale * gamma(q.shape[last] + 2, u) * a * b + u * 4 * (scale * a * b + mask) * 2
    logits = logits + facts.smallest * (q.shape[last] + 4) * most(ONE, scale)
    return logits + gamma(k.shape[last - 1] + 2 * ELEMENTARY_ULPS + 4, u) * (ONE + logits)


@rule("attention")
def attention(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Softmax attention moves by sqrt(c)|dv| + scale Rv (t Rk |dq| + sqrt(t c') Rq |dk|), c' <= c, all heads counted.

    For Y = P V, P = softmax(scale Q K' + M) by rows, sizes R per head and token, all |scores| <= s without the mask. The
    evidence was measured for scores up to ``score`` >= s: no weight p of softmax(M) exceeds g(p) = p E / (1 - p + p E),
    E = e^(2s), every other score against it; ``column_sum`` c bounds the sum of g(p) over a column, ``rest`` r the sum over
    a row without its largest entry. With q = min(r, 1/2), t = 4 q (1 - q) bounds variances under a row of P as a share of R²:
    at most R² on an interval of half-width R (Popoviciu); with mass 1 - q >= 1/2 at one point, largest where that point is
    one end and the rest the other, q (1 - q) (2R)².
    dY_i = sum_j P_ij dv_j + scale Cov_i(v, k) dq_i + scale sum_j P_ij (v_j - mean_i v) (q_i . dk_j).
    (i) |P dV| <= sqrt(c) |dV| as rows sum to 1 and columns to at most c; (ii) |Cov_i(v, k)| <= t Rv Rk by Cauchy-Schwarz;
    (iii) the last sum is Cov_i(v, s) for s_j = q_i . dk_j, at most sqrt(t) Rv times the deviation of s under the row. Per
    token that is at most sqrt(t) Rq max|dk|. Its square is at most sum_j P_ij s_j^2, and as sum_{j<k} P_ij P_ik (s_j - s_k)^2
    at most 2 sum_j P_ij (1 - P_ij) s_j^2: over i, the squares add up to Rq^2 c' |dK|^2, c' the largest column sum of P, or
    of 2 P (1 - P). A column is the largest entry, >= 1 - r, of at most c / (1 - r) rows, and 1 - P <= r there; in the other
    of the n rows P <= r: c' <= min(c, 2 r c (1 + 2 r) + 2 n r), as 1 / (1 - r) <= 1 + 2 r up to r = 1/2, from where
    on c is the smaller. In l2 over heads, tokens and features the heads are a direct sum, so the largest R of a head counts
    and no sqrt(H) appears; per head and token (max over both) c is replaced by 1. The mean value inequality on the convex
    input domain makes this a Lipschitz bound. Where more is known of the values, ``key_deviation`` and ``value_deviation``
    replace sqrt(t) Rk and sqrt(t) Rv: upper bounds, in every direction, of the standard deviation of keys and values under a
    row of P, which is all that (ii) and (iii) ask of them.
    """
    q, k, v = only(inputs, 3)
    shape = facts.shape()
    last, tokens = len(shape) - 1, len(shape) - 2
    if tokens < 1 or q.shape[:tokens] != v.shape[:tokens] or k.shape[:last] != v.shape[:last]:
        raise RecordError(f"attention cannot read queries {q.shape}, keys {k.shape}, values {v.shape}")
    if shape != (*q.shape[:last], v.shape[last]) or q.shape[last] != k.shape[last]:
        raise RecordError(f"attention over {q.shape}, {k.shape}, {v.shape} cannot give {shape}")
    rows, keys = q.shape[tokens], k.shape[tokens]
    token: Axes = frozenset({last})
    scale = facts.measured("scale")
    rq, rk, rv = (x.within(token) for x in (q, k, v))
    if largest_score(q, k, scale) > facts.measured("score"):
        raise RecordError("attention: the softmax was measured for smaller scores than this graph reaches")
    column_sum, rest = least(facts.measured("column_sum"), Up.of(rows)), facts.measured("rest")
    columns, beside = column_sum.sqrt(), Interval.at(least(rest, HALF))
    variance = (beside * (beside * Interval.of(-1, -1) + Interval.of(1, 1))).largest * 4
    share = variance.sqrt()
    sk, sv = (
        least(share * x.size, facts.evidence.get(name, x.size))
        for x, name in ((rk, "key_deviation"), (rv, "value_deviation"))
    )
    spread = least(column_sum, rest * 2 * (column_sum * (ONE + rest * 2) + Up.of(rows)))

    def gain(axes: Axes, mixing: Up, deviation: Up) -> Up:
        dq, dk, dv = (x.within(axes).gain for x in (q, k, v))
        return mixing * dv + scale * sv * (sk * dq + deviation * rq.size * dk)

    # Execution, per head and token: the weights' own error, then a product with the values.
    row, held = weights_error(q, k, facts), rv.size + rv.error
    error = row * held + rv.error + gamma(keys, facts.roundoff) * (ONE + row) * held
    error = error + facts.smallest * keys * (ONE + held) * Up.of(shape[last]).sqrt()

    per_token = Reach(rv.size, gain(token, ONE, share), error)
    everything = frozenset(range(1, len(shape)))
    whole = Bound(shape, {token: per_token}).within(everything)
    jointly = Reach(columns * v.within(everything).size, gain(everything, columns, spread.sqrt()), whole.error)
    return bound(shape, {token: per_token, everything: whole.best(jointly)}, v.range)


@rule("fixed-attention")
def fixed_attention(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Attention whose weights do not look at the input moves by sqrt(c)|dv|, c the largest column sum; per token by |dv|.

    Used for the ablations: weights made uniform, or frozen at their mean over a data set.
    """
    (v,) = only(inputs, 1)
    shape = facts.shape()
    last, tokens = len(shape) - 1, len(shape) - 2
    if tokens < 1 or (*shape[:tokens], shape[last]) != (*v.shape[:tokens], v.shape[last]):
        raise RecordError(f"fixed attention over {v.shape} cannot give {shape}")
    token, everything = frozenset({last}), frozenset(range(1, len(shape)))
    columns = facts.measured("column_sum").sqrt()
    here, jointly = v.within(token), v.within(everything)
    terms = gamma(v.shape[tokens] + 1, facts.roundoff)
    # The rows of the weights sum to 1 up to their own rounding, which the evidence has enlarged to ``row_sum``.
    rows = facts.measured("row_sum")
    held = here.size + here.error
    lost = facts.smallest * v.shape[tokens] * Up.of(shape[last]).sqrt()
    per_token = Reach(rows * here.size, rows * here.gain, rows * here.error + terms * rows * held + lost)
    whole = Bound(shape, {token: per_token}).within(everything)
    mixing = columns * rows.sqrt()
    return bound(
        shape,
        {token: per_token, everything: whole.best(Reach(mixing * jointly.size, mixing * jointly.gain, whole.error))},
    )
