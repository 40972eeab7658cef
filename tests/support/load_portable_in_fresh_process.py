"""Run by `test_portable` in a process of its own, with transformers alone: loads portable folders."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from torch import Tensor


@torch.no_grad()
def main(folder: Path) -> None:
    """Write to ``results.json`` the largest difference of each folder's logits from those it came with, relative."""
    warnings.simplefilter("error")
    results = {}
    for path in sorted(each for each in folder.iterdir() if each.is_dir()):
        model = getattr(transformers, (path / "auto").read_text()).from_pretrained(path)
        inputs, expected = torch.load(path / "inputs.pt"), torch.load(path / "expected.pt")
        outputs = [value for value in model(**inputs).values() if isinstance(value, Tensor)]
        pairs = list(zip(outputs, expected, strict=True))
        results[path.name] = max(float((got - right).abs().max() / right.abs().max()) for got, right in pairs)
    results["bplightning imported"] = "bplightning" in sys.modules
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
