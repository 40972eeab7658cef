"""Exact compaction: finding dead parts, removing them, and saving and loading the smaller model.

Trimming a vocabulary is in `bplightning.compaction.vocabulary`, which needs `datasets` and is not imported here.
"""

from bplightning.compaction.equivalence import LogitDifference, logit_difference, require_equal
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs, random_inputs
from bplightning.compaction.loading import register, save_compact
from bplightning.compaction.plan import CompactionPlan, GroupPlan
from bplightning.compaction.saved_models import load_saved

__all__ = [
    "CompactionPlan",
    "GroupPlan",
    "LogitDifference",
    "compact",
    "comparison_inputs",
    "load_saved",
    "logit_difference",
    "random_inputs",
    "register",
    "require_equal",
    "save_compact",
]
