"""The LightningModule and its callbacks: calibration, checkpoints, resuming, monitoring."""

from bplightning.training.checkpoint_files import find_checkpoint, folder_of, read_checkpoint
from bplightning.training.kept_checkpoints import LastCheckpoint, PrunedCheckpoint
from bplightning.training.module import PruningModule, frozen_module
from bplightning.training.pruned_early_stopping import PrunedEarlyStopping
from bplightning.training.simplification import Simplification

__all__ = [
    "LastCheckpoint",
    "PrunedCheckpoint",
    "PrunedEarlyStopping",
    "PruningModule",
    "Simplification",
    "find_checkpoint",
    "folder_of",
    "frozen_module",
    "read_checkpoint",
]
