"""A configuration cannot ask for more than the weights beside it can fill."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_families import tiny
from transformers import AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM

from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.compaction.saved_config import require_sound_config
from bplightning.compaction.saved_models import load_saved
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: Any = tiny("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, ::2] = 0
    folder = tmp_path_factory.mktemp("saved") / "compact"
    save_compact(compact(model), folder)  # type: ignore[arg-type]
    return folder


def refused(saved: Path, folder: Path, **sizes: Any) -> str:
    """The one line that is said of these sizes, soon and with nothing allocated for them."""
    shutil.copytree(saved, folder / "forged")
    file = folder / "forged" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | sizes))
    start = time.process_time()
    with pytest.raises(UserError, match=r"the model '.*forged' cannot be loaded: ") as caught:
        load_saved(AutoModelForQuestionAnswering.from_pretrained, folder / "forged", what="the model")
    assert time.process_time() - start < 10
    assert "\n" not in str(caught.value)
    return str(caught.value).partition("cannot be loaded: ")[2]


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_embeddings_that_are_tied_only_after_loading_count_once(tmp_path: Path, family: str) -> None:
    """As in a real BART-base that is pruned: half of it is embeddings, which four of its modules share."""
    model: Any = tiny(family, auto=AutoModelForSeq2SeqLM, vocab_size=200_000)
    with torch.no_grad():
        PrunableLayout.of(model).feed_forward[0].down.weight(model)[:, ::2] = 0
    save_compact(compact(model), tmp_path / "compact")  # which loads it again
    again = load_saved(AutoModelForSeq2SeqLM.from_pretrained, tmp_path / "compact", what="the model")
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight


@pytest.mark.parametrize("layers", [10**9, 2**63, -1])
def test_layers_that_no_weights_fill(saved: Path, tmp_path: Path, layers: int) -> None:
    said = refused(saved, tmp_path, num_hidden_layers=layers)
    assert said == f"config.json has num_hidden_layers {layers}, but with the folder's weights it must be 0 to 256"


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_that_no_weights_fill(tmp_path: Path, stacked: bool) -> None:
    save_file({"experts": torch.zeros(400, *([1, 1] if stacked else []))}, tmp_path / "model.safetensors")
    allowed = 400 if stacked else 256
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "num_local_experts": allowed}))
    require_sound_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "num_local_experts": 10**9}))
    with pytest.raises(UserError, match=f"has num_local_experts 1000000000, but .* must be 0 to {allowed}$"):
        require_sound_config(tmp_path)


@pytest.mark.parametrize("widths", [{}, {"encoder.0.feed_forward": 10**9}])
def test_a_model_much_larger_than_its_weights(saved: Path, tmp_path: Path, widths: dict[str, int]) -> None:
    compaction = json.loads((saved / "config.json").read_text())["compaction"]
    compaction["widths"] |= widths
    large = {"intermediate_size": 10**9} if widths else {"hidden_size": 60_000}
    said = refused(saved, tmp_path, compaction=compaction, **large)
    if widths:
        assert said.startswith("config.json has intermediate_size 1000000000, but with the folder's weights")
    else:
        assert said.startswith("the sizes in config.json make a model of ")
        assert "numbers or more, but its weights have " in said


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ({"num_attention_heads": 60_000}, "is not a multiple of the number of attention heads"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"num_attention_heads": "4"}, "Field 'num_attention_heads' expected int, got str"),
        ({"num_hidden_layers": 0}, "IndexError"),
        ({"intermediate_size": 2**63}, "it must be -1 to 65536"),
        ({"vocab_size": 10**9}, "it must be -1 to 65536"),
        ({"hidden_size": -1}, "negative dimension -1"),
        ({"hidden_size": list(range(10_000))}, "Field 'hidden_size' expected int, got list"),
    ],
)
def test_other_sizes_are_one_line_too(saved: Path, tmp_path: Path, sizes: dict[str, Any], rule: str) -> None:
    said = refused(saved, tmp_path, **sizes)
    assert rule in said
    assert len(said) < 600


def test_what_is_as_large_as_its_weights_loads(saved: Path) -> None:
    load_saved(AutoModelForQuestionAnswering.from_pretrained, saved, what="the model")
