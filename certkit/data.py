"""Images with labels, by name: scikit-learn's digits, a Hugging Face data set, a local folder, or arrays of one's own."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from certkit.errors import DataError, one_line, suggestion
from certkit.records import Data

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any] | Tensor | Sequence[Any]"
BOX = (0.0, 1.0)
CHANNELS = {"L": 1, "RGB": 3}  # Pillow's modes of 8 bits per channel without transparency
IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label",)
DIGITS_SPLITS = {
    "train": "d96def73c7daab649ddd680a3bb17f55bdb068fb4336710c16bb74437c52a7f0",
    "test": "d9101e2e97e19974905f1336a8ef53c03166d6af2c53833be35ff03a33e7e0cd",
}  # sha256 of the positions in scikit-learn's set, int64, in order


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples in a fixed order, with the record that names them.

    images   float32 (N, C, H, W), every entry in ``box``
    labels   int64 (N,), positions in ``record.classes``
    indices  int64 (N,), the position of each sample in its source split
    """

    record: Data
    images: Tensor
    labels: Tensor
    indices: Tensor
    box: tuple[float, float] = BOX

    @classmethod
    def of(
        cls,
        images: Array,
        labels: Array,
        *,
        name: str,
        split: str = "test",
        classes: Sequence[str] | None = None,
    ) -> Dataset:
        """Samples from arrays of one's own: ``images`` (N, ...) with entries in [0, 1], ``labels`` (N,) of integers.

        Without ``classes`` the labels name themselves, 0 to the largest. Values are kept as float32, which is what the
        digest covers. Raises DataError for anything else, saying what was found.
        """
        where = f"data set {one_line(name, 80)!r}"
        pixels, targets = _tensor(images, where, "images"), _tensor(labels, where, "labels")
        if not pixels.is_floating_point():
            raise DataError(f"{where}: images are {_dtype(pixels)}; expected floating point in [0, 1] (bytes / 255)")
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise DataError(f"{where}: labels are {_dtype(targets)}; expected integers")
        if pixels.ndim < 2 or targets.ndim != 1 or len(pixels) != len(targets):
            raise DataError(
                f"{where}: images of shape {tuple(pixels.shape)} with labels of shape {tuple(targets.shape)}; "
                "expected (N, ...) and (N,)"
            )
        if pixels.numel() == 0:
            raise DataError(f"{where}: empty; expected at least one sample")
        pixels = pixels.float().contiguous()
        if not bool(torch.isfinite(pixels).all()):
            raise DataError(f"{where}: images hold NaN or infinity; expected entries in [0, 1]")
        low, high = float(pixels.min()), float(pixels.max())
        if low < BOX[0] or high > BOX[1]:
            raise DataError(
                f"{where}: images range over [{low:g}, {high:g}]; expected [0, 1] (normalisation is part of the model)"
            )
        targets = targets.long()
        names = tuple(map(str, range(int(targets.max()) + 1))) if classes is None else tuple(map(str, classes))
        return _dataset(name, split, pixels, targets, torch.arange(len(targets)), names)

    def first(self, count: int) -> Dataset:
        """The first so many samples as a data set of their own, with its own digest; this one where it has no more."""
        if count >= len(self.labels):
            return self
        record = self.record
        parts = self.images[:count], self.labels[:count], self.indices[:count]
        return _dataset(record.name, record.split, *parts, record.classes)


def load(name: str = "digits", split: str = "test", *, limit: int | None = None) -> Dataset:
    """The samples of a split, or its first ``limit``.

    ``digits`` is scikit-learn's embedded set with a fixed stratified split. A local folder (Parquet files or one folder
    of images per class) and a name on the Hugging Face hub are read by ``datasets``: the image column and the label
    column are found by their types. Bytes become float32 as byte / 255. Code of a data set is never run. Raises DataError
    for what is missing, ambiguous, or not images of one size with labels.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be 1 or more, got {limit}")
    if name == "digits":
        return _digits(split, limit)
    source, shown = _source(name)
    with _quiet():
        return _hugging_face(source, shown, split, limit)


def _dataset(
    name: str, split: str, images: Tensor, labels: Tensor, indices: Tensor, classes: tuple[str, ...]
) -> Dataset:
    """The samples with their record. Raises DataError for labels that no class bears."""
    outside = torch.nonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"data set {one_line(name, 80)!r}: the label of sample {int(indices[first])} is {int(labels[first])}, "
            f"outside 0 to {len(classes) - 1}; {len(outside)} of {len(labels)} samples have no class"
        )
    record = Data(
        name=one_line(name, 120),
        split=one_line(split, 120),
        count=len(labels),
        sha256=fingerprint(images, labels),
        classes=tuple(one_line(c, 120) for c in classes),
    )
    return Dataset(record=record, images=images, labels=labels, indices=indices)


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """The sha256 of shape, images (float32) and labels (int64), in order and little-endian: which samples these are."""
    found = hashlib.sha256(repr(tuple(images.shape)).encode())
    found.update(images.numpy().astype("<f4", copy=False).tobytes())
    found.update(labels.numpy().astype("<i8", copy=False).tobytes())
    return found.hexdigest()


def _tensor(values: Array, where: str, what: str) -> Tensor:
    try:
        found = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {what} are not an array of numbers ({one_line(error, 120)})") from None
    return found


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digits(split: str, limit: int | None) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels in 0..16, divided by 16: exact in binary."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split not in DIGITS_SPLITS:
        raise DataError(_no_split("digits", split, DIGITS_SPLITS))
    digits = load_digits()
    halves = train_test_split(np.arange(len(digits.target)), test_size=360, stratify=digits.target, random_state=0)
    indices = dict(zip(DIGITS_SPLITS, halves, strict=True))[split].astype(np.int64)
    if hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest() != DIGITS_SPLITS[split]:
        raise DataError(
            f"digits: this scikit-learn splits the set differently from the split that {split!r} names, so results "
            "could not be compared; install another version of scikit-learn"
        )
    indices = indices[:limit]
    images = torch.from_numpy((digits.images[indices] / 16).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(digits.target[indices].astype(np.int64))
    names = tuple(str(name) for name in digits.target_names)
    return _dataset("digits", split, images, labels, torch.from_numpy(indices), names)


def _source(name: str) -> tuple[str, str]:
    """What ``datasets`` is asked for, and the name in records: a folder's own, so that no path of this machine leaks."""
    folder = os.path.expanduser(name)
    if name.strip() and os.path.isdir(folder):  # os.path and not Path, which raises for a name that is too long
        return str(Path(folder).resolve()), Path(folder).resolve().name
    if name.strip() and os.path.exists(folder):
        raise DataError(f"data set {one_line(name)!r} is a file; expected the folder that holds it")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or not name.strip():
        raise DataError(f"no folder {one_line(name)!r}; {_WORKS}")
    return name, name


_WORKS = "a data set is digits, a folder of Parquet files or of one image folder per class, or a Hugging Face name"


def _no_split(name: str, split: str, known: Any) -> str:
    return (
        f"data set {one_line(name, 80)!r} has no split {one_line(split, 80)!r}; "
        f"expected one of {', '.join(map(one_line, known))}{suggestion(split, known)}"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no retry notes of the libraries meanwhile: what certkit says is one line."""
    import datasets
    from huggingface_hub.utils import logging as hub

    bars, level, hub_level = (
        datasets.are_progress_bars_disabled(),
        datasets.logging.get_verbosity(),
        hub.get_verbosity(),
    )
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    hub.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        datasets.logging.set_verbosity(level)
        hub.set_verbosity(hub_level)


def _hugging_face(source: str, name: str, split: str, limit: int | None) -> Dataset:
    import datasets

    try:
        found = datasets.load_dataset(source)
    except Exception as error:  # noqa: BLE001 - readers of foreign files, and the network, raise anything
        close = suggestion(name, ["digits"])
        raise DataError(
            f"data set {one_line(name, 80)!r} could not be read ({type(error).__name__}: {one_line(error, 160)}); "
            f"{_WORKS}{close}"
        ) from None
    if split not in found:
        raise DataError(_no_split(name, split, list(found)))
    rows = found[split]
    image_column = _column(name, rows, "image", datasets.Image, IMAGE_NAMES)
    label_column, classes = _labels(name, rows)
    if len(rows) == 0:
        raise DataError(f"data set {one_line(name, 80)!r}, split {one_line(split, 80)!r}: empty")
    rows = rows.select_columns([image_column, label_column]).select(range(min(len(rows), limit or len(rows))))
    images, labels = _decode(name, rows, image_column, label_column)
    return _dataset(name, split, images, labels, torch.arange(len(labels)), classes)


def _column(name: str, rows: Any, what: str, kind: Any, preferred: Sequence[str]) -> str:
    """The one column of a type; among several, the one with the usual name. Raises DataError when that leaves doubt."""
    columns: list[str] = [column for column, feature in rows.features.items() if _is(feature, kind)]
    usual = [column for column in columns if column in preferred]
    if len(columns) == 1 or len(usual) == 1:
        return (usual or columns)[0]
    kinds = ", ".join(f"{one_line(column, 40)} ({_kind(feature)})" for column, feature in rows.features.items())
    if not columns:
        raise DataError(f"data set {one_line(name, 80)!r} has no {what} column; its columns are {one_line(kinds)}")
    raise DataError(
        f"data set {one_line(name, 80)!r} has {len(columns)} {what} columns, {one_line(', '.join(columns))}; "
        f"expected one, or one called {' or '.join(preferred)}"
    )


def _is(feature: Any, kind: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint")) if kind is int else isinstance(feature, kind)


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _labels(name: str, rows: Any) -> tuple[str, tuple[str, ...]]:
    """The label column and the names of its classes: a column of named classes before one of mere integers."""
    import datasets

    named = any(isinstance(feature, datasets.ClassLabel) for feature in rows.features.values())
    column = _column(name, rows, "label", datasets.ClassLabel if named else int, LABEL_NAMES)
    if named:
        return column, tuple(rows.features[column].names)
    largest = max((value for value in rows.with_format("arrow")[column].to_pylist() if value is not None), default=0)
    if largest >= len(rows):
        raise DataError(
            f"data set {one_line(name, 80)!r}: column {one_line(column, 80)!r} holds {largest} in {len(rows)} samples; "
            "labels are 0 to the number of classes less 1"
        )
    return column, tuple(map(str, range(largest + 1)))


def _decode(name: str, rows: Any, image_column: str, label_column: str) -> tuple[Tensor, Tensor]:
    """Every image as float32 (N, C, H, W) in [0, 1], every label as int64. Raises DataError for what does not fit."""
    where = f"data set {one_line(name, 80)!r}"
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    for position in range(len(rows)):
        try:
            row = rows[position]
            image, label = row[image_column], row[label_column]
            mode = None if image is None else image.mode
            array = np.asarray(image) if mode in CHANNELS else None
        except Exception as error:  # noqa: BLE001 - decoders of foreign files raise anything
            reason = f"{type(error).__name__}: {one_line(error, 120)}"
            raise DataError(f"{where}: the image of sample {position} could not be decoded ({reason})") from None
        if label is None:
            raise DataError(f"{where}: sample {position} has no label")
        if array is None:
            raise DataError(
                f"{where}: the image of sample {position} {'is missing' if mode is None else f'has mode {mode}'}; "
                "expected 8-bit grey (L) or colour (RGB)"
            )
        pixels.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        labels.append(int(label))
        shapes[pixels[-1].shape] += 1
        if len(shapes) > 1:
            first, other = ("x".join(map(str, shape)) for shape in shapes)
            raise DataError(
                f"{where}: sample {position} is {other}, those before it {first}; expected images of one size"
            )
    stacked = torch.from_numpy(np.stack(pixels))
    return stacked.float() / 255, torch.tensor(labels, dtype=torch.int64)
