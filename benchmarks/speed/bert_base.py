"""What a pruned BERT-base costs and gives: speed, memory, compaction, loading; half the heads, 30 % of the units.

Random weights, for neither time nor memory depends on them; which heads and units stay is seeded and differs from layer
to layer. Models that are compared are timed in turns in one process, ratios are medians of paired ratios.

    python benchmarks/speed/bert_base.py [--rows evaluation latency ...] [--threads 1]

    evaluation   a masked forward pass in evaluation, against a dense one
    latency      the compact model in eager, against the dense one and against what FLOPs allow
    backends     the same in ONNX Runtime, float32 and int8, widths as pruned and as multiples of 16
    bfloat16     dense and compact in bfloat16, eager, against the dense one in float32
    compaction   seconds and memory that it takes
    memory       of a training step, masked against dense, both with activation checkpointing too
    loading      `from_pretrained` of the compact folder, every weight read, against the dense one
    help         `bplightning --help`, and importing bplightning

Rows land in benchmarks/results/bert_base/ROW.json; one that is there is not measured again. All of them take about 20
minutes on one core. Those of another machine stand beside them: `--results benchmarks/results/bert_base/NAME`.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import timer
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedModel

from bplightning import Progress, PrunableLayout
from bplightning.benchmarking.benchmark import BenchmarkSettings, benchmark
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.layout.resizing import size_of, writer_columns
from bplightning.masks.masking import freeze_masks
from bplightning.measuring.measure import bytes_on_disk, machine
from bplightning.measuring.random_copies import kept_at_random
from bplightning.measuring.timing import middle, paired_ratio, side_by_side
from bplightning.strategies.hybrid import Hybrid

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bert_base"
SHAPES = ((1, 128), (1, 384), (8, 128), (8, 384))
DENSITY = {"attention": 0.5, "feed_forward": 0.3}
MULTIPLE, SEED, MEGABYTE = 16, 0, 1e6
KINDS = ("dense", "masked", "dense-checkpointed", "masked-checkpointed")
"""Of a training step."""
HALF_WAY = Progress(step=500, total_steps=1000, warmup_steps=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to measure")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--training-step", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.training_step:
        print(peak_of_training(arguments.training_step))
        return
    arguments.results.mkdir(parents=True, exist_ok=True)
    for name in arguments.rows:
        path = arguments.results / f"{name}.json"
        if path.exists():
            print(f"{name}: already there", flush=True)
            continue
        row = ROWS[name](arguments.threads)
        row |= {"machine": machine(), "seed": SEED, "date": datetime.now(UTC).date().isoformat()}
        row["machine"]["threads"] = arguments.threads
        row["versions"] = {name: metadata.version(name) for name in ("torch", "transformers", "onnxruntime")}
        row["versions"]["python"] = platform.python_version()
        path.write_text(json.dumps(row, indent=1) + "\n")
        print(f"{name}: {path.read_text()}", flush=True)


# -- the models --------------------------------------------------------------------------------------------------------


def dense_model() -> PreTrainedModel:
    torch.manual_seed(SEED)
    return BertForSequenceClassification(BertConfig()).eval()


@torch.no_grad()
def hardened(model: PreTrainedModel, *, density: dict[str, float] = DENSITY, multiple_of: int = 1) -> PreTrainedModel:
    """A copy with zeros as pruning leaves them."""
    pruned = copy.deepcopy(model)
    layout = PrunableLayout.of(pruned)
    kept = kept_at_random(layout.groups, density, seed=SEED)
    for group in layout.groups:
        removed = torch.ones(size_of(group), dtype=torch.bool)
        removed[kept[group.name]] = False
        if group.role == "feed_forward":
            removed[removed.nonzero().flatten()[: -len(kept[group.name]) % multiple_of]] = False
        group.members[-1].weight(pruned)[:, writer_columns(group, removed.nonzero().flatten())] = 0
    return pruned


# -- the rows ----------------------------------------------------------------------------------------------------------


def evaluation(threads: int) -> dict[str, Any]:
    dense = dense_model()
    masked = copy.deepcopy(dense)
    strategy = Hybrid()
    strategy.attach(PrunableLayout.of(masked))
    strategy.advance(HALF_WAY)
    freeze_masks(masked)  # as each validation begins
    found = {}
    with torch.inference_mode():
        for rows, tokens in ((1, 128), (8, 128)):
            ids = torch.randint(30_000, (rows, tokens))
            calls = {"dense": partial(dense, input_ids=ids), "masked": partial(masked, input_ids=ids)}
            times = side_by_side(calls, seconds=30, min_rounds=15)
            ratio = paired_ratio(times["masked"], times["dense"])
            found[f"{rows}x{tokens}"] = {"masked_over_dense": ratio.value, "low": ratio.low, "high": ratio.high}
    return found


def latency(threads: int) -> dict[str, Any]:
    return {"compact": compared(hardened(dense_model()), threads=threads, shapes=SHAPES, backends=["eager"])}


def backends(threads: int) -> dict[str, Any]:
    wanted = {"threads": threads, "shapes": [(1, 128), (8, 128)], "backends": ["eager", "onnx", "onnx-int8"]}
    return {
        "as pruned": compared(hardened(dense_model()), **wanted),
        f"multiples of {MULTIPLE}": compared(hardened(dense_model(), multiple_of=MULTIPLE), **wanted),
    }


def bfloat16(threads: int) -> dict[str, Any]:
    """Where the processor has instructions for it, this is torch's fastest."""
    dense = dense_model()
    calls: dict[str, Any] = {"dense, float32": dense, "dense": copy.deepcopy(dense).bfloat16()}
    calls["compact, as pruned"] = compact(hardened(dense)).bfloat16()
    calls[f"compact, multiples of {MULTIPLE}"] = compact(hardened(dense, multiple_of=MULTIPLE)).bfloat16()
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for rows, tokens in ((1, 128), (8, 128)):
            ids = torch.randint(30_000, (rows, tokens))
            bound = {name: partial(model, input_ids=ids) for name, model in calls.items()}
            times = side_by_side(bound, seconds=30, min_rounds=10)
            of = {name: paired_ratio(times[name], times["dense, float32"]) for name in list(calls)[1:]}
            found[f"{rows}x{tokens}"] = {
                name: {"over_dense_float32": ratio.value, "low": ratio.low, "high": ratio.high}
                for name, ratio in of.items()
            }
    return found


def timed(
    dense: PreTrainedModel,
    zeros: PreTrainedModel,
    *,
    threads: int,
    shapes: Any,
    backends: list[str],
    seconds: float = 90,
) -> dict[str, Any]:
    """What `bplightning benchmark COMPACT --against DENSE` finds."""
    with tempfile.TemporaryDirectory() as folder:
        dense.save_pretrained(f"{folder}/dense")
        save_compact(compact(zeros), f"{folder}/compact")
        document = benchmark(
            f"{folder}/compact",
            f"{folder}/dense",
            BenchmarkSettings(shapes=shapes, backends=backends, threads=threads, seconds=seconds),
            on_progress=lambda fraction, what: print(f"{100 * fraction:.0f} % {what}", flush=True),
        )
    return {**document}


def compared(zeros: PreTrainedModel, *, threads: int, shapes: Any, backends: list[str]) -> list[dict[str, Any]]:
    """The rows of that, against the dense BERT-base."""
    found = timed(dense_model(), zeros, threads=threads, shapes=shapes, backends=backends)
    return [{**row} for row in found["rows"]]


def compaction(threads: int) -> dict[str, Any]:
    zeros = hardened(dense_model())
    seconds = []
    for _ in range(15):
        start = timer()
        small = compact(zeros)
        seconds.append(timer() - start)
    del small
    ctypes.CDLL(None).malloc_trim(0)  # glibc: what was freed so far is given back, and not used again
    Path("/proc/self/clear_refs").write_text("5")  # Linux: from here on a new peak counts
    before = peak()
    small = compact(zeros)
    above = peak() - before
    size = sum(value.numel() * value.element_size() for value in small.parameters())
    found = middle(seconds)
    return {
        "seconds": {"median": found.value, "low": found.low, "high": found.high},
        "peak_above_dense_mb": above / MEGABYTE,
        "compact_model_mb": size / MEGABYTE,
    }


def memory(threads: int) -> dict[str, Any]:
    """Each kind of step in a process of its own, whose peak counts; what is freed it gives back at once (glibc)."""
    found: dict[str, Any] = {}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    for kind in KINDS:
        command = [sys.executable, __file__, "--threads", str(threads), "--training-step", kind]
        found[f"{kind}_mb"] = float(
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        )
    layout = PrunableLayout.of(dense_model())
    layers = [sum(m.weight(layout.model).numel() for m in group.members) for group in layout.groups if group.layer == 0]
    found["masked_copy_mb"] = 4 * layout.weights() / MEGABYTE
    found["masked_copy_of_a_layer_mb"] = 4 * sum(layers) / MEGABYTE
    return found


def peak_of_training(kind: str) -> float:
    """Most memory, in megabytes, of a process in the forward and backward pass and the optimizer's first steps."""
    model = dense_model().train()
    masked = kind.startswith("masked")
    if kind.endswith("checkpointed"):
        model.gradient_checkpointing_enable()
    parameters = nn.ModuleList([model])
    if masked:
        strategy = Hybrid()
        strategy.attach(PrunableLayout.of(model))
        parameters.append(strategy)
    optimizer = torch.optim.AdamW(parameters.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(30_000, (8, 128))
    for _ in range(3):
        if masked:
            strategy.advance(HALF_WAY)
        loss = model(input_ids=ids, labels=torch.zeros(8, dtype=torch.long)).loss
        if masked:
            loss = loss + strategy.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return peak() / MEGABYTE


def loading(threads: int) -> dict[str, Any]:
    dense = dense_model()
    with tempfile.TemporaryDirectory() as folder:
        folders = {"dense": f"{folder}/dense", "compact": f"{folder}/compact"}
        dense.save_pretrained(folders["dense"])
        save_compact(compact(hardened(dense)), folders["compact"])
        load = AutoModelForSequenceClassification.from_pretrained
        calls: dict[str, Callable[[], object]] = {name: partial(load, path) for name, path in folders.items()}
        mapped = side_by_side(calls, seconds=20, min_rounds=15)
        calls = {name: partial(load_and_read, path) for name, path in folders.items()}
        times = side_by_side(calls, seconds=40, min_rounds=15)
        size = {name: bytes_on_disk(path) for name, path in folders.items()}
    ratio = paired_ratio(times["compact"], times["dense"])
    share = size["compact"] / size["dense"]
    return {
        "seconds": {name: times[name].median_ms / 1000 for name in times},
        "seconds_unread": {name: mapped[name].median_ms / 1000 for name in mapped},
        "bytes": size,
        "compact_over_dense": ratio.value,
        "compact_over_dense_per_byte": ratio.value / share,
    }


def load_and_read(path: str) -> float:
    """Load a model and look at each of its weights: until then files are only mapped into memory."""
    model = AutoModelForSequenceClassification.from_pretrained(path)
    return sum(float(value.detach().sum()) for value in model.parameters())


def help(threads: int) -> dict[str, Any]:
    commands = {
        "bplightning --help": [sys.executable, "-m", "bplightning", "--help"],
        "bplightning fit --help": [sys.executable, "-m", "bplightning", "fit", "--help"],
        "import bplightning": [sys.executable, "-c", "import bplightning"],
        "import torch, transformers": [sys.executable, "-c", "import torch, transformers"],
    }
    calls = {name: partial(subprocess.run, words, check=True, capture_output=True) for name, words in commands.items()}
    times = side_by_side(calls, seconds=60, block_ms=1, min_rounds=6)
    return {"seconds": {name: times[name].median_ms / 1000 for name in commands}}


def peak() -> int:
    """Most bytes that this process has had in memory, on Linux."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    each.__name__: each for each in (evaluation, latency, backends, bfloat16, compaction, memory, loading, help)
}

if __name__ == "__main__":
    main()
