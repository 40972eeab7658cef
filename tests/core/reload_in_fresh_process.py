"""Run by `test_loading` in a process of its own: loads compact folders without bplightning, then with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoModelForSequenceClassification


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    outputs = model(**inputs)
    return torch.stack([outputs.start_logits, outputs.end_logits])


def main(folder: Path) -> None:
    """Write to ``results.json`` what each compact folder under `folder` did."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    inputs = torch.load(folder / "inputs.pt")
    results: dict[str, dict[str, object]] = {path.name: {} for path in folders}
    assert "bplightning" not in sys.modules
    for path in folders:
        try:
            AutoModelForQuestionAnswering.from_pretrained(path)
        except RuntimeError as error:
            results[path.name]["without the import"] = str(error)

    import bplightning

    print("bplightning imported", file=sys.stderr)
    for path in folders:
        result, expected = results[path.name], torch.load(path / "expected.pt")
        model = AutoModelForQuestionAnswering.from_pretrained(path)
        result["logits"] = torch.equal(logits(model, inputs), expected)
        model.save_pretrained(path / "again")
        again = AutoModelForQuestionAnswering.from_pretrained(path / "again")
        result["saved again"] = torch.equal(logits(again, inputs), expected)
        half = AutoModelForQuestionAnswering.from_pretrained(path, dtype=torch.float16)
        half.save_pretrained(path / "half")
        half = AutoModelForQuestionAnswering.from_pretrained(path / "half")
        result["half"] = str(half.dtype)
        result["half logits"] = bool((logits(half, inputs).float() - expected).abs().max() < 0.02)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            assert logits(model.to(dtype), inputs).dtype == dtype
        result["half, then float"] = torch.equal(logits(half.float().half(), inputs), logits(half, inputs))
    print("other heads", file=sys.stderr)  # their new weights are reported, rightly
    for path in folders:
        result = results[path.name]
        compact = {name: p.shape for name, p in AutoModelForQuestionAnswering.from_pretrained(path).named_parameters()}
        for auto in (AutoModel, AutoModelForSequenceClassification):
            other = auto.from_pretrained(path)
            other(**inputs)
            shapes = {name: p.shape for name, p in other.named_parameters()}
            prefix = f"{other.base_model_prefix}." if auto is AutoModel else ""
            body = [compact.get(prefix + name) == shape for name, shape in shapes.items() if ".layer." in name]
            result[auto.__name__] = bool(body) and all(body)
    assert bplightning.register is not None
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
