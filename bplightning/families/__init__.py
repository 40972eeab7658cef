"""The table of model families, one row a family.

To add one, write its row in the file of its kind; `tests/core/test_layout.py` and `tests/core/test_compaction.py` run
over every row of `FAMILIES`.
"""

from __future__ import annotations

from bplightning.families import decoders, encoder_decoders, encoders, experts
from bplightning.families.rows import AttentionNames, Family, FeedForwardNames, Stack

FAMILIES: dict[str, Family] = {**encoders.ROWS, **encoder_decoders.ROWS, **decoders.ROWS, **experts.ROWS}
"""Model type, as in a transformers configuration, to its row."""

__all__ = ["FAMILIES", "AttentionNames", "Family", "FeedForwardNames", "Stack"]
