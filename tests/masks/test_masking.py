"""Masks: gradients against an independent computation, what they leave alone, what they cost."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from masked_models import masked, score
from read_families import make
from tiny_families import padded_inputs, tiny
from torch import Tensor, nn

from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import ROLES, granularity_by_role, make_masks, masks_of
from bplightning.masks.masking import (
    UNDER_MASK,
    Mask,
    freeze_masks,
    has_masks,
    install_mask,
    masked_weight,
    remove_masks,
    unfreeze_masks,
)
from bplightning.testing.syncs import NoHostSync


def expanded(mask: Mask, cover: object, weight_OI: Tensor) -> Tensor:
    """The grid as large as the weight, by Kronecker product: independent of how the code widens it."""
    grid = mask.kept.double()
    grid = grid.T if cover.transposed else grid  # type: ignore[attr-defined]
    return torch.kron(
        grid, torch.ones(weight_OI.shape[0] // grid.shape[0], weight_OI.shape[1] // grid.shape[1]).double()
    )


CASES = [
    ("bert", "4x4", "unit"),
    ("bert", "head", "4x8"),
    ("bert", "element", "row"),
    ("distilbert", "column", "element"),
    ("electra", "8x2", "unit"),
    ("gpt2", "4x4", "unit"),
    ("gpt2", "head", "column"),
    ("mixtral", "4x4", "unit"),
]


@pytest.mark.parametrize(("model_type", "attention", "feed_forward"), CASES)
def test_gradients_are_those_of_the_paper(model_type: str, attention: str, feed_forward: str) -> None:
    model, _, masks = masked(model_type, attention, feed_forward)
    inputs = {"input_ids": padded_inputs("right")["input_ids"]}
    model(**inputs)[0].square().sum().backward()

    # Independently: an unmasked copy whose weights are the masked ones, so that its gradients are dL/dW'.
    plain, _ = make(model_type)
    with torch.no_grad():
        for mask in masks.values():
            for cover in mask.covers:
                weight = cover.member.weight(plain)
                weight.mul_(expanded(mask, cover, weight))
    plain(**inputs)[0].square().sum().backward()

    def gradient(of: nn.Module, member: object) -> Tensor:
        return member.view(of.get_submodule(member.module)._parameters[member.parameter].grad)  # type: ignore[attr-defined]

    for name, mask in masks.items():
        expected = torch.zeros_like(mask.scores)
        for cover in mask.covers:
            outer = gradient(plain, cover.member)
            weight = cover.member.weight(model).detach()
            torch.testing.assert_close(gradient(model, cover.member), outer * expanded(mask, cover, weight))
            product = (outer * weight).T if cover.transposed else outer * weight
            rows, columns = mask.kept.shape
            tiles = product.view(rows, product.shape[0] // rows, columns, product.shape[1] // columns)
            expected += tiles.sum((1, 3))
        torch.testing.assert_close(mask.scores.grad, expected, msg=name)
    # What is pruned learns too, so that it can return.
    assert any(mask.scores.grad[~mask.kept].any() for mask in masks.values())


def test_a_masked_model_keeps_its_names() -> None:
    plain = tiny("bert")
    model = copy.deepcopy(plain)
    for group in PrunableLayout.of(model).groups:
        for _, mask in masks_of(model, group, "element"):
            install_mask(model, mask)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]


@pytest.mark.parametrize("gated", [False, True], ids=["masks", "gates"])
def test_a_state_dict_holds_the_masked_weights_and_resumes_the_exact_ones(gated: bool) -> None:
    model, _, masks = masked("bert", "4x4", "unit")
    if gated:
        for mask in masks.values():
            mask.gate = lambda scores, noise: scores.sigmoid() * (scores > 0) * (1 if noise is None else noise)
            mask.draw(torch.Generator().manual_seed(0))  # in the middle of training
    state = model.state_dict()
    again = masked("bert", "4x4", "unit")[0]
    for parameter in again.parameters():
        nn.init.normal_(parameter)
    again.load_state_dict(state)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    plain = tiny("bert").double()
    plain.load_state_dict(state, strict=False)
    for mask in masks.values():
        mask.settle()
    inputs = padded_inputs("right")
    torch.testing.assert_close(plain(**inputs).start_logits, model(**inputs).start_logits)


def test_hardened_equals_masked_and_leaves_an_ordinary_model() -> None:
    model, _, _ = masked("bert", "4x4", "unit")
    inputs = padded_inputs("right")
    before = model(**inputs).start_logits
    assert has_masks(model)
    remove_masks(model)
    assert not has_masks(model)
    assert torch.equal(model(**inputs).start_logits, before)
    assert {type(module).__name__ for module in model.modules()} == {
        type(module).__name__ for module in make("bert")[0].modules()
    }
    assert (PrunableLayout.of(model).attention[0].value.weight(model) == 0).any()


def test_a_copy_has_masks_of_its_own() -> None:
    model, _, masks = masked("bert", "4x4", "unit")
    inputs = padded_inputs("right")
    twin = copy.deepcopy(model)
    expected = model(**inputs).start_logits
    with torch.no_grad():
        for mask in masks.values():
            mask.kept.fill_(False)
    assert torch.equal(twin(**inputs).start_logits, expected)
    assert not torch.equal(model(**inputs).start_logits, expected)


def test_frozen_masks_are_computed_once_and_only_without_gradients() -> None:
    model, _, masks = masked("bert", "4x4", "unit")
    inputs = padded_inputs("right")
    before = model(**inputs).start_logits.detach()
    freeze_masks(model)
    with torch.no_grad():
        for mask in masks.values():
            mask.set_grid(~mask.kept)
        assert torch.equal(model(**inputs).start_logits, before)
    now = model(**inputs).start_logits.detach()
    assert not torch.equal(now, before)  # with gradients: of this moment
    with torch.no_grad():
        freeze_masks(model)  # again: of this moment too
        assert torch.equal(model(**inputs).start_logits, now)
        for mask in masks.values():
            mask.set_grid(~mask.kept)
        unfreeze_masks(model)
        assert torch.equal(model(**inputs).start_logits, before)


def test_hardening_writes_the_masks_of_this_moment_though_older_ones_are_frozen() -> None:
    model, _, masks = masked("bert", "4x4", "unit")
    freeze_masks(model)
    with torch.no_grad():
        for mask in masks.values():
            mask.set_grid(~mask.kept)
    inputs = padded_inputs("right")
    expected = model(**inputs).start_logits
    remove_masks(model)
    assert torch.equal(model(**inputs).start_logits, expected)


def test_moving_and_loading_reach_the_unmasked_weight() -> None:
    model, layout, _ = masked("bert", "4x4", "unit")
    member = layout.attention[0].query
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    under = state[member.name + UNDER_MASK]
    assert torch.equal(member.weight(model), under)
    model.load_state_dict({name: value + 1 for name, value in state.items()}, assign=True)
    assert torch.equal(member.weight(model), under + 1)
    model.load_state_dict(make("bert")[0].state_dict())  # of a model without masks, or of an earlier version
    assert torch.equal(member.weight(model), member.weight(make("bert")[0]))
    assert model.to(torch.bfloat16)(**padded_inputs("right")).start_logits.dtype == torch.bfloat16


def test_bfloat16_gives_scores_full_precision_gradients() -> None:
    model = tiny("bert", dtype=torch.float32)
    masks: dict[str, Mask] = {}
    for group in PrunableLayout.of(model).groups:
        masks |= dict(masks_of(model, group, "4x4"))
    for mask in masks.values():
        score(mask)
        install_mask(model, mask)
    inputs = padded_inputs("right")
    model(**inputs).start_logits.square().sum().backward()
    exact = {name: mask.scores.grad.clone() for name, mask in masks.items()}
    for mask in masks.values():
        mask.scores.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**inputs).start_logits
    logits.float().square().sum().backward()
    for name, mask in masks.items():
        assert mask.scores.grad.dtype == torch.float32
        cosine = torch.cosine_similarity(mask.scores.grad.flatten(), exact[name].flatten(), dim=0)
        assert cosine > 0.99, name


def test_sums_over_a_bfloat16_tile_are_not_rounded_to_bfloat16() -> None:
    weight = torch.ones(257, 1, dtype=torch.bfloat16, requires_grad=True)
    scores = torch.zeros(1, 1, requires_grad=True)
    masked_weight(weight, torch.ones(1, 1), scores).backward(torch.ones_like(weight))
    assert scores.grad is not None
    assert scores.grad.item() == 257  # the nearest in bfloat16 is 256


def test_a_step_never_waits_for_the_host() -> None:
    model, _, _ = masked("bert", "4x4", "unit")
    inputs = padded_inputs("right", length=8)
    inputs["attention_mask"].fill_(1)
    with NoHostSync():
        model(input_ids=inputs["input_ids"]).start_logits.square().sum().backward()


def test_the_guard_against_host_syncs_can_fail() -> None:
    with pytest.raises(AssertionError, match="host"), NoHostSync():
        torch.ones(3).sum().item()


@pytest.mark.parametrize(("model_type", "attention"), [("bert", "4x4"), ("gpt2", "head")])
def test_a_masked_model_is_pickled_with_its_masks(model_type: str, attention: str) -> None:
    model, _, masks = masked(model_type, attention, "unit")
    again, its_masks = pickle.loads(pickle.dumps((model, masks)))
    inputs = padded_inputs("right")
    with torch.no_grad():
        expected = model(**inputs)[0]
        assert torch.equal(again(**inputs)[0], expected)
        for mask in its_masks.values():
            mask.set_grid(torch.ones_like(mask.kept))
        assert not torch.equal(again(**inputs)[0], expected)
    remove_masks(again)
    assert not has_masks(again)
    assert [type(module) for module in again.modules()] == [type(module) for module in make(model_type)[0].modules()]


def test_a_second_mask_on_a_member_is_refused() -> None:
    model, layout, _ = masked("bert", "4x4", "unit")
    (_, again), *_ = masks_of(model, layout.attention[0], "element")
    with pytest.raises(ValueError, match=r"query\.weight already has a mask; harden the model"):
        install_mask(model, again)


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        ("5x4", r"block 5x4 does not divide bert\.encoder\.layer\.0\.attention\.self\.query\.weight of shape 32 x 32"),
        ("unit", r"granularity 'unit' does not suit encoder\.0\.self: it is made for feed-forward layers"),
        ("0x4", r"granularity '0x4' is not known; it is one of: element, row"),
    ],
)
def test_unsuitable_granularities_are_named(granularity: str, message: str) -> None:
    model = tiny("bert")
    with pytest.raises(UserError, match=message):
        list(masks_of(model, PrunableLayout.of(model).attention[0], granularity))


def test_heads_that_share_keys_are_pruned_with_their_key_and_value() -> None:
    model, layout = make("qwen2")
    group = layout.attention[0]
    assert group.heads > group.kv_heads
    ((_, mask),) = masks_of(model, group, "head")
    install_mask(model, mask)
    mask.kept[0] = False
    rows = group.head_size * group.heads // group.kv_heads
    assert not group.query.view(model.get_submodule(group.query.module).weight)[:rows].any()
    assert group.query.view(model.get_submodule(group.query.module).weight)[rows:].all()
    assert not model.get_submodule(group.value.module).weight[: group.head_size].any()
    assert not model.get_submodule(group.output.module).weight[:, :rows].any()


@pytest.mark.parametrize("granularity", ["element", "4x8", "row", "unit"])
def test_pooled_values_are_means_over_the_tiles_of_all_covers(granularity: str) -> None:
    model, layout = make("bert")
    group = layout.feed_forward[0]
    for _, mask in masks_of(model, group, granularity):
        expected = torch.zeros(mask.kept.shape, dtype=torch.float64)
        for index in range(mask.kept.numel()):
            mask.kept.zero_().view(-1)[index] = True
            covered = [
                cover.member.weight(model)[expanded(mask, cover, cover.member.weight(model)).bool()]
                for cover in mask.covers
            ]
            expected.view(-1)[index] = torch.cat([values.abs().flatten() for values in covered]).mean()
        torch.testing.assert_close(mask.pooled(lambda member: member.weight(model).abs()).double(), expected)


def test_all_that_a_block_does_not_divide_is_named_at_once() -> None:
    _, layout = make("bert")
    granularity = dict.fromkeys(ROLES, "5x4")
    with pytest.raises(UserError) as refusal:
        list(make_masks(layout, granularity))
    assert str(refusal.value).startswith(
        "6 of 6 groups cannot be masked at this granularity. block 5x4 does not divide bert.encoder"
    )
    assert all(member.name in str(refusal.value) for member in layout.members)


def test_a_pattern_must_divide_a_row_and_keep_less_than_all() -> None:
    model, layout = make("bert")
    with pytest.raises(UserError, match=r"pattern 2:5 does not divide .* 32 x 32.*: 5 must divide the second number"):
        list(masks_of(model, layout.attention[0], "2:5"))
    with pytest.raises(UserError, match="granularity '4:4' keeps everything: N must be less than M"):
        list(masks_of(model, layout.attention[0], "4:4"))
    with pytest.raises(UserError, match="use magnitude or movement"):
        list(masks_of(model, layout.attention[0], "2:4", patterns=False))


def test_roles_of_a_decoder_follow_the_encoder_unless_they_have_their_own() -> None:
    default = {"attention": "32x32", "feed_forward": "unit"}
    found = granularity_by_role({"attention": "head", "decoder_attention": "row"}, default=default)
    assert found == {
        "attention": "head",
        "cross_attention": "head",
        "decoder_attention": "row",
        "feed_forward": "unit",
        "decoder_feed_forward": "unit",
    }
    with pytest.raises(UserError, match="granularity is given for 'heads', which is no role: name one of attention, "):
        granularity_by_role({"heads": "row"}, default=default)


def test_a_decoder_is_masked_by_its_own_granularities() -> None:
    _, layout = make("t5")
    chosen = {
        "attention": "head",
        "decoder_attention": "4x4",
        "cross_attention": "row",
        "decoder_feed_forward": "column",
    }
    found = granularity_by_role(chosen, default={"attention": "32x32", "feed_forward": "unit"})
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for _, mask in make_masks(layout, found):
        shapes.setdefault(mask.role, set()).add(tuple(mask.kept.shape))
    heads, size = layout.attention[0].heads, layout.attention[0].head_size
    width, hidden = layout.feed_forward[0].width, layout.feed_forward[0].up[0].weight(layout.model).shape[1]
    assert shapes["attention"] == {(heads, 1)}
    assert shapes["feed_forward"] == {(width, 1)}
    inner = heads * size
    assert shapes["decoder_attention"] == {(inner // 4, hidden // 4), (hidden // 4, inner // 4)}
    assert shapes["cross_attention"] == {(inner, 1), (hidden, 1)}
    assert shapes["decoder_feed_forward"] == {(1, hidden), (1, width)}
