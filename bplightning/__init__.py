"""Block pruning for faster Transformers: fine-tune, prune, and get back an ordinary smaller, faster model.

``import bplightning`` makes transformers' `from_pretrained` know compact folders. Everything else is imported when it
is first asked for: reading a compact model costs no import of Lightning, and ``--help`` none of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from bplightning.callback import PruningCallback
    from bplightning.compaction import CompactionPlan, compact
    from bplightning.errors import UserError
    from bplightning.fitting import fit
    from bplightning.layout import PrunableLayout
    from bplightning.loading import register, save_compact
    from bplightning.masking import Mask
    from bplightning.module import PruningModule
    from bplightning.predicting import predict
    from bplightning.strategy import Progress, PruningStrategy
    from bplightning.task import Task

__version__ = "0.1.0.dev0"

_HOMES = {
    "CompactionPlan": "compaction",
    "Mask": "masking",
    "Progress": "strategy",
    "PrunableLayout": "layout",
    "PruningCallback": "callback",
    "PruningModule": "module",
    "PruningStrategy": "strategy",
    "Task": "task",
    "UserError": "errors",
    "compact": "compaction",
    "fit": "fitting",
    "predict": "predicting",
    "register": "loading",
    "save_compact": "loading",
}

__all__ = [
    "CompactionPlan",
    "Mask",
    "Progress",
    "PrunableLayout",
    "PruningCallback",
    "PruningModule",
    "PruningStrategy",
    "Task",
    "UserError",
    "compact",
    "fit",
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
    import_module("bplightning.loading")
