"""Run by `test_encoder_decoders` in a process of its own: loads compact folders and generates with what they hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM

import bplightning


def main(folder: Path) -> None:
    """Write to ``results.json`` how each folder's generation compares with what is expected beside it."""
    assert bplightning.register is not None
    results = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        expected = torch.load(path / "expected.pt")
        model = AutoModelForSeq2SeqLM.from_pretrained(path)
        found = model.generate(**expected["inputs"], return_dict_in_generate=True, output_logits=True)
        steps = [float((a - b).abs().max()) for a, b in zip(found.logits, expected["logits"], strict=True)]
        results[path.name] = {
            "sequences": torch.equal(found.sequences, expected["sequences"]),
            "difference": max(steps),
            "num_beams": model.generation_config.num_beams,
        }
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
