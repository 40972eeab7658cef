"""SVG pictures as trees of elements, in which every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element, tostring

from markupsafe import Markup


def el(tag: str, attributes: Mapping[str, object] | None = None, *children: Element | str) -> Element:
    """An element.

    Args:
        tag: Its name.
        attributes: Names and values of its attributes; numbers are rounded.
        children: Its content, in order.

    >>> tostring(el("text", {"x": 2 / 3}, "a < b"), encoding="unicode")
    '<text x="0.67">a &lt; b</text>'
    """
    made = Element(tag, {name: written(value) for name, value in (attributes or {}).items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        else:
            made.text = (made.text or "") + child
    return made


def written(value: object) -> str:
    """A coordinate rounded to a hundredth; any other value unchanged.

    >>> written(2 / 3), written(4.0), written("x")
    ('0.67', '4', 'x')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def picture(
    name: str, size: tuple[float, float], title: str, words: str, parts: Sequence[Element], *, kind: str | None = None
) -> Markup:
    """An SVG with a description for those who do not see it.

    Args:
        name: Its name in the page, unique.
        size: Width and height in its own units.
        title: Its title.
        words: Description of what it shows.
        parts: Its elements.
        kind: Its class, if any.
    """
    heads = el("title", {"id": f"{name}-title"}, title), el("desc", {"id": f"{name}-words"}, words)
    labels = {"role": "img", "aria-labelledby": f"{name}-title {name}-words", **({"class": kind} if kind else {})}
    box = f"0 0 {written(float(size[0]))} {written(float(size[1]))}"
    drawn = el("svg", {"viewBox": box, "width": float(size[0]), **labels}, *heads, *parts)
    return Markup(tostring(drawn, encoding="unicode", method="html"))  # `tostring` escapes
