"""Portable models: ordinary checkpoints that transformers reads alone, with the logits of the compact model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from exactness import assert_exact
from kept_parts import keep_only
from programs import said_by
from tiny_families import HEADS, LAYERS, ONE_OF_EACH_ROW, auto_of, inputs_for, tensors_of, tiny
from torch import nn
from transformers import PreTrainedModel

from bplightning import UserError, compact
from bplightning.compaction.no_norm import use_no_norm
from bplightning.compaction.portable import as_portable
from bplightning.compaction.skipped_sublayers import skip
from bplightning.layout.prunable_layout import PrunableLayout

HEADS_TOO = ("gemma", "llama", "mistral", "qwen2", "qwen3", "t5", "umt5")
"""Families whose configuration gives heads a size of their own."""


def prune(model: nn.Module, heads: Sequence[Sequence[int]], units: Sequence[int]) -> None:
    """Keep these heads in the layers of each stack by turns, and so many units."""
    layout = PrunableLayout.of(model)
    for group in layout.attention:
        keep_only(model, group, heads[group.layer % len(heads)])
    for group in layout.feed_forward:
        keep_only(model, group, range(units[group.layer % len(units)]))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def read_alone(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, float]:
    """What a fresh process with transformers alone made of a portable folder of each family."""
    folder = tmp_path_factory.mktemp("portable")
    for name in {*ONE_OF_EACH_ROW, *HEADS_TOO}:
        model = tiny(name)
        heads = [[0], [1], []] if PrunableLayout.of(model).attention[0].kv_heads == 2 else [[0, 2], [2], [0]]
        prune(model, heads, [7, 13, 0])
        smaller: PreTrainedModel = compact(model, portable=True)  # type: ignore[assignment]
        smaller.save_pretrained(folder / name)
        inputs = inputs_for(model, "right", batch=1)
        with torch.no_grad():
            torch.save(list(tensors_of(model, inputs).values()), folder / name / "expected.pt")
        torch.save(inputs, folder / name / "inputs.pt")
        (folder / name / "auto").write_text(auto_of(name).__name__)
        config = json.loads((folder / name / "config.json").read_text())
        assert not {"compaction", "quantization_config"} & set(config)
        assert parameters(smaller) < parameters(model)
    said_by(Path(__file__).parents[1] / "support" / "load_portable_in_fresh_process.py", str(folder), cwd=folder)
    results: dict[str, float] = json.loads((folder / "results.json").read_text())
    assert results.pop("bplightning imported") is False
    return results


@pytest.mark.parametrize("name", sorted({*ONE_OF_EACH_ROW, *HEADS_TOO}))
def test_transformers_alone_loads_it(name: str, read_alone: Mapping[str, float]) -> None:
    assert read_alone[name] < 1e-5


@pytest.mark.parametrize(
    ("model_type", "heads", "changes"),
    [
        # Llama's own rule is that heads divide the hidden size, 32: three become four.
        ("llama", [[0, 1, 3], [0], [1]], {"intermediate_size": (24, 5)}),
        ("llama", [[0, 3], [0], [1]], {"intermediate_size": (24, 5), "num_attention_heads": (4, 2)}),
        ("qwen3", [[0, 1, 3], [0], [1]], {"intermediate_size": (24, 5), "num_attention_heads": (4, 3)}),
        # All layers look up the first one's table, so a head has the same place in each.
        ("t5", [[0, 1], [3], [1]], {"d_ff": (24, 5), "num_heads": (4, 3)}),
        ("umt5", [[0, 1], [3], [1]], {"d_ff": (24, 5), "num_heads": (4, 2)}),
        ("bert", [[0, 1], [3], [1]], {"intermediate_size": (24, 5)}),
    ],
)
def test_layers_are_as_wide_as_the_widest(
    model_type: str, heads: Sequence[Sequence[int]], changes: Mapping[str, tuple[int, int]]
) -> None:
    options = {"num_key_value_heads": HEADS} if model_type in ("llama", "qwen3") else {}
    model = tiny(model_type, **options)
    prune(model, heads, [5, 1, 3])
    made = as_portable(compact(model))
    others = {name: value for name, value in made.changes.items() if name != "num_key_value_heads"}
    assert others == changes
    assert all(getattr(made.model.config, name) == new for name, (_, new) in made.changes.items())  # type: ignore[union-attr]
    assert_exact(model, made.model)


def test_a_constant_without_a_bias_is_held_by_a_head() -> None:
    """Qwen2's value has a bias and its output none: what a dead head adds is a constant that needs a place."""
    model = tiny("qwen2", num_key_value_heads=HEADS)
    for group in PrunableLayout.of(model).attention:
        keep_only(model, group, [group.layer], biases=False)  # values are zero, their biases are not
    smaller = compact(model)
    assert PrunableLayout.of(smaller).attention[0].output.bias_of(smaller) is not None
    made = as_portable(smaller)
    assert made.changes["num_key_value_heads"] == (4, 2)
    assert_exact(model, made.model)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "t5", "vit"])
@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_layer_of_a_pre_norm_stack_is_left_out(model_type: str, empty: int) -> None:
    model = tiny(model_type)
    layout = PrunableLayout.of(model)
    for group in layout.groups:
        keep_only(model, group, [] if group.layer == empty else [0, 1])
    made = as_portable(compact(model))
    constant = model_type in ("gpt2", "llama", "vit")  # in the biases of the empty layer; the first has nothing before
    left_out = {name for name in made.changes if name in ("n_layer", "num_hidden_layers", "num_layers")}
    assert bool(left_out) == (not constant or empty > 0)
    assert all(made.changes[name] == (LAYERS, LAYERS - 1) for name in left_out)
    assert_exact(model, made.model)


def test_a_layer_skipped_with_its_norms_is_left_out() -> None:
    model = tiny("bert")
    for group in PrunableLayout.of(model).groups:
        if group.layer == 1:
            keep_only(model, group, [])
            skip(model, group)
    made = as_portable(compact(model))
    assert made.changes == {"num_hidden_layers": (LAYERS, LAYERS - 1)}
    assert_exact(model, made.model)


def test_it_may_be_made_from_a_loaded_compact_model() -> None:
    model = tiny("mistral", dtype=torch.float64)
    prune(model, [[0], [1]], [3, 9])
    smaller = compact(model)
    once = as_portable(compact(smaller))
    assert once.changes["intermediate_size"] == (24, 9)
    assert_exact(model, once.model)
    assert PrunableLayout.of(smaller).feed_forward[0].width == 3  # what was given is as it was


def test_without_room_it_says_what_would_fit() -> None:
    model = tiny("bert")
    prune(model, [[0], [1], []], [24, 3, 24])
    rule = r"one value for all layers of intermediate_size \(here 24\), num_hidden_layers \(here 3\).*nothing would be"
    with pytest.raises(UserError, match=rule):
        compact(model, portable=True)


def test_what_config_json_cannot_say_is_refused() -> None:
    model = tiny("bert")
    use_no_norm(PrunableLayout.of(model))
    with pytest.raises(UserError, match="NoNorm"):
        compact(model, portable=True)
    model = tiny("bert")
    layout = PrunableLayout.of(model)
    keep_only(model, layout.attention[1], [])
    skip(model, layout.attention[1])
    with pytest.raises(UserError, match=r"encoder\.1\.self is skipped with its norm"):
        compact(model, portable=True)


def test_a_model_that_lost_nothing_stays_as_it_is() -> None:
    model = tiny("bert")
    made = as_portable(compact(model))
    assert made.changes == {}
    assert_exact(model, made.model)
