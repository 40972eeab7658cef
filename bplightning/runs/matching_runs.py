"""Which run's checkpoint ``--ckpt_path last`` and ``best`` mean: the newest of those with the same settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bplightning.errors import UserError
from bplightning.io.bounds import read_yaml
from bplightning.io.private import without_secrets
from bplightning.io.run_folder import RunFolder, settings_of
from bplightning.plugins import load
from bplightning.runs.older_configuration import renewed
from bplightning.runs.parser import class_parser
from bplightning.runs.training_options import PLUGINS
from bplightning.training.checkpoint_files import SHOWN, find_checkpoint

OF_WEIGHTS = ("task", "strategy", "model", "start", "simplification")
"""Sections of a configuration that say what a checkpoint's weights are."""

OF_TRAINING = ("baseline", "seed_everything", "trainer", "distillation", "alignment", "refill")
"""Sections that say, beside these, how training goes on."""

LENGTH = ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs")
"""What of the trainer says how long it trains."""

FREE = (
    *("accelerator", "devices", "num_nodes", "strategy", "plugins", "default_root_dir"),
    *("logger", "callbacks", "profiler", "detect_anomaly", "log_every_n_steps", "num_sanity_val_steps"),
    *("enable_progress_bar", "enable_model_summary", "enable_checkpointing"),
)
"""What of the trainer may be another when a run goes on: it moves, or is watched in another way."""


def find_earlier(runs: Iterable[Path], which: str, config: Mapping[str, Any], *, training: bool) -> Path:
    """The checkpoint of the newest run with the settings of this one.

    Args:
        runs: Folders, those among them with ``config.yaml`` and ``checkpoints/``.
        which: ``last`` or ``best``, as `find_checkpoint` has it.
        config: This run's configuration.
        training: Whether training goes on from it; a run that has ended must then have been made longer.

    Raises:
        UserError: There is none, or its run has ended.
    """
    found = [(run, newest) for run in runs if (newest := find_checkpoint(RunFolder(run).checkpoints)) is not None]
    found.sort(key=lambda item: item[1].stat().st_mtime_ns, reverse=True)
    others = []
    for run, newest in found:
        theirs = _read(RunFolder(run).config)
        differences = _differences(theirs, config, training=training)
        if differences:
            others.append((newest, differences))
            continue
        if training and RunFolder(run).report.is_file() and not _longer(theirs, config):
            raise UserError(
                f"--ckpt_path is {which!r}, but that run, {str(run)!r}, has ended: its report.json is there. Raise "
                "trainer.max_steps or max_epochs to continue it, or leave --ckpt_path out to start a new run."
            )
        if (path := find_checkpoint(RunFolder(run).checkpoints, which)) is not None:
            return path
    if not others:
        raise UserError(
            f"--ckpt_path is {which!r}, but there is no such checkpoint of an earlier run: leave --ckpt_path out to "
            "start a new run, give a .ckpt file, or the --trainer.default_root_dir, --task and --strategy of the run."
        )
    newest, differences = others[0]
    more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    raise UserError(
        f"--ckpt_path is {which!r}, but no earlier run has these settings; of the newest, {str(newest.parents[1])!r}, "
        f"differ: {'; '.join(differences[:SHOWN])}{more}. Give its options, or its checkpoint by path, for example "
        f"{str(newest)!r}."
    )


def find_same(runs: Iterable[Path], config: Mapping[str, Any]) -> Path | None:
    """The newest run with just the settings of this one, an ended one only if all have; `None` if there is none.

    Args:
        runs: Folders, those among them with ``config.yaml``.
        config: This run's configuration.

    Raises:
        UserError: The configuration of a run that has not ended cannot be read: it may be this one.
    """
    there = [run for run in runs if RunFolder(run).config.is_file()]
    for run in there:
        if not RunFolder(run).report.is_file():
            try:
                settings_of(run)
            except UserError as error:
                raise UserError(
                    f"{error} Whether that run is the one to continue is not known: restore the file, or move the "
                    "folder away to begin a new run."
                ) from error
    there.sort(key=lambda run: RunFolder(run).config.stat().st_mtime_ns, reverse=True)
    same = [run for run in there if not _differences(_read(RunFolder(run).config), config, training=True, longer=False)]
    return next((run for run in same if not RunFolder(run).report.is_file()), next(iter(same), None))


def _read(config: Path) -> dict[str, Any]:
    """A run's configuration in this version's spellings; empty where it has none that can be read."""
    try:
        content = read_yaml(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return _comparable(content) if isinstance(content, dict) else {}


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as this version writes it, with the class paths of plugins as their modules have them.

    One that names a plugin which cannot be imported stays as it is: it is not of a run like this one.
    """
    config = without_secrets(config)  # older versions wrote them; another key makes no other run
    try:
        found = renewed(config)
        for key in PLUGINS.keys() & found.keys():
            found[key] = PLUGINS[key].resolve(found[key])
    except (UserError, ArithmeticError, LookupError, TypeError):  # nor one that was written by hand, wrongly
        return dict(config)
    return found


def _differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, training: bool, longer: bool = True
) -> list[str]:
    """What differs, in words.

    Args:
        theirs: An earlier run's configuration.
        ours: This run's.
        training: Whether training is to go on.
        longer: Whether it may then be longer than it was meant to be.
    """
    if not theirs:
        return ["it has no config.yaml that can be read"]
    ours = without_secrets(ours)
    # What is not there is of a version that did not have it.
    sections = [name for name in ((*OF_WEIGHTS, *OF_TRAINING) if training else OF_WEIGHTS) if name in theirs]
    free = {f"trainer.{name}" for name in ((*FREE, *LENGTH) if longer else FREE)}
    there, here = (
        _flat({name: config[name] for name in sections if name in config}, free=free) for config in (theirs, ours)
    )
    default = _defaults(ours)  # an option that is not there is of a version that did not have it, either
    return [
        f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
        for name in sorted({*there, *here})
        if there.get(name, default.get(name)) != here.get(name)
    ]


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names of the options of a configuration's plugins to their defaults.

    Args:
        config: As this version writes it.
    """
    found: dict[str, Any] = {}
    for key in PLUGINS.keys() & config.keys():
        cls = load(PLUGINS[key].group, config[key]["class_path"])
        found |= _flat(class_parser(cls, key).get_defaults().as_dict(), free=())
    return found


def _flat(values: Mapping[str, Any], *, free: Iterable[str], above: str = "") -> dict[str, Any]:
    """Dotted names to values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, free=free, above=f"{name}.")
        elif name not in free:
            flat[name.replace(".init_args.", ".")] = value
    return flat


def _longer(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether this run is to last longer than one that has ended."""
    then, now = theirs["trainer"], ours["trainer"]
    limits = [(_limit(then.get(name)), _limit(now.get(name))) for name in ("max_steps", "max_epochs")]
    return any(here > there for there, here in limits) or then.get("max_time") != now.get("max_time")


def _limit(value: int | None) -> float:
    """A number of steps or epochs as Lightning reads it."""
    return math.inf if value is None or value == -1 else float(value)
