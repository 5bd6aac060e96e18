"""What a certified distance looks like: samples beside their nearest adversarial examples, as small pictures. No torch here.

    campaign + images --drawn--> Pictures in audit.json --> report.html

Shown are the samples with the smallest gap between certified radius and nearest example, from a known pair each: the image
of the data set and the float32 example that the campaign stored. Only images are drawn: one channel or three.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from certkit.campaign import Campaign, distance_up
from certkit.errors import RecordError, Tampered
from certkit.files import load
from certkit.records import Audit
from certkit.records.pictures import BUDGET, FACTORS, MOST, SIDE, Picture, Pictures
from certkit.shards import Floats, Images

if TYPE_CHECKING:
    from certkit.data import Dataset

Pixels = NDArray[np.uint8]
NO_ROOM = "one picture of this size takes more room than there is for all"
NO_DATA = "the samples were not at hand when this audit was written; certkit report DIR --data NAME draws them"


def pictures(directory: Path, campaign: Campaign | None, radius: Floats, data: Dataset | None) -> Pictures:
    """The pictures for the audit of ``directory``: drawn from ``data``, or without it those that its audit.json holds already.

    ``radius`` is each sample's certified radius. What is held is kept only while it shows the campaign's own examples in the
    order of today's gaps. Raises RecordError when the data are not those that were attacked, Tampered when an example is
    farther from its sample than the campaign states.
    """
    if campaign is None:
        return _none("no attack was run", 0)
    rows = nearest_gaps(campaign, radius)
    if not len(rows):
        return _none("no attack changed a sample", 0)
    if reason := undrawable(campaign.adversarial.shape[1:], campaign.plan.threat.box):
        return _none(reason, len(rows))
    if data is not None:
        return drawn(campaign, rows, _images(campaign, data))
    held = _held(directory)
    return held if held is not None and not _foreign(held, campaign, rows) else _none(NO_DATA, len(rows))


def nearest_gaps(campaign: Campaign, radius: Floats) -> NDArray[np.int64]:
    """The rows of the samples with an adversarial example, the smallest gap between it and the certified radius first."""
    gap = campaign.distance - radius
    order = np.lexsort((campaign.index, gap))
    found: NDArray[np.int64] = order[np.isfinite(gap[order])]
    return found


def undrawable(shape: tuple[int, ...], box: tuple[float, float]) -> str | None:
    """Why inputs of this shape are not drawn; None for images of one channel or three that are not too large."""
    if not box[0] < box[1]:
        return f"the box [{box[0]:g}, {box[1]:g}] leaves nothing to show"
    size = " x ".join(map(str, shape))
    if len(shape) != 3 or shape[0] not in (1, 3):
        return f"an input of shape {size} is no image of one channel or three"
    if max(shape[1:]) > SIDE:
        return f"an image of {size} is larger than the {SIDE} pixels a side that are shown"
    return None


def drawn(campaign: Campaign, rows: NDArray[np.int64], images: Images) -> Pictures:
    """Pictures of the first of ``rows``, as many as there is room for; ``images`` holds every sample of the campaign."""
    shown: list[Picture] = []
    left = BUDGET
    _as_stated(campaign, rows[:MOST], images)
    for row in rows[:MOST].tolist():
        picture = _picture(campaign, row, images[row])
        left -= picture.length
        if left < 0:
            break
        shown.append(picture)
    if not shown:
        return _none(NO_ROOM, len(rows))
    return Pictures(shown=tuple(shown), broken=len(rows), absent=None)


def check(held: Pictures, campaign: Campaign, radius: Floats, data: Dataset | None) -> int:
    """How many pictures of an audit are those of its campaign, and with ``data`` of its samples: all, or Tampered is raised.

    Pixels are compared, not files: another zlib packs them otherwise. Without ``data`` only the adversarial examples and
    their order can be told.
    """
    if not held.shown:
        return 0
    rows = nearest_gaps(campaign, radius)
    if wrong := _foreign(held, campaign, rows):
        raise Tampered(f"audit.json: {wrong}; run certkit report again")
    if data is not None:
        images, shown = _images(campaign, data), rows[: len(held.shown)]
        _as_stated(campaign, shown, images)
        for picture, row in zip(held.shown, shown.tolist(), strict=True):
            fresh = _picture(campaign, row, images[row])
            for name in ("input", "difference"):
                if not np.array_equal(pixels(getattr(picture, name)), pixels(getattr(fresh, name))):
                    raise Tampered(
                        f"audit.json: the {name} shown of sample {picture.index} is not that of the data set; "
                        "run certkit report again"
                    )
            if picture.factor != fresh.factor:
                raise Tampered(
                    f"audit.json: the difference of sample {picture.index} is not shown {picture.factor:g} times as strong; "
                    "run certkit report again"
                )
    return len(held.shown)


def pixels(png: str) -> Pixels:
    """The pixels (H, W) or (H, W, 3) of a picture of a record."""
    with Image.open(io.BytesIO(base64.b64decode(png)), formats=["PNG"]) as image:
        return np.asarray(image)


def png_of(found: Pixels) -> str:
    """Pixels (H, W) or (H, W, 3) as a picture of a record: equal pixels give equal text on one machine."""
    buffer = io.BytesIO()
    Image.fromarray(found).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def levels(image: Images, box: tuple[float, float]) -> Pixels:
    """An image (C, H, W) with entries in the box as bytes (H, W) or (H, W, 3): 0 at its lower end and 255 at its upper."""
    low, high = box
    return _bytes(255 * (image.astype(np.float64) - low) / (high - low))


def contrast(image: Images, example: Images, box: tuple[float, float]) -> tuple[Pixels, float]:
    """Example minus input as bytes around 128, and how many times stronger than in ``levels``.

    The factor is the largest of ``FACTORS`` with which every entry is shown in full: none is cut off.
    """
    change = 255 * (example.astype(np.float64) - image) / (box[1] - box[0])
    most = float(np.abs(change).max(initial=0.0))
    factor = max(one for one in FACTORS if one * most <= 127 or one == FACTORS[0])
    return _bytes(128 + factor * change), factor


def _bytes(values: Floats) -> Pixels:
    found = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return found[0] if len(found) == 1 else np.ascontiguousarray(found.transpose(1, 2, 0))


def _picture(campaign: Campaign, row: int, image: Images) -> Picture:
    box, example = campaign.plan.threat.box, campaign.adversarial[row]
    difference, factor = contrast(image, example, box)
    return Picture(
        index=int(campaign.index[row]),
        becomes=int(campaign.adversarial_prediction[row]),
        factor=factor,
        input=png_of(levels(image, box)),
        adversarial=png_of(levels(example, box)),
        difference=png_of(difference),
    )


def _as_stated(campaign: Campaign, rows: NDArray[np.int64], images: Images) -> None:
    """Raises Tampered unless each example is at most as far from its image as the campaign states."""
    measured = distance_up(campaign.plan.threat.norm, images[rows], campaign.adversarial[rows])
    if bad := rows[measured > campaign.distance[rows]].tolist():
        raise Tampered(
            f"campaign/shards: the example of sample {int(campaign.index[bad[0]])} is farther from it than stated; "
            "run the attack again into an empty folder"
        )


def _images(campaign: Campaign, data: Dataset) -> Images:
    if data.record.sha256 != campaign.plan.data.sha256:
        raise RecordError("the samples given are not those that were attacked; give the data set of the certificate")
    images: Images = np.asarray(data.images, np.float32)
    if images.shape != campaign.adversarial.shape:
        raise Tampered("campaign/shards: the examples are not of the shape of the samples; run the attack again")
    return images


def _foreign(held: Pictures, campaign: Campaign, rows: NDArray[np.int64]) -> str | None:
    """What the pictures show that is not of this campaign and the order of its gaps; None if nothing is."""
    if held.broken != len(rows):
        return f"{held.broken} samples are said to have an adversarial example, and {len(rows)} have one"
    if reason := undrawable(campaign.adversarial.shape[1:], campaign.plan.threat.box):
        return f"pictures are shown, and {reason}"
    for place, picture in enumerate(held.shown):
        row = int(rows[place])
        if picture.index != int(campaign.index[row]):
            return f"sample {picture.index} is shown, and sample {int(campaign.index[row])} has the smaller gap"
        if picture.becomes != int(campaign.adversarial_prediction[row]):
            return f"the class that sample {picture.index} becomes is not that of the campaign"
        expected = levels(campaign.adversarial[row], campaign.plan.threat.box)
        if not np.array_equal(pixels(picture.adversarial), expected):
            return f"the adversarial example shown of sample {picture.index} is not that of the campaign"
    return None


def _held(directory: Path) -> Pictures | None:
    """The pictures of the audit.json that stands there, if it can be read and has any, or had the samples and no room."""
    path = directory / "audit.json"
    try:
        held = load(Audit, path).pictures if path.is_file() else None
    except RecordError:  # of an older format, or damaged: it is about to be written anew
        held = None
    return held if held is not None and (held.shown or held.absent == NO_ROOM) else None


def _none(reason: str, broken: int) -> Pictures:
    return Pictures(shown=(), broken=broken, absent=reason)
