"""Images with labels, whatever they come from: what is loaded, what names it, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import sklearn.model_selection
import torch
from PIL import Image

from certkit.data import Dataset, fingerprint, load
from certkit.errors import DataError, one_line

WORKS = "a data set is digits, a folder of Parquet files or of one image folder per class, or a Hugging Face name"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of these tests stays in the user's cache, and none of them asks the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def grey(count: int = 4, size: tuple[int, int] = (3, 5)) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)) for _ in range(count)]


def parquet(folder: Path, columns: dict[str, Sequence[Any]], kinds: dict[str, Any], split: str = "test") -> str:
    """A folder in the Parquet layout of the hub, and its path."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features(kinds)
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


IMAGE, INTEGER = datasets.Image(), datasets.Value("int64")


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*arguments, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- digits


def test_digits_are_split_once_and_for_all() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train.images), len(test.images)) == (1437, 360)
    together = torch.cat([train.indices, test.indices])
    assert torch.equal(together.sort().values, torch.arange(1797))
    assert test.record.sha256 == "b7e049fb439941f5113e5ff1307e66ad34c80341bfa4db506c09a654deb1455e"
    assert train.record.sha256 == "a6623f8bc2f2d50edb610bb54ddc4d8586b995936ef2354b5d65516e0bf54e12"


def test_digits_are_sixteenths() -> None:
    test = load()
    assert test.images.shape[1:] == (1, 8, 8)
    assert (test.images.dtype, test.labels.dtype, test.indices.dtype) == (torch.float32, torch.int64, torch.int64)
    assert torch.equal((test.images * 16).round() / 16, test.images)
    assert (float(test.images.min()), float(test.images.max())) == test.box == (0.0, 1.0)
    assert test.record.classes == tuple("0123456789")
    assert (test.record.name, test.record.split, test.record.count) == ("digits", "test", 360)


def test_a_limit_takes_the_first_samples() -> None:
    whole, some = load(), load(limit=7)
    assert some.record.count == 7
    assert torch.equal(some.images, whole.images[:7])
    assert torch.equal(some.indices, whole.indices[:7])
    assert some.record.classes == whole.record.classes
    assert some.record.sha256 != whole.record.sha256
    assert load(limit=10**6).record == whole.record


def test_a_changed_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(values: np.ndarray[Any, Any], **_: Any) -> list[np.ndarray[Any, Any]]:
        return [values[360:], values[:360]]

    monkeypatch.setattr(sklearn.model_selection, "train_test_split", other)
    assert refused() == (
        "digits: this scikit-learn splits the set differently from the split that 'test' names, so results "
        "could not be compared; install another version of scikit-learn"
    )


def test_a_split_that_is_not_there_is_refused_with_the_list(tmp_path: Path) -> None:
    assert refused("digits", "tset") == (
        "data set 'digits' has no split 'tset'; expected one of train, test; did you mean 'test'?"
    )
    name = parquet(tmp_path / "own", {"image": grey(), "label": [0, 1, 0, 1]}, {"image": IMAGE, "label": INTEGER})
    assert refused(name, "train") == "data set 'own' has no split 'train'; expected one of test"


def test_a_limit_below_one_is_refused() -> None:
    assert refused(limit=0) == "limit must be 1 or more, got 0"


# --- folders


def test_a_parquet_folder_is_read_by_the_types_of_its_columns(tmp_path: Path) -> None:
    images = grey()
    kinds = {"id": INTEGER, "picture": IMAGE, "kind": datasets.ClassLabel(names=["cat", "dog"])}
    name = parquet(tmp_path / "pets", {"id": [9, 8, 7, 6], "picture": images, "kind": [1, 0, 1, 1]}, kinds)
    found = load(name)
    expected = torch.from_numpy(np.stack([np.asarray(image) for image in images])).unsqueeze(1).float() / 255
    assert torch.equal(found.images, expected)
    assert found.labels.tolist() == [1, 0, 1, 1]
    assert found.indices.tolist() == [0, 1, 2, 3]
    assert found.record.classes == ("cat", "dog")


def test_a_folder_is_named_by_its_last_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "own", {"image": grey(), "label": [0, 1, 0, 1]}, {"image": IMAGE, "label": INTEGER})
    records = [load(str(tmp_path / "own")).record]
    monkeypatch.chdir(tmp_path / "own")
    records.append(load(".").record)
    assert records[0] == records[1]
    assert records[0].name == "own"


def test_integer_labels_name_themselves_whatever_the_limit(tmp_path: Path) -> None:
    name = parquet(tmp_path / "own", {"img": grey(), "label": [0, 1, 2, 0]}, {"img": IMAGE, "label": INTEGER})
    assert load(name, limit=1).record.classes == ("0", "1", "2")


def test_a_folder_of_image_folders_is_read_in_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    for kind, array in zip(("cat", "dog"), pixels, strict=True):
        (tmp_path / "pets" / "test" / kind).mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / "pets" / "test" / kind / "1.png")
    found = load(str(tmp_path / "pets"))
    assert found.record.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 1]
    assert torch.equal(found.images, torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 255)


def test_progress_bars_are_back_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = parquet(tmp_path / "own", {"image": grey(), "label": [0, 1, 0, 1]}, {"image": IMAGE, "label": INTEGER})
    datasets.enable_progress_bars()
    capfd.readouterr()
    load(name)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


BOTH = {"image": IMAGE, "label": INTEGER}
REFUSED: dict[str, tuple[dict[str, Sequence[Any]], dict[str, Any], str]] = {
    "no image": (
        {"text": ["a"], "label": [0]},
        {"text": datasets.Value("string"), "label": INTEGER},
        "data set 'own' has no image column; its columns are text (string), label (int64)",
    ),
    "no label": (
        {"image": grey(1), "x": [0.5]},
        {"image": IMAGE, "x": datasets.Value("float32")},
        "data set 'own' has no label column; its columns are image (Image), x (float32)",
    ),
    "two images": (
        {"left": grey(1), "right": grey(1), "label": [0]},
        {"left": IMAGE, "right": IMAGE, "label": INTEGER},
        "data set 'own' has 2 image columns, left, right; expected one, or one called image or img",
    ),
    "two labels": (
        {"image": grey(1), "fine": [0], "coarse": [0]},
        {"image": IMAGE, "fine": INTEGER, "coarse": INTEGER},
        "data set 'own' has 2 label columns, fine, coarse; expected one, or one called label",
    ),
    "two sizes": (
        {"image": [*grey(1), *grey(1, (4, 4))], "label": [0, 1]},
        BOTH,
        "data set 'own': sample 1 is 1x4x4, those before it 1x3x5; expected images of one size",
    ),
    "grey and colour": (
        {"image": [*grey(1), grey(1)[0].convert("RGB")], "label": [0, 1]},
        BOTH,
        "data set 'own': sample 1 is 3x3x5, those before it 1x3x5; expected images of one size",
    ),
    "transparent": (
        {"image": [grey(1)[0].convert("RGBA")], "label": [0]},
        BOTH,
        "data set 'own': the image of sample 0 has mode RGBA; expected 8-bit grey (L) or colour (RGB)",
    ),
    "image missing": (
        {"image": [*grey(1), None], "label": [0, 1]},
        BOTH,
        "data set 'own': the image of sample 1 is missing; expected 8-bit grey (L) or colour (RGB)",
    ),
    "label missing": ({"image": grey(2), "label": [0, None]}, BOTH, "data set 'own': sample 1 has no label"),
    "label negative": (
        {"image": grey(3), "label": [0, -1, 1]},
        BOTH,
        "data set 'own': the label of sample 1 is -1, outside 0 to 1; 1 of 3 samples have no class",
    ),
    "label is no class": (
        {"image": grey(2), "label": [0, 2**40]},
        BOTH,
        "data set 'own': column 'label' holds 1099511627776 in 2 samples; labels are 0 to the number of classes less 1",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_images_with_labels_is_refused(tmp_path: Path, fault: str) -> None:
    columns, kinds, message = REFUSED[fault]
    assert refused(parquet(tmp_path / "own", columns, kinds)) == message


def test_an_image_that_is_no_image_is_refused(tmp_path: Path) -> None:
    kinds = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "label": INTEGER}
    rows = {"image": [{"bytes": b"not a picture", "path": None}], "label": [0]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).cast_column("image", IMAGE)
    (tmp_path / "own").mkdir()
    table.to_parquet(tmp_path / "own" / "test-00000-of-00001.parquet")
    message = refused(str(tmp_path / "own"))
    assert message.startswith("data set 'own': the image of sample 0 could not be decoded (UnidentifiedImageError: ")


@pytest.mark.parametrize(
    "name", ["./gone", "/gone/away", "~/gone-away", "a/b/c", "a\\b", "", "~nobody/x", "/" + "x" * 5000]
)
def test_a_folder_that_is_not_there_says_what_would_work(name: str) -> None:
    assert refused(name) == f"no folder {one_line(name)!r}; {WORKS}"


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"")
    path = str(tmp_path / "test.parquet")
    assert refused(path) == f"data set {path!r} is a file; expected the folder that holds it"


def test_a_folder_without_data_says_what_would_work(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    message = refused(str(tmp_path / "own"))
    assert message.startswith("data set 'own' could not be read (")
    assert message.endswith(f"); {WORKS}")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    message = refused(parquet(tmp_path / "own", {"image": [], "label": []}, BOTH))
    assert message.startswith("data set 'own' could not be read (ValueError: ")


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 nonsense PAR1")
    assert refused(str(tmp_path / "own")).startswith("data set 'own' could not be read (")


def test_a_script_in_a_folder_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    refused(str(folder))
    assert not (tmp_path / "marker").exists()


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    message = refused("digit")
    assert message.startswith("data set 'digit' could not be read (")
    assert message.endswith(f"; {WORKS}; did you mean 'digits'?")


# --- arrays of one's own


def test_arrays_and_tensors_make_the_same_data_set() -> None:
    images, labels = np.random.default_rng(0).random((3, 1, 2, 2)), np.array([0, 2, 1])
    first = Dataset.of(images, labels, name="mine")
    second = Dataset.of(torch.from_numpy(images), torch.from_numpy(labels).to(torch.uint8), name="mine")
    assert first.record == second.record
    assert first.record.classes == ("0", "1", "2")
    assert first.images.dtype == torch.float32
    assert first.indices.tolist() == [0, 1, 2]


def test_a_loaded_data_set_is_the_one_made_of_its_arrays() -> None:
    test = load(limit=5)
    again = Dataset.of(test.images, test.labels, name="digits", classes=test.record.classes)
    assert again.record == test.record


def test_the_digest_covers_shape_values_labels_and_order() -> None:
    images, labels = torch.rand(4, 1, 2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    seen = {
        fingerprint(images, labels),
        fingerprint(images.reshape(4, 1, 3, 2), labels),
        fingerprint(images.flip(0), labels),
        fingerprint(images.flip(0), labels.flip(0)),
        fingerprint(images, labels.flip(0)),
        fingerprint(images.nextafter(torch.tensor(2.0)), labels),
    }
    assert len(seen) == 6
    expected = hashlib.sha256(b"(4, 1, 2, 3)" + images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    assert expected in seen


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        ([[0.5, float("nan")]], [0], None, "images hold NaN or infinity; expected entries in [0, 1]"),
        (
            [[0.5, 1.5]],
            [0],
            None,
            "images range over [0.5, 1.5]; expected [0, 1] (normalisation is part of the model)",
        ),
        (np.zeros((1, 2), np.uint8), [0], None, "images are uint8; expected floating point in [0, 1] (bytes / 255)"),
        ([[0.5]], [0.0], None, "labels are float64; expected integers"),
        ([[0.5]], [True], None, "labels are bool; expected integers"),
        ([[0.5]], [0, 1], None, "images of shape (1, 1) with labels of shape (2,); expected (N, ...) and (N,)"),
        ([0.5], [0], None, "images of shape (1,) with labels of shape (1,); expected (N, ...) and (N,)"),
        (np.zeros((0, 2)), np.zeros(0, int), None, "empty; expected at least one sample"),
        (
            [[0.5], [0.5]],
            [0, 2],
            ("a", "b"),
            "the label of sample 1 is 2, outside 0 to 1; 1 of 2 samples have no class",
        ),
        ([[0.5]], [-1], None, "the label of sample 0 is -1, outside 0 to -1; 1 of 1 samples have no class"),
    ],
)
def test_arrays_that_are_not_images_with_labels_are_refused(
    images: Any, labels: Any, classes: Any, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        Dataset.of(images, labels, name="mine", classes=classes)
    assert str(caught.value) == f"data set 'mine': {message}"


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(DataError, match=r"^data set 'mine': images are not an array of numbers \("):
        Dataset.of([["a"]], [0], name="mine")
    with pytest.raises(DataError, match=r"^data set 'mine': images are not an array of numbers \("):
        Dataset.of([[0.5], [0.5, 0.5]], [0, 1], name="mine")
