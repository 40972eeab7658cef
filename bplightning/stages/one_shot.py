"""Pruning without training: what the verb `prune` does, from a fine-tuned model to a compact one and its report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from bplightning.contracts.capabilities import Prepared
from bplightning.contracts.strategy import Progress
from bplightning.contracts.suitability import require_one_shot
from bplightning.errors import UserError
from bplightning.io.progress_bar import progress_bar
from bplightning.io.run_folder import RunFolder
from bplightning.reporting.report import Report
from bplightning.stages.alignment import require_possible
from bplightning.stages.calibration_set import CalibrationSet, require_examples
from bplightning.stages.finishing import Ending, finish
from bplightning.stages.pipeline import require_loads, require_writable, save_dense
from bplightning.stages.request import RunRequest
from bplightning.training.checkpoint_files import folder_of
from bplightning.training.module import PruningModule
from bplightning.training.ranks import require_supported

MODEL = "model"
"""The baseline that is the model which is pruned."""

EXAMPLES = 2000
"""Calibration examples where neither user nor strategy says how many, as in arXiv 2204.09656."""

OF_ITSELF = RunRequest(baseline=MODEL)
"""A request whose report compares with the model that is pruned."""

END = Progress(step=1, total_steps=1, warmup_steps=0)
"""Where training stands when there is none: at its end, whatever a schedule says of the way there."""


def prune(
    trainer: Trainer,
    module: PruningModule,
    request: RunRequest = OF_ITSELF,
    *,
    calibration_examples: int | None = None,
    begin: Callable[[], object] = lambda: None,
) -> Report | None:
    """Calibrate and prune, then compact, evaluate and report, as `bplightning.stages.pipeline.fit` does after training.

    Args:
        trainer: Lightning's trainer, for its device and its folder; it trains nothing.
        module: The task, whose model is fine-tuned already, and the strategy together.
        request: What is asked for. A baseline of ``model`` is the model that is pruned, which is then saved to
            ``baseline/``.
        calibration_examples: Training examples that the strategy may look at, 1 or more; by default as many as it asks
            for, else 2,000.
        begin: Called when all is checked that can be before the model is calibrated, and nothing is written yet.

    Returns:
        The report.

    Raises:
        UserError: The strategy learns in training, or prunes more than once, or nothing can be put back of what it
            removes, there are several processes, the baseline is no such folder, the run's folder cannot be written or
            holds a model already, there are no training examples, or a compaction was refused.
    """
    task, one_shot = module.task, require_one_shot(module.strategy)
    wanted = one_shot.examples_at_once() or EXAMPLES
    examples = wanted if calibration_examples is None else calibration_examples
    run = RunFolder(folder_of(trainer))
    _require_possible(trainer, module, request, examples)
    _require_free(run, request)
    keeps = request.baseline == MODEL
    dense = run.baseline_model if keeps else None if request.baseline == "none" else Path(request.baseline)
    if dense is not None and not keeps:
        require_loads(task, dense)
    task.prepare_data()
    task.setup("fit")
    with progress_bar() as on_progress:
        device, seed = trainer.strategy.root_device, request.seed or 0
        batches = CalibrationSet(task, examples=examples, seed=seed, device=device, on_progress=on_progress)
        module.model = task.build_model()
        unpruned = copy.deepcopy(module.model) if keeps else None
        module.configure_model()  # a model that the strategy cannot prune is refused here
        for logger in trainer.loggers:
            _ = getattr(logger, "experiment", None)  # a logger makes its folder now, while that is empty
        begin()
        if unpruned is not None:  # not its own folder: that may lack a head, which is drawn again at each reading
            save_dense(task, unpruned, run.baseline_model)
            del unpruned
        model = module.model.eval()
        nn.Module.to(module, device)  # transformers' own signature of `to` is not typed
        if (prepared := module.strategy.capability(Prepared)) is not None:
            prepared.prepare(module.hardened_copy)
        rank_zero_info(f"Pruning without training, by {batches.examples} training examples.")
        one_shot.calibrate(model, batches, task.calibration_loss)
        module.strategy.advance(END)
    return finish(trainer, module, Ending(out=run.compact, report=run.report, dense=dense, at_once=True), request)


def _require_possible(trainer: Trainer, module: PruningModule, request: RunRequest, examples: int) -> None:
    """Refuse what cannot be pruned so, before anything is read."""
    require_supported(trainer)
    require_possible(request.alignment, module.strategy)
    require_examples(examples)
    if trainer.world_size > 1:
        raise UserError(
            f"`prune` runs in one process, and the trainer has {trainer.world_size}: give --trainer.devices 1."
        )
    if request.quantize is not None:
        from bplightning.stages.quantization import require_quantizable  # its libraries are not everybody's

        require_quantizable(module.task, request.quantize, max_loss=request.max_loss)


def _require_free(run: RunFolder, request: RunRequest) -> None:
    """Refuse a folder that holds a result or cannot be written, and a baseline that would have to be trained."""
    results = [run.compact, *([run.baseline_model] if request.baseline == MODEL else [])]
    if there := [folder for folder in results if folder.exists()]:  # a baseline alone is of a run that was stopped
        raise UserError(
            f"{str(there[0])!r} is there already: choose another trainer.default_root_dir, or a logger that "
            "numbers its runs."
        )
    require_writable(run.path)
    if request.baseline == "train":
        raise UserError(
            "baseline is 'train', and `prune` trains nothing: give 'model', the model that is pruned, a folder, or "
            "'none'."
        )
