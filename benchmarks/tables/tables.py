"""Write the tables of README.md and docs/ from the rows in benchmarks/results.

    python benchmarks/tables/tables.py

Each table stands between ``<!-- NAME -->`` and ``<!-- end -->``; everything else in those files stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from benchmarks.quality import beyond, one_shot
from benchmarks.tables import bert_base_table, latency_table_rows, moe_table, quality_table, reliability_table
from bplightning.layout.families import FAMILIES
from bplightning.plugins import STRATEGIES, TASKS, available, load

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SQUAD_ROWS = ("dense", "hybrid-10", "hybrid-80", "soft-movement-80", "soft-movement-110", "movement", "magnitude")

SOME_FAMILIES = {
    "cofi": "BERT and its like only",
    "moe-pruner": "made for mixtures of experts",
    "one-shot-taylor": "all but OLMoE",
    "post-training": "all but OLMoE",
    "wanda": "all but mixtures of experts",
    "ziplm": "not OLMoE, nor a decoder without its encoder",
}
"""Strategies that do not prune every architecture, or are made for some."""


def main() -> None:
    tables = {
        "benchmark": benchmark("sst2-filled-25"),
        "benchmark_compile": benchmark("sst2-ziplm-one-shot-3"),
        "beyond": beyond.table(),
        "bart_base": bert_base_table.bart(),
        "bert_base_backends": bert_base_table.backends(),
        "bert_base_backends_avx512": bert_base_table.backends("avx512"),
        "bert_base_bfloat16": bert_base_table.bfloat16(),
        "bert_base_gpu": bert_base_table.gpu(),
        "bert_base_latency": bert_base_table.latency(),
        "bert_base_others": bert_base_table.others(),
        "demo": demo(),
        "fuzz": reliability_table.fuzz(),
        "kill_loop": reliability_table.kill_loop(),
        "reliability": reliability_table.reliability(),
        "families": families(),
        "moe": moe_table.moe(),
        "latency_copies": latency_table_rows.latency_copies(),
        "latency_target": latency_table_rows.latency_target(),
        "one_shot": one_shot.table(),
        "quality": quality_table.quality(),
        "quality_ablation": quality_table.ablation(),
        "quality_squad": quality_table.squad(),
        "squad_minilm": squad_minilm(),
        "squad_minilm_smaller": squad_minilm_smaller(),
        "scaling": scaling(),
        "scaling_check": scaling_check(),
        "scitldr": scitldr(),
        "sst2_minilm": sst2_minilm(),
        "training_step": training_step(),
        "train_large": train_large(),
    }
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text()
        for name, lines in tables.items():
            block = "\n".join([f"<!-- {name} -->", "", *lines, "", "<!-- end -->"])
            text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
        path.write_text(text)


def told(strategy: str) -> str:
    return f"`{strategy}`" + (f" ({SOME_FAMILIES[strategy]})" if strategy in SOME_FAMILIES else "")


def families() -> list[str]:
    """What can be combined, from the registered plugins, the family table and transformers' own heads."""
    tasks: dict[str, Any] = {name: load(TASKS, name) for name in available(TASKS)}
    rows: dict[tuple[bool, ...], list[str]] = {}
    for family in FAMILIES:
        heads = tuple(task.supports(CONFIG_MAPPING[family]()) for task in tasks.values())
        rows.setdefault(heads, []).append(f"`{family}`")
    return [
        f"| model type | {' | '.join(f'`{name}`' for name in tasks)} |",
        "|---" * (1 + len(tasks)) + "|",
        *(
            f"| {', '.join(names)} | {' | '.join('yes' if has else '' for has in heads)} |"
            for heads, names in rows.items()
        ),
        "",
        f"Each of them works with every strategy: {', '.join(map(told, available(STRATEGIES)))}.",
    ]


def benchmark(model: str) -> list[str]:
    path = RESULTS / "benchmark" / f"{model}.json"
    if not path.exists():
        return ["Not run yet."]
    found = json.loads(path.read_text())
    lines = [
        "| | model, backend | speed-up over dense in the same backend | ideal by FLOPs | of that | over dense in eager "
        "| median, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        own, eager = row["speedup"], row["speedup_over_eager"]
        cells = ["", "", ""]
        if own is not None:
            ratio = f"{bert_base_table.ratio(row, 'speedup')} ({own['low']:.2f} to {own['high']:.2f})"
            cells = [ratio, f"{row['ideal_speedup']:.2f}x", f"{100 * row['efficiency']:.0f} %"]
        cells.append("" if eager is None else bert_base_table.ratio(row, "speedup_over_eager"))
        name = f"{row['model']}, {row['backend']}"
        lines.append(f"| {row['shape']} | {name} | {' | '.join(cells)} | {row['latency_ms']['median']:.3g} |")
    machine = found["machine"]
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "onnxruntime"))
    return [*lines, "", f"{machine['cpu']}, {machine['threads']} thread, {versions}, {found['date'][:10]}."]


SCALING_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "AdamW",
    "scores": "scores",
    "grids": "grids",
    "masked_copies": "masked weights, until the backward pass",
    "communicated": "summed over ranks in each step",
}


def scaling() -> list[str]:
    plans = json.loads((RESULTS / "scaling.json").read_text())["plans"]
    return [
        f"| GB | {' | '.join(SCALING_PARTS.values())} |",
        "|---" * (1 + len(SCALING_PARTS)) + "|",
        *(
            f"| {model}, {strategy} | {' | '.join(f'{plan[part] / 1e9:.3g}' for part in SCALING_PARTS)} |"
            for model, by_strategy in plans.items()
            for strategy, plan in by_strategy.items()
        ),
    ]


def scaling_check() -> list[str]:
    found = json.loads((RESULTS / "scaling.json").read_text())
    return [
        f"| bytes | {' | '.join(SCALING_PARTS.values())} |",
        "|---" * (1 + len(SCALING_PARTS)) + "|",
        *(
            f"| {strategy}, {kind} | {' | '.join(f'{values[part]:,}' for part in SCALING_PARTS)} |"
            for strategy, kinds in found["check"].items()
            for kind, values in kinds.items()
        ),
        "",
        f"BERT of 4 layers, hidden size 128; {found['date']}.",
    ]


def demo() -> list[str]:
    row = json.loads((RESULTS / "demo.json").read_text())
    report = row["report"]
    dense, compact = report["metrics"]["dense"], report["metrics"]["compact"]
    magnitude = row["magnitude_without_fine_tuning"]
    weights = report["parameters"]
    heads, units = report["heads"], report["units"]
    return [
        "| | dense | hybrid, compact |",
        "|---|---|---|",
        f"| F1 / exact match | {score(dense)} | {score(compact)} |",
        f"| encoder linear weights | {weights['dense']['encoder_linear']:,} "
        f"| {weights['compact']['encoder_linear']:,} |",
        f"| of these non-zero | 100 % | {percent(report['density']['encoder_linear'])} of the dense model's |",
        f"| heads, feed-forward units | {heads['total']}, {units['total']} | {heads['kept']}, {units['kept']} |",
        f"| file | {megabytes(report, 'dense')} | {megabytes(report, 'compact')} |",
        *(f"| speed-up, {shape} | 1x | **{report['speedup'][shape]:.2f}x** |" for shape in report["speedup"]),
        f"| magnitude pruning to the same density, no fine-tuning | | {score(magnitude)} |",
        "",
        f"{provenance(report)}; {row['seconds']} seconds from start to finish, dense baseline included.",
    ]


def comparison(benchmark: str, names: Iterable[str], scores: dict[str, Callable[[dict[str, Any]], float]]) -> list[str]:
    """A row a run: its scores, what is left of the model, what that gives.

    Args:
        benchmark: Folder of the rows in benchmarks/results.
        names: The rows.
        scores: Heading of a column to the score, from a run's report.
    """
    lines = [
        f"| | {' | '.join(scores)} | encoder linear weights: non-zero | in the compact model | heads | units | file | "
        "speed-up 1x128 | speed-up 8x128 |",
        "|---" * (8 + len(scores)) + "|",
    ]
    last = None
    for name in names:
        path = RESULTS / benchmark / f"{name}.json"
        if not path.exists():
            lines.append(f"| {name} | not run yet |")
            continue
        last = report = json.loads(path.read_text())
        weights = report["parameters"]
        share = weights["compact"]["encoder_linear"] / weights["dense"]["encoder_linear"]
        speeds = [f"{report['speedup'][shape]:.2f}x" if name != "dense" else "1x" for shape in ("1x128", "8x128")]
        cells = [
            *(f"{value(report):.1f}" for value in scores.values()),
            percent(report["density"]["encoder_linear"]),
            percent(share),
            f"{report['heads']['kept']} of {report['heads']['total']}",
            f"{report['units']['kept']} of {report['units']['total']}",
            megabytes(report, "compact"),
            *speeds,
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines if last is None else [*lines, "", f"{provenance(last)}."]


def squad_minilm() -> list[str]:
    scores = {"F1": lambda report: report["metrics"]["compact"]["f1"]}
    scores["exact match"] = lambda report: report["metrics"]["compact"]["exact_match"]
    return comparison("squad_minilm", SQUAD_ROWS, scores)


def sst2_minilm() -> list[str]:
    scores = {"accuracy, 872 sentences": lambda report: report["metrics"]["compact"]["accuracy"]}
    scores["5,000 held out"] = lambda report: report["held_out"]["accuracy"]
    return comparison("sst2_minilm", sst2_rows(), scores)


def sst2_rows() -> list[str]:
    """The rows there are, by strategy, the densest first."""
    found = {path.stem: json.loads(path.read_text()) for path in (RESULTS / "sst2_minilm").glob("*.json")}
    return sorted(found, key=lambda name: (found[name]["strategy"], -found[name]["density"]["encoder_linear"]))


def squad_minilm_smaller() -> list[str]:
    lines = [
        "| | F1 | exact match | tokens | all parameters | precision | file | speed-up 1x128 | speed-up 8x128 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    last = None
    for name in ("movement", "movement+vocabulary", "movement+vocabulary+bfloat16"):
        path = RESULTS / "squad_minilm" / f"{name}.json"
        if not path.exists():
            lines.append(f"| {name} | not run yet |")
            continue
        last = report = json.loads(path.read_text())
        metrics = report["metrics"]["compact"]
        tokens = report.get("vocabulary", {"kept": 30_522})["kept"]  # rows of version 1 had the whole vocabulary
        cells = [
            f"{metrics['f1']:.1f}",
            f"{metrics['exact_match']:.1f}",
            f"{tokens:,}",
            f"{report['parameters']['compact']['all'] / 1e6:.1f} M",
            report.get("dtype", "float32"),
            megabytes(report, "compact"),
            *(f"{report['speedup'][shape]:.2f}x" for shape in ("1x128", "8x128")),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines if last is None else [*lines, "", f"{provenance(last)}."]


def scitldr() -> list[str]:
    lines = [
        "| | ROUGE-2 | encoder and decoder linear weights: non-zero | heads: encoder, decoder, cross | file "
        "| speed-up 8x128 | the same, and 32 tokens generated with cache | summaries equal to the masked model's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    last = None
    for name in ("bart-dense", "bart-hybrid-2", "t5-dense", "t5-hybrid-2"):
        path = RESULTS / "scitldr" / f"{name}.json"
        if not path.exists():
            lines.append(f"| {name} | not run yet |")
            continue
        last = report = json.loads(path.read_text())
        heads = [
            sum(layer["kept"] for layer in report["heads"]["by_layer"] if re.fullmatch(kind, layer["name"]))
            for kind in (r"encoder\..*", r"decoder\..*\.self", r"decoder\..*\.cross")
        ]
        dense, same = "dense" in name, report.get("same_summaries")
        cells = [
            f"{report['metrics']['compact']['rouge2']:.1f}",
            percent(report["density"]["encoder_linear"]),
            ", ".join(map(str, heads)),
            megabytes(report, "compact"),
            *("1x" if dense else f"{report['speedup'][shape]:.2f}x" for shape in ("8x128", "8x128+32")),
            "" if dense or not same else f"{same['same']} of {same['documents']}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines if last is None else [*lines, "", f"{provenance(last)}."]


def training_step() -> list[str]:
    lines = ["| device, precision | masked / dense, median | quartiles | dense step |", "|---|---|---|---|"]
    for path in sorted((RESULTS / "training_step").glob("*.json")):
        row = json.loads(path.read_text())
        ratio = row["masked_over_dense"]
        low, high = ratio["quartiles"]
        count = row["machine"]["threads"]
        where = f"{row['machine']['cpu']}, {count} thread{'s' * (count > 1)}, {row['precision']}, {row['date']}"
        seconds = row["seconds"]["dense"]
        lines.append(f"| {where} | **{ratio['median']:.3f}** | {low:.3f} to {high:.3f} | {seconds:.2f} s |")
    return lines


def train_large() -> list[str]:
    path = RESULTS / "train_large.json"
    lines = [
        "| model | kept | accuracy | ms at 8x128 | weights on disk | beaten at its latency | at its size |",
        "|---" * 7 + "|",
    ]
    if not path.exists():
        return [*lines, "| not run yet |"]
    found = json.loads(path.read_text())
    order = list(found["pretraining"])
    for point in sorted(found["points"], key=lambda each: (order.index(each["model"]), -each["density"])):
        beaten = ("yes" if point["beaten"][cost] else "**no**" for cost in ("latency_ms", "bytes"))
        lines.append(
            f"| {point['model']}, {point['kind']} | {100 * point['density']:.0f} % | {point['score']:.1f} "
            f"| {point['latency_ms']:.1f} | {point['bytes'] / 1e6:.2f} MB | {' | '.join(beaten)} |"
        )
    trained = ", ".join(
        f"{size} {row['steps']} steps in {row['processor_seconds']} s" for size, row in found["pretraining"].items()
    )
    return [*lines, "", f"Pretrained: {trained}. {found['machine']}, 1 thread, seed 0, {found['date']}."]


def score(metrics: dict[str, float]) -> str:
    return f"{metrics['f1']:.1f} / {metrics['exact_match']:.1f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def megabytes(report: dict[str, Any], which: str) -> str:
    return f"{report['bytes_on_disk'][which] / 1e6:.1f} MB"


def provenance(report: dict[str, Any]) -> str:
    machine = report["machine"]
    seed = "" if report["seed"] is None else f"seed {report['seed']}, "
    return f"{machine['cpu']}, {machine['threads']} threads, {seed}{report['date'][:10]}"


if __name__ == "__main__":
    main()
