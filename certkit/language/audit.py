"""From a language model, a text and what attacks reached to language.json: positions, bounds, contexts to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from certkit.bounds.ledger import Ledger
from certkit.bounds.number import Up
from certkit.campaign import Campaign, units
from certkit.errors import Tampered
from certkit.files import canonical, digest, digest_file
from certkit.language.certificate import Bounded, Proof
from certkit.language.execution import Executed
from certkit.language.positions import Moves, Positions
from certkit.language.published import published_bound
from certkit.language.records import Contradiction, LanguageAudit, Shown, Slope, Words
from certkit.language.threat import of_few, substitutions
from certkit.models.gpt import LanguageModel
from certkit.records import Eps, File, Verdict
from certkit.text.tokens import Tokens

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
ASSUMPTIONS = (
    "exp, tanh, erf and the like of the float64 centre are accurate to a few units in the last place",
    "torch.export captures the function that the module computes (checked on these contexts)",
)


def positions(
    found: Proof, own: Executed, x_NT: Whole, y_NT: Whole, ways: Sequence[Moves], eps: Sequence[Eps]
) -> Positions:
    """What is proved of every position, nothing attacked yet; ``eps`` are among the radii tried."""
    exact = found.radius(found.everywhere), found.radius(found.jointly)
    executed = own.everywhere, own.jointly
    moved = [found.moved(at.value) for at in eps]
    return Positions(
        token=x_NT,
        true=y_NT,
        predicted=found.predicted,
        room=found.room,
        right=found.predicted == y_NT,
        loss=found.cross_entropy(y_NT),
        radius=np.stack([_radius(way, *exact) for way in ways]),
        float_radius=np.stack([_radius(way, *executed) for way in ways]),
        attacked=np.full((len(ways), *y_NT.shape), np.inf),
        lost=np.stack([found.loss(y_NT, at) for at in moved]),
        changed=np.stack([found.change(y_NT, at) for at in moved]),
    )


def _radius(way: Moves, everywhere: Floats, jointly: Floats) -> Floats:
    return everywhere if way.tokens is None else of_few(everywhere, jointly, way.tokens)


def slope(given: Bounded, model: LanguageModel) -> Slope:
    """The ledger's bound of one position's logits, and what the published formula says of the same weights."""
    return compared(given.everywhere, given.domain.reach, published_bound(model))


def compared(ledger: Ledger, reach: float, published: float | None) -> Slope:
    """The bound of a ledger from token embeddings to the logits of one position, in RMS and in l2, beside the published one."""
    output = next(step for step in ledger.steps if step.node == ledger.output)
    token = output.bound.within(output.bound.axes).gain
    classes, width = output.bound.shape[-1], ledger.steps[0].bound.shape[-1]
    # sqrt(D / V) = sqrt(D V) / V: an upper bound is divided by whole numbers only
    sound = token * Up.of(width * classes).sqrt() / classes
    return Slope(
        reach=reach,
        sound=str(sound),
        token=str(token),
        published=published,
        factor=None if not published else _ratio(sound, published),
    )


def _ratio(sound: Up, published: float) -> float | None:
    ratio = sound.to_float() / published
    return ratio if math.isfinite(ratio) else None


def words(table_VD: Tensor) -> Words:
    """The table of embeddings in three numbers; lengths rounded up, the nearest distance down."""
    longest = float(table_VD.detach().double().norm(dim=1).max()) * (1 + 2.0**-40)
    nearest = float(substitutions(table_VD).min()) * (1 - 2.0**-40)
    return Words(longest=longest, rms=longest / math.sqrt(table_VD.shape[1]) * (1 + 2.0**-50), nearest=nearest)


def shown(table: Positions, tokens: Tokens, contexts: Sequence[int]) -> tuple[Shown, ...]:
    """Contexts position by position, for people to read; every token may move."""
    return tuple(
        Shown(
            context=n,
            tokens=spelled(tokens, table.token[n]),
            true=spelled(tokens, table.true[n]),
            predicted=spelled(tokens, table.predicted[n]),
            **figures(table, n),
        )
        for n in contexts
    )


def figures(table: Positions, n: int) -> dict[str, tuple[float | None, ...]]:
    """The radii and the nearest examples of one context as they are shown: those of positions that are right."""
    right = table.right[n]
    return {
        "certified": tuple(np.where(right, table.radius[0, n], 0.0).tolist()),
        "executed": tuple(np.where(right, table.float_radius[0, n], 0.0).tolist()),
        "attacked": tuple(None if math.isinf(d) else d for d in np.where(right, table.attacked[0, n], np.inf).tolist()),
    }


def spelled(tokens: Tokens, ids: Whole) -> tuple[str, ...]:
    """Each token as text."""
    return tuple(tokens.decode([int(one)]) for one in ids)


def judged(found: Sequence[Contradiction], campaign: Campaign) -> tuple[Verdict, str]:
    """The verdict, and why: what the contradictions disprove comes first, then whether the silence of attacks means anything."""

    def positions(count: int) -> str:
        return f"{count} position{'' if count == 1 else 's'}"

    if exact := sum(one.refutes == "exact arithmetic" for one in found):
        return "REFUTED", f"{positions(exact)} broken in float64 inside a certified radius: the certificate is wrong"
    if own := sum(one.refutes == "float execution" for one in found):
        return "REFUTED", (
            f"the program errs on {positions(own)} inside the radius that is claimed of its own execution: that claim is "
            "wrong; the one about exact arithmetic stands"
        )
    if failed := [check.id for check in campaign.checks if check.status == "fail"]:
        return "INCONCLUSIVE", f"the campaign of the last positions failed its own checks ({', '.join(failed)})"
    if found:
        return "NOT REFUTED", (
            f"nothing refutes a claim, but on {positions(len(found))} the program errs inside the certified radius (float gaps)"
        )
    return "NOT REFUTED", "no attack on embeddings found an example inside a certified radius"


def attacked_by(campaign: Campaign) -> str:
    """The campaign in words."""
    return ", ".join(spec.name for spec in campaign.plan.attacks) + f" ({campaign.validity})"


def files_of(campaign: Campaign, out: Path) -> tuple[File, ...]:
    """The files of a campaign in a folder, with their digests: its plan, its checks and every shard."""
    shards = sorted(f"campaign/shards/{unit.name}" for unit in chain.from_iterable(units(campaign.plan)))
    names = ("campaign/plan.json", "campaign/checks.json", *shards)
    return tuple(File(name=name, sha256=digest_file(out / name)) for name in names)


def sealed(record: LanguageAudit) -> LanguageAudit:
    """The record with the sha256 of all the rest of it."""
    bare = record.model_copy(update={"sealed": None})
    return bare.model_copy(update={"sealed": digest(canonical(bare).encode())})


def check_seal(record: LanguageAudit) -> None:
    """Raises Tampered unless the record is as it was sealed."""
    if sealed(record) != record:
        raise Tampered("language.json: was changed after it was written (its seal differs); run certkit language again")
