"""A speed-up in time as a target: what heads and units take is looked up in a table that was measured.

Legend: `G` layers of a role, `N` heads or units of each, `P` points of a line.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from bplightning.compaction.survival import Survival
from bplightning.io.progress_bar import progress_bar
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import Group
from bplightning.masks.masking import Mask
from bplightning.measuring.latency_measuring import measured_table
from bplightning.measuring.latency_table import LatencyTable
from bplightning.measuring.measure import DEFAULT_SHAPES, fitting, shape_name
from bplightning.strategies.shared.size_targets import SizeTarget

SHAPE = DEFAULT_SHAPES[0]
"""Rows and tokens that a table is measured with where none is given: the first that a report measures."""


class LatencySpeedup(nn.Module, SizeTarget):
    """Milliseconds of the dense model over those of the compact one, foreseen by a latency table.

    ZipLM (Kurtic, Frantar, Alistarh 2023, arXiv 2302.04089) looks up what each layer takes with as many heads or units
    as it has; here that tells a penalty how far to push. The table is part of the ``state_dict``: a run that goes on
    has the one that it began with, also where its file is another one by then.

    Args:
        speedup: How many times faster, above 1.
        file: The table's file; by default one is measured when training begins, where it runs.
    """

    kind: ClassVar[str] = "latency_speedup"
    always_ms: Tensor

    def __init__(self, speedup: float, file: str | None = None) -> None:
        super().__init__()
        self.value, self.share = speedup, 1 / speedup
        self.file = file
        self.table: LatencyTable | None = None
        self.survival: Survival | None = None
        self.by_role: dict[str, list[Group]] = {}
        self.register_buffer("always_ms", torch.tensor(0.0), persistent=False)

    def attach(self, layout: PrunableLayout, masks: Sequence[Mask]) -> None:
        self.survival = Survival(layout, masks)
        self.to(masks[0].kept.device)
        for group in self.survival.groups:
            self.by_role.setdefault(group.role, []).append(group)
        if self.file is not None:
            table = LatencyTable.load(self.file)
            table.require_fits(layout, name=f"latency table {self.file!r}")
            self.take(table)

    @property
    def known(self) -> bool:
        return self.table is not None

    def prepare(self, dense: Callable[[], nn.Module]) -> None:
        """Have a table, the same on all ranks: that of the run if it goes on, or the file's, or else measured now."""
        if self.table is not None and self.file is not None and LatencyTable.load(self.file) != self.table:
            warnings.warn(
                f"latency table {self.file!r} is not the one this run began with, of {self.table.date}: it goes on "
                "with that one.",
                stacklevel=2,
            )
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        first = not several or torch.distributed.get_rank() == 0
        if self.table is None and first:
            self.table = self._measure(dense())
        if several:
            found = [None if self.table is None else self.table.document()]
            torch.distributed.broadcast_object_list(found, src=0)
            self.table = LatencyTable.of_document(found[0], name="the latency table of rank 0")
        assert self.table is not None
        self.take(self.table)

    def left(self, masks: Sequence[Mask], scores: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        assert self.survival is not None
        lives = {
            role: torch.stack([self.survival.of(group, scores) for group in groups])
            for role, groups in self.by_role.items()
        }
        times = {role: self.get_buffer(f"ms_{role}") for role in lives}
        always, sums_P, shares_P = self.always_ms, self.get_buffer("sums_ms"), self.get_buffer("shares")

        def left(cut: Tensor) -> Tensor:
            total = always
            for role, lives_GN in lives.items():
                total = total + times[role].take((lives_GN > cut).sum(1)).sum()
            return interpolated(total, sums_P, shares_P)

        return left

    def value_of(self, share: float) -> float:
        return 1 / share

    @property
    def shape(self) -> str | None:
        return None if self.table is None else self.table.shape

    # -- the table -----------------------------------------------------------------------------------------------------

    def take(self, table: LatencyTable) -> None:
        """Look up in this table from now on."""
        self.table = table
        own = sum(len(groups) * table.roles[role].ms[-1] for role, groups in self.by_role.items())
        shares = [each / table.dense_ms for each in table.together_ms]
        values = {"always_ms": table.sums_ms[-1] - own, "sums_ms": table.sums_ms, "shares": shares}
        values |= {f"ms_{role}": table.roles[role].by_count() for role in self.by_role}
        for name, value in values.items():  # not saved: they follow from the table
            self.register_buffer(name, torch.tensor(value, device=self.always_ms.device), persistent=False)

    def _measure(self, model: nn.Module) -> LatencyTable:
        own = next(model.parameters())
        dtype, (shape,) = str(own.dtype).removeprefix("torch."), fitting(model, [SHAPE])
        rank_zero_info(
            f"Measuring what heads and units take on {own.device}, {dtype}, {shape_name(*shape)} (a file of "
            "`latency-table` may be given in place of that)."
        )
        with progress_bar() as on_progress:
            return measured_table(model, shape, device=own.device, dtype=dtype, on_progress=on_progress)

    def get_extra_state(self) -> dict[str, Any] | None:
        """The table: plain values, for a checkpoint is read without running anything that is in it."""
        return None if self.table is None else self.table.document()

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.take(LatencyTable.of_document(state, name="the checkpoint's latency table"))


def interpolated(x: Tensor, xs_P: Tensor, ys_P: Tensor) -> Tensor:
    """What a line through points says at `x`, a 0-d tensor, on the device.

    Args:
        x: Where, 0-d.
        xs_P: Strictly rising.
        ys_P: The line's values there.

    >>> float(interpolated(torch.tensor(1.5), torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 10.0, 20.0])))
    12.5
    """
    right = torch.bucketize(x, xs_P).clamp(1, len(xs_P) - 1)
    (x0, x1), (y0, y1) = ((of.take(right - 1), of.take(right)) for of in (xs_P, ys_P))
    return torch.lerp(y0, y1, ((x - x0) / (x1 - x0)).clamp(0, 1))
