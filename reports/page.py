"""From an audit to its page. The page is one file: no network, no script needed to read it, nothing raw from a record.

Three things keep it safe, each by construction. Every value that a template prints passes ``shown``, which makes
control and direction characters visible, and is then escaped. Markup is vouched for in this module alone: ``inlined``
is for what the package itself wrote. The content policy names the style and the script of the page by hash, so that
nothing else could run or be fetched.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from certkit.errors import RecordError, one_line
from certkit.files import load, write_atomic
from certkit.records import Audit

from . import figures
from .columns import block, column, missing
from .findings import NORMS, Findings
from .health import UNMEASURED, Inside
from .health_figures import health_figures
from .pictures import Gallery
from .rounding import Direction, Number, percent, significant
from .standards import mappings
from .tree import tree

LONGEST = 2_000  # characters of one value; a record may hold more, a page need not

STANDINGS = {
    "contradicted": "the program errs inside the certified radius",
    "certified": "correct, and proved to stay so",
    "open": "correct, neither proved nor broken",
    "broken": "correct, until an attack changed it",
    "misclassified": "wrong before anything was changed",
}
ABLATIONS = {
    "uniform": "every key gets the same weight",
    "removed": "the branch adds nothing",
    "frozen": "each weight keeps its mean over the samples",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page: its anchor, which also names its template, and its heading."""

    id: str
    title: str

    @property
    def template(self) -> str:
        return f"section-{self.id}.html.j2"


SECTIONS = (
    Section("verdict", "Verdict"),
    Section("contradictions", "Contradictions"),
    Section("accuracy", "Robust accuracy"),
    Section("radii", "Radii and attacks"),
    Section("samples", "Samples"),
    Section("ledger", "Layer ledger"),
    Section("activations", "Activation maxima"),
    Section("spectra", "Weight spectra"),
    Section("training", "Training stability"),
    Section("attention", "Attention"),
    Section("crosscheck", "Cross-checks"),
    Section("campaign", "Campaign"),
    Section("checks", "Evaluation checks"),
    Section("scope", "Scope and limits"),
    Section("standards", "Standards"),
    Section("provenance", "Provenance"),
)


# What stands in the page already: the samples in a block of their own, the pictures where they are shown.
ELSEWHERE: dict[str, Any] = {
    "samples": True,
    "pictures": {"shown": {"__all__": {"input", "adversarial", "difference"}}},
}


def render(audit: Audit) -> str:
    """The page as HTML text: a pure function of the audit, byte for byte."""
    environment, found = templates(), Findings.of(audit)
    style, script = (source_of(environment, name) for name in ("report.css", "report.js"))
    return environment.get_template("report.html.j2").render(
        audit=audit,
        found=found,
        sections=[
            part
            for part in SECTIONS
            if (part.id != "contradictions" or audit.contradictions) and (part.id != "crosscheck" or audit.crosscheck)
        ],
        standings=STANDINGS,
        ablations=ABLATIONS,
        norms=NORMS,
        tree=tree(audit.ledger),
        standards=mappings(audit),
        figures=_figures(audit),
        inside=Inside.of(audit),
        unmeasured=UNMEASURED,
        bins=figures.bins(audit),
        gallery=Gallery.of(audit, found),
        pictured={one.index for one in audit.pictures.shown},
        policy=policy(style, script, pictures=bool(audit.pictures.shown)),
        style=inlined(style),
        script=inlined(script),
        record=inlined(embedded(audit.model_dump(mode="json", exclude=ELSEWHERE))),
        samples=inlined(embedded(block(audit, found))),
    )


def report(directory: Path, *, out: Path | None = None) -> Path:
    """Write the page of ``directory``'s audit.json and return where it is: ``out``, or report.html beside it.

    Raises RecordError when there is no audit.json or it is not a whole, well-formed audit.
    """
    source = directory / "audit.json"
    if not source.is_file():
        raise RecordError(f"{one_line(directory)}: no audit.json here; expected a folder that certkit audit wrote")
    page = directory / "report.html" if out is None else out
    write_atomic(page, render(load(Audit, source)).encode())
    return page


def policy(style: str, script: str, *, pictures: bool = False) -> str:
    """The content security policy: this style, this script, pictures inside the page where it has any, nothing else."""
    images = "img-src data:; " if pictures else ""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; {images}"
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def embedded(value: Any) -> str:
    """A value as JSON that is safe inside a script element: no character in it can end the element or open another."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shown(value: Any) -> Any:
    """What a template prints: text on one line with its control and direction characters made visible."""
    return one_line(value, LONGEST) if isinstance(value, str) and not isinstance(value, Markup) else value


def inlined(text: str) -> Markup:
    """Vouch for text that stands on the page as it is: a drawing by ``svg.draw``, a source of the page, ``embedded`` JSON."""
    return Markup(text)


@functools.cache
def templates() -> Environment:
    """The templates, each value of which is made visible and escaped."""
    environment = Environment(
        loader=PackageLoader("certkit.templates", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        outward=_outward,
        column=column,
        missing=lambda row, audit: missing(audit, row),
        percent=percent,
        png=_png,
        ratio=_ratio,
        grouped=_grouped,
        plain=_plain,
        sentence=_sentence,
    )
    return environment


def source_of(environment: Environment, name: str) -> str:
    """The text of a file beside the templates, such as the style."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _figures(audit: Audit) -> dict[str, Markup | None]:
    drawn = {
        "wide": figures.curve(audit, "curve-wide", (940, 360)),
        "narrow": figures.curve(audit, "curve-narrow", (370, 300)),
        "scatter": figures.scatter(audit, "scatter", (450, 400)),
        "histogram": figures.histogram(audit, figures.bins(audit), "histogram", (450, 400)),
        **health_figures(audit),
    }
    return {name: None if svg is None else inlined(svg) for name, svg in drawn.items()}


def _outward(value: Number, direction: Direction, digits: int = 3) -> str:
    """The number rounded outward; a text that is no number is shown as it stands, for a ledger may hold anything."""
    try:
        return significant(value, direction, digits)
    except (ValueError, ArithmeticError):
        return str(value)


def _png(held: str) -> Markup:
    """Where the browser finds a picture of the record: in the address itself, which holds base64 and nothing else."""
    return inlined("data:image/png;base64," + base64.b64encode(base64.b64decode(held, validate=True)).decode())


def _ratio(part: int, whole: int, direction: Direction) -> str:
    return percent(Fraction(part, whole), direction)


def _plain(value: float) -> str:
    """A number that was chosen, not computed: every digit of it, and no more."""
    return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _sentence(text: str) -> str:
    """The text with a capital and a full stop, as a sentence that stands alone has them."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _grouped(count: int) -> Markup:
    """50378 as 50 378, with a thin space that does not break."""
    return Markup(f"{count:,}".replace(",", "&#8239;"))
