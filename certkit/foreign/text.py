"""Text for networks that read tokens: the threat moves the embeddings that the words become, not the words.

A token's position and type are added by the network itself, after that. The domain is the box around all rows of the table of
embeddings, made larger by the radius on every side: it holds the convex hull of the vocabulary and every ball around a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from certkit.bounds.spectral import euclidean, up
from certkit.data import Array, Dataset, fingerprint
from certkit.errors import ConfigError, DataError, one_line
from certkit.foreign.huggingface import Foreign
from certkit.records import Data


def embedded(
    network: Foreign, ids: Array, labels: Array, *, reach: float, name: str, classes: Sequence[str], split: str = "test"
) -> Dataset:
    """Sentences of one length as embeddings (N, tokens, features), with the box that a threat of radius ``reach`` stays in.

    ``ids`` (N, tokens) are the ids of words, ``labels`` (N,) positions in ``classes``: of a language model the next word.
    The ball of any norm here (l2, linf, token) moves no entry by more than ``reach``. Raises DataError for ids or labels
    that are not the network's, ConfigError for a network that reads no text.
    """
    table, where = _table(network), f"data set {one_line(name, 80)!r}"
    words, targets = torch.as_tensor(ids), torch.as_tensor(labels)
    if words.ndim != 2 or targets.ndim != 1 or len(words) != len(targets) or words.numel() == 0:
        raise DataError(
            f"{where}: ids of shape {tuple(words.shape)} with labels of shape {tuple(targets.shape)}; expected (N, tokens), (N,)"
        )
    for what, values, count in (("ids", words, len(table)), ("labels", targets, len(classes))):
        if values.is_floating_point() or bool(((values < 0) | (values >= count)).any()):
            raise DataError(f"{where}: {what} must be integers from 0 to {count - 1}")
    vectors, targets = table[words.long()].contiguous(), targets.long()
    record = Data(
        name=one_line(name, 120),
        split=one_line(split, 120),
        count=len(words),
        sha256=fingerprint(vectors, targets),
        classes=tuple(one_line(c, 120) for c in classes),
    )
    return Dataset(
        record=record, images=vectors, labels=targets, indices=torch.arange(len(words)), box=box(network, reach)
    )


def box(network: Foreign, reach: float) -> tuple[float, float]:
    """The least and the largest entry of any word's embedding, moved out by ``reach`` and rounded outward."""
    table = _table(network)
    _check(reach)
    low, high = float(table.min()), float(table.max())
    return math.nextafter(low - reach, -math.inf), up(high + reach)


def longest(network: Foreign, reach: float) -> float:
    """No token of the domain is longer: the largest Euclidean norm of a word's embedding, plus ``reach``, rounded up.

    It bounds the hull and the balls around it, as the ball of a norm is convex.
    """
    _check(reach)
    return up(float(euclidean(_table(network).double().numpy(), axis=1).max()) + reach)


def _table(network: Foreign) -> Tensor:
    if network.embeddings is None:
        raise ConfigError(
            f"{network.subject.architecture} reads no text; expected a network with a table of embeddings"
        )
    return network.embeddings


def _check(reach: float) -> None:
    if not 0 <= reach < math.inf:
        raise ConfigError(f"reach must be a finite radius, got {reach}")
