"""Pruning without training: what the verb `prune` does, from a fine-tuned model to a compact one and its report."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from bplightning.contracts.capabilities import Prepared
from bplightning.contracts.strategy import Progress
from bplightning.contracts.suitability import require_one_shot
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.io.progress_bar import progress_bar
from bplightning.reporting.report import Report
from bplightning.stages.alignment import Alignment, require_possible
from bplightning.stages.calibration_set import CalibrationSet, require_examples
from bplightning.stages.finishing import AS_PRUNED, finish
from bplightning.stages.pipeline import require_loads, require_writable, save_dense
from bplightning.training.checkpoint_files import folder_of
from bplightning.training.module import PruningModule
from bplightning.training.ranks import require_supported
from bplightning.training.restore_units import hardened_copy

MODEL = "model"
"""The baseline that is the model which is pruned."""

EXAMPLES = 2000
"""Calibration examples where neither user nor strategy says how many, as in arXiv 2204.09656."""

END = Progress(step=1, total_steps=1, warmup_steps=0)
"""Where training stands when there is none: at its end, whatever a schedule says of the way there."""


def prune(
    trainer: Trainer,
    module: PruningModule,
    task: Task,
    *,
    baseline: str = MODEL,
    calibration_examples: int | None = None,
    alignment: Alignment = AS_PRUNED,
    quantize: str | None = None,
    begin: Callable[[], object] = lambda: None,
) -> Report | None:
    """Calibrate and prune, then compact, evaluate and report, as `bplightning.stages.pipeline.fit` does after training.

    Args:
        trainer: Lightning's trainer, for its device and its folder; it trains nothing.
        module: The task and the strategy together.
        task: The task, whose model is fine-tuned already.
        baseline: The dense model to compare with: ``model``, the one that is pruned, which is saved to ``baseline/``,
            the folder of a saved one, or ``none``.
        calibration_examples: Training examples that the strategy may look at, 1 or more; by default as many as it asks
            for, else 2,000.
        alignment: Which of the removed feed-forward units are put back, for widths that suit the hardware; by default
            none.
        quantize: ``int8`` to evaluate and time the compact model in 8 bits, too; by default it is not.
        begin: Called when all is checked that can be before the model is calibrated, and nothing is written yet.

    Returns:
        The report.

    Raises:
        UserError: The strategy learns in training, or prunes more than once, or nothing can be put back of what it
            removes, there are several processes, the baseline is no such folder, the run's folder cannot be written or
            holds a model already, there are no training examples, or a compaction was refused.
    """
    require_supported(trainer)
    one_shot = require_one_shot(module.strategy)
    require_possible(alignment, module.strategy)
    wanted = one_shot.examples_at_once() or EXAMPLES
    examples = wanted if calibration_examples is None else calibration_examples
    require_examples(examples)
    if trainer.world_size > 1:
        raise UserError(
            f"`prune` runs in one process, and the trainer has {trainer.world_size}: give --trainer.devices 1."
        )
    if quantize is not None:
        from bplightning.stages.quantization import require_quantizable  # its libraries are not everybody's

        require_quantizable(task, quantize)
    run = folder_of(trainer)
    results = [run / "compact", *([run / "baseline" / "model"] if baseline == MODEL else [])]
    if there := [folder for folder in results if folder.exists()]:  # a baseline alone is of a run that was stopped
        raise UserError(
            f"{str(there[0])!r} is there already: choose another trainer.default_root_dir, or a logger that "
            "numbers its runs."
        )
    require_writable(run)
    if baseline == "train":
        raise UserError(
            "baseline is 'train', and `prune` trains nothing: give 'model', the model that is pruned, a folder, or "
            "'none'."
        )
    dense = None if baseline in (MODEL, "none") else Path(baseline)
    if dense is not None:
        require_loads(task, dense)
    task.prepare_data()
    task.setup("fit")
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    with progress_bar() as on_progress:
        device = trainer.strategy.root_device
        batches = CalibrationSet(task, examples=examples, seed=seed, device=device, on_progress=on_progress)
        module.model = task.build_model()
        unpruned = copy.deepcopy(module.model) if baseline == MODEL else None
        module.configure_model()  # a model that the strategy cannot prune is refused here
        begin()
        for logger in trainer.loggers:
            _ = getattr(logger, "experiment", None)  # a logger makes its folder now, while that is empty
        if unpruned is not None:  # not its own folder: that may lack a head, which is drawn anew at each reading
            dense = run / "baseline" / "model"
            save_dense(task, unpruned, dense)
            del unpruned
        model = module.model.eval()
        nn.Module.to(module, device)  # transformers' own signature of `to` is not typed
        if (prepared := module.strategy.capability(Prepared)) is not None:
            prepared.prepare(lambda: hardened_copy(module))
        rank_zero_info(f"Pruning without training, by {batches.examples} training examples.")
        one_shot.calibrate(model, batches, task.loss)
        module.strategy.advance(END)
    return finish(
        trainer,
        module,
        task,
        out=run / "compact",
        report=run / "report.json",
        dense=dense,
        alignment=alignment,
        quantize=quantize is not None,
    )
