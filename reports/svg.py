"""From a matplotlib figure to an SVG that belongs to the page: themed, described, small, the same bytes every time.

matplotlib writes colours, fonts and ids into the drawing. The page's policy allows no ``style`` attribute, dark mode
needs colours that change, and two drawings on one page must not share an id. So every colour is drawn as a stand-in
from ``INKS`` and becomes a class here, every style becomes an attribute, and only the ids that are used survive.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

NAMES = ("ink", "muted", "grid", "certified", "attacked", "gap", "contradiction", "paper")
INKS = {name: f"#0000{number:02x}" for number, name in enumerate(NAMES, start=1)}
_NAME_OF = {colour: name for name, colour in INKS.items()}

_KEPT = {
    "stroke-width",
    "stroke-dasharray",
    "stroke-linecap",
    "opacity",
    "fill-opacity",
    "stroke-opacity",
    "text-anchor",
}
_DROPPED = {"stroke-linejoin", "stroke-dashoffset", "font-family", "font-weight", "font-style"}
_LONG = re.compile(r"-?\d+\.\d{3,}")
_MANY = 30  # markers from which one path of dots is smaller than a <use> each

# Settings that decide the bytes; the user's matplotlibrc must not.
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "certkit",
    "font.size": 13.0,
    "axes.unicode_minus": False,
    "path.simplify": False,
    "text.usetex": False,
    "text.parse_math": False,  # a name with dollars in it is a name
}


def draw(name: str, title: str, description: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """The figure that ``paint`` makes, as SVG text; ``name`` prefixes its ids, ``title`` and ``description`` are read aloud.

    ``size`` is in CSS pixels. Only this module and ElementTree write the markup, so no text in it can become an element.
    """
    with matplotlib.style.context("default", after_reset=True), matplotlib.rc_context(_SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)  # at 72 dots per inch a point is a pixel
        FigureCanvasSVG(figure)
        paint(figure)
        drawn = io.BytesIO()
        figure.savefig(
            drawn,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _themed(drawn.getvalue(), name, title, description)


def _themed(drawing: bytes, name: str, title: str, description: str) -> str:
    root = ElementTree.fromstring(drawing)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in {"metadata", "style"}:
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(_attributes(attributes))
    _join_dots(root)
    _keep_used_ids(root, name)
    _drop_empty(root)
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": view, "class": "chart", "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    )
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        labelled = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        labelled.text = text
        root.insert(position, labelled)
    return ElementTree.tostring(root, encoding="unicode")


def _local(tag: Any) -> str:
    return str(tag).rsplit("}", 1)[-1]


def _attributes(given: dict[str, str]) -> dict[str, str]:
    """The same attributes with the style taken apart: colours as classes, the rest as presentation attributes."""
    attributes = {key: _LONG.sub(_shorter, value) for key, value in given.items() if key not in {"style", "class"}}
    classes: list[str] = []
    for part in filter(None, (part.strip() for part in given.get("style", "").split(";"))):
        key, value = (side.strip() for side in part.split(":", 1))
        if key in {"fill", "stroke"}:
            if value == "none":
                attributes[key] = "none"
            else:
                classes.append(f"{key}-{_NAME_OF[value]}")
        elif key in {"font", "font-size"}:
            size = re.search(r"([\d.]+)px", value)
            assert size, f"matplotlib wrote a font without a size: {value!r}"
            attributes["font-size"] = size[1]
        elif key in _KEPT:
            attributes[key] = value
        else:
            assert key in _DROPPED, f"matplotlib wrote a style this page has no place for: {part!r}"
    if classes:
        attributes["class"] = " ".join(classes)
    return attributes


def _shorter(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _join_dots(root: ElementTree.Element) -> None:
    """Each group of many equal markers as one path of round dots: a tenth of the bytes."""
    for group in root.iter("g"):
        uses = group.findall("use")
        if len(uses) < _MANY:
            continue
        dots = "".join(f"M{use.attrib['x']} {use.attrib['y']}h0" for use in uses)
        ink = next(part for part in uses[0].attrib["class"].split() if part.startswith("fill-"))
        marker = {"class": ink.replace("fill-", "stroke-"), "d": dots, "stroke-width": "5", "stroke-linecap": "round"}
        if "fill-opacity" in uses[0].attrib:
            marker["stroke-opacity"] = uses[0].attrib["fill-opacity"]
        for child in list(group):
            group.remove(child)
        group.append(ElementTree.Element("path", {"fill": "none", **marker}))


def _keep_used_ids(root: ElementTree.Element, name: str) -> None:
    """Only ids that something refers to stay, renamed in order of appearance under the figure's own name."""
    used: dict[str, str] = {}
    for element in root.iter():
        for reference in re.findall(r"#([\w-]+)", " ".join(element.attrib.values())):
            used.setdefault(reference, f"{name}-{len(used)}")
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key != "id":
                element.attrib[key] = re.sub(r"#([\w-]+)", lambda found: "#" + used[found[1]], value)
            elif value in used:
                element.attrib[key] = used[value]
            else:
                del element.attrib[key]


def _drop_empty(root: ElementTree.Element) -> None:
    """Groups that hold nothing and say nothing go; whitespace between elements too."""
    for element in root.iter():
        if element.tag != "text":
            element.text = element.text if element.text and element.text.strip() else None
        element.tail = None
    emptied = True
    while emptied:
        emptied = False
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag in {"g", "defs"} and not len(child):
                    parent.remove(child)
                    emptied = True
