"""What attacks make of a language model whose positions are proved: the campaign, the attacks on embeddings, other tokens."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from certkit.commands import options
from certkit.errors import one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from certkit.campaign import Campaign
    from certkit.language.certificate import Bounded
    from certkit.language.contradictions import Hit
    from certkit.language.positions import Moves, Positions
    from certkit.language.records import Substitution
    from certkit.models.gpt import LanguageModel
    from certkit.records import Eps, Subject
    from certkit.text.tokens import Tokens

SUBSTITUTED = 12  # contexts whose tokens are replaced: each is a search of its own
LOGITS = 2**26  # of the contexts that are attacked at once: 256 MiB in float32, held a few times over


def campaign_of(
    model: LanguageModel,
    subject: Subject,
    bounds: Bounded,
    tokens: Tokens,
    embedded: Tensor,
    y: Tensor,
    given: dict[str, Any],
) -> Campaign:
    """The campaign of the last positions: every token moves, the engine of ``certkit attack`` in the norm ``token``."""
    import torch

    import certkit
    from certkit.data import Dataset, fingerprint
    from certkit.models.gpt import AtEmbeddings
    from certkit.records import Data

    labels, images = y[:, -1].contiguous(), embedded.float().contiguous()
    record = Data(
        name=tokens.record.name,
        split=tokens.record.split,
        count=len(images),
        sha256=fingerprint(images, labels),
        classes=tuple(one_line(tokens.decode([token]), 40) for token in range(tokens.vocabulary)),
    )
    samples = Dataset(
        record=record, images=images, labels=labels, indices=torch.arange(len(images)), box=bounds.domain.box
    )
    found: Campaign = certkit.attack(
        AtEmbeddings(model).eval(),
        samples,
        subject=subject,
        norm="token",
        eps=options.radii(given["eps"]),
        suite=given["suite"],
        out=given["out"],
        seed=given["seed"],
        threads=given["threads"],
    )
    return found


def attacked(
    model: LanguageModel,
    proved: Positions,
    embedded: Tensor,
    ways: Sequence[Moves],
    eps: Sequence[Eps],
    campaign: Campaign,
    replaced: Sequence[Hit],
    given: dict[str, Any],
) -> tuple[NDArray[np.float64], list[Hit]]:
    """The nearest example (W, N, T) of each position for each choice of tokens that move, and those inside certified radii.

    Attacks move the last tokens. What few tokens do, more can do as well. Contexts are attacked in pieces, as a large
    vocabulary has many logits; a seed counts on from piece to piece. ``replaced`` are those that other tokens made.
    """
    import numpy as np
    import torch

    from certkit.language.contradictions import Hit

    attacks = importlib.import_module("certkit.attacks.language")
    radii, y = [at.value for at in eps if at.value > 0], torch.from_numpy(proved.true)
    last = torch.zeros(y.shape, dtype=torch.bool)
    last[:, -1] = True
    hits = list(replaced)
    distance = np.full(proved.attacked.shape, np.inf)
    size = max(1, LOGITS // (y.shape[1] * len(model.embed.weight)))  # type: ignore[arg-type]

    def tried(place: int, attack: str, within: NDArray[np.float64], **masks: Tensor) -> None:
        for start in range(0, len(y), size):
            rows = slice(start, start + size)
            named: dict[str, Any] = {name: mask[rows] for name, mask in masks.items()} | {"within_NT": within[rows]}
            if attack == "pgd":
                named |= {"steps": given["steps"], "seed": given["seed"] + start}
                found = attacks.pgd(model.from_embeddings, embedded[rows], y[rows], radii, **named)
            else:
                named["steps"] = 2 * given["steps"]
                found = attacks.ddn(model.from_embeddings, embedded[rows], y[rows], radii[-1], **named)
            distance[place, rows] = np.minimum(distance[place, rows], found.distance)
            hits.extend(
                Hit(place, attack, start + n, t, one.distance, one.example) for (n, t, _), one in found.hits.items()
            )

    for place, way in enumerate(ways):
        within = np.where(proved.proved, proved.radius[place], -np.inf)
        movable = torch.zeros(y.shape)
        movable[:, -(way.tokens or y.shape[1]) :] = 1
        tried(place, "pgd", within, movable_NT=movable, judged_NT=last)
        tried(place, "ddn", within, movable_NT=movable)
        if way.tokens is None:
            tried(place, "pgd", within)
            distance[place, :, -1] = np.fmin(distance[place, :, -1], campaign.distance)
            for attack, reached in campaign.by_attack.items():
                hits += [
                    Hit(
                        place,
                        attack,
                        n,
                        y.shape[1] - 1,
                        float(reached[n]),
                        torch.from_numpy(campaign.examples[attack][n]),
                    )
                    for n in np.flatnonzero(reached <= within[:, -1]).tolist()
                ]
    for hit in replaced:
        at = hit.way, hit.context, hit.position
        distance[at] = min(distance[at], hit.distance)
    for fewer, more in pairwise(sorted(range(len(ways)), key=lambda place: ways[place].tokens or math.inf)):
        distance[more] = np.minimum(distance[more], distance[fewer])
    return distance, hits


def substituted(
    model: LanguageModel, table: Positions, tokens: Tokens, ways: Sequence[Moves], seed: int
) -> tuple[tuple[Substitution, ...], list[Hit]]:
    """Tokens replaced in some contexts until the last prediction changes, with what that costs in embedding space.

    Where that lies inside a certified radius of so many tokens it is an example like any other, and a hit.
    """
    import numpy as np
    import torch

    from certkit.language.audit import spelled
    from certkit.language.contradictions import Hit
    from certkit.language.records import Substitution

    attacks = importlib.import_module("certkit.attacks.language_tokens")
    near = attacks.substitutes([tokens.decode([token]) for token in range(tokens.vocabulary)])
    made, hits, last = [], list[Hit](), table.token.shape[1] - 1
    for n in range(min(SUBSTITUTED, len(table.token))):
        label, x = int(table.predicted[n, -1]), torch.from_numpy(table.token[n])
        greedy = attacks.greedy_coordinate_gradient(model, x, label, seed=seed)
        for kind, one in (
            ("greedy coordinate gradient", greedy),
            ("mistyped", attacks.mistyped(model, x, label, near, changes=2)),
        ):
            made.append(
                Substitution(
                    kind=kind,
                    context=n,
                    broken=one.broken,
                    places=one.places,
                    before=spelled(tokens, table.token[n]),
                    after=spelled(tokens, np.array(one.tokens)),
                    distance=one.distance,
                    jointly=one.jointly,
                    radius=float(table.radius[0, n, -1]),
                )
            )
            example = attacks.table_of(model)[torch.tensor(one.tokens)].float()
            hits += [Hit(place, kind, n, last, one.distance, example) for place in table.within(ways, made[-1])]
    return tuple(made), hits
