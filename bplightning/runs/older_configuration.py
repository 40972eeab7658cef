"""Configurations of earlier versions: their options and class paths in the spellings of this version."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bplightning.plugins import STRATEGIES, load

OPTIONS = {
    "density": ("target", "density"),
    "target_density": ("target", "density"),
    "target_flops": ("target", "flops"),
    "target_flops_speedup": ("target", "flops"),
    "target_latency_speedup": ("target", "latency_speedup"),
    "target_speedups": ("target", "latency_speedup"),
    "latency_table": ("target", "latency_table"),
    "initial_warmup": ("window", "initial_warmup"),
    "final_warmup": ("window", "final_warmup"),
    "freeze_masks": ("window", "freeze_masks"),
}
"""A strategy's option before version 0.1.0 to its section and its option there."""

INVERTED = ("target_flops_speedup",)
"""Options that were ratios, dense over compact, and are shares now."""

CLASS_PATHS = {
    "bplightning.callback.PruningCallback": "bplightning.integrations.lightning_callback.PruningCallback",
    "bplightning.checkpoints.LastCheckpoint": "bplightning.training.kept_checkpoints.LastCheckpoint",
    "bplightning.checkpoints.PrunedCheckpoint": "bplightning.training.kept_checkpoints.PrunedCheckpoint",
    "bplightning.growing_log.GrowingCSVLogger": "bplightning.training.appending_csv_logger.AppendingCSVLogger",
    "bplightning.progress.ProgressLines": "bplightning.training.progress_lines.ProgressLines",
}
"""Callbacks and loggers before version 0.1.0, which a configuration may name, to what they are now. Old class paths of
strategies and tasks can still be imported."""


def renewed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration in the spellings of this version; one that is of this version stays as it is.

    Args:
        settings: What a run's ``config.yaml`` holds.

    >>> old = {"class_path": "bplightning.strategies.hybrid.Hybrid", "init_args": {"target_flops_speedup": 2.0}}
    >>> renewed({"strategy": old})["strategy"]["init_args"]
    {'target': {'flops': 0.5}}
    """
    found: dict[str, Any] = with_class_paths(settings)
    strategy = found.get("strategy")
    if isinstance(strategy, dict) and isinstance(options := strategy.get("init_args"), dict):
        name = strategy.get("class_path")
        old = old_options(name, options) if isinstance(name, str) else []
        with suppress(TypeError, ZeroDivisionError):  # no number, which is refused when the run is built
            found["strategy"] = strategy | {"init_args": renewed_options(options, old)}
    return found


def old_options(strategy: str, options: Mapping[str, Any]) -> list[str]:
    """Which of a strategy's options are old spellings: names that it does not take itself.

    Args:
        strategy: Its short name or class path.
        options: Name to value.
    """
    if OPTIONS.keys().isdisjoint(options):
        return []
    accepted = inspect.signature(load(STRATEGIES, strategy)).parameters
    return [name for name in options if name in OPTIONS and name not in accepted and OPTIONS[name][0] in accepted]


def renewed_options(options: Mapping[str, Any], old: list[str]) -> dict[str, Any]:
    """Options with the old ones among them in their new spelling; what was `None`, the default, is left out.

    Args:
        options: Name to value.
        old: Names of those that are old.
    """
    found = {name: value for name, value in options.items() if name not in old}
    for name in old:
        section, field = OPTIONS[name]
        if options[name] is not None:
            value = 1 / options[name] if name in INVERTED else options[name]
            found[section] = {**(found.get(section) or {}), field: value}
    target = found.get("target")
    if isinstance(target, dict) and target.keys() == {"latency_table"}:  # of ziplm, whose default was twice
        found["target"] = {"latency_speedup": 2.0, **target}
    return found


def with_class_paths(part: Any) -> Any:
    """A part of a configuration with the class paths of this version, as ``class_path`` or alone.

    Args:
        part: What YAML gives.

    >>> with_class_paths({"callbacks": ["bplightning.callback.PruningCallback", {"class_path": "mine.Other"}]})
    {'callbacks': ['bplightning.integrations.lightning_callback.PruningCallback', {'class_path': 'mine.Other'}]}
    """
    if isinstance(part, Mapping):
        return {key: with_class_paths(value) for key, value in part.items()}
    if isinstance(part, list):
        return [with_class_paths(each) for each in part]
    return CLASS_PATHS.get(part, part) if isinstance(part, str) else part
