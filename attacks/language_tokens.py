"""Attacks that replace tokens. They leave the certificate's threat: what they cost in embedding space is measured beside them.

Shape suffixes: N contexts, T tokens, D width, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from certkit.models.gpt import LanguageModel

from .language import margins, token_distance

KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # neighbours on a keyboard are what fingers confuse


@dataclass(frozen=True, slots=True)
class Substituted:
    """One context with tokens replaced: whether the last position's label lost, which places changed, and how far.

    ``distance`` is the largest l2 move of a token's embedding, rounded up, ``jointly`` the l2 norm of all moves together.
    """

    tokens: tuple[int, ...]
    broken: bool
    places: tuple[int, ...]
    distance: float
    jointly: float


def greedy_coordinate_gradient(
    model: LanguageModel,
    tokens_T: Tensor,
    label: int,
    *,
    changes: int = 3,
    candidates: int = 8,
    tries: int = 64,
    steps: int = 12,
    seed: int = 0,
) -> Substituted:
    """Replace at most ``changes`` tokens so that the last position no longer predicts ``label``.

    The gradient of the lead in each token's embedding, times how far each other token's embedding lies, says to first
    order what a replacement does; of the ``candidates`` best at each place ``tries`` random ones are run, and the best is
    kept if it lowers the lead. Zou et al. 2023, arXiv 2307.15043, as one search per context.
    """
    table_VD = table_of(model)
    source = torch.Generator().manual_seed(seed)
    now = tokens_T.clone()
    lead = _leads(model, now.unsqueeze(0), label)[0]
    for _ in range(steps):
        if lead <= 0:
            break
        embedded = table_VD[now].unsqueeze(0).requires_grad_(True)
        loss = margins(model.from_embeddings(embedded)[:, -1:], torch.tensor([[label]])).sum()
        (gradient,) = torch.autograd.grad(loss, embedded)
        effect_TV = gradient[0] @ table_VD.T - (gradient[0] * table_VD[now]).sum(-1, keepdim=True)
        effect_TV.scatter_(1, now.unsqueeze(1), torch.inf)
        changed = now != tokens_T
        places = torch.arange(len(now)) if int(changed.sum()) < changes else changed.nonzero().squeeze(1)
        best_TC = effect_TV[places].topk(min(candidates, len(table_VD) - 1), largest=False).indices
        drawn = torch.randint(best_TC.numel(), (tries,), generator=source)
        rows = now.repeat(tries, 1)
        rows[torch.arange(tries), places[drawn // best_TC.shape[1]]] = best_TC.flatten()[drawn]
        leads = _leads(model, rows, label)
        if leads.min() < lead:
            now, lead = rows[leads.argmin()], leads.min()
    return _measured(table_VD, tokens_T, now, broken=not lead > 0)


def substitutes(characters: Sequence[str]) -> Mapping[int, tuple[int, ...]]:
    """By character: the ones it is mistaken for, its other case and its neighbours on a keyboard, as far as the vocabulary has them."""
    number = {character: place for place, character in enumerate(characters)}
    near: dict[str, list[str]] = {}
    for row in KEYS:
        for left, right in pairwise(row):
            for a, b in ((left, right), (right, left)):
                near.setdefault(a, []).append(b)
                near.setdefault(a.upper(), []).append(b.upper())
    found: dict[int, tuple[int, ...]] = {}
    for character, place in number.items():
        others = [character.swapcase(), *near.get(character, [])]
        found[place] = tuple(number[other] for other in others if other != character and other in number)
    return found


def mistyped(
    model: LanguageModel, tokens_T: Tensor, label: int, known: Mapping[int, tuple[int, ...]], *, changes: int = 1
) -> Substituted:
    """The text with up to ``changes`` characters mistaken so that the last position's lead falls most: all are tried, greedily."""
    table_VD = table_of(model)
    now, lead = tokens_T.clone(), _leads(model, tokens_T.unsqueeze(0), label)[0]
    for _ in range(changes):
        swaps = [(place, other) for place, token in enumerate(now.tolist()) for other in known.get(token, ())]
        if lead <= 0 or not swaps:
            break
        rows = now.repeat(len(swaps), 1)
        rows[torch.arange(len(swaps)), torch.tensor([place for place, _ in swaps])] = torch.tensor(
            [o for _, o in swaps]
        )
        leads = _leads(model, rows, label)
        if leads.min() >= lead:
            break
        now, lead = rows[leads.argmin()], leads.min()
    return _measured(table_VD, tokens_T, now, broken=not lead > 0)


def table_of(model: LanguageModel) -> Tensor:
    """The embeddings (V, D) of all tokens."""
    table_VD = model.embed.weight
    assert isinstance(table_VD, Tensor)
    return table_VD.detach()


@torch.no_grad()
def _leads(model: LanguageModel, tokens_NT: Tensor, label: int) -> Tensor:
    """The lead (N,) of the label at the last position, in pieces of 64 texts."""
    labels = torch.full((len(tokens_NT), 1), label)
    pieces = [model.head(model.blocks(model.embed(part))[:, -1:]) for part in torch.split(tokens_NT, 64)]
    return margins(torch.cat(pieces), labels).squeeze(1)


def _measured(table_VD: Tensor, before_T: Tensor, after_T: Tensor, *, broken: bool) -> Substituted:
    before_TD, after_TD = table_VD[before_T], table_VD[after_T]
    return Substituted(
        tokens=tuple(after_T.tolist()),
        broken=broken,
        places=tuple((after_T != before_T).nonzero().squeeze(1).tolist()),
        distance=float(token_distance(before_TD[None], after_TD[None])[0]),
        jointly=float((after_TD.double() - before_TD.double()).norm()),
    )
