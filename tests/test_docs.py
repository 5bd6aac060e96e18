"""What the documents promise is there: no figure is left open, and every relative link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(
    r"\[[^\]]*\]\(\s*<?([^)>\s]+)>?[^)]*\)|\b(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE
)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def targets(text: str) -> list[str]:
    """The relative targets of a page's links and images, outside its code."""
    prose = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    found = ["".join(groups) for groups in LINK.findall(prose)]
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:|//", target)]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_no_figure_is_left_to_be_filled_in(page: Path) -> None:
    assert "FIGURE:" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file_that_is_there(page: Path) -> None:
    links = targets(page.read_text(encoding="utf-8"))
    lost = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert lost == []


def test_links_images_and_references_are_found_and_addresses_and_code_are_not() -> None:
    text = '[a](b.md#c) ![d](e.png) <img src="f.png">\n[g]: h.md\n`[i](j.md)` [k](https://l)\n```\n[m](n.md)\n```\n'
    assert targets(text) == ["b.md#c", "e.png", "f.png", "h.md"]
