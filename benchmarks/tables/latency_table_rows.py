"""The tables of benchmarks/speed/latency_target.py's rows, for `benchmarks/tables/tables.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "latency_target"
ROWS = ("speedup-1.5", "speedup-2", "speedup-3")


def latency_copies() -> list[str]:
    lines = ["| weights kept at random, seed | foreseen | measured | off by |", "|---" * 4 + "|"]
    found = _read("copies")
    if found is None:
        return [*lines, "| 50, 25 and 10 % | not run yet |"]
    for each in found["copies"]:
        off = 100 * (each["measured"] / each["predicted"] - 1)
        lines.append(
            f"| {100 * each['density']:g} %, {each['seed']} | {each['predicted']:.2f}x | {each['measured']:.2f}x "
            f"| {off:+.1f} % |"
        )
    return [*lines, "", _provenance(found)]


def latency_target() -> list[str]:
    lines = [
        "| asked | by the table: steered to, snapped to | measured at 1x128 | off by | in the run's report "
        "| accuracy, 872 sentences | 5,000 held out | weights kept |",
        "|---" * 8 + "|",
    ]
    last = None
    for name in ROWS:
        found = _read(name)
        if found is None:
            lines.append(f"| {name.partition('-')[2]}x | not run yet |")
            continue
        last, snap = found, found["snap"]
        measured = found["benchmark"]
        cells = [
            f"{snap['target']:g}x",
            f"{snap['before']:.2f}x, {snap['after']:.2f}x",
            f"**{measured['ratio']:.2f}x** ({measured['low']:.2f} to {measured['high']:.2f})",
            f"{100 * (measured['ratio'] / snap['target'] - 1):+.1f} %",
            f"{found['speedup'][snap['shape']]:.2f}x",
            f"{found['metrics']['compact']['accuracy']:.1f}",
            f"{found['held_out']['accuracy']:.1f}",
            f"{100 * found['density']['encoder_linear']:.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines if last is None else [*lines, "", _provenance(last)]


def _read(row: str) -> Any:
    path = RESULTS / f"{row}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _provenance(found: dict[str, Any]) -> str:
    machine = found["machine"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return f"{machine['cpu']}, {threads}, {found['date'][:10]}."
