"""Checkpoint files: writing them whole or not at all, finding and reading them, and refusing those that do not fit."""

from __future__ import annotations

import pickle
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import nn

from bplightning.errors import UserError
from bplightning.io.files import whole_file
from bplightning.masks.masking import UNDER_MASK

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError)
"""Exceptions of torch for a file that is not its own, or damaged."""

SHOWN = 3
"""Most entries that an error names; hundreds may not fit."""


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, but first written next to their place and then renamed.

    Lightning first writes into the folder for temporary files. If that is on another disk, moving means copying, so a
    killed process or a full disk leaves half a file in place of the last good one.
    """

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Use it in `trainer`, unless the user chose another way to write checkpoints."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = cls()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file; an existing one stays until the new one is complete.

        Raises:
            UserError: It cannot be written.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                torch.save(checkpoint, file)
        except Exception as refused:
            error = refused.__cause__ if isinstance(refused, UserError) and refused.__cause__ else refused
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            if not isinstance(reason, OSError) and "PytorchStreamWriter" not in str(error):
                raise  # not an error of the disk, for which torch has its own errors
            raise UserError(
                f"checkpoint {str(path)!r} could not be written ({_line(reason)}): make room or choose another "
                "trainer.default_root_dir. Earlier checkpoints are complete; --ckpt_path last resumes from them."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file; of tensors and plain values only, unless `weights_only` is false.

        Raises:
            UserError: It is not there, damaged, or no checkpoint.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(Path(path), map_location=map_location, weights_only=weights_only is not False)


def read_checkpoint(
    path: Path, *, map_location: Any = "cpu", weights_only: bool = True, mmap: bool = False
) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: The file.
        map_location: Where tensors go, as `torch.load` takes it.
        weights_only: Whether to read nothing but tensors and plain values.
        mmap: Whether to leave tensors on the disk until they are used.

    Raises:
        UserError: It is not there, damaged, or no checkpoint; the newest one beside it that is whole is offered.
    """
    try:
        return _read(path, map_location=map_location, weights_only=weights_only, mmap=mmap)
    except UNREADABLE as error:
        reason, remedy = _line(error), "give a .ckpt file that is there and whole, or 'last'"
        if isinstance(error, pickle.UnpicklingError):  # torch's own words fill a screen
            reason = "it is damaged, or holds other things than tensors and plain values"
            remedy += "; --weights_only false reads any file, and runs what is in it"
        remedy = _offer(path, lambda _: True) or remedy
        raise UserError(f"checkpoint {str(path)!r} cannot be read ({reason}): {remedy}.") from error


def _read(path: Path, *, map_location: Any = "cpu", weights_only: bool = True, mmap: bool = False) -> dict[str, Any]:
    checkpoint = torch.load(path, map_location=map_location, weights_only=weights_only, mmap=mmap)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError("it holds no state_dict")
    return checkpoint


def _offer(path: Path, fits: Callable[[Mapping[str, Any]], bool]) -> str:
    """How to resume from the newest other file next to `path` that can be read and fits; empty if there is none."""
    others = [other for other in path.parent.glob("*.ckpt") if other != path and other.is_file()]
    for other in sorted(others, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            saved = _read(other, mmap=True)
        except UNREADABLE:
            continue
        if fits(saved):
            remove = f"remove {path.name} and repeat the command, with --resume true or --ckpt_path last, or "
            return (
                f"the newest good one of this run is {str(other)!r}, of optimizer step {saved.get('global_step')}: "
                f"{remove if path.exists() else ''}give --ckpt_path {shlex.quote(str(other))}"
            )
    return ""


def find_checkpoint(folder: Path, which: str = "last") -> Path | None:
    """A checkpoint of a run.

    Args:
        folder: The run's folder of checkpoints.
        which: ``last``, the newest file of all, or ``best``, the one that the newest file names as the best.

    Returns:
        The file; `None` if there is none.

    Raises:
        UserError: The newest file, which knows the best, cannot be read.
    """
    files = [path for path in folder.glob("*.ckpt") if path.is_file()]
    if not files:
        return None
    newest = max(files, key=lambda path: (path.stat().st_mtime_ns, path.name == "last.ckpt"))
    if which == "last":
        return newest
    states = read_checkpoint(newest, mmap=True).get("callbacks", {}).values()
    named = [state["best_model_path"] for state in states if isinstance(state, dict) and state.get("monitor")]
    best = [folder / Path(path).name for path in named if path]  # by its name alone: the run may have been moved
    return next((path for path in best if path.is_file()), None)


# -- what fits ---------------------------------------------------------------------------------------------------------


def require_same_weights(checkpoint: Mapping[str, Any], module: nn.Module, *, path: Any, training: bool) -> None:
    """Refuse the checkpoint of another model or strategy, before any of it is loaded.

    Args:
        checkpoint: What was read.
        module: What it is read into.
        path: Its file, for the message.
        training: Whether training resumes from it, which needs more than weights.

    Raises:
        UserError: It does not fit.
    """
    for name, strategy in module.named_modules():
        if (take_older_names := getattr(strategy, "take_older_names", None)) is not None:
            take_older_names(checkpoint["state_dict"], f"{name}.")
    ours, theirs = _weights(module.state_dict()), _weights(checkpoint["state_dict"])
    shapes = [
        f"{name} is {_shape(theirs[name])} in the file and {_shape(value)} here"
        for name, value in ours.items()
        if name in theirs and isinstance(value, torch.Tensor) and theirs[name].shape != value.shape
    ]
    lacks = [f"the file lacks {name}" for name in ours if name not in theirs]
    extra = [f"the file also has {name}" for name in theirs if name not in ours]
    if differences := shapes + lacks + extra:  # masks follow from the model: what is wrong with that comes first
        good = _offer(Path(str(path)), lambda saved: _shapes(_weights(saved["state_dict"])) == _shapes(ours))
        _refuse(path, sorted(differences, key=lambda line: " strategy." in f" {line}"), good)
    if training and "optimizer_states" not in checkpoint:
        raise UserError(
            f"checkpoint {str(path)!r} holds only weights, from which training cannot resume: give one that was saved "
            "without save_weights_only."
        )


def require_same_groups(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]], *, path: Any) -> None:
    """Refuse a checkpoint whose optimizer has other groups of parameters.

    Args:
        theirs: Parameter groups in the file.
        ours: Parameter groups of this run.
        path: The file, for the message.

    Raises:
        UserError: They differ.
    """
    in_file, here = ([f"{group.get('name')} ({len(group['params'])})" for group in groups] for groups in (theirs, ours))
    if in_file != here:
        _refuse(path, [f"the optimizer's groups are {', '.join(in_file)} in the file and {', '.join(here)} here"])


def _refuse(path: Any, differences: list[str], good: str = "") -> None:
    more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    raise UserError(
        f"checkpoint {str(path)!r} is of another model or strategy ({'; '.join(differences[:SHOWN])}{more}): give the "
        f"options of the run it is of, which are in its config.yaml, or another --ckpt_path{good and f'; {good}'}."
    )


def _weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is under masks: checkpoints of earlier versions had it in the weights' own place."""
    return {name: value for name, value in values.items() if not name.endswith(UNDER_MASK)}


def _shapes(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in values.items()}


def _shape(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a scalar"


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def folder_of(trainer: Trainer) -> Path:
    """The folder that a trainer writes to: that of its logger, or else its root."""
    return Path(trainer.log_dir or trainer.default_root_dir)
