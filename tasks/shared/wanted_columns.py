"""Which columns of a table a task reads, and what they are called there."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from bplightning.errors import UserError


@dataclass(frozen=True)
class Wanted:
    """The columns that a task reads.

    Attributes:
        own: The task's own names, each with whether the column may be missing.
        given: Own name to what it is called in the data, where that differs.
        renamable: Whether the user can say so.
    """

    own: Mapping[str, bool]
    given: Mapping[str, str] = field(default_factory=dict)
    renamable: bool = True

    @property
    def names(self) -> dict[str, str]:
        """Own name to what it is called in the data."""
        return {name: self.given.get(name, name) for name in self.own}

    def names_in(self, there: Collection[str], *, origin: str) -> dict[str, str]:
        """What is read of a table: its name in the data to the task's own.

        Args:
            there: The names of the table's columns.
            origin: What to call the data in messages.

        Raises:
            UserError: A column is missing, is there twice, or stands for two.
        """
        found = {own: name for own, name in self.names.items() if name in there}
        absent = {own: name for own, name in self.names.items() if own not in found}
        missing = {own: name for own, name in absent.items() if not self.own[own] or own in self.given}
        if missing:
            remedy = self._example(next(iter(missing)), there, found) if self.renamable else "Rename or add them"
            raise UserError(
                f"{origin!r} lacks the columns {list(missing.values())}; it has {[name for name in there if name]}. "
                f"{remedy}."
            )
        twice = [name for name in found.values() if list(there).count(name) > 1]
        if twice:
            raise UserError(f"{origin!r} has two columns {twice[0]!r}: rename the one that is not meant, or remove it.")
        if len(set(found.values())) < len(found):
            raise UserError(f"columns gives one column of {origin!r} twice: {dict(self.given)}. Give each its own.")
        return {name: own for own, name in found.items()}

    def own_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record under the task's own names, which it may have already.

        >>> Wanted({"text": False}, {"text": "review"}).own_record({"id": 1, "review": "good"})
        {'id': 1, 'review': 'good', 'text': 'good'}
        """
        names = self.names
        others = {name: value for name, value in record.items() if name not in names or name not in names.values()}
        return others | {own: record[name] for own, name in names.items() if name in record}

    @staticmethod
    def _example(own: str, there: Collection[str], found: Mapping[str, str]) -> str:
        free = [name for name in there if name and name not in found.values()]
        name = shlex.quote(free[0]) if free else "NAME"
        return f"Say what they are called there, for example --task.columns.{own}={name}"
