"""The promises of a strategy and a task, and how a task is stored next to a model."""

from bplightning.contracts.capabilities import Advising, LearnsFromTeacher, OneShot, Prepared, Staged, Steered
from bplightning.contracts.scheduled import ScheduledStrategy
from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.target import NO_TARGET, Target
from bplightning.contracts.targeted import Targeted
from bplightning.contracts.task import Task
from bplightning.contracts.task_file import load_task, save_task
from bplightning.contracts.window import PRUNING_WINDOW, PruningWindow

__all__ = [
    "NO_TARGET",
    "PRUNING_WINDOW",
    "Advising",
    "LearnsFromTeacher",
    "OneShot",
    "Prepared",
    "Progress",
    "PruningStrategy",
    "PruningWindow",
    "ScheduledStrategy",
    "Staged",
    "Steered",
    "Target",
    "Targeted",
    "Task",
    "load_task",
    "save_task",
]
