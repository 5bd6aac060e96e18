"""A page taken apart for tests: elements, text, numbers."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page is made of: elements with their attributes, the text outside data blocks, the <data> by path."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: dict[str, list[tuple[str, str]]] = {}
        self.inside: list[str] = []
        self.open: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag == "data":
            self.open.append((dict(attrs).get("data-path") or "", str(dict(attrs)["value"])))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "data":
            path, value = self.open[-1]
            self.data.setdefault(path, []).append((value, data))
        if not self.inside or self.inside[-1] not in {"script", "style"}:
            self.text += data.replace("\u202f", " ")

    def shape(self) -> set[tuple[str, tuple[str, ...]]]:
        return {(tag, tuple(sorted(attributes))) for tag, attributes in self.elements}
