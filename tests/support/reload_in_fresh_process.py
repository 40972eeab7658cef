"""Run by `test_loading` in a process of its own: loads compact folders without bplightning, then with it."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel


@torch.no_grad()
def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Every number that `model` gives, in one row."""
    return torch.cat([value.flatten() for value in model(**inputs).values() if isinstance(value, Tensor)])


def close(half: Tensor, full: Tensor) -> bool:
    return bool((half.float() - full).abs().max() < 0.02 * full.abs().max())


def body(model: PreTrainedModel) -> dict[str, torch.Size]:
    """The shapes of the layers' parameters, by names without the head's."""
    named = {name.removeprefix(f"{model.base_model_prefix}."): each.shape for name, each in model.named_parameters()}
    return {name: shape for name, shape in named.items() if any(part.isdigit() for part in name.split("."))}


def main(folder: Path) -> None:
    """Write to ``results.json`` what each compact folder under `folder` did."""
    warnings.simplefilter("error")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    in_full = [folder / name for name in (folder / "in full").read_text().split()]
    autos: dict[str, Any] = {path.name: getattr(transformers, (path / "auto").read_text()) for path in folders}
    results: dict[str, dict[str, object]] = {path.name: {} for path in folders}
    assert "bplightning" not in sys.modules
    for path in folders:
        try:
            autos[path.name].from_pretrained(path)
        except RuntimeError as error:
            results[path.name]["without the import"] = str(error)

    import bplightning

    print("bplightning imported", file=sys.stderr)
    for path in folders:
        auto, result = autos[path.name], results[path.name]
        inputs, expected = torch.load(path / "inputs.pt"), torch.load(path / "expected.pt")
        model = auto.from_pretrained(path)
        result["logits"] = torch.equal(logits(model, inputs), expected)
        model.save_pretrained(path / "again")
        again = auto.from_pretrained(path / "again")
        result["saved again"] = torch.equal(logits(again, inputs), expected)
        if path not in in_full:
            continue
        half = auto.from_pretrained(path, dtype=torch.float16)
        half.save_pretrained(path / "half")
        half = auto.from_pretrained(path / "half")
        result["half"] = str(half.dtype)
        result["half logits"] = close(logits(half, inputs), expected)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            assert logits(model.to(dtype), inputs).dtype == dtype
        result["half, then float"] = torch.equal(logits(half.float().half(), inputs), logits(half.half(), inputs))
    print("other heads", file=sys.stderr)  # their new weights are reported, rightly
    for path in in_full:
        inputs, model = torch.load(path / "inputs.pt"), autos[path.name].from_pretrained(path)
        for auto in (AutoModel, AutoModelForSequenceClassification):
            if type(model.config) in auto._model_mapping:
                other = auto.from_pretrained(path)
                if auto is AutoModel or not model.config.is_encoder_decoder:  # BART's counts the ends of sentences
                    other(**inputs)
                results[path.name][auto.__name__] = body(other) == body(model) != {}
    assert bplightning.register is not None
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
