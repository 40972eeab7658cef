"""The tables of benchmarks/speed/bert_base.py's rows, for `benchmarks/tables/tables.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bplightning.measuring.timing import STEADY_ROUNDS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bert_base"
GPU = RESULTS.parent / "bert_base_gpu"
BART = RESULTS.parent / "bart_base.json"


def row(name: str, machine: str = "") -> dict[str, Any] | None:
    """A row, if it was measured."""
    path = RESULTS / machine / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def latency() -> list[str]:
    found = row("latency")
    lines = ["| | speed-up | ideal by FLOPs | of that | compact / dense | dense, ms |", "|---" * 6 + "|"]
    if found is None:
        return [*lines, "| not run yet |"]
    dense = {each["shape"]: each["latency_ms"]["median"] for each in found["compact"] if each["model"] == "dense"}
    for each in found["compact"]:
        if each["model"] == "compact":
            own, shape, ideal = each["speedup"], each["shape"], each["ideal_speedup"]
            lines.append(
                f"| {shape} | {ratio(each, 'speedup')} ({own['low']:.2f} to {own['high']:.2f}) | {ideal:.2f}x "
                f"| {100 * each['efficiency']:.0f} % | {1 / own['ratio']:.3f} | {dense[shape]:.4g} |"
            )
    return [*lines, "", provenance(found)]


def backends(machine: str = "") -> list[str]:
    found = row("backends", machine)
    lines = [
        "| | backend | model | time / dense in eager | speed-up over dense in the same backend |",
        "|---" * 5 + "|",
    ]
    if found is None:
        return [*lines, "| not run yet |"]
    for kind, rows in ((kind, found[kind]) for kind in found if isinstance(found[kind], list)):
        for each in sorted(rows, key=lambda each: (each["shape"], each["backend"], each["model"] != "dense")):
            first = kind == next(iter(found))  # the dense models are the same in both
            if (each["model"] == "dense" and not first) or (each["model"], each["backend"]) == ("dense", "eager"):
                continue
            model = "dense" if each["model"] == "dense" else f"compact, {kind}"
            eager = each["speedup_over_eager"]
            over = f"{mark(each, 'speedup_over_eager')}{1 / eager['ratio']:.3f}"
            same = "" if each["speedup"] is None else ratio(each, "speedup")
            lines.append(f"| {each['shape']} | {each['backend']} | {model} | {over} | {same} |")
    return [*lines, "", provenance(found)]


def bfloat16() -> list[str]:
    found = row("bfloat16")
    if found is None:
        return ["Not run yet."]
    shapes = [shape for shape in found if "x" in shape]
    lines = [f"| time / dense in eager, float32 | {' | '.join(shapes)} |", "|---" * (1 + len(shapes)) + "|"]
    for model in found[shapes[0]]:
        cells = ("{over_dense_float32:.3f} ({low:.3f} to {high:.3f})".format(**found[shape][model]) for shape in shapes)
        lines.append(f"| {model}, bfloat16 | {' | '.join(cells)} |")
    return [*lines, "", provenance(found)]


def bart() -> list[str]:
    """First token and each one after it, of benchmarks/speed/bart_base.py."""
    lines = [
        "| | what | backend | speed-up over dense in the same backend | ideal by FLOPs | of that | dense | compact |",
        "|---" * 8 + "|",
    ]
    if not BART.exists():
        return [*lines, "| not run yet |"]
    found = json.loads(BART.read_text())
    units: dict[str, Callable[[dict[str, Any]], str]] = {
        "first_token": lambda each: f"{each['latency_ms']['median']:.4g} ms",
        "decoding": lambda each: f"{each['tokens_per_second']:.3g} tokens/s",
    }
    for small in found["rows"]:
        if small["model"] != "compact" or small["work"] not in units:
            continue
        (dense,) = (
            each
            for each in found["rows"]
            if each["model"] == "dense" and all(each[key] == small[key] for key in ("work", "shape", "backend"))
        )
        unit, own = units[small["work"]], small["speedup"]
        lines.append(
            f"| {small['shape']} | {small['work'].replace('_', ' ')} | {small['backend']} "
            f"| {ratio(small, 'speedup')} ({own['low']:.2f} to {own['high']:.2f}) | {small['ideal_speedup']:.2f}x "
            f"| {100 * small['efficiency']:.0f} % | {unit(dense)} | {unit(small)} |"
        )
    machine, versions = found["machine"], found["versions"]
    return [
        *lines,
        "",
        f"{machine['cpu']}, {machine['threads']} thread, seed 0, torch {versions['torch']}, "
        f"onnxruntime {versions['onnxruntime']}, {found['date'][:10]}.",
    ]


def gpu() -> list[str]:
    """Speed-ups on a GPU: shape by precision and widths, each in eager and as a CUDA graph."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(GPU.glob("*.json"), reverse=True)}
    columns = {
        f"{precision}, {widths}": {
            (each["shape"], each["backend"]): each for each in document["rows"] if each["speedup"]
        }
        for precision, documents in found.items()
        for widths, document in documents.items()
        if precision != "float32" or widths == "as pruned"  # in float32 both are alike
    }
    if not columns:
        return ["Not run yet."]
    shapes = list(dict.fromkeys(shape for rows in columns.values() for shape, _ in rows))
    lines = ["| | backend | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for shape in shapes:
        for backend in ("eager", "cuda-graph"):
            cells = [ratio(rows[shape, backend], "speedup") for rows in columns.values()]
            lines.append(f"| {shape} | {backend} | {' | '.join(cells)} |")
    document = next(iter(found.values()))["as pruned"]
    versions = f"torch {document['versions']['torch']}, Python {document['versions']['python']}"
    where = f"{document['machine']['device']}, seed 0, {versions}, {document['date'][:10]}."
    rounds = [each["rounds"] for rows in columns.values() for each in rows.values()]
    ideal = [each["ideal_speedup"] for each in document["rows"] if each["ideal_speedup"]]
    told = f"Ideal by FLOPs: {min(ideal):.2f}x to {max(ideal):.2f}x. {min(rounds)} to {max(rounds)} rounds a shape."
    return [*lines, "", f"{told} {where}"]


def others() -> list[str]:
    lines = ["| what | measured | asked for |", "|---|---|---|"]
    found = {name: row(name) for name in ("evaluation", "compaction", "memory", "loading", "help")}
    for name, each in found.items():
        if each is None:
            lines.append(f"| {name} | not run yet | |")
            continue
        lines += [f"| {what} | {value} | {wanted} |" for what, value, wanted in LINES[name](each)]
    rows: dict[str, list[str]] = {}
    for name, each in found.items():
        if each is not None:
            rows.setdefault(provenance(each), []).append(name)
    return [*lines, "", *(f"- {', '.join(names)}: {of}" for of, names in rows.items())]


def of_evaluation(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    shapes = [(shape, each) for shape, each in found.items() if "x" in shape]
    return [
        (
            f"masked evaluation forward / dense, {shape}",
            f"{each['masked_over_dense']:.3f} ({each['low']:.3f} to {each['high']:.3f})",
            "at most 1.05; published code 2.07 to 2.29 at 1x128",
        )
        for shape, each in shapes
    ]


def of_compaction(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    peak, size = found["peak_above_dense_mb"], found["compact_model_mb"]
    return [
        ("compaction", f"{found['seconds']['median']:.2f} s", "at most 0.15 s; published code 0.6 s"),
        ("memory of compaction above the dense model", f"{peak:.0f} MB", f"at most the compact model's, {size:.0f} MB"),
    ]


def of_memory(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    more = found["masked_mb"] - found["dense_mb"]
    checkpointed = found["masked-checkpointed_mb"] - found["dense-checkpointed_mb"]
    return [
        ("peak of a dense training step's process, 8x128", f"{found['dense_mb']:.0f} MB", ""),
        (
            "the same with masks, above that",
            f"{more:+.0f} MB",
            f"at most one masked copy, {found['masked_copy_mb']:.0f} MB",
        ),
        (
            "both with activation checkpointing",
            f"{checkpointed:+.0f} MB",
            f"at most a layer's masked copy, {found['masked_copy_of_a_layer_mb']:.0f} MB",
        ),
    ]


def of_loading(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    read, unread = found["seconds"], found["seconds_unread"]
    ratio, by_byte = found["compact_over_dense"], found["compact_over_dense_per_byte"]
    return [
        (
            "loading and reading, compact / dense",
            f"{ratio:.2f} ({read['compact']:.2f} and {read['dense']:.2f} s)",
            "",
        ),
        ("the same by byte", f"{by_byte:.2f}", "at most 1"),
        ("loading alone, files only mapped", f"{unread['compact']:.2f} and {unread['dense']:.2f} s", ""),
    ]


def of_help(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    wanted = {"bplightning --help": "under 5 s"}
    return [(f"`{what}`", f"{took:.1f} s", wanted.get(what, "")) for what, took in found["seconds"].items()]


LINES = {
    "evaluation": of_evaluation,
    "compaction": of_compaction,
    "memory": of_memory,
    "loading": of_loading,
    "help": of_help,
}


def ratio(row: dict[str, Any], which: str) -> str:
    return f"{mark(row, which)}{row[which]['ratio']:.2f}x"


def mark(row: dict[str, Any], which: str) -> str:
    """What stands before a ratio that did not settle; older rows call one settled after however few rounds."""
    return "" if row[which]["settled"] and row["rounds"] >= STEADY_ROUNDS else "~"


def provenance(found: dict[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine['cpu']}, {threads}, seed {found['seed']}, torch {versions['torch']}, {found['date']}."
