"""A checkpoint is what its bytes are: round trips, identity, and the one line that answers every hostile file."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from certkit import checkpoint
from certkit.checkpoint import load_into, read, serialized, subject_of, write
from certkit.errors import CertkitError, CheckpointError
from certkit.files import digest
from tests.strategies import a_state


def refused(path: Path, *, allow_pickle: bool = False) -> str:
    """The message with which the file is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            read(path, allow_pickle=allow_pickle)
    assert str(caught.value).isprintable()
    return str(caught.value)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def framed(header: object, data: bytes = b"", *, text: bytes | None = None) -> bytes:
    """A safetensors file with this header."""
    body = json.dumps(header).encode() if text is None else text
    return len(body).to_bytes(8, "little") + body + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- round trips


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, a_state(), {"model": {"name": "vit"}})
    assert path == tmp_path / "model.safetensors"
    for given in (path, tmp_path):
        found = read(given)
        assert found.state.keys() == a_state().keys()
        for name, tensor in a_state().items():
            assert torch.equal(found.state[name], tensor)
            assert found.state[name].dtype == tensor.dtype
        assert found.config == {"model": {"name": "vit"}}
        assert found.sha256 == digest(path.read_bytes())
        assert found.name == "model.safetensors"


def test_equal_weights_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    state = a_state()
    backwards = dict(reversed(state.items()))
    assert serialized(state) == serialized(backwards)
    first = write(tmp_path / "a", state, {"b": 1, "a": 2})
    second = write(tmp_path / "b", backwards, {"a": 2, "b": 1})
    assert first.read_bytes() == second.read_bytes()
    assert first.with_name("config.json").read_bytes() == second.with_name("config.json").read_bytes()


def test_one_changed_bit_is_another_network(tmp_path: Path) -> None:
    raw = bytearray(serialized(a_state()))
    path = put(tmp_path / "a.safetensors", bytes(raw))
    before = read(path).sha256
    raw[-1] ^= 1
    assert read(put(path, bytes(raw))).sha256 != before


def test_tied_and_strided_weights_are_written_whole(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    found = read(write(tmp_path, {"a": weight, "b": weight, "c": weight.T}, {})).state
    assert torch.equal(found["a"], found["b"])
    assert torch.equal(found["c"], weight.T)


def test_a_module_in_memory_has_the_identity_of_its_checkpoint(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    subject = subject_of(module)
    assert subject.sha256 == read(write(tmp_path, module.state_dict(), {})).sha256
    assert (subject.architecture, subject.parameters) == ("Linear", 8)


def test_a_file_without_configuration_has_none(tmp_path: Path) -> None:
    assert read(put(tmp_path / "a.safetensors", serialized(a_state()))).config is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path, value: float) -> None:
    state = {"head.weight": torch.tensor([1.0, value])}
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path / "out", state, {})
    assert str(caught.value) == "model.safetensors: tensor 'head.weight' holds NaN or infinity; expected finite weights"
    assert not (tmp_path / "out").exists()
    path = put(tmp_path / "model.safetensors", serialized(state))
    assert refused(path) == str(caught.value)


# --- into a module


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))


def state_of(module: nn.Module, **changes: torch.Tensor | None) -> checkpoint.Checkpoint:
    state = {**module.state_dict(), **{key.replace("_", ".", 1): value for key, value in changes.items()}}
    kept = {key: value for key, value in state.items() if value is not None}
    return checkpoint.Checkpoint(kept, None, "0" * 64, "model.safetensors")


def test_load_into_copies_every_tensor() -> None:
    source, target = model(), model()
    load_into(target, state_of(source))
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_load_into_fills_a_module_without_storage() -> None:
    source = model()
    with torch.device("meta"):
        target = model()
    load_into(target, state_of(source))
    x = torch.randn(4, 3)
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0_bias": None}, "model.safetensors: the model needs '0.bias', which the file lacks"),
        (
            {"0_bias": None, "0_biass": torch.zeros(2)},
            "model.safetensors: the model needs '0.bias', which the file lacks; the file has '0.biass'?",
        ),
        (
            {"0_bias": None, "0_weight": None, "2_bias": None, "2_weight": None},
            "model.safetensors: the model needs '0.weight', '0.bias', '2.weight' and 1 more, which the file lacks",
        ),
        (
            {"4_weight": torch.zeros(1)},
            (
                "model.safetensors: the file holds '4.weight', which the model does not have; "
                "it was written by another architecture"
            ),
        ),
        (
            {"0_weight": torch.zeros(3, 2)},
            "model.safetensors: tensor '0.weight' has shape (3, 2), the model expects (2, 3)",
        ),
        (
            {"0_weight": torch.zeros(2, 3, dtype=torch.float64)},
            (
                "model.safetensors: tensor '0.weight' is float64, the model expects float32; "
                "a rounded copy would be another network"
            ),
        ),
    ],
)
def test_weights_of_another_model_are_refused(changes: dict[str, torch.Tensor | None], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_into(model(), state_of(model(), **changes))
    assert str(caught.value) == message


def test_a_narrower_float_is_copied_exactly() -> None:
    half = torch.ones(2, 3, dtype=torch.bfloat16) / 3
    target = model()
    load_into(target, state_of(model(), **{"0_weight": half}))
    assert torch.equal(target.state_dict()["0.weight"], half.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrower_float_becomes_the_models_type_in_a_module_without_storage(dtype: torch.dtype) -> None:
    halves = {key: value.to(dtype) for key, value in model().state_dict().items()}
    with torch.device("meta"):
        target = model()
    load_into(target, checkpoint.Checkpoint(halves, None, "0" * 64, "model.safetensors"))
    for name, tensor in target.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, halves[name].float())


# --- headers


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes; the file is truncated or not safetensors"),
        (b"1234567", "7 bytes; the file is truncated or not safetensors"),
        (
            (9999999999).to_bytes(8, "little") + b"{" * 115,
            "the header claims 9999999999 bytes but the file has 123; the file is truncated or not safetensors",
        ),
        (
            (2**23 + 1).to_bytes(8, "little") + b" " * (2**23 + 1),
            "the header claims 8388609 bytes; certkit reads at most 8388608",
        ),
        (framed(None, text=b"nonsense"), "the header is not JSON; the file is damaged or not safetensors"),
        (framed(None, text=b"[" * 100_000), "the header is nested too deeply; not safetensors"),
        (framed([1]), "the header is not a JSON object; not safetensors"),
        (framed(None, text=b' {"a": 1}'), "the header is not a JSON object; not safetensors"),
        (framed({}), "the file holds no tensors"),
        (framed({"__metadata__": {"a": 1}}), "the header's __metadata__ is not an object of texts"),
        (framed(None, text=b'{"a": 1, "a": 2}'), "a key stands twice in the header"),
        (
            framed({str(i): entry(shape=[0], offsets=[0, 0]) for i in range(10_001)}),
            "the header lists 10001 tensors; certkit reads at most 10000",
        ),
        (framed({"a": 1}), "tensor 'a' needs dtype, shape and data_offsets, and nothing else"),
        (
            framed({"a": entry(dtype="C64")}, bytes(4)),
            "tensor 'a' has dtype 'C64'; expected one of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL",
        ),
        (
            framed({"a": entry(shape=[-1])}, bytes(4)),
            "tensor 'a' has an impossible shape; expected at most 16 non-negative integers",
        ),
        (
            framed({"a": entry(shape=[True])}, bytes(4)),
            "tensor 'a' has an impossible shape; expected at most 16 non-negative integers",
        ),
        (
            framed({"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}),
            "tensor 'a' has an impossible shape; expected at most 16 non-negative integers",
        ),
        (
            framed({"a": entry(offsets=[0])}, bytes(4)),
            "tensor 'a' has impossible data_offsets; expected two non-negative integers",
        ),
        (
            framed({"a": entry(shape=[2])}, bytes(4)),
            "tensor 'a' of dtype F32 and shape [2] takes 8 bytes, but its data_offsets span 4",
        ),
        (
            framed({"a": entry(), "b": entry()}, bytes(4)),
            "tensor 'b' starts at byte 0 of the data, expected 4",
        ),
        (framed({"a": entry(offsets=[4, 8])}, bytes(8)), "tensor 'a' starts at byte 4 of the data, expected 0"),
        (
            framed({"a": entry()}, bytes(5)),
            "the tensors take 4 bytes but the file has 5 for them; the file is truncated or padded",
        ),
        (
            framed({"a": entry()}, bytes(3)),
            "the tensors take 4 bytes but the file has 3 for them; the file is truncated or padded",
        ),
        (
            framed({"a\x1b[31m\n": entry(dtype="BOOL", shape=[1], offsets=[0, 1])}, b"\x02"),
            "tensor 'a\\\\x1b[31m\\\\n' holds a truth value that is neither 0 nor 1; expected finite weights",
        ),
    ],
)
def test_a_file_that_is_not_what_it_claims_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    assert refused(put(tmp_path / "model.safetensors", data)) == f"model.safetensors: {message}"


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = serialized(a_state())
    for length in range(len(raw)):
        refused(put(tmp_path / "model.safetensors", raw[:length]))


def test_a_missing_checkpoint_says_what_is_expected(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone") == (
        f"{tmp_path / 'gone'}: no such file; expected model.safetensors or the folder that holds it"
    )
    assert refused(tmp_path) == (
        f"{tmp_path}: no model.safetensors in this folder; expected what certkit train --out wrote"
    )
    assert "…: no such file; expected" in refused(tmp_path / ("x" * 5000))
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").endswith(
        "pipe: not a regular file; expected model.safetensors or the folder that holds it"
    )


# --- config.json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1]", "config.json: holds a list; expected a JSON object"),
        (b'{"a": NaN}', "config.json: NaN is not a finite number; expected a JSON record written by certkit"),
        (
            b'{"a": 1, "a": 2}',
            "config.json: a key stands twice in one object; expected a JSON record written by certkit",
        ),
        (b"[" * 100_000, "config.json: nested too deeply; expected a JSON record written by certkit"),
        (b'"' + b"x" * 2**20, "config.json: larger than 1048576 bytes or not a regular file"),
    ],
)
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    write(tmp_path, a_state(), {})
    put(tmp_path / "config.json", text)
    assert refused(tmp_path) == message


# --- pickles and other formats


class Command:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def compressed(value: object) -> bytes:
    """The same torch file with its members deflated, as a bomb would have them."""
    source, target = zipfile.ZipFile(io.BytesIO(saved(value))), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in source.namelist():
            archive.writestr(member, source.read(member))
    return target.getvalue()


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    **{f"pickle protocol {p}": lambda m, p=p: pickle.dumps(Command(m), protocol=p) for p in range(6)},
    "torch zip": lambda m: saved(Command(m)),
    "torch zip in a state": lambda m: saved({"state_dict": {"a": torch.zeros(1), "b": Command(m)}}),
    "torch legacy": lambda m: saved({"a": Command(m)}, _use_new_zipfile_serialization=False),
    "torch module": lambda m: saved(nn.Linear(2, 2)),
    "object array": lambda m: _object_array(m),
    "gzip": lambda m: gzip.compress(pickle.dumps(Command(m))),
}


def _object_array(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Command(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_pickle_runs_its_command(tmp_path: Path, kind: str, name: str, *, allow_pickle: bool) -> None:
    marker = tmp_path / "marker"
    refused(put(tmp_path / name, HOSTILE[kind](marker)), allow_pickle=allow_pickle)
    assert not marker.exists()


def test_the_hostile_pickle_would_run_its_command(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Command(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("data", "meaning", "torch_file"),
    [
        (saved({"a": torch.zeros(1)}), "a zip archive, such as torch.save writes", True),
        (pickle.dumps({"a": 1}), "a Python pickle", True),
        (b"\x93NUMPY\x01\x00v\x00", "a NumPy array", False),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file", False),
        (gzip.compress(b"x", mtime=0), "a gzip archive", False),
        (b"7z\xbc\xaf\x27\x1c" + bytes(64), "a 7z archive", False),
        (b"GGUF" + bytes(64), "a GGUF file", False),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer: the weights themselves were not downloaded",
            False,
        ),
    ],
)
def test_other_formats_are_known_by_content(tmp_path: Path, data: bytes, meaning: str, *, torch_file: bool) -> None:
    remedy = "convert it with safetensors.torch.save_file"
    remedy += ", or give --allow-pickle for a torch file" if torch_file else ""
    message = f"model.safetensors: this is not safetensors but looks like {meaning}; {remedy}"
    assert refused(put(tmp_path / "model.safetensors", data)) == message


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """A header of 0x280 bytes begins as pickle protocol 2 does."""
    raw = serialized({"a": torch.ones(1)})
    length = int.from_bytes(raw[:8], "little")
    padded = (0x280).to_bytes(8, "little") + raw[8 : 8 + length].ljust(0x280) + raw[8 + length :]
    assert padded.startswith(b"\x80\x02")
    assert torch.equal(read(put(tmp_path / "a.safetensors", padded)).state["a"], torch.ones(1))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_torch_file_of_tensors_is_read_when_allowed(tmp_path: Path, *, zipped: bool, wrapped: bool) -> None:
    state: dict[str, Any] = a_state()
    data = saved({"state_dict": state} if wrapped else state, _use_new_zipfile_serialization=zipped)
    found = read(put(tmp_path / "model.pt", data), allow_pickle=True)
    assert found.sha256 == digest(data)
    for name, tensor in state.items():
        assert torch.equal(found.state[name], tensor)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(1)], "holds a list; expected a dictionary of tensors by name"),
        ({}, "holds a dict; expected a dictionary of tensors by name"),
        ({"a": 3}, "'a' is a int; expected a dictionary of tensors by name"),
        ({"a": {"b": torch.zeros(1)}}, "'a' is a dict; expected a dictionary of tensors by name"),
        ({3: torch.zeros(1)}, "3 is a Tensor; expected a dictionary of tensors by name"),
        ({"a": torch.zeros(1).expand(2**40)}, "'a' claims 1099511627776 entries, more than the file stores for it"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is not an ordinary dense tensor"),
        ({"a": torch.zeros(2, device="meta")}, "'a' is not an ordinary dense tensor"),
        (
            {"a": torch.zeros(1, dtype=torch.complex64)},
            "'a' is complex64; expected one of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL",
        ),
        ({"a": torch.tensor([float("nan")])}, "tensor 'a' holds NaN or infinity; expected finite weights"),
    ],
)
def test_a_torch_file_of_anything_else_is_refused(tmp_path: Path, value: object, message: str) -> None:
    assert refused(put(tmp_path / "model.pt", saved(value)), allow_pickle=True) == f"model.pt: {message}"


def test_a_compressed_torch_file_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "model.pt", compressed({"a": torch.zeros(10_000)}))
    assert refused(path, allow_pickle=True) == (
        "model.pt: a compressed zip archive; torch.save writes its members uncompressed"
    )


def test_every_truncation_of_a_torch_file_is_refused(tmp_path: Path) -> None:
    data = saved({"a": torch.zeros(3)})
    for length in range(0, len(data), 7):
        refused(put(tmp_path / "model.pt", data[:length]), allow_pickle=True)


def test_old_torch_refuses_pickles_altogether(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1"))
    path = put(tmp_path / "model.pt", saved({"a": torch.zeros(1)}))
    assert refused(path, allow_pickle=True) == "model.pt: --allow-pickle needs torch 2.10 or later, this is 2.9.1"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    put(tmp_path / "file", b"")
    with pytest.raises(CertkitError) as caught:
        write(tmp_path / "file", a_state(), {})
    assert str(caught.value) == f"{tmp_path / 'file'}: no folder can be made there (File exists)"
