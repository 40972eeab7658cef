"""Reading a run's folder back."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from bplightning.errors import UserError
from bplightning.module import PruningModule
from bplightning.training_cli import PruningCLI


class _RunReader(PruningCLI):
    """Builds what a configuration says, but no trainer, whose devices this machine may not have; runs nothing."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def load_run(run: Path) -> PruningModule:
    """The module of a run, as its newest checkpoint holds it.

    Args:
        run: The run's folder, with ``config.yaml`` and ``checkpoints/``.

    Raises:
        UserError: The folder has no configuration or no checkpoint, or the checkpoint does not fit the configuration.
    """
    config = run / "config.yaml"
    checkpoints = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    for what, found in (("config.yaml", config.is_file()), ("checkpoint in checkpoints/", checkpoints)):
        if not found:
            raise UserError(
                f"{str(run)!r} has no {what}: give the folder of a run, such as runs/qa-hybrid/version_0, that got as "
                "far as its first checkpoint."
            )
    reader = _RunReader(["fit", f"--config={config}"])
    module: PruningModule = reader.model
    settings = reader.config.fit
    if settings.start == "baseline" and settings.baseline not in ("none", "train"):
        module.model = module.task.load_model(settings.baseline)  # it may have other shapes than the task's model
    module.configure_model()
    try:
        module.load_state_dict(torch.load(checkpoints[-1], map_location="cpu", weights_only=True)["state_dict"])
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"checkpoint {str(checkpoints[-1])!r} does not hold the model of {str(config)!r} ({reason}): it is damaged "
            "or of another run."
        ) from error
    return module
