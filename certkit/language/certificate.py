"""What is proved of every position of a text when the embeddings of its tokens move.

Shape suffixes: N contexts, T tokens, D width, V vocabulary, R radii that are tried.

The graph that is bounded answers one position; of it the value that the head reads, one vector per token, is followed to the
end. On the ball of radius r around a context its bound ``moved`` holds for the vector of every token, so that one pass over
the graph proves something of all positions: logit i minus logit j at any of them is a linear function of that one vector,
and moves by at most |W_i - W_j| moved. Attention of later tokens does not reach back, and earlier positions need no proof
of their own. Of a position are kept that vector and the numbers that follow from its logits, never these themselves: with
50,257 tokens they would be gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Overflow as DecimalOverflow

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from certkit.bounds.ledger import Ledger, facts_for
from certkit.bounds.number import least
from certkit.bounds.rules import derive
from certkit.engine.execute import run
from certkit.engine.interpret import Interpreter
from certkit.engine.local.centre import Centre, Shares, measure
from certkit.engine.local.numbers import Floats, Intervals, Ups, as_up
from certkit.engine.local.walk import ready, walk
from certkit.engine.program import Program, export
from certkit.errors import ConfigError, Refusal
from certkit.language.head import Head, Ids, head_of
from certkit.language.threat import Domain, domain
from certkit.models.gpt import AtEmbeddings, LanguageModel

PIECE = 8  # contexts executed at once, of up to 256 tokens each: memory grows with this, time hardly falls
STEPS = 32  # radii that are tried beside those that are asked for, each a fixed share of the next
SPAN = 2.0**-8  # the smallest of them, as a share of the largest


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """A language model's bounds over all token sequences of one length, on a domain of embeddings.

    ``everywhere`` is the ledger for every token moving by the radius, ``jointly`` for all tokens together moving by it in
    l2; ``deployed`` is that of the program in the model's own arithmetic, None where a bound of its error is larger than any
    number that can be written down, as after 12 LayerNorms. ``source`` names the value that the head reads.
    """

    program: Program
    domain: Domain
    everywhere: Ledger
    jointly: Ledger
    deployed: Ledger | None
    source: str
    head: Head

    @property
    def error(self) -> float:
        """How far a difference of two float64 logits may be from the exact one, at any position of any text."""
        return self.everywhere.pairs.error.to_float()


def bounded(model: LanguageModel, context: int, reach: float) -> Bounded:
    """Bounds for texts of ``context`` tokens whose embeddings move by at most ``reach``.

    Raises Refusal for a model without a plain linear head after its last block.
    """
    if not 1 <= context <= model.context:
        raise ConfigError(f"context must be 1 to {model.context}, got {context}")
    table_VD = model.embed.weight
    assert isinstance(table_VD, Tensor)
    found = domain(table_VD, reach)
    shape = (context, table_VD.shape[1])
    program = export(AtEmbeddings(model).eval(), shape)
    interpret = Interpreter(program)
    try:
        everywhere, jointly = (interpret(norm, found.box, token_size=found.longest) for norm in ("token", "l2"))
    except DecimalOverflow:
        raise Refusal("the bounds of this model are larger than any number that can be written down") from None
    deployed: Ledger | None = None
    with suppress(DecimalOverflow):
        deployed = interpret("token", found.box, token_size=found.longest, arithmetic=program.arithmetic)
    head, name = head_of(program, everywhere.pairs.l2)
    known = {step.node: step for step in everywhere.steps}
    read = known[name]
    if read.rule != "part" or known[read.inputs[0]].bound.shape[:-1] != (1, context):
        raise Refusal("the head of this model does not read one token each; expected a language model such as gpt")
    return Bounded(
        program=program,
        domain=found,
        everywhere=everywhere,
        jointly=jointly,
        deployed=deployed,
        source=read.inputs[0],
        head=head,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What is proved of each position of each context.

    head        the map from what it reads to logits, and how fast their differences move
    hidden      (N, T, D) in float64: what the head reads, at the contexts themselves
    predicted   (N, T): the token of the largest logit there
    room        (N, T): as long as what the head reads moves by less, in l2, the predicted token stays; 0 where it is wrong
                about nothing: a tie
    radii       (R,) ascending, those that were tried
    everywhere  (R, N): how far what the head reads may move, at any position, when every token moves by at most the radius
    jointly     (R, N): the same when all tokens together move by at most the radius in l2
    error       (N,): how far a difference of two computed logits may be from the exact one, at the contexts themselves
    """

    head: Head
    hidden: Floats
    predicted: Ids
    room: Floats
    radii: Floats
    everywhere: Floats
    jointly: Floats
    error: Floats

    def radius(self, moved: Floats) -> Floats:
        """The largest tried radius (N, T) at which each position's predicted token is proved to stay on top; 0 for none."""
        found = np.zeros(self.room.shape)
        for radius, reached in zip(self.radii, moved, strict=True):
            found = np.where(reached[:, None] < self.room, radius, found)
        return found

    def moved(self, radius: float) -> Floats:
        """``everywhere`` at one radius that was tried, or 0."""
        if not radius:
            return np.zeros(len(self.room))
        place = int(np.searchsorted(self.radii, radius))
        if place == len(self.radii) or self.radii[place] != radius:
            raise ConfigError(f"nothing was tried at radius {radius}; expected one of those given to proof")
        return np.asarray(self.everywhere[place])

    def change(self, y_NT: Ids, moved: Floats) -> Floats:
        """How far the log-probability of each true token can change, (N, T), for ``moved`` (N,) at one radius.

        log p_y = -log sum_j exp(-(z_y - z_j)). Each difference z_y - z_j moves by at most M = max_j |W_y - W_j| moved, and
        log sum exp is monotone and moves by c when all its arguments do: it moves by at most M. Rounded up.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            change = _next(self.head.steepest(y_NT.reshape(-1)).reshape(y_NT.shape) * moved[:, None])
        return np.asarray(np.fmin(change, np.inf))  # rows that are all equal, times what is unknown, are NaN

    def loss(self, y_NT: Ids, moved: Floats) -> Floats:
        """An upper bound (N, T) of the cross-entropy of each true token, in nats, anywhere on the ball; infinity where none is known.

        -log p_y = log sum_j exp(z_j - z_y), which increases in each difference: and z_j - z_y is at most its value at the
        centre, the error of computing it, and |W_y - W_j| moved. Computing it in float64 from arguments a_j loses less than
        (V + 64) 2^-52 (1 + max|a| + log V): differences to the largest, V exponentials, their sum and one logarithm, each
        relative to numbers no larger than that.
        """
        labels, found = y_NT.reshape(-1), np.full(y_NT.size, np.inf)
        for rows, logits in self._logits(
            np.argsort(labels, kind="stable")
        ):  # few tokens in a piece: few rows of slopes
            y, reach, error = labels[rows], moved[rows // y_NT.shape[1]], self.error[rows // y_NT.shape[1]]
            known = np.isfinite(reach) & np.isfinite(error)
            ids, back = np.unique(y, return_inverse=True)
            reached = _next(self.head.slopes(ids)[back.reshape(-1)] * np.where(known, reach, 0.0)[:, None])
            reached = _next(np.where(known, error, 0.0)[:, None] + reached)
            reached[np.arange(len(rows)), y] = 0.0
            a = _next(_next(logits - np.take_along_axis(logits, y[:, None], axis=1)) + reached)
            top = a.max(axis=1, keepdims=True)
            value = top[:, 0] + np.log(np.exp(a - top).sum(axis=1))
            slack = (a.shape[1] + 64) * 2.0**-52 * (1.0 + np.abs(a).max(axis=1) + np.log(a.shape[1]))
            found[rows] = np.where(known, value + slack, np.inf)
        return np.asarray(np.fmin(found, np.inf).reshape(y_NT.shape))

    def cross_entropy(self, y_NT: Ids) -> Floats:
        """The cross-entropy (N, T) of each true token at the contexts themselves, in nats, as computed: nothing is proved of it."""
        labels, found = y_NT.reshape(-1), np.zeros(y_NT.size)
        for rows, logits in self._logits(np.arange(y_NT.size)):
            value = logits - logits.max(axis=1, keepdims=True)
            found[rows] = np.log(np.exp(value).sum(axis=1)) - value[np.arange(len(rows)), labels[rows]]
        return found.reshape(y_NT.shape)

    def _logits(self, order: Ids) -> Iterator[tuple[Ids, Floats]]:
        """Logits piece by piece, of positions counted through all contexts, in this order."""
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        for part in self.head.pieces(len(order)):
            yield order[part], self.head.logits(hidden[order[part]])


def _next(value: Floats) -> Floats:
    """One float64 up: a bound of what was rounded once."""
    return np.asarray(np.nextafter(value, np.inf))


def proof(
    given: Bounded, embedded_NTD: Tensor, eps: Sequence[float], *, steps: int = STEPS, piece: int | None = None
) -> Proof:
    """What is proved of every position of these contexts at the radii ``eps``, none above the reach of ``given``.

    ``steps`` radii more are tried for the radius of each position. Contexts are executed ``piece`` at a time, PIECE of them or
    as many long ones as hold as many tokens. Balls grow from one radius to the next, and what a larger one proves of the
    movement holds on the smaller.
    """
    if not all(0 <= radius <= given.domain.reach for radius in eps):
        raise ConfigError(f"radii must be between 0 and {given.domain.reach}, the reach of the bounds")
    parts = torch.split(embedded_NTD, piece or pieces_of(embedded_NTD.shape[1]))
    hidden = np.concatenate([read_by_head(given, part) for part in parts])
    seen = joined([measure(given.program, given.everywhere, part) for part in parts])
    error = _error(given, seen, len(hidden))
    predicted, free = _answers(given.head, hidden, error)
    radii = np.unique([*eps, *ladder(_furthest(given, seen, free), given.domain.reach, steps)])
    radii = radii[radii > 0]
    moved = [_moved(given, ledger, seen, radii, len(free)) for ledger in (given.everywhere, given.jointly)]
    return Proof(
        head=given.head,
        hidden=hidden,
        predicted=predicted,
        room=free,
        radii=radii,
        everywhere=moved[0],
        jointly=moved[1],
        error=error,
    )


def pieces_of(context: int) -> int:
    """How many contexts of so many tokens are executed at once."""
    return max(1, min(PIECE, PIECE * 256 // context))


def read_by_head(given: Bounded, embedded_NTD: Tensor) -> Floats:
    """What the head reads (N, T, D), of the graph in float64; NaN where the run left the range of float64."""

    def one(x_TD: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def see(node: Node, value: Tensor) -> None:
            if node.name == given.source:
                kept.append(value)

        logits = run(given.program, x_TD.unsqueeze(0), see=see)
        (hidden,) = kept
        return torch.where(logits.isnan().any(), torch.nan, hidden.reshape(hidden.shape[-2:]))

    with torch.no_grad():
        return np.asarray(torch.func.vmap(one)(embedded_NTD.cpu().to(torch.float64)).numpy())


def _answers(head: Head, hidden_NTD: Floats, error_N: Floats) -> tuple[Ids, Floats]:
    """The predicted token and the room of each position (N, T). Raises Refusal where a logit is not finite."""
    read = hidden_NTD.reshape(-1, hidden_NTD.shape[-1])
    predicted, free = np.zeros(len(read), dtype=np.int64), np.zeros(len(read))
    for part in head.pieces(len(read)):
        logits = head.logits(read[part])
        if not np.isfinite(logits).all():
            raise Refusal("the model's logits are NaN or infinite on some contexts; nothing can be certified there")
        predicted[part] = logits.argmax(axis=1)
        ids, back = np.unique(predicted[part], return_inverse=True)
        error = np.repeat(error_N, hidden_NTD.shape[1])[part]
        free[part] = room(logits, head.slopes(ids)[back.reshape(-1)], error)
    return predicted.reshape(hidden_NTD.shape[:2]), free.reshape(hidden_NTD.shape[:2])


def _error(given: Bounded, seen: Centre, count: int) -> Floats:
    """How far a difference of two computed logits may be from the exact one at any position of each context, (N,).

    The ledger's, or what its rules give from the bounds of what the head reads at the context itself, whichever is less:
    those hold for every token there, and the steps after them act on one token, whichever it is.
    """
    with np.errstate(all="ignore"):
        at = walk(ready(given.everywhere), seen, Ups(np.zeros(count))).bounds
        after = {given.source: at[given.source]}
        for step in given.everywhere.steps:
            if step.inputs and all(name in after for name in step.inputs):
                facts = facts_for(given.everywhere.arithmetic, step.attributes, step.evidence)
                after[step.node] = derive(step.rule, [after[name] for name in step.inputs], facts)
        here = after[given.everywhere.output].within(frozenset()).error * 2
        found = Ups.of(least(here, as_up(Ups(np.full(count, given.error)))))
    return np.array(np.broadcast_to(found.value, (count,)))


def _furthest(given: Bounded, seen: Centre, free_NT: Floats) -> float:
    """A radius beyond which no position can pass: the movement is at least the slope at the centre times the radius."""
    with np.errstate(all="ignore"):
        here = walk(ready(given.everywhere), seen, Ups(np.zeros(len(free_NT)))).bounds[given.source]
        slope = Ups.of(here.within(frozenset({len(here.shape) - 1})).gain).value
        ends = np.where(np.isfinite(free_NT), free_NT, 0.0).max(axis=1) / slope
    return float(np.nan_to_num(ends, posinf=0.0).max())


def ladder(furthest: float, reach: float, steps: int) -> Floats:
    """Radii of equal ratios up to the smaller of two, ``SPAN`` from the first to the last; none where nothing is certified."""
    top = min(furthest, reach)
    return np.asarray(top * SPAN ** (np.arange(steps) / steps)) if top > 0 else np.zeros(0)


def agreement(given: Bounded, model: LanguageModel, embedded_NTD: Tensor, found: Proof) -> float:
    """The largest difference between the module's own logits and those of the graph in float64, at every position.

    Raises Refusal when rounding does not explain it: then the graph is not the function that runs. Where nothing is known of
    the rounding, only NaN is refused.
    """
    deployed = math.inf if given.deployed is None else given.deployed.pairs.error.to_float()
    allowed = (deployed + given.error) / 2
    difference, size = 0.0, pieces_of(embedded_NTD.shape[1])
    with torch.no_grad():
        for start in range(0, len(embedded_NTD), size):
            own = model.hidden(embedded_NTD[start : start + size]).flatten(0, 1)
            read = found.hidden[start : start + size].reshape(-1, found.hidden.shape[-1])
            for part in found.head.pieces(len(read)):
                logits = model.head(own[part]).double().numpy()
                off = float(np.abs(logits - found.head.logits(read[part])).max())
                difference = off if math.isnan(off) else max(difference, off)
    if not difference <= allowed:
        raise Refusal(
            f"the module and its exported graph differ by {difference:.3g}, more than rounding explains ({allowed:.3g}); "
            "the graph is not the function that runs, so no certificate"
        )
    return difference


def room(logits: Floats, slopes: Floats, error: Floats | float) -> Floats:
    """How far (P,) the vector that the head reads may move, in l2, before the top logit of (P, V) need not be the only one.

    ``slopes`` (P, V) are |W_i - W_j| for the top i of each row. Logit i leads j by lead - error at least, and |W_i - W_j| d is
    what a move by d takes off: below (lead - error) / |W_i - W_j| for all j it stays on top, strictly. Rounded down, 0 for a
    tie; where two rows of W are equal only the lead counts.
    """
    top = logits.argmax(axis=-1)[..., None]
    lead = np.nextafter(np.take_along_axis(logits, top, axis=-1) - logits, -np.inf)
    slack = np.nextafter(lead - np.asarray(error)[..., None], -np.inf)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        each = np.where(slopes > 0, np.nextafter(slack / slopes, -np.inf), np.where(slack > 0, np.inf, 0.0))
    np.put_along_axis(each, top, np.inf, axis=-1)
    return np.asarray(np.maximum(each.min(axis=-1), 0.0))


def _moved(given: Bounded, ledger: Ledger, seen: Centre, radii: Floats, count: int) -> Floats:
    """Per radius and context: how far any token of what the head reads moves; never falling with the radius."""
    steps, found = ready(ledger), []
    with np.errstate(all="ignore"):
        inner = walk(steps, seen, Ups(np.zeros(count)))
        for radius in radii:
            inner = walk(steps, seen, Ups(np.full(count, radius)), inner)
            bound = inner.moved[given.source]
            size = bound.within(frozenset({len(bound.shape) - 1})).size
            found.append(np.broadcast_to(Ups.of(size).value, count))
    if not found:
        return np.zeros((0, count))
    return np.asarray(np.minimum.accumulate(np.array(found)[::-1], axis=0)[::-1])


def joined(parts: Sequence[Centre]) -> Centre:
    """The numbers of several runs of one program side by side, as one run of all samples gives them."""

    def line(numbers: Sequence[Ups]) -> Ups:
        return Ups(np.concatenate([number.value for number in numbers]))

    first, found = parts[0], Centre()
    for name, norms in first.norms.items():
        found.norms[name] = {axes: line([part.norms[name][axes] for part in parts]) for axes in norms}
    for name in first.ranges:
        low, high = (np.concatenate([getattr(part.ranges[name], end) for part in parts]) for end in ("low", "high"))
        found.ranges[name] = Intervals(low, high)
    for name in first.lengths:
        found.lengths[name] = np.concatenate([part.lengths[name] for part in parts])
    for name, shares in first.shares.items():
        every = [part.shares[name] for part in parts]
        found.shares[name] = Shares(
            column_sum=line([one.column_sum for one in every]),
            rest=line([one.rest for one in every]),
            top=line([one.top for one in every]),
            rows=shares.rows,
            spreads=tuple(
                (line([one.spreads[n][0] for one in every]), line([one.spreads[n][1] for one in every]))
                for n in range(len(shares.spreads))
            ),
        )
    return found
