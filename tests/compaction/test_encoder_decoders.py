"""What encoder-decoders alone need: shared position biases, cross-attention, generation with a cache."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import said_by
from thinned import pairs
from tiny_families import HEADS, HIDDEN, LAYERS, inputs_for, padded_inputs, tensors_of, tiny, zero_randomly
from transformers import AutoModelForSeq2SeqLM, AutoModelForTextEncoding, PreTrainedModel
from transformers.models.t5.modeling_t5 import T5Attention

from bplightning.compaction.equivalence import LogitDifference, require_equal
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.loading import save_compact
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.families.encoder_decoders import ROWS
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.movement import Movement

Group = Any
KINDS = ("bart", "marian", "mt5", "t5", "umt5")
"""Layers that normalize after and before, that are gated and not, with one table of position biases and with many."""


def seq2seq(model_type: str, **options: Any) -> PreTrainedModel:
    return tiny(model_type, auto=AutoModelForSeq2SeqLM, **({"dtype": torch.float64} | options))


@torch.no_grad()
def keep_heads(model: PreTrainedModel, kept: dict[str, tuple[int, ...]]) -> PreTrainedModel:
    """Zero the heads of the named groups but for those kept."""
    for group in PrunableLayout.of(model).attention:
        if group.name in kept:
            gone = [head for head in range(group.heads) if head not in kept[group.name]]
            group.value.weight(model).view(group.heads, group.head_size, -1)[gone] = 0
    return model


@torch.no_grad()
def empty(model: PreTrainedModel, gone: Callable[[Group], bool]) -> PreTrainedModel:
    """Let all heads or units of some groups become constants; biases stay as they are."""
    for group in PrunableLayout.of(model).groups:
        if gone(group):
            constant = group.value if isinstance(group, AttentionGroup) else group.up[0]
            constant.weight(model).zero_()
    return model


@torch.no_grad()
def assert_same(first: PreTrainedModel, second: PreTrainedModel) -> None:
    for side in ("left", "right"):
        inputs = inputs_for(first, side)
        expected, got = tensors_of(first, inputs), tensors_of(second, inputs)
        assert expected.keys() == got.keys()
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-10)


def tables(model: PreTrainedModel) -> dict[str, int]:
    """The tables of position biases, by stack and layer, and how many columns they have."""
    named = [(name, p) for name, p in model.named_parameters() if "relative_attention_bias" in name]
    return {f"{name.split('.')[0]}.{name.split('.')[2]}": p.shape[1] for name, p in named}


# -- position biases ---------------------------------------------------------------------------------------------------


def test_each_layer_looks_up_the_columns_of_the_heads_it_keeps() -> None:
    kept = {"encoder.0.self": (3,), "encoder.1.self": (0, 2), "encoder.2.self": (), "decoder.0.self": ()}
    model = keep_heads(seq2seq("t5"), kept)
    smaller = compact(model)
    assert_same(model, smaller)
    assert tables(smaller) == {"encoder.0": 3, "decoder.0": 4}  # nobody looks up the encoder's column 1 any more
    columns = smaller.config.compaction["columns"]
    assert columns == {
        "encoder.0.self": [2],
        "encoder.1.self": [0, 1],
        "encoder.2.self": [],
        "decoder.0.self": [],
        "decoder.1.self": [0, 1, 2, 3],
        "decoder.2.self": [0, 1, 2, 3],
    }
    embedding = smaller.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    assert embedding.embedding_dim == 3
    dense = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    assert torch.equal(embedding.weight, dense.weight[:, [0, 2, 3]])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_compacting_again_composes_the_columns(tmp_path: Path, attention: str) -> None:
    first = {"encoder.0.self": (0, 2, 3), "encoder.1.self": (1, 2), "encoder.2.self": (2, 3), "decoder.1.self": (1, 3)}
    model = keep_heads(seq2seq("t5", attention=attention), first)
    once = compact(model)
    save_compact(once, tmp_path / "once")
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "once", attn_implementation=attention)
    again = {"encoder.0.self": (1,), "encoder.1.self": (), "decoder.1.self": (1,)}
    for smaller in (once, reloaded):  # in words of the dense model: heads 2; none; 3
        twice = compact(keep_heads(copy.deepcopy(smaller), again))
        assert tables(twice) == {"encoder.0": 2, "decoder.0": 4}
        assert twice.config.compaction["columns"]["encoder.0.self"] == [0]
        assert twice.config.compaction["columns"]["encoder.2.self"] == [0, 1]  # that loses nothing more
        assert twice.config.compaction["columns"]["decoder.1.self"] == [3]
        kept = {"encoder.0.self": (2,), "encoder.1.self": (), "decoder.1.self": (3,)}
        assert_same(keep_heads(copy.deepcopy(model), kept), twice)
        # A folder does not say how attention is computed.
        assert save_compact(twice, tmp_path / f"twice-{smaller is once}").relative < 1e-12


def test_a_stack_that_lost_every_head_has_a_table_of_no_columns(tmp_path: Path) -> None:
    model = empty(seq2seq("t5"), lambda group: group.name.endswith("self"))
    smaller = compact(model)
    assert_same(model, smaller)
    assert tables(smaller) == {"encoder.0": 0, "decoder.0": 0}
    assert save_compact(smaller, tmp_path / "compact") == LogitDifference(0.0, 0.0)


def test_the_tables_of_umt5_lose_their_own_layers_columns() -> None:
    model = keep_heads(seq2seq("umt5"), {"encoder.0.self": (0, 2), "encoder.2.self": (), "decoder.1.self": (3,)})
    smaller = compact(model)
    assert_same(model, smaller)
    expected = dict.fromkeys([f"{stack}.{layer}" for stack in ("encoder", "decoder") for layer in range(LAYERS)], HEADS)
    assert tables(smaller) == expected | {"encoder.0": 2, "encoder.2": 0, "decoder.1": 1}


def test_cross_attentions_with_unlike_numbers_of_heads_do_not_share_their_zero_bias() -> None:
    for kept in [(0,), (1, 2), (0, 1, 2, 3)], [(0, 1, 2, 3), (3,), ()], [(), (0, 1, 2, 3), (2,)]:
        model = keep_heads(seq2seq("t5"), {f"decoder.{layer}.cross": heads for layer, heads in enumerate(kept)})
        assert_same(model, compact(model))


def test_modules_that_lost_no_head_keep_their_class() -> None:
    model = keep_heads(seq2seq("t5"), {"encoder.1.self": (0, 2)})
    smaller = compact(model)
    changed = [name for name, module in smaller.named_modules() if type(module) is not type(model.get_submodule(name))]
    assert changed == ["encoder.block.1.layer.0.SelfAttention"]
    assert isinstance(smaller.get_submodule(changed[0]), T5Attention)


def test_a_layer_may_lose_its_last_head_later() -> None:
    model = keep_heads(seq2seq("t5"), {"decoder.0.self": (1,), "decoder.0.cross": (1,)})
    smaller = compact(model)
    emptied = empty(smaller, lambda group: group.layer == 0)
    assert_same(emptied, compact(emptied))


def test_a_compact_model_is_copied_and_pickled_whole() -> None:
    model = keep_heads(seq2seq("mt5"), {"encoder.0.self": (3,), "decoder.0.self": (), "decoder.1.cross": (2,)})
    smaller = compact(model)
    for copied in (copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller))):
        assert_same(smaller, copied)
        zero_randomly(copied, "heads", seed=3, density=0.7)
        assert_same(copied, compact(copied))


# -- what the folder says ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_compact(compact(keep_heads(seq2seq("t5"), {"encoder.1.self": (0, 2)})), tmp_path / "compact")
    return tmp_path / "compact"


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config["compaction"])
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("columns", [[0], [2, 0], [0, 0], [0, 4], [-1, 0], [0, True], [0, 2.0], "02", None])
def test_broken_columns_are_refused(folder: Path, columns: object) -> None:
    rewrite(folder, lambda field: field["columns"].update({"encoder.1.self": columns}))
    with pytest.raises(
        UserError, match=r"must name the 2 columns from 0 to 3 .* 'encoder\.1\.self' looks up, ascending"
    ):
        AutoModelForSeq2SeqLM.from_pretrained(folder)


def test_columns_that_are_missing_are_refused(folder: Path) -> None:
    rewrite(folder, lambda field: field.pop("columns"))
    with pytest.raises(UserError, match="must name the 4 columns"):
        AutoModelForSeq2SeqLM.from_pretrained(folder)


def test_version_1_which_had_no_columns_is_read(tmp_path: Path) -> None:
    model = tiny("bert")
    zero_randomly(model, "heads", seed=1)
    smaller = compact(model)
    save_compact(smaller, tmp_path / "compact")
    newer = ("columns", "no_norm", "stream")
    rewrite(tmp_path / "compact", lambda field: ([field.pop(each) for each in newer], field.update(version=1)))
    reloaded = type(model).from_pretrained(tmp_path / "compact")
    require_equal(smaller, reloaded, comparison_inputs(smaller), what="the model of version 1")


def test_the_encoder_alone_loads_and_saves(folder: Path) -> None:
    whole = AutoModelForSeq2SeqLM.from_pretrained(folder)
    inputs = inputs_for(whole, "right")
    expected = tensors_of(whole, inputs)["encoder_last_hidden_state"]
    del inputs["decoder_input_ids"]
    for _ in range(2):
        encoder = AutoModelForTextEncoding.from_pretrained(folder)
        assert {group.role for group in PrunableLayout.of(encoder).groups} == {"attention", "feed_forward"}
        torch.testing.assert_close(tensors_of(encoder, inputs)["last_hidden_state"], expected, rtol=0, atol=1e-10)
        folder = folder.with_name("again")
        encoder.save_pretrained(folder)


# -- generation --------------------------------------------------------------------------------------------------------

GONE: dict[str, Callable[[Group], bool]] = {
    "first self": lambda group: group.name == "decoder.0.self",
    "all self": lambda group: group.role == "decoder_attention",
    "first cross": lambda group: group.name == "decoder.0.cross",
    "all cross": lambda group: group.role == "cross_attention",
    "all": lambda group: True,
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
}


def generated(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
    options = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, **options}
    return model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)


@pytest.mark.parametrize(("model_type", "gone", "way"), pairs(list(KINDS), list(GONE), list(WAYS)))
def test_generation_goes_step_by_step_as_the_masked_models_does(model_type: str, gone: str, way: str) -> None:
    attention = "eager" if gone == "first cross" else "sdpa"
    model = seq2seq(model_type, attention=attention)
    zero_randomly(model, "heads", seed=3, density=0.6)
    smaller = compact(empty(model, GONE[gone]))
    inputs = padded_inputs("left" if way == "greedy" else "right")
    expected, found = (generated(each, inputs, **WAYS[way]) for each in (model, smaller))
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.logits) == len(expected.logits) == 7
    for step, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(step, other, rtol=0, atol=1e-6)  # `generate` rounds them to float32
    if gone != "all":  # then they depend on the last token alone, which may repeat itself
        assert all(not torch.allclose(expected.logits[0], step) for step in expected.logits[1:])


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_with_a_cache_it_computes_as_without(model_type: str) -> None:
    """In pieces of unlike lengths, too."""
    smaller = compact(empty(seq2seq(model_type), GONE["first self"]))
    inputs = inputs_for(smaller, "right")
    decoded = inputs.pop("decoder_input_ids")
    with torch.no_grad():
        whole = smaller(**inputs, decoder_input_ids=decoded, use_cache=False).logits
        cache, pieces = None, []
        for piece in decoded.split([3, 1, 4], dim=1):
            outputs = smaller(**inputs, decoder_input_ids=piece, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            pieces.append(outputs.logits)
            assert cache.get_seq_length() == sum(part.shape[1] for part in pieces)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-10)


def test_a_fresh_process_generates_the_same(tmp_path: Path) -> None:
    inputs = padded_inputs("right")
    for model_type in ("bart", "mt5", "pegasus", "t5"):
        model = seq2seq(model_type, dtype=torch.float32)
        zero_randomly(model, "heads", seed=3, density=0.6)
        model.generation_config.update(num_beams=2, max_new_tokens=6, min_new_tokens=6, no_repeat_ngram_size=2)
        smaller = compact(empty(model, lambda group: group.name in ("encoder.0.self", "decoder.0.self")))
        save_compact(smaller, tmp_path / model_type)
        expected = model.generate(**inputs, return_dict_in_generate=True, output_logits=True)
        kept = {"inputs": inputs, "sequences": expected.sequences, "logits": expected.logits}
        torch.save(kept, tmp_path / model_type / "expected.pt")
    script = Path(__file__).parents[1] / "support" / "generate_in_fresh_process.py"
    said_by(script, str(tmp_path), cwd=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == {"bart", "mt5", "pegasus", "t5"}
    for result in results.values():
        assert result["sequences"]
        assert result["num_beams"] == 2
        assert result["difference"] < 1e-4


# -- sizes, precision, masks -------------------------------------------------------------------------------------------


def test_stacks_may_differ_in_their_numbers_of_heads_and_layers() -> None:
    model = seq2seq("bart", decoder_attention_heads=2, decoder_layers=1, decoder_ffn_dim=16)
    groups = PrunableLayout.of(model).groups
    sizes = {(g.role, g.heads, g.head_size) if isinstance(g, AttentionGroup) else (g.role, g.width) for g in groups}
    assert sizes == {
        ("attention", HEADS, HIDDEN // HEADS),
        ("decoder_attention", 2, HIDDEN // 2),
        ("cross_attention", 2, HIDDEN // 2),
        ("feed_forward", 24),
        ("decoder_feed_forward", 16),
    }
    zero_randomly(model, "heads", seed=1, density=0.5)
    assert_same(model, compact(model))
    t5 = seq2seq("t5", num_decoder_layers=1)
    assert [group.name for group in PrunableLayout.of(t5).attention][-2:] == ["decoder.0.self", "decoder.0.cross"]
    zero_randomly(t5, "heads", seed=1, density=0.5)
    assert_same(t5, compact(t5))


def test_t5_gets_no_bias_and_bart_keeps_its_constants() -> None:
    for model_type, gets in (("t5", []), ("mt5", [])):
        model = empty(seq2seq(model_type), GONE["all"])
        smaller = compact(model)
        assert [group.name for group in smaller.compaction_plan.groups if group.new_bias] == gets
        assert not any(name.endswith("bias") for name, _ in smaller.named_parameters())
    model = empty(seq2seq("bart"), GONE["first cross"])
    smaller = compact(model)
    assert_same(model, smaller)
    folded, before = (m.model.decoder.layers[0].encoder_attn.out_proj.bias for m in (smaller, model))
    assert not torch.allclose(folded, before)


@pytest.mark.parametrize(("dtype", "of_down"), [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_what_transformers_keeps_in_full_precision_stays_so(
    dtype: torch.dtype, of_down: torch.dtype, tmp_path: Path
) -> None:
    seq2seq("t5", dtype=torch.float32).save_pretrained(tmp_path / "dense")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "dense", dtype=dtype)
    zero_randomly(model, "heads", seed=1, density=0.6)
    smaller = compact(empty(model, lambda group: group.layer == 1))
    save_compact(smaller, tmp_path / "compact")
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "compact", dtype=dtype)
    for each in (smaller, reloaded):
        assert {p.dtype for name, p in each.named_parameters() if name.endswith("wo.weight")} == {of_down}
        assert {p.dtype for name, p in each.named_parameters() if not name.endswith("wo.weight")} == {dtype}
        require_equal(model, each, comparison_inputs(model), what="the compact model")


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_masks_learn_in_every_role(model_type: str) -> None:
    model = tiny(model_type, auto=AutoModelForSeq2SeqLM)
    granularity = {"attention": "head", "cross_attention": "row", "feed_forward": "unit"}
    strategy = Movement(target=Target(density=0.5), granularity=granularity)
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    strategy.advance(Progress(10, 10, warmup_steps=0))
    optimizer = torch.optim.SGD([*model.parameters(), *strategy.parameters()], lr=1.0)
    before = [mask.scores.detach().clone() for mask in strategy.all_masks]
    labels = torch.randint(3, 50, (3, 5), generator=torch.Generator().manual_seed(1))
    model.train()(**padded_inputs("right"), labels=labels).loss.backward()
    optimizer.step()
    moved: dict[str, bool] = {}
    for mask, scores in zip(strategy.all_masks, before, strict=True):
        moved[mask.role] = moved.get(mask.role, True) and not torch.equal(mask.scores, scores)
    assert moved == dict.fromkeys({group.role for group in layout.groups}, True)
    assert len(moved) == 5
    strategy.harden(layout)
    model.eval()
    smaller = compact(model)
    require_equal(model, smaller, comparison_inputs(model), what="the compact model")
    assert smaller.num_parameters() < model.num_parameters()


def test_every_row_is_tried() -> None:
    assert set(ROWS) == {
        *("bart", "blenderbot", "blenderbot-small", "marian", "mbart", "pegasus", "plbart"),
        *("mt5", "t5", "umt5"),
    }
