"""The tables of benchmarks/quality/quality.py's rows, for `benchmarks/tables/tables.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "quality"
SEEDS = ("filled-25", "filled-25-seed1", "filled-25-seed2")
ROWS = (
    "dense",
    "filled-50",
    *SEEDS,
    "filled-12",
    "struct-25",
    "struct-25-heads-slower",
    "movement-25",
    "magnitude-25",
    "unstructured-25",
)
SQUAD = ("squad-filled-50", "squad-filled-25", "squad-filled-25-longer")
GOES_ON = {"squad-filled-25-longer": "squad-filled-25"}
"""A row that trains another row's compact model further: its weights and its speed are that one's."""
ABLATION = {
    "filled-25": "all of it",
    "attention-slower": "a tenth of the penalty on attention (`role_weights`)",
    "no-teacher": "without a teacher",
    "no-refill": "without refill: 6 epochs of pruning, not 3 and 3",
    "untied-scores": "feed-forward layers in 32 x 32 blocks, not by units of one score",
    "score-lr-0.01": "scores learn at 0.01, the papers' rate for runs 30 times as long",
    "late-schedule": "pruning ends at 80 % of its part of the run, not at half",
}


def rows() -> dict[str, Any]:
    """The rows there are."""
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def quality() -> list[str]:
    found = rows()
    lines = [
        "| | accuracy, 872 sentences | 5,000 held out | less than dense there, 95 % interval | weights kept | stored "
        "| fewer FLOPs | speed-up 1x128 | speed-up 8x128 |",
        "|---" * 9 + "|",
    ]
    for name in ROWS:
        if name not in found:
            lines.append(f"| {name} | not run yet |")
            continue
        lines.append(f"| {name} | {' | '.join(cells(found, name))} |")
    seeds = [found[name]["held_out"]["accuracy"] for name in SEEDS if name in found]
    if len(seeds) > 1:
        low, high = interval([losses(found, name) for name in SEEDS if name in found])
        lines += [
            "",
            f"filled-25 over {len(seeds)} seeds: {mean(seeds):.2f} held out (standard deviation {stdev(seeds):.2f}), "
            f"{(low + high) / 2:.2f} less than dense, 95 % interval {low:.2f} to {high:.2f}.",
        ]
    return [*lines, "", *provenance({name: row for name, row in found.items() if name not in SQUAD})]


def ablation() -> list[str]:
    found = rows()
    lines = [
        "| | accuracy, 872 sentences | 5,000 held out | less than dense there, 95 % interval | weights kept | stored "
        "| fewer FLOPs |",
        "|---" * 7 + "|",
    ]
    for name, words in ABLATION.items():
        if name not in found:
            lines.append(f"| {words} | not run yet |")
            continue
        lines.append(f"| {words} | {' | '.join(cells(found, name)[:-2])} |")  # timed on several machines
    return lines


def squad() -> list[str]:
    found = rows()
    lines = [
        "| | F1 | exact match | F1 less than dense | weights kept | stored | fewer FLOPs | speed-up 1x128 "
        "| speed-up 8x128 |",
        "|---" * 9 + "|",
    ]
    if SQUAD[0] in found:  # the model that all of them were pruned from
        before = found[SQUAD[0]]["metrics"]["dense"]
        lines.append(f"| dense | {before['f1']:.1f} | {before['exact_match']:.1f} |  | 100 % | 100 % | 1x | 1x | 1x |")
    for name in SQUAD:
        if name not in found:
            lines.append(f"| {name} | not run yet |")
            continue
        metrics, dense = (found[name]["metrics"][model] for model in ("compact", "dense"))
        scores = (f"{metrics['f1']:.1f}", f"{metrics['exact_match']:.1f}", f"{dense['f1'] - metrics['f1']:.1f}")
        of = found[GOES_ON.get(name, name)]
        lines.append(f"| {name} | {' | '.join([*scores, *sizes(of)])} |")
    return [*lines, "", *provenance({name: found[name] for name in SQUAD if name in found})]


def cells(found: dict[str, Any], name: str) -> list[str]:
    row = found[name]
    less = ""
    if name != "dense" and "dense" in found:
        low, high = interval([losses(found, name)])
        less = f"{(low + high) / 2:.2f} ({low:.2f} to {high:.2f})"
    return [
        f"{row['metrics']['compact']['accuracy']:.1f}",
        f"{row['held_out']['accuracy']:.2f}",
        less,
        *sizes(row),
    ]


def sizes(row: dict[str, Any]) -> list[str]:
    """Weights that masks kept, and that the compact model stores, which a refill fills; FLOPs and speed."""
    if row["strategy"] == "dense":
        return ["100 %", "100 %", "1x", "1x", "1x"]
    dense, compact = (row["parameters"][model]["encoder_linear"] for model in ("dense", "compact"))
    flops = row["flops"]["dense"] / row["flops"]["compact"]
    shares = (f"{100 * share:.1f} %" for share in (row["density"]["encoder_linear"], compact / dense))
    return [*shares, f"{flops:.2f}x", *(f"{row['speedup'][shape]:.2f}x" for shape in ("1x128", "8x128"))]


def losses(found: dict[str, Any], name: str) -> list[int]:
    """Of each held-out sentence, what the row loses against the dense model it was pruned from: 1, 0 or -1."""
    held_out = found[name]["held_out"]
    dense = held_out.get("dense_right", found["dense"]["held_out"]["right"])
    return [int(before) - int(after) for before, after in zip(bits(dense), bits(held_out["right"]), strict=True)]


def bits(hexadecimal: str) -> str:
    return f"{int(hexadecimal, 16):0{4 * len(hexadecimal)}b}"


def interval(runs: list[list[int]]) -> tuple[float, float]:
    """95 % interval of the mean loss in points, paired by sentence; of several runs each sentence's mean counts."""
    each = [100 * mean(values) for values in zip(*runs, strict=True)]
    half = 1.96 * stdev(each) / math.sqrt(len(each))
    return mean(each) - half, mean(each) + half


def provenance(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    seconds = [row["seconds"] for row in found.values() if row.get("seconds")]
    machines: dict[str, list[str]] = {}
    for name, row in sorted(found.items()):
        threads = row["machine"]["threads"]
        where = f"{row['machine']['cpu']}, {threads} thread{'s' if threads > 1 else ''}, {row['date'][:10]}"
        machines.setdefault(where, []).append(name)
    first, *others = sorted(machines, key=lambda machine: -len(machines[machine]))
    where = "; ".join([first, *(f"{machine}: {', '.join(machines[machine])}" for machine in others)])
    minutes = sorted({round(each / 60) for each in seconds})
    took = f"; {' to '.join(map(str, minutes[:: max(1, len(minutes) - 1)]))} minutes a row, along with other work"
    took = took if len(minutes) > 1 else ""
    return [f"{where}; seed 0 unless named{took}. Each loss is against the run's own dense model."]
