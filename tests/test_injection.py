"""Hostile text in every string of every record: on pages, in twins and on terminals it is text, and nothing runs."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from certkit.cli import main
from certkit.comparison import Comparison
from certkit.errors import one_line
from certkit.files import save
from certkit.language.records import LanguageAudit, Stability
from certkit.records import Audit, Certificate, Plan
from certkit.records.crosscheck import CrossCheck
from certkit.records.health import Health
from certkit.records.precision import Precision
from certkit.reports import comparison, language, render, sides_page
from certkit.reports.comparison_text import markdown as comparison_markdown
from certkit.reports.comparison_text import table
from certkit.reports.page import LONGEST
from certkit.reports.sides import compare
from certkit.reports.twins import TWINS
from tests.hostile import PAYLOADS, leaves, made
from tests.pages import Page

RECORDS: tuple[type[BaseModel], ...] = (
    Audit, Certificate, Plan, CrossCheck, Health, LanguageAudit, Stability, Comparison, Precision,
)  # fmt: skip
PAGES: dict[str, Callable[[str, bool], str]] = {
    "report.html": lambda text, full: render(made(Audit, text, full=full)),
    "compared.html": lambda text, full: sides_page.render(*[made(Audit, text, full=full)] * 2),
    "language.html": lambda text, full: language.render(made(LanguageAudit, text, full=full)),
    "comparison.html": lambda text, full: comparison.render(made(Comparison, text, full=full)),
}
PLAIN = "plain"
ALL = " ".join(PAYLOADS.values())

every_page = pytest.mark.parametrize("page", PAGES)
every_payload = pytest.mark.parametrize("payload", PAYLOADS)


def strings(kind: type[BaseModel]) -> Iterator[str]:
    """Every string of the kind's JSON Schema that nothing constrains, by its path of keys."""
    schema = kind.model_json_schema()

    def walk(node: dict[str, Any], path: str, inside: tuple[str, ...]) -> Iterator[str]:
        if (name := node.get("$ref")) is not None:
            if name not in inside:
                yield from walk(schema["$defs"][name.rsplit("/", 1)[1]], path, (*inside, name))
            return
        if node.get("type") == "string" and not node.keys() & {"pattern", "enum", "const"}:
            yield path
        for key, inner in node.get("properties", {}).items():
            yield from walk(inner, f"{path}.{key}", inside)
        for part in (*node.get("anyOf", ()), *node.get("prefixItems", ())):
            yield from walk(part, path, inside)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                yield from walk(node[key], f"{path}.*", inside)

    yield from dict.fromkeys(walk(schema, "", ()))


def poisoned_paths(record: BaseModel) -> set[str]:
    """The paths at which the text stands, places in a list and keys of a mapping left open."""
    value = record.model_dump(mode="json")
    found = set()
    for path in leaves(value):
        inner, name = value, ""
        for key in path:
            name += ".*" if isinstance(key, int) or key == PLAIN else f".{key}"
            inner = inner[key]
        if inner == PLAIN:
            found.add(name)
    return found


@pytest.mark.parametrize("kind", RECORDS)
def test_no_string_of_any_record_is_forgotten(kind: type[BaseModel]) -> None:
    taken = poisoned_paths(made(kind, PLAIN)) | poisoned_paths(made(kind, PLAIN, full=False))
    left = {path for path in strings(kind) if path not in taken}
    numbers = re.compile(r"\.eps(\.\*)?(\.text)?")  # radii as they were asked for: nothing but a number is taken
    assert {path for path in left if not numbers.search(path)} == set()
    assert len(taken) >= 8


# Pages


@functools.cache
def plain(page: str, full: bool) -> set[tuple[str, tuple[str, ...]]]:
    """Every element with its attributes that the page has for harmless text; a long word may be given places to break."""
    return Page(PAGES[page](PLAIN, full)).shape() | {("wbr", ())}


@every_page
@pytest.mark.parametrize(
    ("text", "full"), [*((text, True) for text in PAYLOADS.values()), (ALL, False)], ids=[*PAYLOADS, "all"]
)
def test_no_string_becomes_markup(page: str, text: str, full: bool) -> None:
    html = PAGES[page](text, full)
    found = Page(html)
    assert found.shape() <= plain(page, full)
    assert one_line(text, LONGEST) in found.text
    assert all(c == "\n" or c.isprintable() for c in html), "control or direction characters stand in the page"
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert tag not in {"base", "iframe", "object", "embed", "link"}
        for name in ("href", "src", "xlink:href", "action", "srcset", "formaction"):
            link = attributes.get(name) or "#"
            assert link.startswith(("#", "data:image/png;base64,")), (name, link)


@every_page
def test_a_text_of_any_length_makes_no_page_of_any_length(page: str) -> None:
    short, long = (len(PAGES[page]("x" * count, True)) for count in (LONGEST, 40 * LONGEST))
    embedded = 0 if page in ("compared.html", "comparison.html") else short
    assert long < 12 * short + 60 * embedded


# Twins


@pytest.mark.parametrize("name", TWINS)
@every_payload
def test_a_twin_holds_text_and_nothing_else(name: str, payload: str) -> None:
    for full in (True, False):
        data = TWINS[name].make(made(Audit, PAYLOADS[payload], full=full))
        if name == "parquet":  # a typed table: text is data there
            continue
        text = data.decode()
        assert not [c for c in text if not c.isprintable() and c not in "\r\n"]
        if name == "csv":
            for row in csv.reader(io.StringIO(text, newline="")):
                assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        elif name == "junit":
            plain = ElementTree.fromstring(TWINS[name].make(made(Audit, PLAIN, full=full)))
            assert [one.tag for one in ElementTree.fromstring(text).iter()] == [one.tag for one in plain.iter()]
        elif name in ("sarif", "cyclonedx", "in-toto"):
            plain = TWINS[name].make(made(Audit, PLAIN, full=full))
            assert shape(json.loads(text)) == shape(json.loads(plain))
        elif name == "markdown":
            plain = TWINS[name].make(made(Audit, PLAIN, full=full)).decode()
            assert len(text.splitlines()) == len(plain.splitlines())
            assert re.findall(r"[<>|\[\]`]", text) == re.findall(r"[<>|\[\]`]", plain)
        elif name == "model-card":
            plain = TWINS[name].make(made(Audit, PLAIN, full=full)).decode()
            assert [line.split(":")[0] for line in text.splitlines()] == [l.split(":")[0] for l in plain.splitlines()]


def shape(value: Any) -> Any:
    """A JSON value with its texts left out."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value).__name__


# Terminals


@every_payload
def test_no_string_reaches_a_terminal_raw(payload: str) -> None:
    text = PAYLOADS[payload]
    audit = made(Audit, text)
    lines = [*sides_page.lines(compare(audit, audit)), *table(made(Comparison, text)).splitlines()]
    lines += comparison_markdown(made(Comparison, text)).splitlines()
    assert not [line for line in lines if not line.isprintable()]


@pytest.mark.parametrize(
    "words", [("verify",), ("gate", "--min-clean", "0"), ("report",), ("compare",)], ids=lambda w: w[0]
)
@pytest.mark.parametrize("as_json", [False, True], ids=["lines", "json"])
def test_a_folder_of_hostile_records_is_refused_in_one_printable_line(
    tmp_path: Path, words: tuple[str, ...], as_json: bool
) -> None:
    folder = tmp_path / "audit"
    for name, kind in (("audit", Audit), ("certificate", Certificate), ("crosscheck", CrossCheck), ("health", Health)):
        save(made(kind, ALL), folder / f"{name}.json")
    save(made(Plan, ALL), folder / "campaign" / "plan.json")
    command, *more = words
    given = [command, str(folder), *([str(folder)] if command == "compare" else []), *more]
    told = CliRunner().invoke(main, [*given, *(["--json"] if as_json else [])])
    assert told.exit_code in ((0,) if command == "compare" else (2,))
    assert told.stderr.count("\n") <= 1
    for stream in (told.stdout, told.stderr):
        assert not [c for c in stream if not c.isprintable() and c != "\n"]
