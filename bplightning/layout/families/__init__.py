"""The table of model families, one row per family.

To add a family, write its row in the file of its kind. `tests/layout/test_prunable_layout.py` and
`tests/compaction/test_exact_compaction.py` run over every row of `FAMILIES`.
"""

from __future__ import annotations

from bplightning.layout.families import decoders, encoder_decoders, encoders, experts
from bplightning.layout.families.rows import AttentionNames, ConfigWidths, Family, FeedForwardNames, Stack

FAMILIES: dict[str, Family] = {**encoders.ROWS, **encoder_decoders.ROWS, **decoders.ROWS, **experts.ROWS}
"""Model type, as in a transformers configuration, to the row of its family."""

__all__ = ["FAMILIES", "AttentionNames", "ConfigWidths", "Family", "FeedForwardNames", "Stack"]
