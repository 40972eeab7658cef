"""Places for the labels of points in a picture, so that no label covers another one or a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LETTER, LINE = 6.6, 12.0
"""Width of a letter, and height of a line of the page's pictures."""

AWAY = (9.0, 20.0, 34.0, 50.0, 68.0)
"""Distances from the point that are tried, the nearest first."""


@dataclass(frozen=True)
class Box:
    """A rectangle; `top` is the smaller coordinate, as in SVG."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: Box) -> bool:
        """Whether they overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def label_boxes(points: Sequence[tuple[float, float, str]], within: Box, *, radius: float = 6.0) -> list[Box]:
    """A place for the label of each point, as near as one is free.

    Args:
        points: Coordinates of each point, and its label.
        within: Where labels may be.
        radius: Of a point.

    Returns:
        The boxes of the labels, in the order of the points.

    >>> one, other = label_boxes([(50, 50, "1"), (50, 50, "2")], Box(0, 0, 100, 100))
    >>> one.covers(other)
    False
    """
    taken = [Box(x - radius, y - radius, x + radius, y + radius) for x, y, _ in points]
    found = []
    for x, y, label in points:
        places = [box for box in _around(x, y, LETTER * len(label)) if _inside(box, within)]
        free = (box for box in places if not any(box.covers(other) for other in taken))
        # A crowd in which nothing is free: the place that covers least.
        box = next(free, None) or min(places, key=lambda of: sum(map(of.covers, taken)), default=_right(x, y, label))
        taken.append(box)
        found.append(box)
    return found


def _around(x: float, y: float, width: float) -> Iterator[Box]:
    for away in AWAY:
        for across, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            left = x + across * away + (0 if across > 0 else -width if across < 0 else -width / 2)
            middle = y + down * (away + LINE / 2 if across == 0 else away)
            yield Box(left, middle - LINE / 2, left + width, middle + LINE / 2)


def _right(x: float, y: float, label: str) -> Box:
    return next(_around(x, y, LETTER * len(label)))


def _inside(box: Box, within: Box) -> bool:
    return (
        box.left >= within.left and box.right <= within.right and box.top >= within.top and box.bottom <= within.bottom
    )
