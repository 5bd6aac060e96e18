"""The sections on activation maxima, weight spectra and training: numbers as in the record, figures of any record, reasons."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certkit.records import Audit
from certkit.records.health import MAX_PARTS, Curves, Fit, HealthView, Largest, Spectrum, Steps, Trained, Training
from certkit.reports.health import PANELS, UNMEASURED, Inside
from certkit.reports.health_figures import health_figures, spiked
from certkit.reports.page import render
from certkit.reports.sides import compare
from certkit.reports.sides_page import lines
from certkit.reports.sides_page import render as render_sides
from tests.audits import audit_with
from tests.pages import Page

SECTIONS = ("activations", "spectra", "training")


def spectrum(name: str, **changes: Any) -> Spectrum:
    whole: dict[str, Any] = {
        "name": name,
        "kind": "matrix",
        "shape": (4, 3),
        "matrices": 1,
        "proved": 0.875,
        "cap": 1.0,
        "values": (0.875, 0.75, 0.5),
        "at_cap": 1 / 3,
        "stable_rank": 1.8125,
        "skipped": None,
    }
    return Spectrum.model_validate(whole | changes)


def steps(**changes: Any) -> Steps:
    whole: dict[str, Any] = {
        "lines": 4,
        "steps": 151,
        "loss": 0.375,
        "largest_loss": 8.4181,
        "spikes": 2,
        "median_gradient_norm": 2.5,
        "largest_gradient_norm": 17.16,
        "largest_norm_over_cap": 0.99999908,
    }
    return Steps.model_validate(whole | changes)


def curves(**changes: Any) -> Curves:
    whole: dict[str, Any] = {
        "every": 1,
        "step": (0, 50, 100, 150),
        "loss": (8.4181, 1.25, 2.0, 0.375),
        "validation_loss": (None, 1.5, None, 0.5),
        "gradient_norm": (17.16, 3.0, 2.0, None),
        "norm_over_cap": (0.99999908, 0.9999, 0.999, None),
        "spikes": (0, 0, 2, 2),
    }
    return Curves.model_validate(whole | changes)


ABOUT = Trained(
    optimizer="muon",
    constraint="stiefel",
    promise="provable",
    largest_norm_over_cap=0.99999908,
    largest_entry=1.62,
    spikes=2,
)
RUN = Training(steps=steps(), curves=curves(), about=ABOUT, metrics_sha256="a" * 64)


def health(**changes: Any) -> HealthView:
    whole: dict[str, Any] = {
        "samples": 360,
        "parts": (
            Largest(part="input", measured=1.0, certified="1"),
            Largest(part="blocks.0", measured=1.5719, certified="29.9946046000370311"),
            Largest(part="logits", measured=0.25, certified="8.979137134110614613"),
        ),
        "joined": 1,
        "scores": (Largest(part="blocks.0", measured=0.0943, certified="0.2441857885765650174"),),
        "fits": (
            Fit(name="fp16", largest=65504.0, headroom=41671.8, certified_headroom=2183.8, fits=True),
            Fit(name="fp8-e4m3", largest=448.0, headroom=285.0, certified_headroom=14.936, fits=True),
        ),
        "too_large": (),
        "spectra": (spectrum("head.weight"), spectrum("kernel", kind="convolution", cap=None)),
        "more_weights": 0,
        "training": RUN,
        "untold": None,
    }
    return HealthView.model_validate(whole | changes)


@functools.cache
def page(untold: str | None = None) -> str:
    changes: dict[str, Any] = {} if untold is None else {"training": None, "untold": untold}
    return render(audit_with(health=health(**changes)))


def section(html: str, name: str) -> str:
    return html[html.index(f'<section id="{name}"') :].split("</section>")[0]


def at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_every_number_of_the_three_sections_is_the_records_own() -> None:
    record = audit_with(health=health()).model_dump(mode="json")
    shown = {path: found for path, found in Page(page()).data.items() if path.startswith("health.")}
    assert len(shown) > 50
    for path, found in shown.items():
        for value, _ in found:
            assert float(value) == float(at(record, path)), path


def test_what_is_proved_is_shown_rounded_up_and_what_is_seen_down() -> None:
    data = Page(page()).data
    assert {text for _, text in data["health.parts.1.certified"]} == {"30.00"}
    assert {text for _, text in data["health.parts.1.measured"]} == {"1.571"}
    assert {text for _, text in data["health.scores.0.certified"]} == {"0.245", "0.2442"}
    assert {text for _, text in data["health.fits.1.certified_headroom"]} == {"14.9"}
    assert [text for _, text in data["health.spectra.0.proved"]] == ["0.875000000", "0.8750000"]


def test_a_page_is_the_same_bytes_each_time() -> None:
    assert render(audit_with(health=health())) == page()


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_has_a_figure_for_wide_and_narrow_with_its_description_and_its_numbers(name: str) -> None:
    found = section(page(), name)
    for width in ("wide", "narrow"):
        assert f'aria-labelledby="{name}-{width}-title {name}-{width}-desc"' in found
    assert found.count("<desc ") == 2
    assert "The numbers behind the figure" in found


def test_where_nothing_was_measured_the_sections_say_so() -> None:
    html = render(audit_with(health=None))
    for name in SECTIONS:
        assert UNMEASURED in section(html, name)
        assert "not evaluated" in section(html, name)


def test_where_nothing_is_known_of_the_training_the_section_says_why() -> None:
    reason = "metrics.jsonl: not the metrics of a training run (loss: <b>)"
    found = section(page(reason), "training")
    assert "metrics.jsonl: not the metrics of a training run (loss: &lt;b&gt;)" in found
    assert "not evaluated" in found
    assert "<svg class" not in found


def test_a_network_without_matrices_says_so() -> None:
    assert "multiplies by no constant matrix" in section(render(audit_with(health=health(spectra=()))), "spectra")


def test_a_format_that_an_input_may_exceed_is_flagged() -> None:
    fits = (Fit(name="fp16", largest=65504.0, headroom=2.0, certified_headroom=0.0, fits=False),)
    found = section(render(audit_with(health=health(fits=fits))), "activations")
    assert "not proved" in found
    assert "holds them" not in found


def test_parts_that_stand_together_are_said_to() -> None:
    assert "3 parts in a row stand together" in render(audit_with(health=health(joined=3)))


def test_the_weight_nearest_its_cap_is_named() -> None:
    weights = (spectrum("half", proved=0.5), spectrum("full"), spectrum("free", cap=None, proved=9.0))
    audit = audit_with(health=health(spectra=weights))
    found = Inside.of(audit)
    assert found is not None
    assert (found.full, found.capped, found.drawn) == (1, 2, (0, 1, 2))


def test_more_weights_than_fields_are_said_not_to_be_drawn() -> None:
    audit = audit_with(health=health(spectra=tuple(spectrum(f"w.{n}") for n in range(PANELS + 3))))
    assert f'Drawn are the first <data value="{PANELS}">{PANELS}</data> weights.' in section(render(audit), "spectra")
    skipped = spectrum("large", values=(), at_cap=None, stable_rank=None, skipped="its smaller side is above 4096")
    found = section(render(audit_with(health=health(spectra=(spectrum("w"), skipped)))), "spectra")
    assert "its smaller side is above 4096" in found
    assert "Drawn are the first" not in found


def test_spikes_are_where_their_count_rises() -> None:
    assert spiked(curves()) == [100]
    assert spiked(curves(spikes=(1, 1, 2, 5))) == [0, 100, 150]


sizes = st.one_of(st.just(0.0), st.floats(5e-324, 1.7e308), st.floats(0, 10))
certified = st.one_of(st.just("nonsense"), st.just("1e400000"), st.just("0"), sizes.map(str))
losses = st.one_of(st.none(), st.floats(-1.7e308, 1.7e308))


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.tuples(sizes, certified), max_size=MAX_PARTS),
    values=st.lists(sizes, min_size=1, max_size=33),
    line=sizes,
    losses=st.lists(st.tuples(losses, st.one_of(st.none(), sizes)), min_size=1, max_size=9),
    far=st.sampled_from([1, 10**11, 10**400]),
)
def test_any_numbers_of_a_record_can_be_drawn(
    parts: list[tuple[float, str]],
    values: list[float],
    line: float,
    losses: list[tuple[float | None, float | None]],
    far: int,
) -> None:
    told = curves(
        step=tuple(n * far for n in range(len(losses))),
        loss=tuple(loss for loss, _ in losses),
        validation_loss=(None,) * len(losses),
        gradient_norm=tuple(gradient for _, gradient in losses),
        norm_over_cap=(None,) * len(losses),
        spikes=tuple(range(len(losses))),
    )
    audit = audit_with(
        health=health(
            parts=tuple(Largest(part="x", measured=seen, certified=proved) for seen, proved in parts),
            spectra=(spectrum("w", values=tuple(sorted(values, reverse=True)), cap=line),),
            training=RUN.model_copy(update={"curves": told}),
        )
    )
    drawn = health_figures(audit)
    assert (drawn["activations-wide"] is None) == (not parts)
    assert (drawn["spectra-wide"] is None) == (line == 0)
    assert drawn["training-narrow"] is not None
    assert all("nan" not in re.sub(r"<(title|desc).*?</\1>", "", svg or "").lower() for svg in drawn.values())


# --- Side by side -----------------------------------------------------------------------------------------------------


def beside(first: HealthView | None, second: HealthView | None) -> tuple[Audit, Audit]:
    return audit_with(health=first), audit_with(health=second)


def test_two_audits_tell_of_the_largest_numbers_of_both() -> None:
    wild = health(
        parts=(Largest(part="x", measured=901.5, certified="1e5"),),
        training=RUN.model_copy(update={"steps": steps(spikes=7, largest_norm_over_cap=2.1723)}),
    )
    pair = beside(health(), wild)
    found = compare(*pair)
    assert found.first.inside is not None
    assert found.second.inside is not None
    assert (found.first.inside.seen, found.first.inside.certified) == (1.5719, "29.9946046000370311")
    assert (found.second.inside.spikes, found.second.inside.norm_over_cap) == (7, 2.1723)
    html = render_sides(*pair)
    inside = section(html, "inside")
    for text in ("1.571", "30.00", "901.5", "2.173", ">7<", "fp16, fp8-e4m3"):
        assert text in inside, text
    assert any("at most 30.00; norm over cap 1.000; loss spikes 2" in line for line in lines(found))


def test_where_neither_was_measured_the_side_by_side_says_so() -> None:
    assert UNMEASURED in section(render_sides(*beside(None, None)), "inside")
    one = section(render_sides(*beside(health(), None)), "inside")
    assert UNMEASURED not in one
    assert "–" in one
