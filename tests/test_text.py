"""Texts as tokens: what is loaded, what names it, what a model is given, and what is refused."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from certkit.errors import DataError, one_line
from certkit.text import GPT2, Character, TextData, Tokens, load_text, store, tokenizers

REAL = Path(__file__).parents[2] / "shared" / "data"
WORKS = "expected one text file, one text file per split, or token files (*_train_*.bin, *_val_*.bin)"
MERGES = 50_000
BOTH = "vocab.bpe and encoder.json"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of these tests stays in the user's cache, and none of them asks the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def folder(path: Path, files: dict[str, str | bytes]) -> str:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def token_file(ids: Any, *, magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    return header.tobytes() + np.array(ids, dtype="<u2").tobytes()


def cache(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "xdg" / "certkit" / "tokens").iterdir())


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_text(*arguments, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


@functools.cache
def byte_pairs() -> dict[str, bytes]:
    """Files as large as GPT-2's with merges of any two bytes, so that tiktoken can be driven without the real ones."""
    plain = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in plain]
    letters = [*map(chr, plain), *(chr(256 + place) for place in range(len(others)))]
    pairs = list(itertools.islice(itertools.product(letters, letters), MERGES))
    names = [*letters, *(first + second for first, second in pairs), "<|endoftext|>"]
    return {
        "vocab.bpe": "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in pairs), ""]).encode(),
        "encoder.json": json.dumps({name: place for place, name in enumerate(names)}).encode(),
    }


@pytest.fixture
def bpe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with the files of a byte-pair encoding that is taken for GPT-2's."""
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    for name, content in byte_pairs().items():
        monkeypatch.setitem(tokenizers.GPT2_FILES, name, hashlib.sha256(content).hexdigest())
    return folder(tmp_path / "bpe", dict(byte_pairs()))


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"{name} is not on this machine")
    return REAL / name


# --- characters


@given(st.text(min_size=1))
def test_characters_come_back_as_they_were(text: str) -> None:
    coder = Character.of(text)
    ids = coder.encode(text)
    assert coder.decode(ids.tolist()) == text
    assert coder.characters == "".join(sorted(set(text)))
    assert set(ids.tolist()) == set(range(coder.vocabulary))


def test_one_file_is_split_at_nine_tenths_and_its_characters_are_those_of_the_whole(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"input.txt": "abcabcabcabcabcabcZ"})
    train, test = load_text(name, "train"), load_text(name, "test")
    assert train.decode(train.ids) == "abcabcabcabcabcab"
    assert test.decode(test.ids) == "cZ"
    assert train.ids.tolist()[:3] == [1, 2, 3]
    assert train.vocabulary == test.vocabulary == 4
    assert train.record.tokenizer == test.record.tokenizer == f"character:{hashlib.sha256(b'Zabc').hexdigest()}"


def test_the_record_names_the_tokens(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"train.txt": "to be or not", "test.txt": "to be"})
    record = load_text(name, "test").record
    ids = np.array([6, 4, 0, 1, 2], dtype="<u2")  # of " benort"
    assert (record.name, record.split, record.count, record.vocabulary) == ("own", "test", 5, 7)
    assert record.sha256 == hashlib.sha256(ids.tobytes()).hexdigest()


def test_line_ends_are_kept(tmp_path: Path) -> None:
    found = load_text(folder(tmp_path / "own", {"train.txt": "a\r\nb\rc\n"}), "train")
    assert found.decode(found.ids) == "a\r\nb\rc\n"


def test_a_character_that_train_lacks_is_refused_and_shown(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"train.txt": "abc", "test.txt": "ab\u202ec"})
    assert refused(name, "test") == (
        "data set 'own': test.txt: character 2 is '\\u202e' (U+202E), not one of the 3 characters of the vocabulary"
    )


def test_more_characters_than_ids_are_refused() -> None:
    text = "".join(map(chr, range(0x10000, 0x10000 + 65537)))
    assert Character.of(text[:-1]).encode(text[:-1]).max() == 65535
    with pytest.raises(DataError, match=r"^text: 65537 different characters; expected at most 65536$"):
        Character.of(text)


def test_characters_need_a_train_split(tmp_path: Path) -> None:
    assert refused(folder(tmp_path / "own", {"test.txt": "abc"}), "test") == (
        "data set 'own' has no split 'train', whose characters are the vocabulary; expected one, or gpt2"
    )


def test_a_prompt_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(DataError, match=r"^text: character 1 is '\\udcff' \(U\+DCFF\), not one of the 1 characters"):
        Character("a").encode("a\udcff")


# --- GPT-2


def test_any_text_comes_back_from_byte_pairs(bpe: str) -> None:
    coder = GPT2(Path(bpe))

    @given(st.text())
    def check(text: str) -> None:
        ids = coder.encode(text)
        assert ids.dtype == np.uint16
        assert coder.decode(ids.tolist()) == text

    check()


def test_a_text_is_ordinary_whatever_it_spells(bpe: str) -> None:
    coder = GPT2(Path(bpe))
    ids = coder.encode("<|endoftext|>").tolist()
    assert 50256 not in ids
    assert coder.decode(ids) == coder.decode([50256]) == "<|endoftext|>"


def test_tiktoken_copies_nothing_and_reads_no_copy(bpe: str, tmp_path: Path) -> None:
    for name in tokenizers.GPT2_FILES:
        copy = tmp_path / "tiktoken" / hashlib.sha1(f"{bpe}/{name}".encode()).hexdigest()
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(b"not this")
    assert GPT2(Path(bpe)).encode("ab").tolist()
    assert {path.read_bytes() for path in (tmp_path / "tiktoken").iterdir()} == {b"not this"}
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path / "tiktoken")


def test_a_folder_that_looks_like_an_address_is_a_folder(bpe: str, tmp_path: Path) -> None:
    (tmp_path / "http:").mkdir()
    Path(bpe).rename(tmp_path / "http:" / "bpe")
    name = folder(tmp_path / "own", {"input.txt": "some words in a row"})
    assert load_text(name, "train", tokenizer=f"{tmp_path}/http://bpe").vocabulary == 50257


def test_gpt2_is_what_tiktoken_has_in_its_cache(bpe: str, tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"input.txt": "some words in a row"})
    assert refused(name, "train", tokenizer="gpt2") == (
        "tokenizer gpt2: tiktoken's cache holds no vocab.bpe; nothing is downloaded: as tokenizer give the folder that "
        f"holds {BOTH} of GPT-2"
    )
    (tmp_path / "tiktoken").mkdir()
    for kind in tokenizers.GPT2_FILES:
        address = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{kind}"
        (Path(bpe) / kind).rename(tmp_path / "tiktoken" / hashlib.sha1(address.encode()).hexdigest())
    found = load_text(name, "train", tokenizer="gpt2")
    assert found.decode(found.ids) == "some words in a r"
    assert found.record.tokenizer == "gpt2"


def test_other_files_than_those_of_gpt2_are_refused(bpe: str, tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"input.txt": "some words"})
    (Path(bpe) / "encoder.json").write_text("{}")
    message = refused(name, "train", tokenizer=bpe)
    expected = tokenizers.GPT2_FILES["encoder.json"][:8]
    assert message.startswith(
        f"tokenizer gpt2: folder 'bpe' holds another encoder.json (sha256 44136fa3, not {expected}); nothing is downl"
    )
    (Path(bpe) / "encoder.json").unlink()
    assert refused(name, "train", tokenizer=bpe).startswith("tokenizer gpt2: folder 'bpe' holds no encoder.json; ")


def test_without_tiktoken_the_command_is_named(bpe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    name = folder(tmp_path / "own", {"input.txt": "some words"})
    assert refused(name, "train", tokenizer=bpe) == "tokenizer gpt2 needs tiktoken; run: pip install certkit[text]"


def test_a_text_that_tiktoken_cannot_split_is_refused(bpe: str, tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"train.txt": " " * 1_000_000 + "a"})
    message = refused(name, "train", tokenizer=bpe)
    assert message.startswith("data set 'own': train.txt: tiktoken cannot split the text (")


@pytest.mark.parametrize("tokenizer", ["gpt3", "", "./gone", "x" * 5000])
def test_an_unknown_tokenizer_is_refused(tokenizer: str, tmp_path: Path) -> None:
    close = "; did you mean 'gpt2'?" if tokenizer == "gpt3" else ""
    assert refused(folder(tmp_path / "own", {"input.txt": "some words"}), "train", tokenizer=tokenizer) == (
        f"tokenizer {one_line(tokenizer, 80)!r} is not known; expected character, gpt2 or the folder that holds "
        f"{BOTH} of GPT-2{close}"
    )


# --- batches and windows


@functools.cache
def counting(count: int) -> Tokens:
    """Tokens 0, 1, 2, ...: each says where it stands."""
    coder = Character("".join(map(chr, range(0x10000, 0x10000 + count))))
    ids: NDArray[np.uint16] = np.arange(count, dtype="<u2")
    record = TextData(name="own", split="train", count=count, sha256="0" * 64, vocabulary=count, tokenizer=coder.name)
    return Tokens(record, ids, coder)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 20), st.integers(2, 40))
def test_a_batch_is_what_follows_what(seed: int, size: int, context: int, count: int) -> None:
    if count <= context:
        return
    x, y = counting(count).batch(drawn(seed), size, context)
    assert x.shape == y.shape == (size, context)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous()
    assert y.is_contiguous()
    assert torch.equal(y, x + 1)
    assert torch.equal(x, x[:, :1] + torch.arange(context))
    again = counting(count).batch(drawn(seed), size, context)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], y)


def test_every_start_is_equally_likely() -> None:
    x, _ = counting(12).batch(drawn(0), 80_000, 4)
    counts = torch.bincount(x[:, 0], minlength=12)
    assert counts.tolist()[8:] == [0, 0, 0, 0]
    # 8 starts, 10,000 expected each: a standard deviation is 94
    assert bool((counts[:8] - 10_000).abs().max() < 5 * 94)


@given(st.integers(1, 20), st.integers(2, 60), st.none() | st.integers(1, 5))
def test_windows_cover_the_text_once_and_in_order(context: int, count: int, limit: int | None) -> None:
    if count <= context:
        return
    x, y = counting(count).windows(context, limit)
    whole = (count - 1) // context
    assert x.shape == y.shape == (min(whole, limit or whole), context)
    assert torch.equal(x.flatten(), torch.arange(x.numel()))
    assert torch.equal(y.flatten(), torch.arange(1, x.numel() + 1))
    assert count - 1 - whole * context < context
    assert x.is_contiguous()
    assert y.is_contiguous()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: t.batch(drawn(0), 1, 5),
            "data set 'own', split 'train': 5 tokens; a context of 5 needs at least 6",
        ),
        (lambda t: t.windows(9), "data set 'own', split 'train': 5 tokens; a context of 9 needs at least 10"),
        (lambda t: t.batch(drawn(0), 0, 2), "size must be 1 or more, got 0"),
        (lambda t: t.batch(drawn(0), 1, 0), "context must be 1 or more, got 0"),
        (lambda t: t.windows(2, 0), "limit must be 1 or more, got 0"),
        (lambda t: t.decode([0, 5]), "data set 'own': token 5 is outside 0 to 4"),
        (lambda t: t.decode(torch.tensor([-1])), "data set 'own': token -1 is outside 0 to 4"),
    ],
)
def test_what_tokens_cannot_give_is_refused(call: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        call(counting(5))
    assert str(caught.value) == message


def test_the_shortest_text_gives_one_piece() -> None:
    for x, y in (counting(5).batch(drawn(0), 1, 4), counting(5).windows(4)):
        assert (x.tolist(), y.tolist()) == ([[0, 1, 2, 3]], [[1, 2, 3, 4]])


def test_a_limit_takes_the_first_tokens(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"train.txt": "to be or not to be"})
    whole, some = load_text(name, "train"), load_text(name, "train", limit=5)
    assert some.ids.tolist() == whole.ids.tolist()[:5]
    assert some.vocabulary == whole.vocabulary
    assert some.record.sha256 != whole.record.sha256
    assert load_text(name, "train", limit=10**6).record == whole.record
    assert refused(name, "train", limit=0) == "limit must be 1 or more, got 0"


# --- the cache


def test_text_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = folder(tmp_path / "own", {"input.txt": "to be or not to be"})
    first = load_text(name, "train")
    monkeypatch.setattr(Character, "encode", None)
    second = load_text(name, "train")
    assert second.record == first.record
    assert second.ids.tolist() == first.ids.tolist()
    assert not second.ids.flags.writeable
    assert len(cache(tmp_path)) == 1


def test_the_cache_is_a_token_file(tmp_path: Path) -> None:
    found = load_text(folder(tmp_path / "own", {"train.txt": "baa"}), "train")
    (path,) = cache(tmp_path)
    header = np.frombuffer(path.read_bytes()[:1024], dtype="<i4")
    assert header[:3].tolist() == [20240520, 1, 3]
    assert path.read_bytes()[1024:] == b"\1\0\0\0\0\0"
    assert path.read_bytes()[32:64].hex() == found.record.sha256


def test_other_bytes_parts_and_tokenizers_have_files_of_their_own(bpe: str, tmp_path: Path) -> None:
    one = folder(tmp_path / "one", {"input.txt": "to be or not to be"})
    load_text(one, "train")
    load_text(one, "test")
    load_text(one, "train", tokenizer=bpe)
    load_text(folder(tmp_path / "two", {"train.txt": "to be or not to be"}), "train")
    load_text(folder(tmp_path / "three", {"train.txt": "to be or not to be", "test.txt": "to"}), "test")
    load_text(folder(tmp_path / "four", {"train.txt": "to be or not to be!", "test.txt": "to"}), "test")
    assert len(cache(tmp_path)) == 6


SPOILT: dict[str, bytes] = {
    "empty": b"",
    "half a header": token_file([1, 0, 0])[:512],
    "foreign": b"PK\3\4" * 512,
    "cut": token_file([1, 0, 0])[:-2],
    "longer": token_file([1, 0, 0]) + b"\0",
    "another count": token_file([1, 0, 0], count=2),
    "another version": token_file([1, 0, 0], version=2),
    "no digest": token_file([1, 0, 0]),
    "outside the vocabulary": token_file([1, 0, 2]),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_file_in_the_cache_is_made_again(tmp_path: Path, fault: str) -> None:
    name = folder(tmp_path / "own", {"train.txt": "baa"})
    load_text(name, "train")
    (path,) = cache(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(SPOILT[fault])
    assert load_text(name, "train").ids.tolist() == [1, 0, 0]
    assert path.read_bytes() == whole
    path.write_bytes(whole[:1024] + bytes(6))  # in the vocabulary, but not what the digest says
    assert load_text(name, "train").ids.tolist() == [1, 0, 0]
    path.unlink()
    path.symlink_to("/dev/zero")
    assert load_text(name, "train").ids.tolist() == [1, 0, 0]
    assert cache(tmp_path) == [path]


def test_the_cache_can_be_anywhere_and_says_when_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = folder(tmp_path / "own", {"train.txt": "baa"})
    load_text(name, "train", cache=tmp_path / "here")
    assert len(list((tmp_path / "here").iterdir())) == 1
    assert refused(name, "train", cache=tmp_path / "own" / "train.txt") == (
        f"tokens cannot be kept in {one_line(tmp_path / 'own' / 'train.txt')} (File exists); give another folder as cache"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.cache_folder() == tmp_path / "home" / ".cache" / "certkit" / "tokens"


# --- token files


def test_token_files_are_joined_in_order(tmp_path: Path) -> None:
    shards = {f"x_train_{n:06}.bin": token_file([n, 50256]) for n in (2, 1, 3)}
    name = folder(tmp_path / "own", {**shards, "x_val_000000.bin": token_file([7, 8, 9])})
    found = load_text(name, "train", tokenizer="gpt2")
    assert found.ids.tolist() == [1, 50256, 2, 50256, 3, 50256]
    assert (found.vocabulary, found.record.tokenizer) == (50257, "gpt2")
    assert len(cache(tmp_path)) == 1
    assert load_text(name, "train", tokenizer="gpt2", limit=3).ids.tolist() == [1, 50256, 2]
    assert load_text(name, "valid", tokenizer="gpt2").ids.tolist() == [7, 8, 9]
    assert load_text(name, "train", tokenizer="gpt2").record == found.record


def test_one_token_file_is_read_where_it_lies(tmp_path: Path) -> None:
    damaged = {"x_train_000002.bin": b"", "x_train_000001.bin": token_file([5, 6])}
    found = load_text(folder(tmp_path / "own", {**damaged}), "train", tokenizer="gpt2", limit=2)
    assert found.ids.tolist() == [5, 6]
    assert not found.ids.flags.writeable
    assert not (tmp_path / "xdg").exists()


LAYOUT = "expected 20240520 and 1, GPT-2's tokens in the layout of the NanoGPT speedrun"
DAMAGED: dict[str, tuple[bytes, str]] = {
    "magic": (token_file([1], magic=7), f"starts with magic 7 and version 1; {LAYOUT}"),
    "version": (token_file([1], version=2), f"starts with magic 20240520 and version 2; {LAYOUT}"),
    "header": (b"\0" * 100, "has 100 bytes; expected a header of 1024"),
    "short": (token_file([1, 2], count=3), "states 3 tokens in 1028 bytes; expected 1024 + 2 per token, and one"),
    "long": (token_file([1, 2], count=1), "states 1 tokens in 1028 bytes; expected 1024 + 2 per token, and one"),
    "odd": (token_file([1]) + b"\0", "states 1 tokens in 1027 bytes; expected 1024 + 2 per token, and one"),
    "empty": (token_file([]), "states 0 tokens in 1024 bytes; expected 1024 + 2 per token, and one"),
    "negative": (token_file([], count=-1), "states -1 tokens in 1024 bytes; expected 1024 + 2 per token, and one"),
    "vocabulary": (token_file([1, 50257]), "holds token 50257, outside 0 to 50256"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_token_file_is_refused(tmp_path: Path, fault: str) -> None:
    content, message = DAMAGED[fault]
    name = folder(tmp_path / "own", {"x_val_000000.bin": content})
    assert refused(name, "valid", tokenizer="gpt2") == f"data set 'own': x_val_000000.bin {message}"


def test_token_files_are_no_characters(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"x_train_000000.bin": token_file([1])})
    assert refused(name, "train") == (
        f"data set 'own' holds tokens of GPT-2; expected tokenizer gpt2 or the folder with {BOTH}"
    )


def test_more_tokens_than_a_header_can_count_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_COUNT", 3)
    name = folder(tmp_path / "own", {f"x_train_{n}.bin": token_file([1, 2]) for n in "ab"})
    assert refused(name, "train", tokenizer="gpt2") == (
        "data set 'own': 2 files hold 4 tokens; expected at most 3: give a limit"
    )


# --- folders


def test_splits_are_words_of_the_names(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {f"wiki.{split}.tokens": "ab" for split in ("train", "Validation", "test")})
    assert [load_text(name, split).record.split for split in ("train", "valid", "test")] == ["train", "valid", "test"]


def test_hidden_and_other_files_are_no_part_of_it(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"input.txt": "ab", ".notes.txt": "c", "README.md": "d", "own.py": "raise e"})
    assert load_text(name, "train").vocabulary == 2


FOLDERS: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "no test": (
        {"a.train.txt": "a", "a.val.txt": "a"},
        "test",
        "data set 'own' has no split 'test'; expected one of train, valid",
    ),
    "no val": (
        {"input.txt": "ab"},
        "tran",
        "data set 'own' has no split 'tran'; expected one of train, test; did you mean 'train'?",
    ),
    "nothing": (
        {"a.md": "a"},
        "train",
        f"data set 'own' holds no file that ends in .txt, .tokens, .raw, .bin; {WORKS}",
    ),
    "two kinds": (
        {"input.txt": "a", "train.bin": b""},
        "train",
        "data set 'own' holds text files and token files, such as input.txt and train.bin; expected one kind",
    ),
    "no word": (
        {"train.txt": "a", "interval.txt": "a"},
        "train",
        f"data set 'own': interval.txt names no split (train, valid, test); {WORKS}",
    ),
    "two words": (
        {"train-test.txt": "a"},
        "train",
        f"data set 'own': train-test.txt names test and train; {WORKS}",
    ),
    "two files": (
        {"a.train.txt": "a", "b.train.txt": "a"},
        "train",
        "data set 'own': 2 text files for split train, a.train.txt, b.train.txt; expected one",
    ),
    "tokens of no split": (
        {"data.bin": b""},
        "train",
        f"data set 'own': data.bin names no split (train, valid, test); {WORKS}",
    ),
    "not UTF-8": (
        {"train.txt": b"ab\xffc"},
        "train",
        "data set 'own': train.txt is not UTF-8: byte 2 is 0xff (invalid start byte)",
    ),
    "empty": ({"train.txt": b""}, "train", "data set 'own': train.txt is empty"),
    "too short": (
        {"input.txt": "a"},
        "train",
        "data set 'own': input.txt is too short to be split; expected 2 characters or more",
    ),
}


@pytest.mark.parametrize("fault", FOLDERS)
def test_a_folder_that_is_no_text_is_refused(tmp_path: Path, fault: str) -> None:
    files, split, message = FOLDERS[fault]
    assert refused(folder(tmp_path / "own", files), split) == message


@pytest.mark.parametrize("name", ["./gone", "gone", "", "~nobody/x", "/" + "x" * 5000])
def test_a_folder_that_is_not_there_is_refused(name: str) -> None:
    assert refused(name, "train") == f"no folder {one_line(name)!r}; a text is a folder: {WORKS}"


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    path = str(tmp_path / "a.txt")
    assert refused(path, "train") == f"data set {path!r} is a file; expected the folder that holds it"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"real": "abc"})
    path = tmp_path / "own" / "train.txt"
    path.symlink_to("/dev/zero")
    assert refused(name, "train") == "data set 'own': train.txt is not a regular file"
    path.unlink()
    os.mkfifo(path)
    assert refused(name, "train") == "data set 'own': train.txt is not a regular file"
    path.unlink()
    path.symlink_to("gone")
    assert refused(name, "train") == "data set 'own': train.txt cannot be read (No such file or directory)"
    path.unlink()
    path.symlink_to("real")
    assert load_text(name, "train").record.count == 3


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    name = folder(tmp_path / "own", {"train.txt": "a"})
    os.truncate(tmp_path / "own" / "train.txt", 4 * 2**30 + 1)
    assert refused(name, "train") == "data set 'own': train.txt is larger than 4 GiB"


# --- the real ones


def test_tiny_shakespeare_is_that_of_the_public_experiments() -> None:
    name = str(real("tinyshakespeare"))
    train, test = load_text(name, "train"), load_text(name, "test")
    assert (train.vocabulary, train.record.count, test.record.count) == (65, 1_003_854, 111_540)
    assert train.decode(train.ids[:14]) == "First Citizen:"


def test_gpt2_splits_tiny_shakespeare_as_in_the_public_experiments() -> None:
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    name, tokenizer = str(real("tinyshakespeare")), real("gpt2-bpe")
    train, test = (load_text(name, split, tokenizer=tokenizer) for split in ("train", "test"))
    assert (train.vocabulary, train.record.count, test.record.count) == (50257, 301_966, 36_059)
    text = (Path(name) / "input.txt").read_bytes().decode()
    assert train.decode(train.ids) + test.decode(test.ids) == text
    assert GPT2(tokenizer).encode("Hello world").tolist() == [15496, 995]


def test_wikitext_2_has_three_splits() -> None:
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    name, tokenizer = str(real("wikitext-2")), real("gpt2-bpe")
    counts = {split: load_text(name, split, tokenizer=tokenizer).record.count for split in ("train", "valid", "test")}
    assert counts == {"train": 2_448_382, "valid": 258_659, "test": 295_877}
