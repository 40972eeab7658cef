"""A former compact model as a guide: its heads stay, whatever the penalty does; others go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny
from transformers import PreTrainedModel

from bplightning import compact
from bplightning.compaction.loading import PLAN_FILE, save_compact
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.soft_movement import SoftMovement

STEPS = 60
AS_GIVEN: dict[str, Any] = {"score_learning_rate": 1.0}  # a penalty counts whole in a short run of this
KEPT = {"encoder.0.self": (1,), "encoder.1.self": (0, 3), "encoder.2.self": ()}
KEPT_KV = {"decoder.0.self": (1,), "decoder.1.self": (), "decoder.2.self": (0, 1)}


def former(folder: Path, model_type: str, kept: dict[str, tuple[int, ...]]) -> str:
    """A compact model's folder, of which only these heads were kept."""
    model: PreTrainedModel = tiny(model_type)
    layout = PrunableLayout.of(model)
    with torch.no_grad():
        for group in layout.attention:
            size = group.head_size * group.heads // group.kv_heads
            for head in set(range(group.kv_heads)) - set(kept[group.name]):
                group.output.weight(model)[:, head * size : (head + 1) * size] = 0
    save_compact(compact(model), folder)  # type: ignore[arg-type]
    return str(folder)


def heads_left(strategy: SoftMovement, layout: PrunableLayout) -> dict[str, tuple[int, ...]]:
    strategy.harden(layout)
    return {name: kept for name, kept, _ in compact(layout.model).compaction_plan.heads}


def press(strategy: SoftMovement) -> None:
    """A penalty that nothing resists."""
    optimizer = torch.optim.AdamW(strategy.parameter_groups(total_steps=STEPS))
    for step in range(STEPS):
        strategy.advance(Progress(step, STEPS, warmup_steps=2))
        penalty = strategy.penalty()
        assert penalty is not None
        penalty.backward()
        optimizer.step()
        optimizer.zero_grad()
    strategy.advance(Progress(STEPS, STEPS, warmup_steps=2))


@pytest.mark.parametrize(
    ("model_type", "kept", "tiles"),
    [("bert", KEPT, "8x8"), ("bert", KEPT, "element"), ("bert", KEPT, "head"), ("llama", KEPT_KV, "4x8")],
)
def test_heads_of_the_guide_survive_and_others_go(
    tmp_path: Path, model_type: str, kept: dict[str, tuple[int, ...]], tiles: str
) -> None:
    folder = former(tmp_path / "former", model_type, kept)
    for guide, expected in ((folder, kept), (None, dict.fromkeys(kept, ()))):
        layout = PrunableLayout.of(tiny(model_type))
        strategy = SoftMovement(
            granularity={"attention": tiles, "feed_forward": "unit"}, guide=guide, regularization=1000.0, **AS_GIVEN
        )
        strategy.attach(layout)
        press(strategy)
        assert heads_left(strategy, layout) == expected


# Tiles of 4 x 4, heads of 8; with two key/value heads of four queries each serves two.
@pytest.mark.parametrize(
    ("model_type", "kept", "name", "queries", "keys"),
    [
        ("bert", KEPT, "encoder-1-self", "11000011", "11000011"),
        ("llama", KEPT_KV, "decoder-0-self", "00001111", "0011"),
    ],
)
def test_all_four_projections_of_a_protected_head_stay_whole_and_no_more(
    tmp_path: Path, model_type: str, kept: dict[str, tuple[int, ...]], name: str, queries: str, keys: str
) -> None:
    guide = former(tmp_path / "former", model_type, kept)
    strategy = SoftMovement(guide=guide, granularity={"attention": "4x4"}, regularization=20.0, **AS_GIVEN)
    strategy.attach(PrunableLayout.of(tiny(model_type)))
    with torch.no_grad():
        for mask in strategy.all_masks:
            mask.scores.fill_(-9.0)
    strategy.advance(Progress(STEPS, STEPS, warmup_steps=2))
    for label, expected in (("query", queries), ("key", keys), ("value", keys), ("output", queries)):
        grid = strategy.masks[f"{name}-{label}"].kept
        grid = grid.T if label == "output" else grid
        assert grid.any(1).tolist() == grid.all(1).tolist() == [digit == "1" for digit in expected]


def test_what_is_protected_is_not_in_the_penalty(tmp_path: Path) -> None:
    guide = former(tmp_path / "former", "bert", KEPT)
    tiles = {"attention": "head", "feed_forward": "unit"}
    strategy = SoftMovement(regularization=10.0, guide=guide, granularity=tiles, **AS_GIVEN)
    strategy.attach(PrunableLayout.of(tiny("bert")))
    strategy.advance(Progress(STEPS, STEPS, warmup_steps=2))
    penalty = strategy.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(5.0)  # sigmoid(0), whatever share is protected
    penalty.backward()
    gradients = strategy.masks["encoder-1-self"].scores.grad.flatten() != 0
    assert gradients.tolist() == [False, True, True, False]


@pytest.mark.parametrize("target", [Target(density=0.4), Target(flops=0.5)])
def test_a_target_counts_what_is_protected(tmp_path: Path, target: Target) -> None:
    guide = former(tmp_path / "former", "bert", KEPT)
    tiles = {"attention": "element", "feed_forward": "unit"}
    strategy = SoftMovement(target=target, guide=guide, granularity=tiles)
    strategy.attach(PrunableLayout.of(tiny("bert", max_position_embeddings=130, intermediate_size=256)))
    with torch.no_grad():
        for mask in strategy.all_masks:
            mask.scores.normal_()
    strategy.advance(Progress(STEPS, STEPS, warmup_steps=0))
    assert strategy.reached() == pytest.approx(target.value, rel=0.02)


def test_a_target_below_what_is_protected_is_refused(tmp_path: Path) -> None:
    guide = former(tmp_path / "former", "bert", KEPT)
    with pytest.raises(UserError, match=r"target\.density is 0\.05, .* and the guide's heads, it is 0\.1"):
        SoftMovement(target=Target(density=0.05), guide=guide).attach(PrunableLayout.of(tiny("bert")))


def test_a_guide_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"guide '.*/nowhere' has no readable compaction_plan.json.*a run's compact/"):
        SoftMovement(guide=str(tmp_path / "nowhere")).attach(PrunableLayout.of(tiny("bert")))
    (tmp_path / PLAN_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"guide '.*': compaction_plan.json: this is not a compaction plan"):
        SoftMovement(guide=str(tmp_path)).attach(PrunableLayout.of(tiny("bert")))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("distilbert", {}), "is a 'bert' model compacted from other shapes than this 'distilbert' model has"),
        (("bert", {"num_attention_heads": 2}), r"\(encoder.0.self: 4 heads there, 2 here\)"),
        (("bert", {"num_hidden_layers": 4}), r"\(encoder.3.self: no heads there, 4 here\)"),
    ],
)
def test_a_guide_of_another_shape_is_refused(tmp_path: Path, shape: tuple[str, dict], message: str) -> None:
    guide = former(tmp_path / "former", "bert", KEPT)
    model_type, config = shape
    with pytest.raises(UserError, match=message):
        SoftMovement(guide=guide).attach(PrunableLayout.of(tiny(model_type, **config)))
