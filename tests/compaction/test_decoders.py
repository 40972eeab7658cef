"""Decoders through their key/value cache: the compact model says at each step what the masked one says."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from thinned import pairs
from tiny_decoders import CONFIGS
from tiny_families import HIDDEN, LAYERS, UNITS, padded_inputs, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

from bplightning.compaction.equivalence import logit_difference
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.loading import save_compact
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.movement import Movement

EMPTY = {"first": (0,), "all": tuple(range(LAYERS))}
"""Layers whose heads are all gone, by a name for it."""

SLIDING = {
    "mistral": {"sliding_window": 4},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


def pair(
    model_type: str, empty: tuple[int, ...] = (0,), dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A masked causal model and the compact one: no head in the layers `empty`, some heads and units in the others."""
    model = tiny(model_type, dtype=dtype, auto=AutoModelForCausalLM, **options)
    layout = PrunableLayout.of(model)
    with torch.no_grad():
        for group in layout.attention:
            size = group.head_size
            group.value.weight(model)[slice(None) if group.layer in empty else slice(size, 2 * size)] = 0
        for units in layout.feed_forward:
            units.down.weight(model)[:, ::3] = 0
    smaller = compact(model)
    heads = PrunableLayout.of(smaller).attention
    assert [group.kv_heads for group in heads] == [
        0 if group.layer in empty else group.kv_heads - 1 for group in layout.attention
    ]
    return model, smaller  # type: ignore[return-value]


@torch.no_grad()
def generated(model: PreTrainedModel, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The tokens, and the logits of each step; `generate` itself hands them out rounded to float32."""
    steps: list[Tensor] = []
    hook = model.register_forward_hook(lambda *call: steps.append(call[2].logits[:, -1]))
    inputs = padded_inputs("left", batch=2)
    ends = {"eos_token_id": None, "pad_token_id": 1}  # the same number of steps whatever is said
    tokens = model.generate(**inputs, max_new_tokens=7, do_sample=False, **ends, **options)
    hook.remove()
    return tokens, steps


@torch.no_grad()
def stepped(model: PreTrainedModel, inputs: dict[str, Tensor], cache: Any, lengths: tuple[int, ...]) -> Tensor:
    """The logits of all tokens, given to `model` so many at a time."""
    start, logits = 0, []
    for length in lengths:
        end = start + length
        mask = inputs["attention_mask"][:, :end]
        outputs = model(inputs["input_ids"][:, start:end], attention_mask=mask, past_key_values=cache, use_cache=True)
        logits.append(outputs.logits)
        start = end
    assert end == inputs["input_ids"].shape[1]
    return torch.cat(logits, dim=1)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-10


# -- generation --------------------------------------------------------------------------------------------------------


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize(("model_type", "empty", "way"), pairs(list(CONFIGS), list(EMPTY), list(WAYS)))
def test_generate_says_at_each_step_what_the_masked_model_says(model_type: str, empty: str, way: str) -> None:
    masked, smaller = pair(model_type, EMPTY[empty])
    (tokens, steps), (expected_tokens, expected) = (generated(model, **WAYS[way]) for model in (smaller, masked))
    assert torch.equal(tokens, expected_tokens)
    assert len(steps) == len(expected) == 7
    for got, wanted in zip(steps, expected, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        *SLIDING.items(),
        ("bert", {"is_decoder": True}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": HIDDEN // 2}),
        ("opt", {"enable_bias": False}),
    ],
    ids=str,
)
def test_generate_with_other_configurations(model_type: str, config: dict[str, Any]) -> None:
    masked, smaller = pair(model_type, **config)
    (tokens, steps), (expected_tokens, expected) = (generated(model, num_beams=2) for model in (smaller, masked))
    assert torch.equal(tokens, expected_tokens)
    for got, wanted in zip(steps, expected, strict=True):
        assert_close(got, wanted)


def test_narrow_embeddings_of_opt_are_not_the_stream_but_what_projects_them_is() -> None:
    model = tiny("opt", word_embed_proj_dim=HIDDEN // 2)
    axes = {axis.parameter.removeprefix("model.decoder."): axis.axis for axis in PrunableLayout.of(model).residual}
    assert (axes["project_in.weight"], axes["project_out.weight"]) == (0, 1)
    assert axes.keys().isdisjoint({"embed_tokens.weight", "qa_outputs.weight"})


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_reloaded_model_generates_the_same(model_type: str, tmp_path: Any) -> None:
    _, smaller = pair(model_type, dtype=torch.float32)
    save_compact(smaller, tmp_path / "compact")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "compact")
    (tokens, steps), (expected_tokens, expected) = (generated(model, num_beams=2) for model in (reloaded, smaller))
    assert torch.equal(tokens, expected_tokens)
    assert all(torch.equal(*pair) for pair in zip(steps, expected, strict=True))


# -- the cache, by hand ------------------------------------------------------------------------------------------------

CACHES: dict[str, Callable[[PreTrainedModel], Any]] = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "grown": lambda model: DynamicCache(),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=16),
}


@pytest.mark.parametrize(("model_type", "empty", "cache"), pairs(list(CONFIGS), list(EMPTY), list(CACHES)))
def test_tokens_given_a_few_at_a_time_give_what_they_give_at_once(model_type: str, empty: str, cache: str) -> None:
    masked, smaller = pair(model_type, EMPTY[empty])
    inputs = padded_inputs("left")
    seen = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = masked(**inputs, use_cache=False).logits
    assert_close(stepped(smaller, inputs, CACHES[cache](smaller), (4, 3, 1, 1, 2))[seen], expected[seen])


@pytest.mark.parametrize("model_type", SLIDING)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_tokens_given_a_few_at_a_time_through_sliding_windows(model_type: str, cache: str) -> None:
    masked, smaller = pair(model_type, **SLIDING[model_type])
    inputs = padded_inputs("right", batch=1)
    with torch.no_grad():
        expected = masked(**inputs, use_cache=False).logits
    assert_close(stepped(smaller, inputs, CACHES[cache](smaller), (3, 1, 1, 3, 1, 2)), expected)


@torch.no_grad()
def test_a_cache_can_be_cut_repeated_and_chosen_from() -> None:
    masked, smaller = pair("llama")
    ids = padded_inputs("left", batch=1)["input_ids"]
    wrong, right = ids[:, :2], ids[:, 6:]
    cache = DynamicCache(config=smaller.config)
    smaller(ids[:, :6], past_key_values=cache)
    smaller(wrong, past_key_values=cache)
    cache.crop(-2)
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([0, 2]))
    got = smaller(right.expand(2, -1), past_key_values=cache).logits
    assert_close(got, masked(ids).logits[:, 6:].expand(2, -1, -1))


@torch.no_grad()
def test_a_headless_layer_holds_one_number_a_token() -> None:
    _, smaller = pair("llama")
    cache = DynamicCache(config=smaller.config)
    smaller(**padded_inputs("left"), past_key_values=cache)
    assert [layer.keys.numel() + layer.values.numel() for layer in cache.layers] == [3 * 11, *[2 * 3 * 11 * 8] * 2]
    assert [layer.get_seq_length() for layer in cache.layers] == [11] * LAYERS
    assert cache.layers[0].keys.count_nonzero() == 0


def test_eager_attention_weights_count_what_the_cache_holds() -> None:
    _, smaller = pair("llama", attention="eager")
    smaller.float()
    cache = DynamicCache(config=smaller.config)
    ids = padded_inputs("left", batch=1)["input_ids"]
    for _ in range(2):
        weights = smaller(ids, past_key_values=cache, output_attentions=True).attentions
    assert [tuple(each.shape) for each in weights] == [(1, 0, 11, 22), (1, 2, 11, 22), (1, 2, 11, 22)]


# -- what is left on the modules ---------------------------------------------------------------------------------------


def test_gpt2_splits_its_fused_projection_where_the_heads_that_stay_end() -> None:
    _, smaller = pair("gpt2", (1,))
    first, second, _ = (block.attn for block in smaller.transformer.h)
    assert (first.split_size, first.num_heads, first.c_attn.nf, first.c_attn.nx) == (24, 3, 72, HIDDEN)
    assert (first.c_proj.nf, first.c_proj.nx) == (HIDDEN, 24)
    assert (second.split_size, second.num_heads, second.c_attn.nf, second.c_proj.nx) == (0, 0, 0, 0)
    rows = [member.rows for member in PrunableLayout.of(smaller).attention[0].members]
    assert rows == [(0, 24), (24, 48), (48, 72), None]


def test_a_projection_of_gpt2_that_reads_nothing_is_its_bias() -> None:
    masked = tiny("gpt2", dtype=torch.float64)
    with torch.no_grad():
        for layer in masked.transformer.h:
            layer.mlp.c_proj.weight.zero_()
    smaller = compact(masked)
    assert [layer.mlp.c_proj.nx for layer in smaller.transformer.h] == [0] * LAYERS
    assert logit_difference(masked, smaller, comparison_inputs(masked)).relative <= 1e-10


def test_opt_counts_the_heads_that_stay() -> None:
    _, smaller = pair("opt", (1,))
    assert [layer.self_attn.num_heads for layer in smaller.model.decoder.layers] == [3, 0, 3]


def test_grouped_queries_keep_their_share_and_the_configuration_stays_as_it_was() -> None:
    masked, smaller = pair("qwen3")
    attention = smaller.model.layers[1].self_attn
    assert (attention.num_key_value_groups, attention.head_dim) == (2, 4)
    assert (attention.q_proj.out_features, attention.k_proj.out_features, attention.o_proj.in_features) == (8, 4, 8)
    names = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    assert [getattr(smaller.config, name) for name in names] == [getattr(masked.config, name) for name in names]


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", CONFIGS)
def test_scores_of_both_roles_learn_and_what_they_leave_is_compacted(model_type: str) -> None:
    model = tiny(model_type, auto=AutoModelForCausalLM).train()
    layout = PrunableLayout.of(model)
    strategy = Movement(target=Target(density=0.5), granularity={"attention": "head", "feed_forward": "unit"})
    strategy.attach(layout)
    strategy.advance(Progress(0, 1, warmup_steps=0))
    optimizer = torch.optim.AdamW(
        [{"params": model.parameters(), "lr": 1e-3}, *strategy.parameter_groups(total_steps=1)]
    )
    inputs = padded_inputs("left")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    assert {mask.role for mask in strategy.all_masks} == {"decoder_attention", "decoder_feed_forward"}
    assert all(mask.scores.any() for mask in strategy.all_masks)
    strategy.advance(Progress(1, 1, warmup_steps=0))
    strategy.harden(layout)
    smaller = compact(model)
    assert logit_difference(model, smaller, comparison_inputs(model)).relative <= 1e-5
    sizes = [(group.name.rpartition(".")[2], len(group.kept)) for group in smaller.compaction_plan.groups]
    kv_heads = layout.attention[0].kv_heads
    assert sizes == [("self", kv_heads // 2)] * LAYERS + [("feed_forward", UNITS // 2)] * LAYERS


# -- the proof ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_proof_looks_at_left_padding_and_not_at_what_is_said_of_padding() -> None:
    eager, sdpa = (tiny("gpt2", dtype=torch.float64, attention=attention) for attention in ("eager", "sdpa"))
    inputs = comparison_inputs(eager)
    assert inputs["attention_mask"][2, 0] == 0
    first, second = (model(**inputs).start_logits for model in (eager, sdpa))
    assert (first - second)[2, 0].abs() > 1e-3  # a token that sees none
    assert logit_difference(eager, sdpa, inputs).relative <= 1e-10
    # A model that does not count from where the padding ends is another one.
    positions = {"position_ids": inputs["attention_mask"].cumsum(1).sub(1).clamp(min=0)}
    other = copy.deepcopy(eager)
    other.forward = functools.partial(eager.forward, **positions)
    assert logit_difference(eager, other, inputs).relative > 1e-3
