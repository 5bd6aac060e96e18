"""Text for networks that read tokens: the threat moves the embeddings that the words become, not the words.

A token's position and type are added by the network itself, after that. The domain is the box around all rows of the table of
embeddings, made larger by the radius on every side: it holds the convex hull of the vocabulary and every ball around a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from certkit.bounds.spectral import euclidean, up
from certkit.data import Array, Dataset, fingerprint
from certkit.errors import ConfigError, DataError, Refusal, one_line
from certkit.foreign.huggingface import LANGUAGE, Embedded, Foreign
from certkit.models.gpt import LanguageModel
from certkit.records import Data

PROBED = 8  # tokens on which a network's parts are held against the network


class Body(nn.Module):
    """Embeddings (batch, tokens, features) -> what the head reads of each token: positions are added here, by the network."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.transformer(inputs_embeds=x, use_cache=False).last_hidden_state
        return hidden


def language_model(network: Foreign) -> LanguageModel:
    """A causal language model of Hugging Face as certkit's three parts: table of embeddings, body, head; in eval mode.

    Raises ConfigError for another network, Refusal when the parts together are not the network: on the first tokens of the
    vocabulary their logits must be the same to float32 rounding.
    """
    module = network.module
    if not isinstance(module, Embedded) or not module.language:
        raise ConfigError(
            f"{network.subject.architecture} is no causal language model; expected one of {', '.join(LANGUAGE.values())}"
        )
    whole: nn.Module = module.network
    table, head = whole.get_input_embeddings(), whole.get_output_embeddings()  # type: ignore[operator]
    model = LanguageModel(
        table,
        nn.Sequential(Body(whole.transformer)),  # type: ignore[arg-type]
        head,
        context=int(whole.config.n_positions),  # type: ignore[union-attr, arg-type]
    ).eval()
    ids = torch.arange(min(PROBED, model.context)).remainder(len(table.weight)).unsqueeze(0)
    with torch.no_grad():
        own, theirs = model(ids), whole(input_ids=ids, use_cache=False).logits
    if own.shape != theirs.shape or not torch.allclose(own, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max())):
        raise Refusal(
            f"{network.subject.architecture}: its embeddings, body and head do not make its logits; certkit would speak of another network"
        )
    return model


def embedded(
    network: Foreign, ids: Array, labels: Array, *, reach: float, name: str, classes: Sequence[str], split: str = "test"
) -> Dataset:
    """Sentences of one length as embeddings (N, tokens, features), with the box that a threat of radius ``reach`` stays in.

    ``ids`` (N, tokens) are the ids of words, ``labels`` (N,) positions in ``classes``: of a language model the next word.
    The ball of any norm here (l2, linf, token) moves no entry by more than ``reach``. Raises DataError for ids or labels
    that are not the network's and for ids that are padding, ConfigError for a network that reads no text.
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
    padding = _padding(network)
    if padding is not None and bool((words == padding).any()):
        raise DataError(
            f"{where}: ids hold {padding}, which pads sentences for this network; nothing is masked here, and it would be read "
            "as a word: give sentences of one length, without padding"
        )
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


def _padding(network: Foreign) -> int | None:
    """The id that is no word and only fills up sentences; None where the network has none, or ends sentences with it."""
    config: Any = getattr(getattr(network.module, "network", None), "config", None)
    found: int | None = getattr(config, "pad_token_id", None)
    return None if found == getattr(config, "eos_token_id", None) else found


def _check(reach: float) -> None:
    if not 0 <= reach < math.inf:
        raise ConfigError(f"reach must be a finite radius, got {reach}")
