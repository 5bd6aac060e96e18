"""A picture shows the pair it says it shows, to the rounding of a byte; nothing but a picture gets into a record or a page."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError
from torch import nn

import certkit
from certkit.campaign import Campaign, distance_up, load_campaign
from certkit.cli import main
from certkit.data import Dataset
from certkit.data import load as load_data
from certkit.errors import RecordError, Tampered
from certkit.files import canonical, load, save
from certkit.pictures import NO_DATA, NO_ROOM, check, contrast, drawn, levels, nearest_gaps, pixels, png_of, undrawable
from certkit.records import Audit, Picture, Pictures
from certkit.records.pictures import BUDGET, FACTORS, MOST, SIDE, shape_of
from certkit.reports import render
from certkit.reports.findings import Findings
from certkit.reports.pictures import FIRST, Gallery
from tests.audits import example_audit
from tests.networks import labelled_by, linear, samples
from tests.pages import Page

# What a PNG may be


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    *, width: int = 4, height: int = 4, kind: tuple[int, ...] = (8, 0, 0, 0, 0), rows: bytes | None = None,
    before: bytes = b"", behind: bytes = b"",
) -> bytes:  # fmt: skip
    packed = zlib.compress(bytes(height * (1 + width)) if rows is None else rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *kind))
        + before
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
        + behind
    )


def test_a_plain_picture_is_read_by_its_shape() -> None:
    assert shape_of(png()) == (1, 4, 4)
    assert shape_of(png(kind=(8, 2, 0, 0, 0), rows=bytes(4 * 13))) == (3, 4, 4)
    several = png().replace(
        chunk(b"IDAT", zlib.compress(bytes(20))),
        chunk(b"IDAT", zlib.compress(bytes(20))[:5]) + chunk(b"IDAT", zlib.compress(bytes(20))[5:]),
    )
    assert shape_of(several) == (1, 4, 4)


OTHER = "a PNG with other chunks than IHDR, IDAT and IEND"
KIND = "a PNG that is not 8-bit grey or colour without interlacing"
FULL = "a PNG with more or fewer pixels than it states"
FORGED = {
    "nothing": (b"", "not a PNG"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>window.pwned=1</script></svg>", "not a PNG"),
    "html": (b"<script>window.pwned=1</script>", "not a PNG"),
    "gif": (b"GIF89a\x01\x00\x01\x00", "not a PNG"),
    "signature alone": (png()[:8], OTHER),
    "cut": (png()[:50], "a PNG with a damaged chunk"),
    "cut near its end": (png()[:-5], "a PNG that ends too early"),
    "another byte": (png()[:45] + b"\xff" + png()[46:], "a PNG with a damaged chunk"),
    "text chunk": (png(before=chunk(b"tEXt", b"Comment\x00<script>window.pwned=1</script>")), OTHER),
    "profile": (png(before=chunk(b"iCCP", b"x\x00\x00" + zlib.compress(b"x"))), OTHER),
    "animation": (png(before=chunk(b"acTL", bytes(8))), OTHER),
    "palette": (png(before=chunk(b"PLTE", bytes(3)), kind=(8, 3, 0, 0, 0)), OTHER),
    "behind the end": (png(behind=b"<script>window.pwned=1</script>"), "a PNG with a damaged chunk"),
    "a chunk behind the end": (png(behind=chunk(b"IDAT", b"")), OTHER),
    "a few bytes behind the end": (png(behind=b"\x00" * 5), "a PNG that ends too early"),
    "16 bits": (png(kind=(16, 0, 0, 0, 0)), KIND),
    "transparency": (png(kind=(8, 4, 0, 0, 0)), KIND),
    "interlaced": (png(kind=(8, 0, 0, 0, 1)), KIND),
    "empty": (png(width=0), f"a PNG of 0 x 4 pixels; at most {SIDE} x {SIDE} are taken"),
    "too wide": (png(width=SIDE + 1, height=1), f"a PNG of {SIDE + 1} x 1 pixels; at most {SIDE} x {SIDE} are taken"),
    "2^31 pixels high": (png(height=2**31), f"a PNG of 4 x {2**31} pixels; at most {SIDE} x {SIDE} are taken"),
    "too few pixels": (png(rows=bytes(19)), FULL),
    "too many pixels": (png(rows=bytes(21)), FULL),
    "another filter": (png(rows=b"\x05" + bytes(19)), FULL),
    "no pixels": (png(rows=b""), FULL),
    "header short": (png().replace(png()[8:33], chunk(b"IHDR", bytes(12))), "a PNG with a damaged chunk"),
    "not packed": (
        png().replace(chunk(b"IDAT", zlib.compress(bytes(20))), chunk(b"IDAT", b"<script>")),
        "a PNG whose pixels cannot be unpacked",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("forged", "said"), FORGED.values(), ids=FORGED.keys())
def test_nothing_but_a_plain_png_is_taken(forged: bytes, said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        shape_of(forged)
    assert str(caught.value) == said
    with pytest.raises(ValidationError):
        picture(input=base64.b64encode(forged).decode())


@pytest.mark.parametrize(
    "text", ["", "x y", "AAA", '"><script>window.pwned=1</script>', "data:image/png;base64,AAAA", "é"]
)
def test_nor_anything_that_is_no_base64(text: str) -> None:
    with pytest.raises(ValidationError, match="input"):
        picture(input=text)


def test_a_bomb_is_not_unpacked_further_than_the_picture_is_large() -> None:
    bomb = png(rows=bytes(40 * 2**20))
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(ValueError, match=FULL):
        shape_of(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    assert time.monotonic() - started < 5
    tracemalloc.stop()


def picture(index: int = 0, size: int = 4, **changes: Any) -> Picture:
    plain = base64.b64encode(png(width=size, height=size)).decode()
    held = {"index": index, "becomes": 1, "factor": 1.0, "input": plain, "adversarial": plain, "difference": plain}
    return Picture.model_validate({**held, **changes})


def test_pictures_of_one_sample_have_one_size_and_a_factor_that_is_drawn() -> None:
    with pytest.raises(
        ValidationError, match="input, adversarial example and difference are pictures of different sizes"
    ):
        picture(input=base64.b64encode(png(width=5)).decode())
    with pytest.raises(ValidationError, match="a difference is not shown 7 times as strong"):
        picture(factor=7.0)


@pytest.mark.parametrize(
    ("shown", "broken", "absent", "said"),
    [
        ((), 3, None, "either there are pictures, or a reason why not"),
        ((picture(),), 3, "none", "either there are pictures, or a reason why not"),
        ((picture(), picture()), 3, None, "a sample is shown twice, or more are shown than were broken"),
        ((picture(0), picture(1)), 1, None, "a sample is shown twice, or more are shown than were broken"),
        (tuple(map(picture, range(MOST + 1))), 100, None, f"Tuple should have at most {MOST} items"),
    ],
    ids=["neither", "both", "twice", "more than broken", "too many"],
)
def test_what_pictures_of_an_audit_must_be(
    shown: tuple[Picture, ...], broken: int, absent: str | None, said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Pictures(shown=shown, broken=broken, absent=absent)


def test_all_pictures_together_have_a_limit() -> None:
    noise = base64.b64encode(
        png(width=300, height=300, rows=b"".join(b"\0" + np.random.default_rng(at).bytes(300) for at in range(300)))
    ).decode()
    shown = [picture(index, 300, input=noise, adversarial=noise, difference=noise) for index in range(2)]
    assert len(noise) * 3 < BUDGET < len(noise) * 6
    assert Pictures(shown=(shown[0],), broken=2, absent=None)
    with pytest.raises(ValidationError, match=f"the pictures take more than {BUDGET} characters"):
        Pictures(shown=tuple(shown), broken=2, absent=None)


def test_an_audit_shows_samples_of_its_own_that_an_attack_changed() -> None:
    audit = json.loads(canonical(example_audit(12)))
    (first, *_) = audit["pictures"]["shown"]
    never = next(one["index"] for one in audit["samples"] if one["distance"] is None)
    said = "the picture of sample {} is none of an attacked sample of this audit"
    for change in (
        {"index": never},
        {"index": 99},
        {name: picture().input for name in ("input", "adversarial", "difference")},
    ):
        forged = {**audit, "pictures": {**audit["pictures"], "shown": [{**first, **change}]}}
        with pytest.raises(ValidationError, match=said.format(forged["pictures"]["shown"][0]["index"])):
            Audit.model_validate(forged)


# What a picture shows

boxes = st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-2.5, 7.0), (0.0, 255.0)])
shapes = st.sampled_from([(1, 2, 3), (3, 2, 2), (1, 1, 1), (3, 5, 4)])
pairs = shapes.flatmap(lambda shape: arrays.arrays(np.float32, (2, *shape), elements=st.floats(0, 1, width=32)))


def as_image(found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Decoded pixels as (C, H, W) float64."""
    return (found[None] if found.ndim == 2 else found.transpose(2, 0, 1)).astype(np.float64)


@given(pairs, boxes)
def test_decoded_a_picture_is_its_image_to_half_a_step_in_any_box(pair: Any, box: tuple[float, float]) -> None:
    low, high = box
    image = (low + (high - low) * pair[0]).astype(np.float32)
    seen = low + (high - low) * as_image(pixels(png_of(levels(image, box)))) / 255
    assert np.abs(seen - image).max() <= (high - low) * (0.5 / 255 + 1e-6)


@given(pairs, boxes)
def test_a_difference_is_that_of_the_pair_and_none_of_it_is_cut_off(pair: Any, box: tuple[float, float]) -> None:
    low, high = box
    image, example = ((low + (high - low) * one).astype(np.float32) for one in pair)
    shown, factor = contrast(image, example, box)
    true = example.astype(np.float64) - image
    seen = (as_image(pixels(png_of(shown))) - 128) / 255 / factor * (high - low)
    assert np.abs(seen - true).max() <= (high - low) * (0.5 / 255 / factor + 1e-6)
    assert (shown[as_pixels(true) == 0] == 128).all()
    stronger = [one for one in FACTORS if one > factor]
    assert not stronger or 255 * min(stronger) * np.abs(true).max() / (high - low) > 127


def as_pixels(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


# Of a real campaign

EPS = ("0.05", "0.3")


def audited(out: Path, model: nn.Module, data: Dataset) -> Audit:
    certkit.certify(model, data, eps=EPS, out=out, threads=1)
    certkit.attack(model, data, norm="l2", eps=EPS, out=out)
    return certkit.audit(out, model=model, data=data)


@pytest.fixture(scope="module", params=[(1, 3, 4), (3, 2, 2)], ids=["grey", "colour"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Dataset]:
    shape = request.param
    model = linear(entries=int(np.prod(shape)))
    data = labelled_by(model, samples(16, shape=shape))
    out = tmp_path_factory.mktemp("real")
    audited(out, model, data)
    return out, model, data


@pytest.fixture
def copy(real: tuple[Path, nn.Module, Dataset], tmp_path: Path) -> tuple[Path, nn.Module, Dataset]:
    shutil.copytree(real[0], tmp_path / "copy")
    return tmp_path / "copy", *real[1:]


def parts(out: Path) -> tuple[Audit, Campaign, np.ndarray[Any, Any]]:
    audit = load(Audit, out / "audit.json")
    return audit, load_campaign(out), np.array([one.radius for one in audit.samples])


def test_the_pictures_are_those_of_the_nearest_examples_and_their_own_samples(real: Any) -> None:
    out, model, data = real
    audit, campaign, _ = parts(out)
    assert len(audit.pictures.shown) == audit.pictures.broken == int(np.isfinite(campaign.distance).sum()) > 5
    gaps = {one.index: one.distance - one.radius for one in audit.samples if one.distance is not None}
    assert [one.index for one in audit.pictures.shown] == sorted(gaps, key=lambda index: (gaps[index], index))
    for one in audit.pictures.shown:
        (row,) = np.flatnonzero(campaign.index == one.index)
        image, example = data.images[row].numpy(), campaign.adversarial[row]
        assert np.linalg.norm((example - image).astype(np.float64)) == pytest.approx(
            audit.samples[row].distance, rel=1e-6
        )
        for png, array in ((one.input, image), (one.adversarial, example)):
            assert np.abs(as_image(pixels(png)) / 255 - array).max() <= 0.5 / 255 + 1e-7
        seen = (as_image(pixels(one.difference)) - 128) / 255 / one.factor
        assert np.abs(seen - (example.astype(np.float64) - image)).max() <= 0.5 / 255 / one.factor + 1e-9
        with torch.no_grad():
            assert model(torch.from_numpy(example)[None]).argmax() == one.becomes != audit.samples[row].label


def test_they_are_the_same_bytes_again(real: Any) -> None:
    out, _, data = real
    audit, campaign, radius = parts(out)
    assert drawn(campaign, nearest_gaps(campaign, radius), data.images.numpy()) == audit.pictures


def test_without_the_samples_a_report_keeps_what_it_had(copy: Any) -> None:
    out, *_ = copy
    before = load(Audit, out / "audit.json").pictures
    assert certkit.audit(out).pictures == before
    (out / "audit.json").unlink()
    after = certkit.audit(out).pictures
    assert after == Pictures(shown=(), broken=before.broken, absent=NO_DATA)
    assert certkit.audit(out, data=copy[2]).pictures == before


FORGERIES = {
    "input": lambda a, b: a.model_copy(update={"input": b.input}),
    "difference": lambda a, b: a.model_copy(update={"difference": b.difference}),
    "adversarial": lambda a, b: a.model_copy(update={"adversarial": b.adversarial}),
    "factor": lambda a, _: a.model_copy(update={"factor": 0.4}),
    "class": lambda a, _: a.model_copy(update={"becomes": a.becomes + 7}),
    "order": lambda _, b: b,
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_picture_that_is_not_of_its_sample_is_found_out(real: Any, what: str) -> None:
    out, _, data = real
    audit, campaign, radius = parts(out)
    first, second, *rest = audit.pictures.shown
    forged = audit.pictures.model_copy(
        update={"shown": (FORGERIES[what](first, second), *([second] if what != "order" else [first]), *rest)}
    )
    assert (
        check(audit.pictures, campaign, radius, data) == check(audit.pictures, campaign, radius, None) == len(rest) + 2
    )
    with pytest.raises(
        Tampered,
        match=rf"^audit\.json: .*\bsample {second.index if what == 'order' else first.index} .*; run certkit report again$",
    ):
        check(forged, campaign, radius, data)
    if what in ("adversarial", "class", "order"):  # these the campaign alone tells
        with pytest.raises(Tampered, match=r"^audit\.json: "):
            check(forged, campaign, radius, None)


def test_a_forged_example_is_not_kept_by_a_report_without_the_samples(copy: Any) -> None:
    out, *_ = copy
    audit = load(Audit, out / "audit.json")
    first, second, *rest = audit.pictures.shown
    forged = first.model_copy(update={"adversarial": second.adversarial})
    save(
        audit.model_copy(update={"pictures": audit.pictures.model_copy(update={"shown": (forged, second, *rest)})}),
        out / "audit.json",
    )
    assert certkit.audit(out).pictures.absent == NO_DATA


def test_other_samples_are_refused(copy: Any) -> None:
    out, model, data = copy
    other = labelled_by(model, samples(16, shape=tuple(data.images.shape[1:]), seed=5))
    with pytest.raises(RecordError) as caught:
        certkit.audit(out, data=other)
    assert (
        str(caught.value) == "the samples given are not those that were attacked; give the data set of the certificate"
    )


def test_an_example_farther_away_than_stated_is_refused(real: Any) -> None:
    out, _, data = real
    _, campaign, radius = parts(out)
    rows = nearest_gaps(campaign, radius)
    campaign.distance[rows[0]] *= 0.99
    with pytest.raises(
        Tampered, match=rf"example of sample {int(campaign.index[rows[0]])} is farther from it than stated"
    ):
        drawn(campaign, rows, data.images.numpy())


# What is not drawn


@pytest.mark.parametrize(
    ("shape", "box", "said"),
    [
        ((1, 2, 2), (0.0, 1.0), None),
        ((3, SIDE, SIDE), (-1.0, 1.0), None),
        ((12,), (0.0, 1.0), "an input of shape 12 is no image of one channel or three"),
        ((3, 4), (0.0, 1.0), "an input of shape 3 x 4 is no image of one channel or three"),
        ((2, 2, 3), (0.0, 1.0), "an input of shape 2 x 2 x 3 is no image of one channel or three"),
        ((1, 1, SIDE + 1), (0.0, 1.0), f"an image of 1 x 1 x {SIDE + 1} is larger than the {SIDE} pixels a side that are shown"),
        ((1, 2, 2), (1.0, 1.0), "the box [1, 1] leaves nothing to show"),
    ],
)  # fmt: skip
def test_only_images_of_one_channel_or_three_are_drawn(
    shape: tuple[int, ...], box: tuple[float, float], said: str | None
) -> None:
    assert undrawable(shape, box) == said


def test_vectors_have_no_picture_and_the_page_says_so(tmp_path: Path) -> None:
    audit = audited(tmp_path, linear(), labelled_by(linear(), samples(6, shape=(4,))))
    said = "an input of shape 4 is no image of one channel or three"
    assert audit.pictures.broken > 0
    assert (audit.pictures.shown, audit.pictures.absent) == ((), said)
    html = render(audit)
    assert f"No pictures: {said}." in Page(html).text
    assert "<img" not in html
    assert "img-src" not in html
    assert certkit.audit(tmp_path).pictures == audit.pictures


def enlarged(campaign: Campaign, side: int) -> tuple[Campaign, np.ndarray[Any, Any]]:
    """The campaign as it would be on noise of three channels and so many pixels a side, each sample moved by 0.1 at most."""
    draw = np.random.default_rng(0)
    images = draw.random((len(campaign.index), 3, side, side), np.float32)
    examples = np.clip(images + draw.uniform(-0.1, 0.1, images.shape), 0, 1).astype(np.float32)
    return replace(campaign, adversarial=examples, distance=distance_up("l2", images, examples)), images


def test_large_images_are_few_and_those_too_large_for_one_are_none(real: Any) -> None:
    _, campaign, radius = parts(real[0])
    for side, least, most in ((60, 5, 15), (300, 0, 0)):
        large, images = enlarged(campaign, side)
        rows = nearest_gaps(large, radius)
        found = drawn(large, rows, images)
        assert least <= len(found.shown) <= most
        assert [one.index for one in found.shown] == large.index[rows[: len(found.shown)]].tolist()
        assert sum(one.length for one in found.shown) <= BUDGET
        assert found.broken == 16
        assert found.absent == (None if most else NO_ROOM)


def test_that_there_was_no_room_is_kept_by_a_report_without_the_samples(copy: Any) -> None:
    out, *_ = copy
    audit = load(Audit, out / "audit.json")
    none = Pictures(shown=(), broken=audit.pictures.broken, absent=NO_ROOM)
    save(audit.model_copy(update={"pictures": none}), out / "audit.json")
    assert certkit.audit(out).pictures == none


def test_without_a_campaign_or_a_broken_sample_the_reason_is_said(tmp_path: Path) -> None:
    model, data = linear(), samples(6)
    certkit.certify(model, data, eps=["0.001"], out=tmp_path, threads=1)
    assert certkit.audit(tmp_path, data=data).pictures.absent == "no attack was run"


# On the page


def test_each_picture_tells_what_is_seen() -> None:
    audit = example_audit(60)
    gallery = Gallery.of(audit, Findings.of(audit))
    alts = [attributes["alt"] for tag, attributes in Page(render(audit)).elements if tag == "img"]
    assert alts == [text for card in (*gallery.first, *gallery.folded) for text in card.told]
    card = gallery.first[0]
    one = card.row.sample
    assert card.told[0] == f"sample {one.index}, labelled {one.label}"
    assert card.told[1].startswith(f"adversarial example, predicted {card.picture.becomes}, moved by 0.")
    assert float(card.told[1].rsplit(" ", 1)[1]) >= (one.distance or 1)
    assert card.told[2] == f"difference, shown {card.picture.factor:g} times as strong, grey where nothing changed"


def test_the_first_pictures_go_from_near_to_far_and_the_others_by_gap() -> None:
    audit = example_audit(200)
    gallery = Gallery.of(audit, Findings.of(audit))
    cards = (*gallery.first, *gallery.folded)
    assert {card.picture.index for card in cards} == {one.index for one in audit.pictures.shown}
    assert (len(gallery.first), len(cards)) == (FIRST, MOST)
    distances = [card.row.sample.distance or 0.0 for card in cards]
    assert list(distances[:FIRST]) == sorted(distances[:FIRST])
    assert (distances[0], distances[FIRST - 1]) == (min(distances), max(distances))
    gaps = [card.row.gap or 0.0 for card in gallery.folded]
    assert gaps == sorted(gaps)


def test_a_contradiction_is_among_the_first() -> None:
    audit = example_audit(200, "REFUTED")
    gallery = Gallery.of(audit, Findings.of(audit))
    (victim,) = audit.contradictions
    assert victim.index in {card.picture.index for card in gallery.first}
    assert "contradictions among them" in render(audit)
    assert "contradictions among them" not in render(example_audit(200))


@pytest.mark.parametrize(
    ("count", "broken", "sentence"),
    [
        (3, 3, "Pictures of all 3 samples that an attack changed."),
        (1, 1, "Pictures of the one sample that an attack changed."),
        (3, 9, "Pictures of the 3 samples with the smallest gap between proof and attack, of 9 that an attack changed; for more the page has no room."),
        (1, 9, "Pictures of the sample with the smallest gap between proof and attack, of 9 that an attack changed; for more the page has no room."),
        (MOST, 90, f"Pictures of the {MOST} samples with the smallest gap between proof and attack, of 90 that an attack changed."),
    ],
)  # fmt: skip
def test_the_page_says_which_samples_it_shows(count: int, broken: int, sentence: str) -> None:
    audit = example_audit(200)
    held = audit.pictures.model_copy(update={"shown": audit.pictures.shown[:count], "broken": broken})
    assert sentence in render(audit.model_copy(update={"pictures": held}))


# From the command line


def test_the_report_command_draws_them_when_told_the_data_set(tmp_path: Path) -> None:
    model, out = linear(classes=10, entries=64), tmp_path / "audit"
    data = load_data("digits", "test", limit=12)
    fit = torch.linalg.pinv(data.images.flatten(1).double()).float() @ nn.functional.one_hot(data.labels, 10).float()
    with torch.no_grad():
        model[1].weight.copy_(fit.T)
        model[1].bias.zero_()
    certkit.certify(model, data, eps=["1.0"], out=out, threads=1)
    certkit.attack(model, data, norm="l2", eps=["1.0"], out=out)
    for words, absent in (([], NO_DATA), (["--data", "digits"], None), ([], None)):
        result = CliRunner().invoke(main, ["report", str(out), *words])
        assert result.exit_code in (0, 3), result.stderr
        assert load(Audit, out / "audit.json").pictures.absent == absent
    page = (out / "report.html").read_text()
    shown = load(Audit, out / "audit.json").pictures.shown
    assert page.count("<img ") == 3 * len(shown) > 0
    wrong = CliRunner().invoke(main, ["report", str(out), "--data", str(tmp_path / "none")])
    assert wrong.exit_code == 2
