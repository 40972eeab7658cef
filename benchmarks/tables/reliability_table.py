"""The tables of docs/reliability.md, which `tables.py` writes there."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
HARMLESS = {
    "refused": "refused in one line",
    "the same": "the same all the same",
    "a new head, as transformers warns": "a new head, as transformers warns",
    "a plan that keeps what is dead": "a plan that keeps what is dead",
}


def reliability() -> list[str]:
    lines = ["| | runs | faults injected | survived | lost |", "|---|---|---|---|---|"]
    for name, found in _kill_loops().items():
        lines.append(
            f"| kill loop, {name} | {found['runs']} | {found['kills']} | {found['survived']} | {found['lost']} |"
        )
    nodes = _read("two_nodes")
    lost = nodes["runs"] - nodes["same_result_as_one_node"]
    lines.append(f"| two nodes in two network namespaces | {nodes['runs']} | none | {nodes['runs'] - lost} | {lost} |")
    fuzzed = _read("fuzz")
    inputs, lost = fuzzed["inputs"], fuzzed["harmful"]
    lines.append(f"| fuzzing | {inputs:,} loads | {inputs:,} files | {inputs - lost:,} | {lost} |")
    dates = sorted({found["date"] for found in (*_kill_loops().values(), nodes, fuzzed)})
    return [
        *lines,
        "",
        f"{', '.join(dates)}; the two nodes differ from one by {nodes['largest_difference']:g} at most.",
    ]


def kill_loop() -> list[str]:
    lines = [
        "| | where SIGKILL hit | to whom | largest difference of a weight | processes left | files left |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in _kill_loops().items():
        where = Counter(_kind(hit["at"]) for hit in found["hits"])
        whom = Counter(hit["killed"] for hit in found["hits"])
        cells = [_counted(where), _counted(whom), f"{found['largest_difference']:g}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {found['orphans']} | {found['left_over_files']} |")
    return lines


def fuzz() -> list[str]:
    counts = {tuple(name.split(": ", 1)): count for name, count in _read("fuzz")["counts"].items()}
    kinds = {"header": "safetensors header", "widths": "widths, config.json", "plan": "compaction plan"}
    kinds |= {"task": "task.json", "report": "report.json"}
    others = {
        kind: sum(count for (of, what), count in counts.items() if of == kind and what not in HARMLESS)
        for kind in kinds
    }
    return [
        f"| | {' | '.join(HARMLESS.values())} | anything else |",
        "|---" * (2 + len(HARMLESS)) + "|",
        *(
            f"| {name} | {' | '.join(str(counts.get((kind, what), 0)) for what in HARMLESS)} | {others[kind]} |"
            for kind, name in kinds.items()
        ),
    ]


def _kill_loops() -> dict[str, dict[str, Any]]:
    names = {"1": "one process", "2": "two processes, DDP"}
    return {names[processes]: found for processes, found in _read("kill_loop").items()}


def _kind(point: str) -> str:
    """What a point of a run is, without its step."""
    kind = point.partition(",")[0]
    return f"a step of the {kind}" if kind in ("baseline", "pruning", "refill") else kind.partition(" ")[0]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found
