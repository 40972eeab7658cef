"""Wanda: norms of what weights are multiplied with, and where weights compete."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_families import inputs_for, tiny

from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.shared.wanda_scores import wanda_scores
from bplightning.strategies.wanda import Wanda
from bplightning.testing.strategy_contract import calibrate
from bplightning.testing.tiny_model import padded_inputs, tiny_bert

STRUCTURED = {"attention": "head", "feed_forward": "unit"}


def pruned(**options: Any) -> tuple[Any, Wanda, PrunableLayout]:
    model, strategy = tiny_bert(), Wanda(**options)
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    calibrate(model, strategy)
    strategy.advance(Progress(1, 1, warmup_steps=0))
    return model, strategy, layout


def test_no_batch_is_refused() -> None:
    model, strategy = tiny_bert(), Wanda()
    strategy.attach(PrunableLayout.of(model))
    with pytest.raises(UserError, match="there was no batch to calibrate with: give some training data"):
        strategy.calibrate(model, [], lambda outputs, batch: outputs[0].sum())


def test_norms_are_of_all_tokens_but_padding() -> None:
    _, strategy, layout = pruned()
    module = layout.feed_forward[0].down.module
    seen: list[torch.Tensor] = []
    plain = tiny_bert()
    plain.get_submodule(module).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    kept = []
    for seed in range(4):
        batch = padded_inputs(seed=seed)
        with torch.no_grad():
            plain(**batch)
        kept.append(seen[-1][batch["attention_mask"] == 1])
    expected = torch.cat(kept).norm(dim=0)
    torch.testing.assert_close(strategy.get_buffer(f"norm_{module.replace('.', '-')}"), expected)


@torch.no_grad()
def test_a_decoder_beside_an_encoder_has_a_mask_of_its_own() -> None:
    model = tiny("bart").eval()
    batch = inputs_for(model, "right")
    batch["decoder_input_ids"] = batch["input_ids"].flip(1)  # of as many tokens, none of which is padding
    layout, strategy = PrunableLayout.of(model), Wanda()
    strategy.attach(layout)
    cross = next(group for group in layout.attention if group.role == "cross_attention")
    real = batch["attention_mask"].bool()
    expected = {}
    for member, mask in ((cross.query, None), (cross.key, real), (cross.value, real), (cross.output, None)):

        def see(module: Any, given: tuple[Any, ...], name: str = member.module, mask: Any = mask) -> None:
            expected[name] = given[0].flatten(0, 1) if mask is None else given[0][mask]

        model.get_submodule(member.module).register_forward_pre_hook(see)
    strategy.calibrate(model, [batch], lambda outputs, given: outputs[0].sum())
    for name, rows in expected.items():
        torch.testing.assert_close(strategy.get_buffer(f"norm_{name.replace('.', '-')}"), rows.norm(dim=0))


def test_each_row_keeps_its_best() -> None:
    model, strategy, layout = pruned(target=Target(density=0.5))
    member = layout.attention[1].value
    kept_OI = strategy.masks["encoder-1-self-value"].kept
    assert kept_OI.sum(1).tolist() == [32] * 64
    scores_OI = wanda_scores(
        member.weight(model).detach(), strategy.get_buffer(f"norm_{member.module.replace('.', '-')}")
    )
    assert (scores_OI.masked_fill(~kept_OI, torch.inf).amin(1) > scores_OI.masked_fill(kept_OI, 0).amax(1)).all()
    _, local, _ = pruned(target=Target(density=0.5), scope="local")
    assert local.masks["encoder-1-self-value"].kept.sum(1).unique().numel() > 1


def test_heads_and_units_are_worth_the_mean_of_their_weights() -> None:
    model, strategy, layout = pruned(target=Target(density=0.5), granularity=STRUCTURED)
    group, mask = layout.feed_forward[0], strategy.masks["encoder-0-feed_forward"]
    parts = []
    for member, axis in ((group.up[0], 1), (group.down, 0)):
        norm_I = strategy.get_buffer(f"norm_{member.module.replace('.', '-')}")
        parts.append(wanda_scores(member.weight(model).detach(), norm_I).mean(axis))
    worth_F = sum(parts) / 2  # both are as long here
    assert isinstance(worth_F, torch.Tensor)
    assert set(worth_F.topk(24).indices.tolist()) == set(mask.kept[:, 0].nonzero().flatten().tolist())


@pytest.mark.parametrize("inputs", [0, 1])
def test_weights_of_inputs_that_are_never_seen_go_first(inputs: int) -> None:
    """However large they are: that is what magnitude does not know."""
    model, strategy = tiny_bert(), Wanda(target=Target(density=0.5))
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    up, down = layout.feed_forward[0].up[0], layout.feed_forward[0].down
    with torch.no_grad():
        up.weight(model)[inputs] = 0
        bias = up.bias_of(model)
        assert bias is not None
        bias[inputs] = -100  # GELU of it is 0
        down.weight(model)[:, inputs] = 50
    calibrate(model, strategy)
    strategy.advance(Progress(1, 1, warmup_steps=0))
    assert not strategy.masks["encoder-0-feed_forward-down"].kept[:, inputs].any()
