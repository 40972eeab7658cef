"""HTML and SVG as trees of elements: what is put in as text comes out as text, whatever it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element, tostring

from bplightning.reporting.page_style import STYLE

Child = Element | str
"""What an element holds."""


def el(tag: str, attributes: Mapping[str, object] | None = None, *children: Child) -> Element:
    """An element.

    Args:
        tag: Its name, of HTML or SVG.
        attributes: Their names and values; numbers are written short.
        children: What it holds, in order.

    >>> page([el("p", {"class": "note"}, "a < b ", el("b", None, "<i>"))])
    '<p class="note">a &lt; b <b>&lt;i&gt;</b></p>'
    """
    made = Element(tag, {name: written(value) for name, value in (attributes or {}).items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def written(value: object) -> str:
    """A coordinate to a hundredth, anything else as it is.

    >>> written(2 / 3), written(4.0), written("x")
    ('0.67', '4', 'x')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def page(elements: Sequence[Element]) -> str:
    """The elements as HTML."""
    return "".join(tostring(element, encoding="unicode", method="html") for element in elements)


def document(title: str, content: Sequence[Element]) -> str:
    """A whole page of our looks, which loads nothing.

    Args:
        title: Its title.
        content: What is in it.
    """
    head = el(
        "head",
        None,
        el("meta", {"charset": "utf-8"}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("title", None, title),
        el("style", None, STYLE),
    )
    return (
        f"<!DOCTYPE html>\n{page([el('html', {'lang': 'en'}, head, el('body', None, el('main', None, *content)))])}\n"
    )


def picture(name: str, size: tuple[float, float], title: str, words: str, parts: Sequence[Element]) -> Element:
    """An SVG that says in words what it shows.

    Args:
        name: Its name in the page, unique.
        size: Width and height in its own units.
        title: What it is, in a few words.
        words: What is to be seen in it, for those who do not see it.
        parts: What is drawn.
    """
    heads = el("title", {"id": f"{name}-title"}, title), el("desc", {"id": f"{name}-words"}, words)
    labels = {"role": "img", "aria-labelledby": f"{name}-title {name}-words"}
    box = f"0 0 {written(float(size[0]))} {written(float(size[1]))}"
    return el("svg", {"viewBox": box, "width": float(size[0]), **labels}, *heads, *parts)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Element:
    """A table whose first column names its rows."""
    head = el("tr", None, *(el("th", {"scope": "col"}, text) for text in heads))
    body = [
        el("tr", None, el("th", {"scope": "row"}, first), *(el("td", None, c) for c in rest)) for first, *rest in rows
    ]
    return el("div", {"class": "scrolls"}, el("table", None, el("thead", None, head), el("tbody", None, *body)))


def folded(summary: str, *content: Child) -> Element:
    """Content that is there on demand."""
    return el("details", None, el("summary", None, summary), *content)


def legend(entries: Sequence[tuple[str, str]]) -> Element:
    """Swatches with names: class of the swatch and text of each."""
    return el(
        "ul",
        {"class": "legend"},
        *(
            el("li", None, el("span", {"class": f"swatch {kind}", "aria-hidden": "true"}), text)
            for kind, text in entries
        ),
    )


def figure(caption: str, note: str, *content: Element) -> Element:
    """A figure under its caption."""
    words = [el("p", {"class": "note"}, note)] if note else []
    return el("figure", None, el("figcaption", None, el("h3", None, caption), *words), *content)
