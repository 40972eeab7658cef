"""How much faster a pruned BERT-base is on a GPU: precisions, batch sizes, with and without CUDA graphs.

26 % of the encoder's linear weights are kept, as in the row of the paper that is 2.44 times as fast (arXiv 2109.04838,
on an RTX 3090). Random weights, for time does not depend on them; which heads and units stay is seeded and differs from
layer to layer. Both models are timed in turns in one process, ratios are medians of paired ratios.

    python benchmarks/speed/bert_base_gpu.py [--rows float32 bfloat16 float16]

Each row lands in benchmarks/results/bert_base_gpu/ROW.json; one that is there is not measured again. All of them take
about two minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.speed.bert_base import dense_model, hardened
from bplightning.benchmarking.benchmark import BenchmarkSettings, benchmark
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bert_base_gpu"
ROWS = ("float32", "bfloat16", "float16")
SHAPES = [(1, 128), (8, 128), (32, 128), (128, 128), (1, 384), (8, 384), (128, 384)]
DENSITY = {"attention": 0.42, "feed_forward": 0.18}
WIDTHS = {"as pruned": 1, "multiples of 16": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to measure")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="where; the rows are a GPU's")
    parser.add_argument("--seconds", type=float, default=2.0, help="most time spent on a shape")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    missing = [row for row in arguments.rows if not (RESULTS / f"{row}.json").exists()]
    backends = ["eager", "cuda-graph"] if arguments.device == "cuda" else ["eager"]
    with tempfile.TemporaryDirectory() as folder:
        dense_model().save_pretrained(f"{folder}/dense")
        for name, multiple in WIDTHS.items():
            save_compact(compact(hardened(dense_model(), density=DENSITY, multiple_of=multiple)), f"{folder}/{name}")
        for row in missing:
            settings = BenchmarkSettings(
                SHAPES, backends=backends, device=arguments.device, dtype=row, seconds=arguments.seconds
            )
            found = {
                name: benchmark(
                    f"{folder}/{name}",
                    f"{folder}/dense",
                    settings,
                    on_progress=lambda fraction, what: print(f"{100 * fraction:.0f} % {what}", flush=True),
                )
                for name in WIDTHS
            }
            for document in found.values():
                del document["command"]
                for model in document["models"].values():
                    model["path"] = Path(model["path"]).name
            (RESULTS / f"{row}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(f"{row}: {RESULTS / row}.json", flush=True)


if __name__ == "__main__":
    main()
