"""How fast a pruned BART-base writes: the first token, and those after it with cache; half the heads, 30 % of units.

As in bert_base.py: random weights, for time does not depend on them, and models that are timed in turns in one process.
Both models write as many tokens, greedily.

    python benchmarks/speed/bart_base.py [--threads 1]

Lands in benchmarks/results/bart_base.json; takes about 10 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import BartConfig, BartForConditionalGeneration

from benchmarks.speed.bert_base import DENSITY, SEED, hardened, timed
from bplightning import PrunableLayout

RESULT = Path(__file__).resolve().parents[1] / "results" / "bart_base.json"
BASE = {
    **{f"{stack}_layers": 6 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 12 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 3072 for stack in ("encoder", "decoder")},
    "d_model": 768,
}
"""BART-base; the configuration's own defaults are BART-large."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    dense = BartForConditionalGeneration(BartConfig(**BASE)).eval()
    roles = {group.role for group in PrunableLayout.of(dense).groups}
    pruned = hardened(
        dense, density={role: DENSITY["feed_forward" if "feed_forward" in role else "attention"] for role in roles}
    )
    wanted = {"threads": arguments.threads, "shapes": [(1, 128), (8, 128)], "backends": ["eager", "onnx"]}
    document = timed(dense, pruned, **wanted, seconds=120)
    for name, model in document["models"].items():
        model["path"] = name
    RESULT.write_text(json.dumps(document | {"command": "python benchmarks/speed/bart_base.py"}, indent=1) + "\n")


if __name__ == "__main__":
    main()
