"""Compaction is exact, whatever put the zeros there, and its plan is plain data."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from exactness import TOLERANCE, assert_exact
from thinned import thinned
from tiny_encoders import VARIANTS
from tiny_families import (
    DENSE,
    EAGER_IN_FLOAT32,
    EAGER_ONLY,
    HEADS,
    HIDDEN,
    LAYERS,
    ONE_OF_EACH_ROW,
    UNITS,
    inputs_for,
    tensors_of,
    tiny,
    zero_randomly,
)
from torch import nn
from transformers import PreTrainedModel

from bplightning.compaction.equivalence import LogitDifference, require_equal
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.plan import CompactionPlan
from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import kind_of
from bplightning.masks.masking import Cover, Mask, install_mask

D = HIDDEN // HEADS


def kept(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {group.name: group.kept for group in model.compaction_plan.groups}


# -- the property: masked and compact are one function -----------------------------------------------------------------


DENSITIES = {"blocks": 0.15, "rows": 0.15, "columns": 0.15, "heads": 0.5, "units": 0.4, "elements": 0.05}


def attentions_of(model_type: str) -> tuple[str, ...]:
    return ("eager",) if model_type in EAGER_ONLY else ("sdpa", "eager")


def precisions_of(model_type: str) -> list[tuple[str, torch.dtype]]:
    every = itertools.product(attentions_of(model_type), TOLERANCE)
    return [each for each in every if each != ("eager", torch.float64) or model_type not in EAGER_IN_FLOAT32]


def agreements() -> Iterator[tuple[str, str, str, torch.dtype]]:
    """All there are for BERT; for others every granularity and every precision once, for those with their row less."""
    for model_type in DENSE:
        every = [(granularity, *precision) for granularity in DENSITIES for precision in precisions_of(model_type)]
        usual = attentions_of(model_type)[0], torch.float64
        for granularity, *precision in every:
            once = granularity == "blocks" or tuple(precision) == usual
            alike = granularity == "heads" and tuple(precision) == usual
            if model_type == "bert" or (once if model_type in ONE_OF_EACH_ROW else alike):
                yield model_type, granularity, *precision
    for variant in VARIANTS:
        yield from ((variant, "heads", "sdpa", torch.float64), (variant, "blocks", "sdpa", torch.float32))


def agreements_of_a_day() -> Iterator[tuple[str, str, str, torch.dtype]]:
    """All for BERT; of each other row blocks in float32 by the second attention, heads and units; else heads."""
    for model_type in DENSE:
        attentions = attentions_of(model_type)
        if model_type == "bert":
            yield from (each for each in agreements() if each[0] == "bert")
            continue
        yield model_type, "heads", attentions[0], torch.float64
        if model_type in ONE_OF_EACH_ROW:
            yield model_type, "blocks", attentions[-1], torch.float32
            yield model_type, "units", attentions[0], torch.float64
    yield from (each for each in agreements() if each[0] in VARIANTS)


@pytest.mark.parametrize(
    ("model_type", "granularity", "attention", "dtype"), thinned(agreements(), agreements_of_a_day())
)
def test_masked_and_compact_agree(model_type: str, granularity: str, attention: str, dtype: torch.dtype) -> None:
    removed = 0
    for seed in (1, 2):
        model = tiny(model_type, seed=seed, dtype=dtype, attention=attention)
        zero_randomly(model, granularity, seed=seed, density=DENSITIES[granularity])
        smaller = compact(model)
        assert_exact(model, smaller)
        if model_type in VARIANTS:
            assert_exact(smaller, compact(smaller))
        removed += sum(group.total - len(group.kept) for group in smaller.compaction_plan.groups)
    assert removed > 0


def _empty(model: nn.Module, kind: str, layers: list[int]) -> None:
    """Zero what makes every head, or every unit, of `layers` a constant; biases stay as they are."""
    layout = PrunableLayout.of(model)
    with torch.no_grad():
        for group in layout.groups:
            if group.layer in layers and kind in ("both", kind_of(group)):
                for member in [group.value] if isinstance(group, AttentionGroup) else group.up:
                    member.weight(model).zero_()


LAYERS_GONE = {"first": [0], "middle": [1], "all": list(range(LAYERS))}


def nothing_left() -> Iterator[tuple[str, str, str, str]]:
    """Units go alike whatever attention is; for those with another's row, the most that can go."""
    for model_type in DENSE:
        usual, *others = attentions_of(model_type)
        if model_type not in ONE_OF_EACH_ROW:
            yield model_type, usual, "both", "all"
            continue
        yield from itertools.product([model_type], [usual], ["heads", "units", "both"], LAYERS_GONE)
        yield from itertools.product([model_type], others, ["heads"], LAYERS_GONE)
    yield from ((variant, "sdpa", "both", "all") for variant in VARIANTS)


def nothing_left_of_a_day() -> Iterator[tuple[str, str, str, str]]:
    """Heads and units are removed apart from each other, and a layer without either apart from its neighbours."""
    for model_type in DENSE:
        usual, *others = attentions_of(model_type)
        yield model_type, usual, "both", "all"
        if model_type in ONE_OF_EACH_ROW:
            yield model_type, usual, "heads", "first"
            yield model_type, usual, "units", "middle"
            yield from ((model_type, other, "heads", "all") for other in others)
    yield from (each for each in nothing_left() if each[0] in VARIANTS)


@pytest.mark.parametrize(("model_type", "attention", "kind", "where"), thinned(nothing_left(), nothing_left_of_a_day()))
def test_all_heads_or_all_units_gone(model_type: str, attention: str, kind: str, where: str) -> None:
    layers = LAYERS_GONE[where]
    rounded = attention == "eager" and model_type in EAGER_IN_FLOAT32
    model = tiny(model_type, dtype=torch.float32 if rounded else torch.float64, attention=attention)
    _empty(model, kind, layers)
    smaller = compact(model)
    assert_exact(model, smaller)
    for group, sizes in zip(smaller.compaction_plan.groups, PrunableLayout.of(smaller).groups, strict=True):
        gone = sizes.layer in layers and kind in ("both", group.kind)
        assert len(group.kept) == (0 if gone else group.total)
        assert [0 in member.weight(smaller).shape for member in sizes.members] == [gone] * len(sizes.members)
    smaller.train()
    outputs = tensors_of(smaller, inputs_for(smaller, "left"))
    sum(output.sum() for name, output in outputs.items() if "logits" in name).backward()
    for name, parameter in smaller.named_parameters():
        if parameter.requires_grad and "pooler" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("model_type", DENSE)
def test_eager_attention_weights_are_those_of_the_heads_that_stay(model_type: str) -> None:
    model = tiny(model_type, attention="eager")
    _empty(model, "heads", [1])
    layout = PrunableLayout.of(model)
    with torch.no_grad():
        size = layout.attention[0].head_size
        layout.attention[0].value.weight(model)[size : 2 * size] = 0
    smaller = compact(model)
    dense, less = (m(**inputs_for(m, "right"), output_attentions=True) for m in (model, smaller))
    for name in [name for name in dense if name.endswith("attentions")]:
        first = list(range(HEADS))
        if name in ("attentions", "encoder_attentions"):
            queries = layout.attention[0].heads // layout.attention[0].kv_heads  # to one key/value head
            first = [head for head in first if head // queries != 1]
        torch.testing.assert_close(less[name][0], dense[name][0][:, first])
        assert less[name][1].shape == (*dense[name][1].shape[:1], 0, *dense[name][1].shape[2:])
        torch.testing.assert_close(less[name][2], dense[name][2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_agrees_to_its_rounding(dtype: torch.dtype) -> None:
    model = tiny("bert")
    zero_randomly(model, "units", seed=1)
    _empty(model, "both", [1])
    model.to(dtype)
    require_equal(model, compact(model), comparison_inputs(model), what="the compact model")


# -- what is dead ------------------------------------------------------------------------------------------------------


def _bert() -> tuple[PreTrainedModel, PrunableLayout]:
    model = tiny("bert", dtype=torch.float64)
    return model, PrunableLayout.of(model)


@torch.no_grad()
def test_a_unit_goes_when_nothing_reads_it_or_its_value_is_constant() -> None:
    model, layout = _bert()
    group = layout.feed_forward[0]
    group.down.weight(model)[:, 3] = 0
    group.up[0].weight(model)[5] = 0  # act(bias) is not zero: it is folded
    group.up[0].bias_of(model)[7] = 0  # type: ignore[index]  # a zero bias alone kills nothing
    smaller = compact(model)
    assert kept(smaller)[group.name] == tuple(sorted({*range(UNITS)} - {3, 5}))
    assert_exact(model, smaller)


@torch.no_grad()
def test_a_head_goes_by_value_rows_or_output_columns_and_not_by_query_or_key() -> None:
    model, layout = _bert()
    group = layout.attention[0]
    group.value.weight(model)[:D] = 0
    group.output.weight(model)[:, D : 2 * D] = 0
    group.query.weight(model)[2 * D : 3 * D] = 0
    group.key.weight(model)[3 * D :] = 0
    smaller = compact(model)
    assert kept(smaller)[group.name] == (2, 3)
    assert_exact(model, smaller)


@torch.no_grad()
def test_a_head_goes_when_each_dimension_has_no_value_or_no_reader() -> None:
    model, layout = _bert()
    group = layout.attention[0]
    group.value.weight(model)[: D // 2] = 0
    group.output.weight(model)[:, D // 2 : D] = 0
    smaller = compact(model)
    assert kept(smaller)[group.name] == (1, 2, 3)
    assert_exact(model, smaller)


@torch.no_grad()
def test_nothing_with_one_number_left_is_removed() -> None:
    model, layout = _bert()
    for group in layout.groups:
        for member in group.members:
            member.weight(model).zero_()
            member.weight(model).fill_diagonal_(1e-30)
    sizes = {name: len(indices) for name, indices in kept(compact(model)).items()}
    assert sizes == {group.name: HEADS if "self" in group.name else UNITS for group in layout.groups}


@torch.no_grad()
def test_nan_is_not_zero() -> None:
    model, layout = _bert()
    layout.attention[0].value.weight(model).zero_()[0, 0] = float("nan")
    assert kept(compact(model))[layout.attention[0].name] == (0,)


# -- grouped queries and gated units -----------------------------------------------------------------------------------


@pytest.fixture
def qwen2() -> tuple[nn.Module, PrunableLayout]:
    """Grouped queries, a value bias but no output bias, gated units without biases."""
    model = tiny("qwen2", dtype=torch.float64)
    layout = PrunableLayout.of(model)
    return model, layout


@torch.no_grad()
def test_grouped_queries_go_by_key_value_head_and_a_missing_bias_is_made(
    qwen2: tuple[nn.Module, PrunableLayout],
) -> None:
    model, layout = qwen2
    first, second, third = layout.attention
    first.value.weight(model)[:D] = 0  # a constant: its value bias
    second.output.weight(model)[:, 2 * D :] = 0  # not read at all
    third.output.weight(model)[:, :D] = 0  # one query head of two: the key/value head stays
    smaller = compact(model)
    assert [kept(smaller)[group.name] for group in layout.attention] == [(1,), (0,), (0, 1)]
    assert [group.new_bias for group in smaller.compaction_plan.groups[:3]] == [True, False, False]
    assert smaller.config.compaction["biases"] == [first.name]
    assert_exact(model, smaller)
    module = smaller.get_submodule(first.module)
    assert [module.q_proj.out_features, module.k_proj.out_features] == [2 * D, D]
    assert module.o_proj.bias is not None
    with pytest.raises(UserError, match="not dead in this model"):  # without the bias the constant has no place
        compact(model, replace(smaller.compaction_plan, groups=_without_new_biases(smaller.compaction_plan)))


def _without_new_biases(plan: CompactionPlan) -> tuple:
    return tuple(replace(group, new_bias=False) for group in plan.groups)


@torch.no_grad()
def test_a_gated_unit_goes_when_one_factor_is_zero_or_both_are_constant(
    qwen2: tuple[nn.Module, PrunableLayout],
) -> None:
    model, layout = qwen2
    gate, up = layout.feed_forward[0].up
    for member in (gate, up):
        projection = model.get_submodule(member.module)
        projection.bias = nn.Parameter(torch.randn(UNITS, dtype=torch.float64))
    gate.weight(model)[[0, 1, 2]] = 0
    up.weight(model)[[2, 3, 4]] = 0
    gate.bias_of(model)[0] = 0  # type: ignore[index]  # 0: act(0) is 0, dead; 1: gate constant, up not: lives
    up.bias_of(model)[3] = 0  # type: ignore[index]  # 2: both constant; 3: up zero, dead; 4: up constant, gate not: lives
    smaller = compact(model)
    assert kept(smaller)["decoder.0.feed_forward"] == (1, *range(4, UNITS))
    assert smaller.compaction_plan.groups[LAYERS].new_bias
    assert_exact(model, smaller)


# -- the compact model -------------------------------------------------------------------------------------------------


def test_the_given_model_is_left_as_it_was() -> None:
    model = tiny("bert")
    _empty(model, "heads", [1])  # the other layers stay whole, and must be copied all the same
    before = copy.deepcopy(model.state_dict())
    pointers = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    smaller = compact(model)
    for parameter in smaller.parameters():
        parameter.data.fill_(7)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.data_ptr() == pointers[name]
    assert not hasattr(model, "compaction_plan")
    assert not hasattr(model.config, "compaction")
    assert type(smaller) is type(model)


@torch.no_grad()
def test_counts_on_the_modules_are_kept_true() -> None:
    model, layout = _bert()
    layout.attention[0].value.weight(model)[:D] = 0
    layout.feed_forward[0].down.weight(model)[:, :4] = 0
    model.get_submodule(layout.feed_forward[0].down.module).weight.requires_grad_(False)
    layer = compact(model).bert.encoder.layer[0]
    attention = layer.attention.self
    assert (attention.num_attention_heads, attention.all_head_size, attention.attention_head_size) == (3, 3 * D, D)
    assert (attention.query.out_features, attention.query.in_features) == (3 * D, HIDDEN)
    assert (layer.attention.output.dense.in_features, layer.intermediate.dense.out_features) == (3 * D, UNITS - 4)
    assert [p.requires_grad for p in (layer.intermediate.dense.weight, layer.output.dense.weight)] == [True, False]
    distilbert = tiny("distilbert")
    PrunableLayout.of(distilbert).attention[0].value.weight(distilbert)[:D] = 0
    assert compact(distilbert).distilbert.transformer.layer[0].attention.n_heads == 3


@pytest.mark.parametrize("model_type", ["albert", "bert", "deberta-v2", "distilbert", "gpt2", "qwen2"])
def test_a_compact_model_can_be_copied_pickled_and_compacted_again(model_type: str) -> None:
    model = tiny(model_type, dtype=torch.float64)
    _empty(model, "both", [1])
    smaller = compact(model)
    for copied in (copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller))):
        assert_exact(model, copied)
    zero_randomly(smaller, "heads", seed=3)
    again = compact(smaller)
    assert_exact(smaller, again)
    assert again.num_parameters() < smaller.num_parameters()


def test_a_model_that_still_carries_masks_is_refused() -> None:
    model = tiny("bert")
    member = PrunableLayout.of(model).attention[0].value
    install_mask(model, Mask("attention", (Cover(member),), (1, 1), HIDDEN * HIDDEN, scores=False))
    with pytest.raises(UserError, match="still has masks: harden the strategy first"):
        compact(model)


def test_a_quantized_model_is_refused() -> None:
    model = tiny("bert")
    model.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(UserError, match="is quantized \\(torchao\\): compact it first"):
        compact(model)


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_is_json_and_applies_again_to_another_copy() -> None:
    model, _ = _bert()
    zero_randomly(model, "heads", seed=1)
    other = copy.deepcopy(model)
    smaller = compact(model)
    text = smaller.compaction_plan.to_json()
    assert json.loads(text)["version"] == 2
    plan = CompactionPlan.from_json(text)
    assert plan == smaller.compaction_plan == CompactionPlan.of(other)
    again = compact(other, plan)
    assert all(torch.equal(a, b) for a, b in zip(smaller.parameters(), again.parameters(), strict=True))
    assert again.compaction_plan == plan
    assert plan.heads == [(group.name, group.kept, HEADS) for group in plan.groups[:LAYERS]]
    assert plan.units == [(group.name, group.kept, UNITS) for group in plan.groups[LAYERS:]]
    assert "bert." not in text


def test_a_plan_may_keep_more_than_must_stay() -> None:
    model, _ = _bert()
    _empty(model, "both", [1])
    plan = CompactionPlan.of(model)
    groups = tuple(replace(g, kept=(0, 2)) if not g.kept else g for g in plan.groups)
    smaller = compact(model, replace(plan, groups=groups))
    assert len(kept(smaller)["encoder.1.self"]) == 2
    assert_exact(model, smaller)


def test_a_plan_for_other_sizes_or_another_architecture_is_refused() -> None:
    plan = CompactionPlan.of(tiny("bert"))
    with pytest.raises(UserError, match=r"plan is for 24 units in encoder\.0\.feed_forward, this model has 16"):
        compact(tiny("bert", intermediate_size=16), plan)
    with pytest.raises(UserError, match="for a 'bert' model with 6 groups, this is a 'bert' model with 4"):
        compact(tiny("bert", num_hidden_layers=2), plan)
    with pytest.raises(UserError, match="for a 'bert' model with 6 groups, this is a 'roberta' model"):
        compact(tiny("roberta"), plan)


def test_a_plan_that_would_change_the_function_is_refused() -> None:
    model, _ = _bert()
    _empty(model, "heads", [1])
    plan = CompactionPlan.of(model)
    with pytest.raises(UserError, match=r"removes heads \[0, 1, 2, 3\] of encoder.1.self, which are not dead"):
        compact(tiny("bert"), plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "this is not a compaction plan"),
        ("{}", "this is not a compaction plan"),
        ('{"version": 3}', "has version 3, but this bplightning reads 1 to 2"),
        ('{"version": 1, "model_type": "bert", "groups": [{"name": "a"}]}', "this is not a compaction plan"),
        (_PLAN := '{"version": 1, "model_type": "bert", "groups": [{"name": "a", "kind": "heads", "kept": [0, 4], '
         '"total": 4, "new_bias": false}]}', "kept heads of a must be ascending whole numbers from 0 to 3"),
        (_PLAN.replace("[0, 4]", "[1, 0]"), "must be ascending"),
        (_PLAN.replace("[0, 4]", "[1, 1]"), "must be ascending"),
        (_PLAN.replace("[0, 4]", "[0.5]"), "must be ascending"),
        (_PLAN.replace("[0, 4]", "[true]"), "must be ascending"),
        (_PLAN.replace("[0, 4]", "[-1]"), "must be ascending"),
        (_PLAN.replace("4, \"new", "\"4\", \"new"), r"'a' must have a kind \(heads or units\), a total \(0 or more\)"),
        (_PLAN.replace("heads", "../heads"), r"it has \('\.\./heads', 4, False\): make"),
        (_PLAN.replace("false", "1"), r"it has \('heads', 4, 1\): make"),
        (_PLAN.replace("\"a\"", "[1]"), "must name its model type and groups as text"),
        (_PLAN.replace("\"groups", "\"more\": 1, \"groups"), "has 'more', which is no field of a plan"),
        (_PLAN.replace("\"version\": 1", "\"version\": 2, \"stream\": {}"), "this is not a compaction plan"),
        (_PLAN.replace('"version": 1', '"version": 2, "stream": {"name": [1], "kind": "dimensions", "kept": [0], '
         '"total": 1}'), "'stream' must keep some of its dimensions"),
        (_PLAN.replace("\"version\": 1", "\"version\": true"), "has version True, but this bplightning reads 1 to 2"),
        ("[" * 100_000, "this is not a compaction plan"),
        ('{"version": 1, "model_type": "bert", "groups": [{"name": "a", "kind": "units", "kept": [], "total": 1},'
         '{"name": "a", "kind": "units", "kept": [], "total": 1}]}', "names a group twice"),
    ],
)  # fmt: skip
def test_a_broken_plan_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        CompactionPlan.from_json(text)
    assert "\n" not in str(caught.value)


# -- the check ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_models_that_differ_are_refused_with_the_difference() -> None:
    model = tiny("bert")
    other = copy.deepcopy(model)
    other.qa_outputs.bias += 0.25
    inputs = comparison_inputs(model)
    assert require_equal(model, copy.deepcopy(model), inputs, what="the copy") == LogitDifference(0.0, 0.0)
    with pytest.raises(UserError, match=r"the other's logits differ by 0\.25 \(.* more than the 1e-05 that float32"):
        require_equal(model, other, inputs, what="the other")
    other.qa_outputs.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="the other's logits differ by inf"):
        require_equal(model, other, inputs, what="the other")


def test_made_inputs_are_padded_on_both_sides_and_repeat() -> None:
    model = tiny("bert")
    inputs = comparison_inputs(model)
    assert all(torch.equal(tensor, comparison_inputs(model)[name]) for name, tensor in inputs.items())
    mask = inputs["attention_mask"]
    assert [bool(mask[0].all()), bool(mask[1, -1]), bool(mask[2, 0])] == [True, False, False]
    assert mask.any(dim=1).all()


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:must run observer before:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("lost", ["heads", "units"])
def test_torch_quantizes_a_model_of_which_a_layer_has_lost_everything(lost: str) -> None:
    """Its kernels fail at a `Linear` without features."""
    model: Any = tiny("bert", hidden_size=128, intermediate_size=256, num_hidden_layers=2).eval()
    layout = PrunableLayout.of(model)
    group = layout.attention[0] if lost == "heads" else layout.feed_forward[0]
    with torch.no_grad():
        group.members[-1].weight(model).zero_()
    small: Any = compact(model).eval()
    quantized = torch.ao.quantization.quantize_dynamic(small, {nn.Linear}, dtype=torch.qint8)
    for length in (8, 13, 24, 40):
        tokens = torch.randint(5, 60, (2, length), generator=torch.Generator().manual_seed(length))
        wanted, found = (each(input_ids=tokens).start_logits for each in (small, quantized))
        assert (wanted - found).abs().max() < 0.1 * wanted.abs().max()
    empty = [module for module in quantized.modules() if isinstance(module, nn.Linear) and not module.weight.numel()]
    assert empty
    assert pickle.loads(pickle.dumps(small)).state_dict().keys() == small.state_dict().keys()
