"""Block pruning for faster Transformers: fine-tune, prune, and get back an ordinary smaller, faster model.

``import bplightning`` makes transformers' `from_pretrained` know compact folders. Everything else is imported when it
is first asked for: reading a compact model costs no import of Lightning, and ``--help`` none of torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from bplightning.clone import find_neighbours

if TYPE_CHECKING:
    from bplightning.cli.api import fit
    from bplightning.compaction.exact_compaction import compact
    from bplightning.compaction.loading import register, save_compact
    from bplightning.compaction.plan import CompactionPlan
    from bplightning.contracts.capabilities import Advising, LearnsFromTeacher, OneShot, Prepared, Staged, Steered
    from bplightning.contracts.scheduled import ScheduledStrategy
    from bplightning.contracts.strategy import Progress, PruningStrategy
    from bplightning.contracts.target import Target
    from bplightning.contracts.targeted import Targeted
    from bplightning.contracts.task import Task
    from bplightning.contracts.window import PruningWindow
    from bplightning.errors import UserError
    from bplightning.integrations.lightning_callback import PruningCallback
    from bplightning.layout.plain_weights import plain_weights
    from bplightning.layout.prunable_layout import PrunableLayout
    from bplightning.masks.masking import Mask
    from bplightning.masks.selection import keep_largest
    from bplightning.runs.predicting import predict
    from bplightning.training.module import PruningModule

__version__ = "0.1.0"

find_neighbours()

for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_variable, "1")  # before ONNX Runtime and the hub's client are imported, which report home

_HOMES = {
    "CompactionPlan": "compaction.plan",
    "Advising": "contracts.capabilities",
    "LearnsFromTeacher": "contracts.capabilities",
    "Mask": "masks.masking",
    "OneShot": "contracts.capabilities",
    "Prepared": "contracts.capabilities",
    "Progress": "contracts.strategy",
    "PrunableLayout": "layout.prunable_layout",
    "PruningCallback": "integrations.lightning_callback",
    "PruningModule": "training.module",
    "PruningStrategy": "contracts.strategy",
    "PruningWindow": "contracts.window",
    "ScheduledStrategy": "contracts.scheduled",
    "Staged": "contracts.capabilities",
    "Steered": "contracts.capabilities",
    "Target": "contracts.target",
    "Targeted": "contracts.targeted",
    "Task": "contracts.task",
    "UserError": "errors",
    "compact": "compaction.exact_compaction",
    "fit": "cli.api",
    "keep_largest": "masks.selection",
    "plain_weights": "layout.plain_weights",
    "predict": "runs.predicting",
    "register": "compaction.loading",
    "save_compact": "compaction.loading",
}

__all__ = [
    "Advising",
    "CompactionPlan",
    "LearnsFromTeacher",
    "Mask",
    "OneShot",
    "Prepared",
    "Progress",
    "PrunableLayout",
    "PruningCallback",
    "PruningModule",
    "PruningStrategy",
    "PruningWindow",
    "ScheduledStrategy",
    "Staged",
    "Steered",
    "Target",
    "Targeted",
    "Task",
    "UserError",
    "compact",
    "fit",
    "keep_largest",
    "plain_weights",
    "predict",
    "register",
    "save_compact",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


@when_imported("transformers.modeling_utils")  # `from_pretrained` is there; now, if transformers was imported before us
def _register(module: Any) -> None:
    import_module("bplightning.compaction.loading")
