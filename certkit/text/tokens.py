"""The tokens of a text with the record that names them, and what a language model is trained and judged on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field, StringConstraints
from torch import Tensor

from certkit.errors import DataError, one_line, suggestion
from certkit.records import Count, Record, Sha256
from certkit.text.store import cache_folder, cached, joined, read_text, sha256
from certkit.text.tokenizers import BOTH, GPT2, MAX_VOCABULARY, Character, gpt2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from certkit.text.tokenizers import Ids

TEXT, TOKENS = (".txt", ".tokens", ".raw"), (".bin",)
SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}  # word: split
_WORKS = "expected one text file, one text file per split, or token files (*_train_*.bin, *_val_*.bin)"


class TextData(Record):
    """Which tokens: ``sha256`` is over the ids as used, in order, as little-endian uint16.

    ``tokenizer`` is ``gpt2``, or ``character:`` with the sha256 of the characters in order, so that equal records mean
    equal text.
    """

    name: str
    split: str
    count: Count
    sha256: Sha256
    vocabulary: Annotated[int, Field(ge=1, le=MAX_VOCABULARY)]
    tokenizer: Annotated[str, StringConstraints(pattern=r"^(gpt2|character:[0-9a-f]{64})$")]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The token ids of a split in order, with the record that names them.

    ids         uint16 (count,), read-only: a file mapped into memory
    tokenizer   what made them, and turns them back into text
    """

    record: TextData
    ids: Ids
    tokenizer: Character | GPT2

    @property
    def vocabulary(self) -> int:
        return self.record.vocabulary

    def decode(self, ids: Tensor | NDArray[Any] | Sequence[int]) -> str:
        """The text of a row of ids. Raises DataError for one outside the vocabulary."""
        values: list[int] = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
        if outside := [value for value in values if not 0 <= value < self.vocabulary]:
            raise DataError(f"{self._where}: token {outside[0]} is outside 0 to {self.vocabulary - 1}")
        return self.tokenizer.decode(values)

    def batch(self, generator: torch.Generator, size: int, context: int) -> tuple[Tensor, Tensor]:
        """``size`` pieces of ``context`` tokens and the token that follows each of these, both int64 (size, context).

        Every position with context + 1 tokens from there on is equally likely; the CPU generator alone decides.
        """
        if size < 1:
            raise DataError(f"size must be 1 or more, got {size}")
        starts = torch.randint(self._starts(context), (size,), generator=generator).numpy()
        rows = np.lib.stride_tricks.sliding_window_view(self.ids, context + 1)[starts].astype(np.int64)
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    def windows(self, context: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """As ``batch``, but the text from its start, piece after piece, at most ``limit`` of them.

        Every token but the first is predicted once; what is left at the end is less than a piece.
        """
        _at_least_one(limit)
        self._starts(context)
        count = min((len(self.ids) - 1) // context, limit or len(self.ids))
        used = self.ids[: count * context + 1].astype(np.int64)
        x, y = (torch.from_numpy(part.reshape(count, context).copy()) for part in (used[:-1], used[1:]))
        return x, y

    def _starts(self, context: int) -> int:
        """How many positions have context + 1 tokens from there on. Raises DataError for none."""
        if context < 1:
            raise DataError(f"context must be 1 or more, got {context}")
        if len(self.ids) <= context:
            raise DataError(
                f"{self._where}, split {self.record.split!r}: {len(self.ids)} tokens; "
                f"a context of {context} needs at least {context + 1}"
            )
        return len(self.ids) - context

    @property
    def _where(self) -> str:
        return f"data set {self.record.name!r}"


def load_text(
    name: str, split: str, *, tokenizer: str | Path = "character", cache: Path | None = None, limit: int | None = None
) -> Tokens:
    """The tokens of a split of a folder, or its first ``limit``.

    One text file (.txt, .tokens, .raw) gives ``train``, the first nine tenths of its characters, and ``test``, the rest.
    Several files give the splits that their names have as a word: train; valid, val or validation; test. Token files
    (.bin, in the layout of the NanoGPT speedrun) of one split are joined in the order of their names.

    ``tokenizer`` is ``character``, ``gpt2``, or the folder that holds GPT-2's vocab.bpe and encoder.json. The vocabulary of
    ``character`` is every character in the file of ``train``, sorted; where one file gives both splits, that is the whole
    file, as in the public experiments (65 for tiny Shakespeare). Token files are GPT-2's.

    Text is tokenised once, into ``cache`` (else $XDG_CACHE_HOME/certkit/tokens or ~/.cache/certkit/tokens), under a name
    made of the source's bytes, the tokenizer and the part. No code of a data set is run, nothing is downloaded. Raises
    DataError for what is missing, ambiguous or damaged.
    """
    _at_least_one(limit)
    folder, shown = _folder(name)
    where = f"data set {shown!r}"
    splits = _splits(folder, where)
    if split not in splits:
        known = ", ".join(splits)
        raise DataError(
            f"{where} has no split {one_line(split, 80)!r}; expected one of {known}{suggestion(split, splits)}"
        )
    store = cache_folder() if cache is None else cache
    given = gpt2(tokenizer)
    coder: Character | GPT2
    if not splits[split].tokens:
        coder, ids = _tokenised(splits, split, given, store, where)
    elif given is None:
        raise DataError(f"{where} holds tokens of GPT-2; expected tokenizer gpt2 or the folder with {BOTH}")
    else:
        coder, ids = given, joined(splits[split].paths, limit, store, where)
    ids = ids[:limit]
    record = TextData(
        name=shown,
        split=split,
        count=len(ids),
        sha256=sha256(ids).hex(),
        vocabulary=coder.vocabulary,
        tokenizer=coder.name,
    )
    return Tokens(record=record, ids=ids, tokenizer=coder)


@dataclass(frozen=True, slots=True)
class _Split:
    """The files of a split, and which part of their text it is: ``all``, or the ``first`` nine tenths, or the ``rest``."""

    paths: tuple[Path, ...]
    part: str = "all"

    @property
    def tokens(self) -> bool:
        return self.paths[0].suffix in TOKENS

    def of(self, text: str) -> str:
        cut = len(text) * 9 // 10
        return {"all": text, "first": text[:cut], "rest": text[cut:]}[self.part]


def _tokenised(
    splits: Mapping[str, _Split], split: str, given: GPT2 | None, store: Path, where: str
) -> tuple[Character | GPT2, Ids]:
    """The ids of a text file, and what made them: the given tokenizer, or the characters of ``train``."""
    chosen = splits[split]
    (path,) = chosen.paths
    shown = f"{where}: {one_line(path.name, 80)}"
    text, source = read_text(path, where)
    coder: Character | GPT2
    if given is not None:
        coder = given
    elif "train" in splits:
        (train,) = splits["train"].paths
        coder = Character.of(text if train == path else read_text(train, where)[0], where)
    else:
        raise DataError(f"{where} has no split 'train', whose characters are the vocabulary; expected one, or gpt2")
    part = chosen.of(text)
    if not part:
        raise DataError(f"{shown} is too short to be split; expected 2 characters or more")
    key = (source, coder.name, chosen.part)
    return coder, cached(store, key, coder.vocabulary, lambda: [coder.encode(part, shown)])


def _splits(folder: Path, where: str) -> dict[str, _Split]:
    """The splits of a folder by name. Raises DataError unless every file has one place."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix in TEXT + TOKENS and path.name[0] != ".")
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror or error})") from None
    kinds = {path.suffix in TOKENS: path for path in found}
    if not found:
        raise DataError(f"{where} holds no file that ends in {', '.join(TEXT + TOKENS)}; {_WORKS}")
    if len(kinds) > 1:
        names = " and ".join(one_line(path.name, 80) for path in kinds.values())
        raise DataError(f"{where} holds text files and token files, such as {names}; expected one kind")
    by_split: dict[str, list[Path]] = {name: [] for name in SPLITS.values()}
    for path in found:
        words = {SPLITS[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in SPLITS}
        if len(words) == 1:
            by_split[words.pop()].append(path)
        elif not words and len(found) == 1 and path.suffix in TEXT:
            return {"train": _Split((path,), "first"), "test": _Split((path,), "rest")}
        else:
            reason = f"names {' and '.join(sorted(words))}" if words else "names no split (train, valid, test)"
            raise DataError(f"{where}: {one_line(path.name, 80)} {reason}; {_WORKS}")
    for name, paths in by_split.items():
        if len(paths) > 1 and paths[0].suffix in TEXT:
            several = ", ".join(one_line(path.name, 80) for path in paths[:3])
            raise DataError(f"{where}: {len(paths)} text files for split {name}, {several}; expected one")
    return {name: _Split(tuple(paths)) for name, paths in by_split.items() if paths}


def _folder(name: str) -> tuple[Path, str]:
    """The folder, and the name in records: its own last part, so that no path of this machine leaks."""
    folder = os.path.expanduser(name)
    if name.strip() and os.path.isdir(folder):  # os.path and not Path, which raises for a name that is too long
        found = Path(folder).resolve()
        return found, one_line(found.name, 80)
    if name.strip() and os.path.exists(folder):
        raise DataError(f"data set {one_line(name)!r} is a file; expected the folder that holds it")
    raise DataError(f"no folder {one_line(name)!r}; a text is a folder: {_WORKS}")


def _at_least_one(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise DataError(f"limit must be 1 or more, got {limit}")
