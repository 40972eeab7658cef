"""The table of benchmarks/quality/moe.py's rows, for `benchmarks/tables/tables.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "moe"
ROWS = {
    "dense": "dense",
    "wanda-50": "Wanda, 50 %",
    "moe-pruner-50": "moe-pruner, 50 %",
    "wanda-25": "Wanda, 25 %",
    "moe-pruner-25": "moe-pruner, 25 %",
    "wanda-2-4": "Wanda, 2:4",
    "moe-pruner-2-4": "moe-pruner, 2:4",
    "moe-pruner-2-4-tuned": "moe-pruner, 2:4, then fine-tuned with its zeros held",
    "moe-pruner-2-4-distilled": "the same, with expert-wise distillation",
    "experts-7": "7 of 8 experts",
    "experts-6": "6 of 8 experts",
    "experts-4": "4 of 8 experts",
}


def moe() -> list[str]:
    lines = ["| | perplexity | over dense | weights kept | parameters |", "|---" * 5 + "|"]
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ROWS if _there(name)}
    for name, words in ROWS.items():
        if name in found:
            row = found[name]
            over = 100 * (row["perplexity"] / found["dense"]["perplexity"] - 1)
            kept = f"{100 * row['density']:.1f} %"
            cells = [_perplexity(row), f"{over:+.1f} %", kept, f"{row['parameters']['all'] / 1e6:.2f} M"]
            lines.append(f"| {words} | {' | '.join(cells)} |")
        else:
            lines.append(f"| {words} | not run yet |")
    if "dense" in found:
        dense = found["dense"]
        lines += ["", f"{dense['machine']['cpu']}, 1 thread, {dense['date'][:10]}; {dense['tokens']} held-out tokens."]
    return lines


def _there(name: str) -> bool:
    return (RESULTS / f"{name}.json").exists()


def _perplexity(row: dict[str, Any]) -> str:
    each = row["perplexities"]
    ends = f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else ""
    return f"{row['perplexity']:.2f}{ends}"
