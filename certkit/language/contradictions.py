"""Examples inside certified radii, judged: what each disproves, if anything. And one of them shown again.

Every such example is run once more, in float64 by the graph that was certified: the exact claim is refuted only where the
certified token falls behind by more than that run's own proved error. Else the claim of the execution is, where the program
errs inside its radius, run by itself as that claim says. Else it is a float gap: a program errs where the exact function does
not, and none was claimed not to.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from certkit.campaign import distance_up
from certkit.engine.kernels import deployed
from certkit.errors import RecordError, one_line
from certkit.files import digest, write_atomic
from certkit.language.certificate import Bounded, bounded, proof
from certkit.language.positions import Moves, Positions
from certkit.language.records import Contradiction, LanguageAudit
from certkit.machine import pinned
from certkit.models.gpt import LanguageModel
from certkit.records import File, Refutes
from certkit.text.tokens import Tokens

KEPT = 64  # examples that are saved, those that disprove most first: each holds a whole context's embeddings
SPELLED = 24  # tokens of the text before the position
RANK: dict[Refutes, int] = {"float gap": 0, "float execution": 1, "exact arithmetic": 2}
PIECE = 64  # examples held in float64 at once


@dataclass(frozen=True, slots=True)
class Hit:
    """Embeddings (T, D), float32, that break a position within its certified radius; ``way`` is the choice of tokens that move."""

    way: int
    attack: str
    context: int
    position: int
    distance: float
    example: Tensor


@dataclass(frozen=True, slots=True)
class Judged:
    """What an example does to one position: the lead of a token in float64, rounded down, its error, and the program's answer.

    ``answer`` is the token itself where it is the one largest logit, else the strongest other.
    """

    margin: float
    error: float
    answer: int

    def disproves(self, held: int, *, claimed: bool) -> Refutes:
        """What it disproves of the certified token ``held``; ``claimed`` says whether the execution's radius reaches so far."""
        computed = np.nextafter(self.margin, np.inf)  # one float up again: what rounding down did refutes nothing
        if computed < -self.error:
            return "exact arithmetic"
        return "float execution" if claimed and self.answer != held else "float gap"


def judge(
    given: Bounded, model: LanguageModel, examples: Sequence[Tensor], places: Sequence[int], held: Sequence[int]
) -> list[Judged]:
    """Each example in float64 by the certified graph, and by the program alone, one at a time, in the kernels of its claim."""
    found = []
    for start in range(0, len(examples), PIECE):
        some = torch.stack(list(examples[start : start + PIECE]))
        exact = proof(given, some, [], steps=0)
        for row, example in enumerate(some):
            place, token = places[start + row], held[start + row]
            logits = exact.head.logits(exact.hidden[row, place][None])[0]
            margin = np.nextafter(logits[token] - np.delete(logits, token).max(), -np.inf)
            with torch.no_grad(), deployed():
                own = model.from_embeddings(example[None])[0, place].double().numpy(force=True)
            found.append(Judged(float(margin), float(exact.error[row]), answered(own, token)))
    return found


def answered(logits: np.ndarray, held: int) -> int:
    """The token itself where it beats every other, else the strongest of the others; a tie and NaN count against it."""
    others = logits.copy()
    others[held] = -np.inf
    return held if (logits[held] > np.delete(logits, held)).all() else int(np.nan_to_num(others, nan=np.inf).argmax())


def contradictions(
    given: Bounded,
    model: LanguageModel,
    hits: Iterable[Hit],
    table: Positions,
    ways: Sequence[Moves],
    tokens: Tokens,
    out: Path,
) -> tuple[Contradiction, ...]:
    """One for each position that is proved right and has hits: the one that disproves most, the nearest of equals.

    In the order of contexts and positions. The examples of the first KEPT, by the same order of worth, are written below
    ``out``.
    """
    asked = [
        hit
        for hit in hits
        if table.right[hit.context, hit.position] and hit.distance <= table.radius[hit.way, hit.context, hit.position]
    ]
    held = [int(table.predicted[hit.context, hit.position]) for hit in asked]
    best: dict[tuple[int, int], tuple[tuple[int, float], Hit, Judged, Refutes]] = {}
    for hit, token, one in zip(
        asked, held, judge(given, model, [h.example for h in asked], [h.position for h in asked], held), strict=True
    ):
        where = (hit.context, hit.position)
        refutes = one.disproves(token, claimed=hit.distance <= table.float_radius[(hit.way, *where)] > 0)
        worth = (-RANK[refutes], hit.distance)
        if where not in best or worth < best[where][0]:
            best[where] = worth, hit, one, refutes
    kept = sorted(best, key=lambda where: (best[where][0], where))[:KEPT]
    return tuple(
        Contradiction(
            context=where[0],
            position=where[1],
            moves=ways[hit.way].name,
            attack="clean" if hit.distance == 0 else hit.attack,
            distance=hit.distance,
            radius=float(table.radius[(hit.way, *where)]),
            float_radius=float(table.float_radius[(hit.way, *where)]),
            refutes=refutes,
            reference_margin=one.margin,
            text=tuple(
                tokens.decode([int(token)])
                for token in table.token[where[0], max(0, where[1] + 1 - SPELLED) : where[1] + 1]
            ),
            predicted=tokens.decode([int(table.predicted[where])]),
            rival=tokens.decode([one.answer]),
            example=_saved(hit, out) if where in kept else None,
        )
        for where, (_, hit, one, refutes) in sorted(best.items())
    )


def _saved(hit: Hit, out: Path) -> File:
    buffer = io.BytesIO()
    np.save(buffer, hit.example.numpy(force=True), allow_pickle=False)
    name = f"refutations/context-{hit.context}-position-{hit.position}.npy"
    write_atomic(out / name, buffer.getvalue())
    return File(name=name, sha256=digest(buffer.getvalue()))


# --- Shown again ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replayed:
    """One contradiction run again: its distance measured anew, rounded up, and what it disproves here."""

    stated: Contradiction
    distance: float
    reference_margin: float
    answer: int
    held: int
    refutes: Refutes

    @property
    def reproduced(self) -> bool:
        """Whether it lies no farther away than stated and disproves as much."""
        return self.distance <= self.stated.distance and RANK[self.refutes] >= RANK[self.stated.refutes]


def read_example(directory: Path, one: Contradiction, shape: tuple[int, int]) -> Tensor:
    """The embeddings (T, D) of a contradiction. Raises RecordError for a file that is missing, another, or no such array."""
    if one.example is None:
        raise RecordError(
            f"context {one.context}, position {one.position}: its example was not kept; only {KEPT} of an audit are"
        )
    path = directory / one.example.name
    again = "run certkit language again"
    if not path.is_file():
        raise RecordError(f"{one.example.name}: language.json names this example and it is missing; {again}")
    data = path.read_bytes()
    if digest(data) != one.example.sha256:
        raise RecordError(f"{one.example.name}: is not the example that language.json names; {again}")
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise RecordError(f"{one.example.name}: no array ({one_line(error, 80)}); {again}") from None
    if values.shape != shape or values.dtype != np.float32 or not np.isfinite(values).all():
        raise RecordError(f"{one.example.name}: expected {shape} finite float32 numbers; {again}")
    return torch.from_numpy(values)


def replay(directory: Path, record: LanguageAudit, table: Positions, model: LanguageModel, number: int) -> Replayed:
    """The contradiction of that number, from 0, run again from its file; the text's own embeddings come from the model.

    The caller has made sure that ``model`` is the one that ``record`` is about. Raises RecordError without such an example.
    """
    if not 0 <= number < len(record.contradictions):
        raise RecordError(
            f"contradiction {number}: this audit has {len(record.contradictions)}, counted from 0; expected one of them"
        )
    with pinned(record.environment.threads):
        given = bounded(model, record.context, record.slope.reach)
        return replayed(directory, record.contradictions[number], table, given, model)


def replayed(directory: Path, one: Contradiction, table: Positions, given: Bounded, model: LanguageModel) -> Replayed:
    """One contradiction run again, with bounds that are there."""
    rows = model.embed.weight
    assert isinstance(rows, Tensor)
    x = rows.detach().float()[torch.from_numpy(table.token[one.context])]
    example = read_example(directory, one, (x.shape[0], x.shape[1]))
    distance = float(distance_up("token", x.numpy()[None], example.numpy()[None])[0])
    held = int(table.predicted[one.context, one.position])
    (found,) = judge(given, model, [example], [one.position], [held])
    inside = distance <= one.radius
    refutes = found.disproves(held, claimed=one.float_radius > 0 and distance <= one.float_radius)
    return Replayed(
        stated=one,
        distance=distance,
        reference_margin=found.margin,
        answer=found.answer,
        held=held,
        refutes=refutes if inside else "float gap",
    )
