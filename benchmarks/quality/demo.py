"""The default run and what it claims: `python cli.py fit --strategy hybrid`, and magnitude pruning beside it.

Runs the default as a user does, then prunes its dense baseline to the same density by magnitude (32 x 32 blocks of
attention by mean absolute weight, feed-forward units by that of their row and column, each pooled over the model's
layers) without fine-tuning, and evaluates that.

    python benchmarks/quality/demo.py

The row lands in benchmarks/results/demo.json; one that is there is not run again.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import Trainer

from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import masks_of
from bplightning.masks.masking import Mask, install_mask, remove_masks
from bplightning.masks.selection import keep_largest
from bplightning.stages.finishing import evaluate
from bplightning.tasks.qa import QuestionAnswering

ROOT = Path(__file__).resolve().parents[2]
ROW = ROOT / "benchmarks" / "results" / "demo.json"


def main() -> None:
    if ROW.exists():
        print(f"{ROW.name} is there already:\n{ROW.read_text()}")
        return
    with TemporaryDirectory() as folder:
        start = time.monotonic()
        command = [sys.executable, str(ROOT / "cli.py"), "fit", "--strategy", "hybrid"]
        subprocess.run(command, check=True, cwd=folder)
        seconds = time.monotonic() - start
        run = Path(folder) / "runs" / "qa-hybrid" / "version_0"
        report = json.loads((run / "report.json").read_text())
        curves = curves_of(run / "metrics.csv")
        score = magnitude(run / "baseline" / "model", density=report["density"]["by_role"])
    row = {
        "seconds": round(seconds),
        "magnitude_without_fine_tuning": score,
        "curves": curves,
        "report": report | {"command": "python cli.py fit --strategy hybrid", "model": Path(report["model"]).name},
    }
    ROW.parent.mkdir(parents=True, exist_ok=True)
    ROW.write_text(json.dumps(row, indent=1) + "\n")
    print(f"took {seconds:.0f} s; magnitude without fine-tuning: {score}")


def curves_of(file: Path) -> dict[str, list[float]]:
    """What benchmarks/tables/pictures.py draws of a run: the threshold, and what is kept, by optimizer step."""
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["density/attention"]]
    names = ("step", "score_threshold", "density/attention", "density/feed_forward")
    return {name: [float(row[name]) for row in rows] for name in names}


@torch.no_grad()
def magnitude(folder: Path, *, density: dict[str, float]) -> dict[str, float]:
    """Scores of the dense model in `folder` pruned by magnitude to `density` by role."""
    task = QuestionAnswering(max_length=192, stride=64)
    model = task.load_model(folder)
    layout = PrunableLayout.of(model)
    masks: list[Mask] = []
    for group in layout.groups:
        masks += [mask for _, mask in masks_of(model, group, "32x32" if group in layout.attention else "unit")]
    for role, share in density.items():
        chosen = [mask for mask in masks if mask.role == role]
        values = [mask.pooled(lambda member: member.weight(model).abs()) for mask in chosen]
        kept = keep_largest(values_N=torch.cat([each.flatten() for each in values]), density=share)
        for mask, part in zip(chosen, kept.split([each.numel() for each in values]), strict=True):
            mask.set_grid(part.view(mask.kept.shape))
            install_mask(model, mask)
    remove_masks(model)
    task.prepare_data()
    task.setup("validate")
    quiet = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    return evaluate(quiet, task, model, prefix="magnitude")["metrics"]


if __name__ == "__main__":
    main()
