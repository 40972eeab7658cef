"""Latency tables: how much time the heads and units of a model take on one machine.

The idea is ZipLM's (Kurtic, Frantar, Alistarh 2023, arXiv 2302.04089): the time of a network is the sum of the times of
its layers, each with the heads or units that it keeps, plus the rest. Times are measured once for some counts and then
looked up, so that pruning can be steered to a latency.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from bplightning.errors import UserError
from bplightning.io.files import write_whole
from bplightning.io.schema import schema_problems
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring.latency_shapes import ModelShape, RoleShape
from bplightning.measuring.measure import shape_name
from bplightning.measuring.records import Machine

TABLE_VERSION = 1
"""Raised by one whenever a key of the file is renamed, removed, added or changes its meaning or unit."""


class _Role(TypedDict):
    kind: str
    layers: int
    size: int
    weights: int
    kept: list[int]
    ms: list[float]


class _Document(TypedDict):
    version: int
    model_type: str
    model_class: str
    hidden_size: int
    batch_size: int
    length: int
    dtype: str
    machine: Machine
    date: str
    dense_ms: float
    roles: dict[str, _Role]
    sums_ms: list[float]
    together_ms: list[float]


@dataclass(frozen=True)
class RoleTimes:
    """The time that one layer of a role takes.

    Attributes:
        shape: Sizes of the dense layers.
        kept: Numbers of heads or units kept, ascending, from 0 to all.
        ms: Milliseconds that one layer takes with each number, beyond its time with none; they do not fall.
    """

    shape: RoleShape
    kept: tuple[int, ...]
    ms: tuple[float, ...]

    def by_count(self) -> list[float]:
        """Milliseconds for every count from 0 to all.

        >>> RoleTimes(RoleShape("heads", layers=1, size=4, weights=8), kept=(0, 1, 4), ms=(0.0, 1.0, 2.5)).by_count()
        [0.0, 1.0, 1.5, 2.0, 2.5]
        """
        return [self.of_count(count) for count in range(self.shape.size + 1)]

    def of_count(self, count: int) -> float:
        """Milliseconds for a count, interpolated between those measured."""
        return float(np.interp(count, self.kept, self.ms))


@dataclass(frozen=True)
class LatencyTable:
    """The time that the parts of a model take in one forward pass on one machine.

    Attributes:
        model_type: The architecture, as in the model's configuration.
        model_class: The model's class, which determines its head.
        hidden_size: Width of the residual stream.
        batch_size: Rows of the batch.
        length: Tokens of each row.
        dtype: Precision of the models, for example ``float32``.
        machine: Where it was measured, with the number of CPU threads.
        date: When it was measured, ISO 8601 in UTC.
        dense_ms: Milliseconds of the dense model.
        roles: Role to the time that one of its layers takes.
        sums_ms: Sums of the times of all layers, ascending from 0 to that of the dense model; milliseconds.
        together_ms: Measured times of whole models whose layers have these sums, which corrects the sums. The first is
            the time of a model without any head or unit, the last that of the dense model.
    """

    model_type: str
    model_class: str
    hidden_size: int
    batch_size: int
    length: int
    dtype: str
    machine: Machine
    date: str
    dense_ms: float
    roles: Mapping[str, RoleTimes]
    sums_ms: tuple[float, ...]
    together_ms: tuple[float, ...]

    @property
    def shape(self) -> str:
        """Rows and tokens, ``"BxL"``."""
        return shape_name(self.batch_size, self.length)

    @property
    def rest_ms(self) -> float:
        """Milliseconds of a model without any head or unit."""
        return self.together_ms[0]

    @property
    def largest_speedup(self) -> float:
        """How many times faster a model without any head or unit is than the dense model."""
        return self.dense_ms / self.rest_ms

    def described(self) -> list[str]:
        """The table in a few lines, for a reader."""
        without = f"{self.largest_speedup:.3g} times as fast without heads and units"
        lines = [f"{self.shape}: {self.dense_ms:.3g} ms, {without}"]
        for role, times in self.roles.items():
            of = times.shape
            half = times.of_count(of.size // 2)
            lines.append(
                f"{role}: a layer {times.ms[-1]:.3g} ms with {of.size} {of.kind}, {half:.3g} ms with {of.size // 2}, "
                f"{of.layers} layers"
            )
        return lines

    def milliseconds(self, kept: Iterable[tuple[str, int]]) -> float:
        """Milliseconds of a forward pass.

        Args:
            kept: For each layer, its role and the number of heads or units that it keeps.
        """
        total = sum(self.roles[role].of_count(count) for role, count in kept)
        return float(np.interp(total, self.sums_ms, self.together_ms))

    def sum_within(self, ms: float) -> float:
        """The largest sum of layer times with which a forward pass stays within a limit.

        Args:
            ms: The limit, in milliseconds of a forward pass.

        Returns:
            The sum, in milliseconds; below 0 where even a model without any head or unit takes longer.
        """
        after = bisect_right(self.together_ms, ms)
        if after == 0:
            return -1.0
        if after == len(self.together_ms):
            return self.sums_ms[-1]
        (x0, x1), (y0, y1) = self.sums_ms[after - 1 : after + 1], self.together_ms[after - 1 : after + 1]
        return x0 + (x1 - x0) * (ms - y0) / (y1 - y0)

    def require_fits(self, layout: PrunableLayout, *, name: str) -> None:
        """Refuse a model that the table was not made for.

        Args:
            layout: The model's layout.
            name: Name of the table, for the message.

        Raises:
            UserError: The model has another architecture, another head, or layers of other sizes.
        """
        shapes = {role: times.shape for role, times in self.roles.items()}
        own = ModelShape(self.model_type, self.model_class, self.hidden_size, shapes)
        for difference in own.differences(ModelShape.of(layout)):
            raise UserError(
                f"{name} is of another model: {difference}. Make one of this model with `latency-table`, from the "
                "folder of a dense model for this task."
            )

    # -- as a file -----------------------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """The table as plain values, for JSON and for checkpoints."""
        roles = {
            role: asdict(times.shape) | {"kept": list(times.kept), "ms": list(times.ms)}
            for role, times in self.roles.items()
        }
        together = {"sums_ms": list(self.sums_ms), "together_ms": list(self.together_ms)}
        return {"version": TABLE_VERSION, **asdict(self), "roles": roles, **together}

    def save(self, path: Path) -> None:
        """Write it as JSON; the file appears whole."""
        write_whole(path, json.dumps(self.document(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table that `save` wrote.

        Args:
            path: The file.

        Raises:
            UserError: It is missing, not JSON, of another version, or its keys or numbers are not those of a table.
        """
        name = f"latency table {str(path)!r}"
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error.strerror}): make it with `latency-table`.") from error
        except ValueError as error:
            raise UserError(f"{name} is not JSON ({error}): make it again with `latency-table`.") from error
        return cls.of_document(document, name=name)

    @classmethod
    def of_document(cls, document: Any, *, name: str) -> LatencyTable:
        """The table of a document that `document` returned.

        Args:
            document: Plain values.
            name: Name of the table, for messages.

        Raises:
            UserError: The document is of another version, or is no table.
        """
        version = document.get("version") if isinstance(document, dict) else None
        if version is not None and version != TABLE_VERSION:
            raise UserError(
                f"{name} has version {version!r}, but this bplightning reads {TABLE_VERSION}: make it again with "
                "`latency-table`."
            )
        if problems := [*schema_problems(document, _Document)] or [*_wrong_numbers(document)]:
            raise UserError(
                f"{name} is not a latency table: {'; '.join(problems)}. Make it again with `latency-table`."
            )
        values: dict[str, Any] = {key: value for key, value in document.items() if key not in ("version", "roles")}
        shapes = ("kind", "layers", "size", "weights")
        roles = {
            role: RoleTimes(RoleShape(**{key: of[key] for key in shapes}), tuple(of["kept"]), tuple(of["ms"]))
            for role, of in document["roles"].items()
        }
        values |= {key: tuple(values[key]) for key in ("sums_ms", "together_ms")}
        return cls(roles=roles, **values)


def _wrong_numbers(document: _Document) -> Iterator[str]:
    """Invalid values in a document that has the right keys and types."""
    values: Any = document
    for what in ("hidden_size", "batch_size", "length", "dense_ms"):
        if not (math.isfinite(values[what]) and values[what] > 0):
            yield f"{what} is {values[what]}, but must be above 0"
    if not document["roles"]:
        yield "roles is empty"
    roles: Any = document["roles"]
    for role, of in roles.items():
        if of["kind"] not in ("heads", "units"):
            yield f"roles.{role}.kind is {of['kind']!r}, but must be 'heads' or 'units'"
        for what in ("layers", "size", "weights"):
            if of[what] < 1:
                yield f"roles.{role}.{what} is {of[what]}, but must be 1 or more"
        yield from _wrong_curve(of, "kept", "ms", of["size"], where=f"roles.{role}.")
        if of["ms"][:1] != [0]:
            yield f"roles.{role}.ms must begin with 0"
    full = sum(of["layers"] * of["ms"][-1] for of in roles.values() if of["ms"])
    yield from _wrong_curve(values, "sums_ms", "together_ms", full)
    took = document["together_ms"]
    if took[-1:] != [document["dense_ms"]] or not took[0] > 0:
        yield "together_ms must begin above 0 and end with dense_ms"


def _wrong_curve(values: Mapping[str, Any], x: str, y: str, last: float, *, where: str = "") -> Iterator[str]:
    """Invalid values of a curve with milliseconds `y` over `x`."""
    kept, ms = values[x], values[y]
    if len(kept) < 2 or kept != sorted(set(kept)) or kept[0] != 0 or not math.isclose(kept[-1], last):
        yield f"{where}{x} must ascend from 0 to {last:g}"
    if len(ms) != len(kept) or not all(map(math.isfinite, ms)) or ms != sorted(ms):
        yield f"{where}{y} must be as many finite numbers as {where}{x}, and must not fall"
