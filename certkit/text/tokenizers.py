"""From text to token ids and back: one id per character, or GPT-2's byte pairs."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from certkit.errors import DataError, one_line, suggestion
from certkit.files import digest, digest_file

if TYPE_CHECKING:
    import tiktoken
    from numpy.typing import NDArray

    Ids: TypeAlias = NDArray[np.uint16]

MAX_VOCABULARY = 2**16  # ids are uint16
UNICODE = 0x110000  # code points are below it
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_VOCABULARY = 50257  # 256 bytes, 50,000 merges and <|endoftext|>
GPT2_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}  # with the sha256 that tiktoken pins too
GPT2_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # names the files in tiktoken's cache
GPT2_ELSEWHERE = {"vocab.bpe": "merges.txt", "encoder.json": "vocab.json"}  # the same files in folders of Hugging Face
BOTH = " and ".join(GPT2_FILES)


@dataclass(frozen=True, slots=True)
class Character:
    """One id per character: its position in ``characters``, which are sorted and distinct."""

    characters: str

    @classmethod
    def of(cls, text: str, where: str = "text") -> Character:
        """The characters of a text. Raises DataError for more than uint16 can number."""
        seen = np.zeros(UNICODE, dtype=np.bool_)
        seen[_codes(text)] = True
        characters = "".join(map(chr, np.flatnonzero(seen).tolist()))
        if len(characters) > MAX_VOCABULARY:
            raise DataError(f"{where}: {len(characters)} different characters; expected at most {MAX_VOCABULARY}")
        return cls(characters)

    @property
    def name(self) -> str:
        return f"character:{digest(self.characters.encode())}"

    @property
    def vocabulary(self) -> int:
        return len(self.characters)

    def encode(self, text: str, where: str = "text") -> Ids:
        """The id of every character. Raises DataError for the first that the vocabulary lacks."""
        known, codes = _codes(self.characters), _codes(text)
        table = np.full(1 + max(int(known.max(initial=0)), int(codes.max(initial=0))), -1, dtype=np.int32)
        table[known] = np.arange(len(known))
        ids = table[codes]
        if len(unknown := np.flatnonzero(ids < 0)):
            first = int(unknown[0])
            raise DataError(
                f"{where}: character {first} is '{one_line(text[first])}' (U+{ord(text[first]):04X}), "
                f"not one of the {self.vocabulary} characters of the vocabulary"
            )
        return ids.astype("<u2")

    def decode(self, ids: Sequence[int]) -> str:
        """The characters of ids that are inside the vocabulary."""
        return "".join(map(self.characters.__getitem__, ids))


@dataclass(frozen=True)
class GPT2:
    """GPT-2's byte pairs, executed by tiktoken; ``folder`` holds the two published files, None means tiktoken's cache.

    In a folder of Hugging Face these are merges.txt and vocab.json.

    The files are checked by sha256, so there is one GPT-2 wherever they lie, and nothing is ever downloaded. Every text
    is ordinary text: ``<|endoftext|>`` in it does not become the token 50256.
    """

    folder: Path | None = None
    name: ClassVar[str] = "gpt2"
    vocabulary: ClassVar[int] = GPT2_VOCABULARY

    def encode(self, text: str, where: str = "text") -> Ids:
        """The ids of a text. Raises DataError where tiktoken, its files or its regular expressions fail."""
        encoding = self._encoding
        try:
            ids: NDArray[Any] = encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError as error:  # some hundred thousand spaces in a row exhaust the regular expression
            raise DataError(f"{where}: tiktoken cannot split the text ({one_line(error, 120)})") from None
        return ids.astype("<u2")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that are inside the vocabulary; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids))

    def files(self) -> list[Path]:
        """vocab.bpe and encoder.json, checked. Raises DataError when they are missing or not those of GPT-2."""
        shown = "tiktoken's cache" if self.folder is None else f"folder {one_line(self.folder.name, 80)!r}"
        found = _tiktoken_cache() if self.folder is None else [_named(self.folder, name) for name in GPT2_FILES]
        for (name, expected), path in zip(GPT2_FILES.items(), found, strict=True):
            try:
                given = digest_file(path) if path.is_file() else None
            except OSError as error:
                raise DataError(f"tokenizer gpt2: {name} cannot be read ({error.strerror or error})") from None
            if given != expected:
                reason = f"no {name}" if given is None else f"another {name} (sha256 {given[:8]}, not {expected[:8]})"
                raise DataError(
                    f"tokenizer gpt2: {shown} holds {reason}; nothing is downloaded: as tokenizer give the folder "
                    f"that holds {BOTH} of GPT-2"
                )
        return found

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        try:
            import tiktoken
            from tiktoken.load import data_gym_to_mergeable_bpe_ranks
        except ImportError:
            raise DataError("tokenizer gpt2 needs tiktoken; run: pip install certkit[text]") from None
        merges, encoder = (
            str(path.resolve()) for path in self.files()
        )  # tiktoken takes a name with :// for an address
        with _no_tiktoken_cache():
            ranks = data_gym_to_mergeable_bpe_ranks(merges, encoder)
        return tiktoken.Encoding(
            "gpt2",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": GPT2_VOCABULARY - 1},
            explicit_n_vocab=GPT2_VOCABULARY,
        )


def gpt2(tokenizer: str | Path) -> GPT2 | None:
    """What ``gpt2`` or a folder means; None for ``character``. Raises DataError for anything else."""
    if tokenizer == "character":
        return None
    if tokenizer == "gpt2":
        return GPT2()
    folder = os.path.expanduser(tokenizer)
    if not str(tokenizer).strip() or not os.path.isdir(folder):  # os.path and not Path, which raises for a long name
        raise DataError(
            f"tokenizer {one_line(tokenizer, 80)!r} is not known; expected character, gpt2 or the folder that holds "
            f"{BOTH} of GPT-2{suggestion(str(tokenizer), ['character', 'gpt2'])}"
        )
    found = GPT2(Path(folder).resolve())
    found.files()
    return found


def _named(folder: Path, name: str) -> Path:
    """Where a folder holds one of the published files, whichever of its two names it has there."""
    other = folder / GPT2_ELSEWHERE[name]
    return other if other.is_file() and not (folder / name).is_file() else folder / name


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _tiktoken_cache() -> list[Path]:
    chosen = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(tempfile.gettempdir(), "data-gym-cache") if chosen is None else Path(chosen)
    return [folder / hashlib.sha1(f"{GPT2_ADDRESS}{name}".encode()).hexdigest() for name in GPT2_FILES]


@contextmanager
def _no_tiktoken_cache() -> Iterator[None]:
    """Otherwise tiktoken copies every file it reads to a folder for all users, and prefers what lies there."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
