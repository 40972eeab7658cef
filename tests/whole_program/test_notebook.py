"""The notebook from a dense model to ONNX, cell by cell, with a run that is cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "from_dense_to_onnx.ipynb"
SHORT = {"trainer.max_steps": 4, "trainer.limit_val_batches": 1, "trainer.log_every_n_steps": 4}


@pytest.mark.timeout(400)
def test_every_cell_runs_and_onnx_says_what_torch_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    seen: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            if source.startswith("OPTIONS = "):
                source = source.replace("\n", f"\nOPTIONS |= {SHORT}\n", 1)
            exec(compile(source, str(NOTEBOOK), "exec"), seen)
    assert seen["OPTIONS"]["trainer.max_steps"] == 4
    assert seen["logits"] == pytest.approx(seen["expected"], abs=1e-4)
    assert (tmp_path / seen["run"] / "onnx" / "onnx" / "model.onnx").is_file()
