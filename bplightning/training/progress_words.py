"""Progress in words: which stage runs, how far it is, how long it takes, and what it has found."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer


class Pace:
    """The clock of one training, from the step at which it began or was resumed."""

    def __init__(self) -> None:
        self._begun, self._first = 0.0, 0

    def start(self, trainer: Trainer) -> None:
        """Start the clock.

        Args:
            trainer: Lightning's trainer, at its first step.
        """
        self._begun, self._first = time.monotonic(), trainer.global_step

    def words(self, trainer: Trainer, module: LightningModule, stage: str) -> list[str]:
        """Stage, step, time left, and the metrics that matter: loss, density, and the one that chooses the best model.

        Args:
            trainer: Lightning's trainer.
            module: The module that it trains.
            stage: The stage's name; an empty one is left out.
        """
        done, total = trainer.global_step, steps_of(trainer)
        words = [*([stage] if stage else []), f"step {done}/{total}"]
        if isinstance(total, int) and done > self._first:
            spent = time.monotonic() - self._begun
            left = spent / (done - self._first) * (total - done)
            words.append(f"{clock(left)} left" if done < total else f"in {clock(spent)}")
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        monitor = getattr(getattr(module, "task", None), "monitor", None)
        loss, density = found.get("task_loss"), found.get("density/total", found.get("val_density"))
        score = found.get(f"val_{monitor}")
        words += [] if loss is None else [f"loss {loss:.3g}"]
        words += [] if density is None else [f"density {density:.3g}"]
        return words + ([] if score is None else [f"{monitor} {score:.4g}"])


def steps_of(trainer: Trainer) -> int | str:
    """Optimizer steps of the whole training, or ``?`` where it has no end.

    Args:
        trainer: Lightning's trainer.
    """
    total = trainer.estimated_stepping_batches
    return int(total) if total != float("inf") else "?"


def clock(seconds: float) -> str:
    """A time as a clock shows it.

    >>> clock(62.4), clock(3723)
    ('1:02', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitted(parts: Sequence[str], width: int) -> str:
    """As many of the parts as one line of a terminal has room for, the first ones first; none is cut in two.

    >>> fitted(["stage 2/5 prune", "step 120/1260", "1:02 left", "loss 0.41", "f1 80"], 50)
    'stage 2/5 prune  step 120/1260  1:02 left  f1 80'
    """
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) <= width:
            line += f"  {part}"
    return line
