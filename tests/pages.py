"""Read a page as plain data: its elements, its tables, and whether every tag is closed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = set("br col hr img input link meta".split())


@dataclass
class Element:
    """A tag with its attributes and what stands in it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements inside with this tag and these attributes, in order."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in ("*", child.tag) and wanted.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def rows(self) -> list[list[str]]:
        """The cells of a table's body, row by row."""
        [body] = self.all("tbody")
        return [
            [cell.text for cell in row.children if isinstance(cell, Element)]
            for row in body.all("tr")
        ]


class Reader(HTMLParser):
    """A parser that forgives nothing: a tag left open or closed twice is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(text: str) -> Element:
    """The page as a tree."""
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert [element.tag for element in reader.open] == [""], "a tag is left open"
    return reader.root


# ---------------------------------------------------------------------- what every page keeps
def check_whole(page: Element) -> None:
    """Nothing is run, and nothing asked for."""
    for element in page.all("*"):
        assert element.tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "srcset", "data", "poster"}:
                assert value.startswith("data:"), value
    [style] = page.all("style")
    assert "@import" not in style.text
    assert "url(" not in style.text
    [policy] = [m for m in page.all("meta") if "http-equiv" in m.attributes]
    assert policy.attributes["content"].startswith("default-src 'none'; style-src 'unsafe-inline'")


def check_read_aloud(page: Element) -> None:
    """One title, every section named by its heading, a text for every chart."""
    assert [h.tag for h in page.all("*") if re.fullmatch(r"h\d", h.tag)][:2] == ["h1", "h2"]
    assert len(page.all("h1")) == 1
    ids = [e.attributes["id"] for e in page.all("*") if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    assert {s.attributes["aria-labelledby"] for s in page.all("section")} == set(ids)
    assert all(svg.attributes["aria-label"] for svg in page.all("svg"))
    assert page.all("html")[0].attributes["lang"] == "en"


# ---------------------------------------------------------------------- colours
def theme_colours(css: str, theme: int) -> dict[str, str]:
    """The colours of a style sheet by name: 0 light, 1 dark."""
    return dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", css, re.S)[theme]))


def contrast_ratio(a: str, b: str) -> float:
    """As WCAG 2.2 defines it."""
    low, high = sorted([_luminance(a), _luminance(b)])
    return (high + 0.05) / (low + 0.05)


def mixed(a: str, b: str, share: float) -> str:
    """So much of the first, the rest of the second, in sRGB."""
    parts = zip(_parts(a), _parts(b), strict=True)
    return "#" + "".join(f"{round(255 * (share * x + (1 - share) * y)):02x}" for x, y in parts)


def _parts(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _parts(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
