"""A run through all stages, by the command line, that can be made to die at any of its steps."""

from __future__ import annotations

import os
from pathlib import Path

from programs import Program

ROOT = Path(__file__).parents[2]
FIT = ("fit", "--task", "user_task.Deadly", "--config", "recipe.yaml")
"""The words of the command; the file may not name a class that is not typed."""

CONFIG = """
task: {class_path: user_task.Deadly}
strategy: {class_path: hybrid, init_args: {granularity: {attention: 16x16}, window: {final_warmup: 2}}}
baseline: train
distillation: {teacher: baseline}
refill: {max_epochs: 2, heads: any}
resume: true
model: {learning_rate: 1.0e-3}
trainer: {max_epochs: 2, accelerator: cpu}
"""
USER_TASK = '''
import os
import sys
from functools import partial
from pathlib import Path

from tiny_task import TinyTask

from bplightning.measuring import measure

measure.latency = partial(measure.latency, seconds=0.0, block_ms=0.0, min_rounds=6)  # of no matter here
RANK = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))


def note(event, args):
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR) and "runs" in Path(str(args[0])).parts:
        os.write(1, f"\\nwritten by rank {RANK}: {args[0]}\\n".encode())


sys.addaudithook(note)


class Deadly(TinyTask):
    """Says each training step, and dies without a word where it is told to."""

    def __init__(self):
        super().__init__(Path(), max_position_embeddings=128)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        folder = Path(self.trainer.log_dir or "").name
        stage = folder if folder in ("baseline", "refill") else "pruning"
        if self.trainer.training:
            self.reached(f"{stage} {self.trainer.global_step} rank {self.trainer.global_rank}")
        return batch

    def prepare_data(self):
        self.reached(f"preparing on rank {RANK}")

    def setup(self, stage):
        if stage == "validate":
            self.reached("evaluating" if self.trainer.state.fn == "validate" else "compacting")

    def example_inputs(self, *shape):
        self.reached("measuring")
        return super().example_inputs(*shape)

    def reached(self, point):
        # At once, and between two line ends: print may write the end of its line after another rank's line.
        os.write(1, f"\\n{point}\\n".encode())
        if os.environ.get("DIE_AT") == point:
            os._exit(9)
'''


def prepared(folder: Path, trainer: str = "") -> Path:
    """A folder with the task and the recipe, and more options of the trainer."""
    (folder / "user_task.py").write_text(USER_TASK)
    (folder / "recipe.yaml").write_text(CONFIG.replace("accelerator: cpu", f"accelerator: cpu{trainer}"))
    return folder / "runs" / "deadly-hybrid" / "version_0"


def variables(folder: Path, die_at: str = "") -> dict[str, str]:
    """What the command needs in its environment."""
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'tests' / 'support'}", "DIE_AT": die_at}


def run(folder: Path, die_at: str = "") -> tuple[int, str]:
    """The command's exit status, and what it said."""
    program = Program(ROOT / "cli.py", *FIT, cwd=folder, variables=variables(folder, die_at))
    return program.end(), program.said
