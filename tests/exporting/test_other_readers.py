"""Programs that are not ours read exported folders: transformers.js in Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import zero_randomly
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from bplightning.compaction.exact_compaction import compact
from bplightning.exporting.export import export_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "tasks" / "embedded"
READER = ROOT / "tests" / "support" / "read_with_transformers_js.mjs"
TEXTS = ["Who lives in Dinmouth?", "Sirina lives in Dinmouth, a town by the sea."]

MODELS: dict[str, tuple[str, Any]] = {
    "answer": ("embedded_start", AutoModelForQuestionAnswering),
    "write": ("language_start", AutoModelForCausalLM),
    "write-from": ("summarization_start", AutoModelForSeq2SeqLM),
}


@pytest.fixture(scope="module")
def package() -> Path:
    """The file of transformers.js, where npm has installed it; CI does."""
    folder = Path(os.environ.get("NODE_PACKAGES", ROOT / "node_modules"))
    file = folder / "@huggingface" / "transformers" / "dist" / "transformers.node.mjs"
    if shutil.which("node") is None or not file.is_file():
        pytest.skip("needs node, and `npm install @huggingface/transformers` in the folder of the clone")
    return file


@pytest.fixture(scope="module")
def made(package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, PreTrainedModel]]:
    """Exported folders of compact models with uneven heads and units, and the models in torch."""
    parent = tmp_path_factory.mktemp("exported")
    models = {}
    for kind, (start, auto) in MODELS.items():
        source = EMBEDDED / start
        model = auto.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.normal_(std=0.08)
        zero_randomly(model, "heads", seed=5)
        zero_randomly(model, "units", seed=5)
        models[kind] = compact(model).eval()
        if kind.startswith("write"):
            models[kind].generation_config.eos_token_id = None
        models[kind].save_pretrained(parent / f"{kind}-compact")
        AutoTokenizer.from_pretrained(source).save_pretrained(parent / f"{kind}-compact")
        export_model(parent / f"{kind}-compact", parent / kind, quantize="int8")
    return parent, models


def test_transformers_js_computes_what_torch_does(package: Path, made: tuple[Path, dict[str, PreTrainedModel]]) -> None:
    parent, models = made
    requests = [
        {"folder": kind, "kind": kind, "dtype": dtype, "texts": TEXTS if kind == "answer" else TEXTS[1:]}
        for kind in models
        for dtype in ("fp32", "q8")
    ]
    command = ["node", str(READER), str(package), str(parent), json.dumps(requests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(
        zip(
            [(each["kind"], each["dtype"]) for each in requests], map(json.loads, done.stdout.splitlines()), strict=True
        )
    )
    for kind, model in models.items():
        tokenizer: Any = AutoTokenizer.from_pretrained(parent / kind)
        inputs = tokenizer(*(TEXTS if kind == "answer" else TEXTS[1:]), return_tensors="pt")
        inputs.pop("token_type_ids", None) if kind.startswith("write") else None
        with torch.no_grad():
            if kind.startswith("write"):
                expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
                assert found[kind, "fp32"] == expected
                assert len(found[kind, "q8"]) == len(expected)
                continue
            outputs = model(**inputs)
        exact = torch.stack([outputs.start_logits[0], outputs.end_logits[0]])
        for dtype, tolerance in (("fp32", 1e-4), ("q8", 0.5)):
            assert (torch.tensor(found[kind, dtype]) - exact).abs().max() <= tolerance * exact.abs().max(), dtype


def test_the_merged_file_of_int8_is_in_int8(made: tuple[Path, dict[str, PreTrainedModel]]) -> None:
    inside = made[0] / "write-from" / "onnx"
    full, small = (inside / f"decoder_model_merged{suffix}.onnx" for suffix in ("", "_quantized"))
    assert small.stat().st_size < 0.6 * full.stat().st_size
