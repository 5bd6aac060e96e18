"""Folders of Hugging Face: built without code or network, exactly the weights of the file, normalised as they say."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

import certkit
from certkit.cli import main
from certkit.commands.loading import load_model
from certkit.data import Dataset
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CertkitError, ConfigError, DataError
from certkit.files import digest
from certkit.foreign import huggingface, text

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

BLOCK: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
PATCHES = {**BLOCK, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
WORDS = {**BLOCK, "intermediate_size": 32, "vocab_size": 30}
CONFIGS: dict[str, dict[str, Any]] = {
    "albert": {**WORDS, "embedding_size": 8},
    "beit": {**PATCHES, "use_relative_position_bias": True},
    "bert": WORDS,
    "convnext": {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "num_labels": 3},
    "deit": PATCHES,
    "dinov2": {**BLOCK, "image_size": 8, "patch_size": 4},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 30, "num_labels": 3},
    "electra": {**WORDS, "embedding_size": 16},
    "gpt2": {
        "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3},
    "roberta": WORDS,
    "vit": PATCHES,
}  # fmt: skip
PREPROCESSOR = {
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
}  # fmt: skip


def folder(path: Path, kind: str, *, preprocessor: object = PREPROCESSOR) -> tuple[Path, Any]:
    """A folder as ``save_pretrained`` writes it, and the network that is in it."""
    cls = getattr(transformers, huggingface.CLASSES[kind])
    torch.manual_seed(0)
    network = cls(cls.config_class(**CONFIGS[kind])).eval()
    network.save_pretrained(path / kind)
    if kind in huggingface.IMAGES and preprocessor is not None:
        (path / kind / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return path / kind, network


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def changed(path: Path, **entries: object) -> None:
    """config.json with some entries replaced."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | entries))


def refused(path: Path, **given: Any) -> str:
    with pytest.raises(CertkitError) as caught:
        load_model(path, **given)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_every_class_of_the_table_has_a_case() -> None:
    assert CONFIGS.keys() == huggingface.CLASSES.keys()


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_folder_gives_the_network_and_its_graph_has_a_bound(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, network = folder(tmp_path, kind)

    def connect(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    found = huggingface.load(path)
    ids = torch.arange(12).reshape(2, 6) + 2
    with torch.no_grad():
        if found.embeddings is None:
            mean, std = (torch.tensor(PREPROCESSOR[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
            x = images()
            expected = network(pixel_values=(x - mean) / std).logits
        else:
            x = found.embeddings[ids]
            expected = network(input_ids=ids).logits
        expected = expected[:, -1] if kind in huggingface.LANGUAGE else expected
        assert torch.allclose(found.module(x), expected, atol=1e-5)
    low, high = (0.0, 1.0) if found.embeddings is None else text.box(found, 0.1)
    ledger = Interpreter(export(found.module, tuple(x.shape[1:])))("l2", (low, high))
    assert ledger.pairs.gain[0][1].to_float() > 0
    assert found.subject.architecture == huggingface.CLASSES[kind]


def test_a_folder_of_images_is_certified_in_units_of_its_images(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "resnet")
    module, subject = load_model(path)
    data = Dataset.of(images(), [0, 1, 2, 0], name="random", classes=["a", "b", "c"])
    certificate = certkit.certify(module, data, eps=["0.001"], out=tmp_path / "out", subject=subject)
    plain, _ = load_model(path, normalisation="none")
    ledger = Interpreter(export(plain, (3, 8, 8)))("l2", (0.0, 1.0))
    # 1 / std is at most 5: the same network without it, on a smaller box, moves no more than that less.
    assert certificate.pair_gain[0][1] > 2 * ledger.pairs.gain[0][1].to_float()
    assert certificate.subject.sha256 == subject.sha256


def test_the_report_reads_a_folder_as_it_was_certified(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "resnet", preprocessor=None)
    module, subject = load_model(path, normalisation="none")
    data = Dataset.of(images(), [0, 1, 2, 0], name="random", classes=["a", "b", "c"])
    certkit.certify(module, data, eps=["0.001"], out=tmp_path / "out", subject=subject)
    words = ["report", str(tmp_path / "out"), "--checkpoint", str(path)]
    unread = CliRunner().invoke(main, words)
    assert unread.exit_code == 2
    assert "--normalisation none for a network that reads images in [0, 1] as they are" in unread.output
    found = CliRunner().invoke(main, [*words, "--normalisation", "none"])
    assert found.exit_code == 0, found.output


def test_the_identity_is_what_sha256sum_says_of_the_files(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    listed = "".join(f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert load_model(path)[1].sha256 == digest(listed.encode())
    before = load_model(path, normalisation="none")[1].sha256
    changed(path, layer_norm_eps=1e-3)
    assert load_model(path, normalisation="none")[1].sha256 != before


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"image_std": [0.5, 0.0, 0.2]}, "image_std must be positive, one number per number of image_mean"),
        ({"image_mean": "half"}, "image_mean is 'half'; expected a number"),
        ({"do_pad": True}, "'do_pad' is not covered; covered are do_rescale and do_normalize"),
        ({"rescale_factor": None}, "rescale_factor is None; expected a number"),
    ],
)
def test_a_preprocessor_that_leaves_something_open_is_refused(
    tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    path, _ = folder(tmp_path, "vit", preprocessor=PREPROCESSOR | entries)
    assert refused(path) == f"preprocessor_config.json: {message}"


def test_bytes_that_are_not_rescaled_are_what_the_network_reads(tmp_path: Path) -> None:
    path, network = folder(tmp_path, "resnet", preprocessor={"do_rescale": False, "do_normalize": False})
    module, _ = load_model(path)
    with torch.no_grad():
        assert torch.allclose(module(images()), network(pixel_values=images() * 255).logits, rtol=1e-4)


def test_without_a_preprocessor_images_have_no_unit(tmp_path: Path) -> None:
    path, network = folder(tmp_path, "vit", preprocessor=None)
    assert refused(path) == (
        "vit: no preprocessor_config.json says how images are normalised, so that eps has no unit; add it, or give "
        "--normalisation none for a network that reads images in [0, 1] as they are"
    )
    module, _ = load_model(path, normalisation="none")
    with torch.no_grad():
        assert torch.equal(module(images()), network(pixel_values=images()).logits)


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    state = load_file(path / "model.safetensors")
    bias = state.pop("classifier.bias")
    save_file(state, path / "model.safetensors")
    assert refused(path) == (
        "model.safetensors: the model needs 'classifier.bias', which the file lacks; they would be drawn at random"
    )
    save_file({**state, "classifier.bias": bias, "second.head": bias.clone()}, path / "model.safetensors")
    assert refused(path) == (
        "model.safetensors: the file holds 'second.head', which the model does not have; it was written by another architecture"
    )
    save_file({**state, "classifier.bias": bias.double()}, path / "model.safetensors")
    assert refused(path) == (
        "model.safetensors: tensor 'classifier.bias' is float64, which transformers would round to float32"
    )


def test_a_tensor_that_the_network_would_round_is_refused(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    state = load_file(path / "model.safetensors")
    save_file({**state, "classifier.bias": torch.tensor([1, 2, 2**24])}, path / "model.safetensors")
    load_model(path)
    save_file({**state, "classifier.bias": torch.tensor([1, 2, 2**24 + 1])}, path / "model.safetensors")
    assert refused(path) == (
        "model.safetensors: tensor 'classifier.bias' is not what the model makes of it (rounded to float32, or tied to another "
        "tensor); it would be another network"
    )


def test_a_network_whose_answer_is_not_the_largest_logit_is_refused(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    changed(path, problem_type="multi_label_classification")
    assert refused(path) == (
        "config.json: problem_type 'multi_label_classification' has an answer other than the largest logit, which is what a "
        "certificate speaks of"
    )


def test_code_and_unknown_architectures_are_refused(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    changed(path, auto_map={"AutoModel": "modeling.Net"})
    assert refused(path) == ("config.json: 'auto_map' asks for code or formats that certkit does not read; remove it")
    changed(path, auto_map=None, model_type="vlt")
    assert refused(path).startswith("config.json: model_type 'vlt' is not one that certkit builds (albert, beit,")
    assert "did you mean 'vit'?" in refused(path)
    changed(path, model_type="vit", architectures=["ViTModel"])
    assert refused(path) == (
        "config.json: the architecture is ['ViTModel']; certkit certifies ViTForImageClassification, which gives logits"
    )
    changed(path, architectures=None, hidden_act="no such function")
    assert refused(path).startswith("config.json: transformers cannot build ViTForImageClassification (")


def test_pickles_and_shards_are_refused(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert refused(path) == (
        "vit: no model.safetensors in this folder; pickled weights (pytorch_model.bin) are not read"
    )
    (path / "model.safetensors.index.json").write_text("{}")
    assert "its weights are split into several files" in refused(path)


def test_normalisation_is_for_folders_of_hugging_face_alone(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    assert refused(tmp_path / "a.safetensors", normalisation="none") == (
        "--normalisation is for folders of Hugging Face; this checkpoint is none"
    )


# --- text


def test_the_domain_holds_every_word_and_every_ball_around_it(tmp_path: Path) -> None:
    found = huggingface.load(folder(tmp_path, "bert")[0])
    assert found.embeddings is not None
    ids = np.arange(12).reshape(2, 6) + 1
    data = text.embedded(found, ids, [0, 2], reach=0.25, name="words", classes=["a", "b", "c"])
    assert torch.equal(data.images, found.embeddings[torch.from_numpy(ids)])
    low, high = data.box
    table = found.embeddings.double()
    assert low <= float(table.min()) - 0.25
    assert high >= float(table.max()) + 0.25
    assert text.longest(found, 0.25) >= float(table.norm(dim=1).max()) + 0.25
    program = export(found.module, tuple(data.images.shape[1:]))
    longest = text.longest(found, 0.25)
    tight, wide = (Interpreter(program)("token", data.box, token_size=size) for size in (longest, None))
    assert tight.pairs.gain[0][1] <= wide.pairs.gain[0][1]
    assert data.record.count == 2


def test_ids_and_labels_that_are_not_the_networks_are_refused(tmp_path: Path) -> None:
    found = huggingface.load(folder(tmp_path, "bert")[0])
    given: dict[str, Any] = {"reach": 0.1, "name": "words", "classes": ["a", "b", "c"]}
    with pytest.raises(DataError) as caught:
        text.embedded(found, [[30]], [0], **given)
    assert str(caught.value) == "data set 'words': ids must be integers from 0 to 29"
    with pytest.raises(DataError) as caught:
        text.embedded(found, [[1]], [3], **given)
    assert str(caught.value) == "data set 'words': labels must be integers from 0 to 2"
    with pytest.raises(DataError) as caught:
        text.embedded(found, [[5, 3, 0]], [0], **given)  # 0 is BERT's padding
    assert str(caught.value).startswith(
        "data set 'words': ids hold 0, which pads sentences for this network; nothing is"
    )
    with pytest.raises(ConfigError) as unset:
        text.embedded(found, [[1]], [0], **given | {"reach": float("inf")})
    assert str(unset.value) == "reach must be a finite radius, got inf"


def test_commands_that_read_images_say_what_to_do_with_text(tmp_path: Path) -> None:
    assert refused(folder(tmp_path, "gpt2")[0]) == (
        "gpt2: GPT2LMHeadModel reads text, and these commands read images; certify its embeddings from Python with "
        "certkit.foreign.text (docs/certify.md)"
    )


def test_layer_norm_without_eps_gets_a_true_statement(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    changed(path, layer_norm_eps=0.0)
    module, _ = load_model(path)
    with pytest.raises(
        CertkitError, match=r"aten.layer_norm.default with eps = 0.0 has no finite global bound: its slope g"
    ):
        Interpreter(export(module, (3, 8, 8)))("l2", (0.0, 1.0))
