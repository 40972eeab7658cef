"""The stages of a run: baseline, pruning, compaction, alignment, refill, evaluation and report."""

from bplightning.stages.alignment import Alignment
from bplightning.stages.one_shot import prune
from bplightning.stages.pipeline import fit
from bplightning.stages.refill import HeldZeros, Refill
from bplightning.stages.request import RunRequest

__all__ = ["Alignment", "HeldZeros", "Refill", "RunRequest", "fit", "prune"]
