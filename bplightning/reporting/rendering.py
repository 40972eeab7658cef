"""Pages from the templates of this package: one self-contained HTML file each, in which every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """A picture under its caption, and the numbers that it shows.

    Attributes:
        caption: Its title.
        picture: The SVG.
        note: What it shows, in a sentence.
        legend: Class and text of each swatch.
        heads: Heads of the table of its numbers.
        rows: Rows of that table; none leave it out.
    """

    caption: str
    picture: Markup
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def rendered(template: str, values: Mapping[str, object]) -> str:
    """A page.

    Args:
        template: Name of its template.
        values: The template's variables.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("bplightning.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
