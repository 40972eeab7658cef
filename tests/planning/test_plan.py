"""What a plan says of a model and a strategy: groups, masks, ties, refusals, and the size at the target."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from ranked_strategy import ROWS, WHOLE, Ranked
from read_families import make
from rich.console import Console
from tiny_families import HEADS, HIDDEN, LAYERS, UNITS, tiny
from torch import nn

from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import random_images, takes_images
from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.families import FAMILIES
from bplightning.layout.groups import AttentionGroup
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import make_masks
from bplightning.masks.masking import has_masks
from bplightning.measuring import measure
from bplightning.planning.inventory import obstacle
from bplightning.planning.plan import plan
from bplightning.planning.schema import Plan
from bplightning.planning.table import render
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.movement import Movement
from bplightning.strategies.post_training.post_training import PostTraining

SHAPES = ((1, 16), (3, 16))


def planned(model_type: str, strategy: PruningStrategy, **options: Any) -> Plan:
    model, layout = make(model_type)
    return plan(model, strategy, family=layout.family, shapes=SHAPES, **options)


def drawn(made: Plan, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(made))
    return console.file.getvalue()  # type: ignore[attr-defined]


# -- what is pruned ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granularity", "read", "entries", "each"),
    [
        (WHOLE, ("head", "unit"), (HEADS, UNITS), ([1024, 1024], [64, 64])),
        ({"attention": "8x4", "feed_forward": "8x8"}, ("8x4", "8x8"), (128, 24), ([32, 32], [64, 64])),
        ({"attention": "row", "feed_forward": "column"}, ("row", "column"), (128, 56), ([32, 32], [24, 32])),
        ({"attention": "element", "feed_forward": "2:4"}, ("element", "2:4"), (4096, 1536), ([1, 1], [1, 1])),
    ],
)
def test_masks_are_read_by_role(
    granularity: dict[str, str], read: tuple[str, str], entries: tuple[int, int], each: tuple[list[int], list[int]]
) -> None:
    made = planned("bert", Ranked(granularity))
    roles = made["roles"]
    assert [(role["role"], role["kind"], role["groups"], role["size"]) for role in roles] == [
        ("attention", "heads", LAYERS, LAYERS * HEADS),
        ("feed_forward", "units", LAYERS, LAYERS * UNITS),
    ]
    assert tuple(role["granularity"] for role in roles) == tuple([name] for name in read)
    assert tuple(role["entries"] for role in roles) == tuple(LAYERS * count for count in entries)
    assert tuple(role["entry_weights"] for role in roles) == each
    assert [role["scores"] for role in roles] == [role["entries"] for role in roles]
    assert made["prunable"]["scores"] == sum(role["entries"] for role in roles)


@pytest.mark.parametrize("model_type", ROWS)
def test_every_parameter_is_counted_once(model_type: str) -> None:
    model, layout = make(model_type)
    made = plan(model, Ranked(WHOLE), family=layout.family, shapes=SHAPES)
    parameters = made["model"]["parameters"]
    assert parameters == measure.parameters(model, layout)
    assert made["prunable"]["weights"] == parameters["encoder_linear"] == sum(g["weights"] for g in made["groups"])
    rest = sum(part["parameters"] for part in made["not_pruned"])
    assert parameters["encoder_linear"] + rest == parameters["all"]
    assert made["prunable"]["of_encoder_linear"] == 1
    assert made["prunable"]["of_all_parameters"] == parameters["encoder_linear"] / parameters["all"]


def test_what_stays_is_named_by_what_it_is() -> None:
    parts = {part["what"]: part for part in planned("bert", Ranked(WHOLE))["not_pruned"]}
    assert set(parts) == {"embeddings", "biases of prunable layers", "norms", "head of the task"}
    assert parts["head of the task"]["names"] == ["qa_outputs.weight", "qa_outputs.bias"]
    assert parts["biases of prunable layers"]["parameters"] == LAYERS * (5 * HIDDEN + UNITS)
    assert "bert.encoder.layer.*.output.dense.bias" in parts["biases of prunable layers"]["names"]


def test_a_strategy_may_leave_a_role_alone() -> None:
    class FeedForwardOnly(Ranked):
        def attach(self, layout: PrunableLayout) -> None:
            for name, mask in make_masks(layout, self.granularity, scores=False):
                if mask.role == "feed_forward":
                    self.add_mask(name, mask, layout)

        def advance(self, progress: Progress) -> None:
            """Keep everything: there are no scores to rank."""

    made = planned("bert", FeedForwardOnly(WHOLE))
    attention, feed_forward = made["roles"]
    assert (attention["masked_weights"], attention["granularity"], attention["masks"]) == (0, [], 0)
    assert feed_forward["masked_weights"] == feed_forward["weights"] == made["prunable"]["weights"]
    assert made["prunable"]["scores"] == 0
    assert "prunable, but without a mask" in drawn(made, 80)


def test_norms_that_a_mask_multiplies_are_no_linear_weights() -> None:
    made = planned("bert", CoFi())
    assert made["prunable"]["of_encoder_linear"] == 1


def test_no_masks_no_target() -> None:
    made = planned("bert", PruningStrategy())
    assert (made["prunable"]["weights"], made["estimates"], made["problems"]) == (0, None, [])
    assert "this strategy masks nothing" in drawn(made, 80)


def test_model_and_strategy_stay_as_they_are() -> None:
    model, layout = make("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strategy = Ranked(WHOLE, density=0.25)
    plan(model, strategy, shapes=SHAPES)
    assert not has_masks(model)
    assert not strategy.all_masks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    strategy.attach(layout)
    with pytest.raises(UserError, match="already has masks"):
        plan(model, strategy)


# -- what is tied, and what cannot shrink ------------------------------------------------------------------------------


def said(made: Plan, how: str) -> list[str]:
    return [tie["what"] for tie in made["tied"] if tie["how"] == how]


def test_entries_that_several_weights_share() -> None:
    made = planned("bert", Ranked(WHOLE))
    assert said(made, "mask") == [
        "attention: a head's query, key, value and output share one entry",
        "feed_forward: a unit's row of the up projection and its column of the down projection share one entry",
    ]
    assert made["tied"][0]["names"] == [f"encoder.{layer}.self" for layer in range(LAYERS)]
    assert said(planned("bert", Ranked({"attention": "4x4", "feed_forward": "row"})), "mask") == []
    grouped = planned("qwen2", Ranked(WHOLE))
    assert "a key/value head and its 2 query heads share one entry" in said(grouped, "mask")[0]
    assert "rows of the 2 up projections" in said(grouped, "mask")[1]
    assert "4 of size 8 on 2 key/value" in drawn(grouped, 80)
    assert "and its projections of positions, share one" in said(planned("deberta-v2", Ranked(WHOLE)), "mask")[0]
    both = said(planned("t5", Ranked(WHOLE)), "mask")
    assert both[0].startswith("attention, decoder_attention, cross_attention: a head's query")


def test_parameters_that_are_one() -> None:
    (names,) = [tie["names"] for tie in planned("gemma", Ranked(WHOLE))["tied"] if tie["how"] == "tensor"]
    assert names == ["model.embed_tokens.weight", "lm_head.weight"]
    fused, experts = (said(planned(each, Ranked(WHOLE)), "storage") for each in ("gpt2", "mixtral"))
    assert fused == ["transformer.h.*.attn.c_attn.weight: each stores 3 prunable weights in one parameter"]
    assert "model.layers.*.mlp.experts.gate_up_proj: each stores 6 prunable weights in one parameter" in experts
    assert len(said(planned("t5", Ranked(WHOLE)), "position_bias")) == 2


def test_what_compaction_cannot_shrink_stays_in_the_estimates() -> None:
    made = planned("mixtral", Ranked(WHOLE))
    obstacles = {group["name"]: group["obstacle"] for group in made["groups"] if group["obstacle"]}
    assert "decoder.0.feed_forward.expert.0 cannot lose some of its units" in next(iter(obstacles.values()))
    weights = sum(group["weights"] for group in made["groups"] if group["name"] in obstacles)
    half = made["estimates"]["at"][0]["parameters"]["encoder_linear"]
    assert half == weights + (made["model"]["parameters"]["encoder_linear"] - weights) / 2
    assert "Compaction cannot shrink these yet" in drawn(made, 100)
    assert not any(group["obstacle"] for group in planned("bert", Ranked(WHOLE))["groups"])


# -- the target --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ROWS)
def test_estimates_are_those_of_a_compact_model(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, layout = make(model_type)
    monkeypatch.setitem(FAMILIES, model_type, layout.family)
    half = plan(model, Ranked(WHOLE), shapes=SHAPES)["estimates"]["at"][0]
    assert half["density"] == 0.5
    smaller = compact(with_half_dead(model, layout))
    expected = measure.parameters(smaller, PrunableLayout.of(smaller))
    # Nobody knows beforehand which columns of a table of position biases all its layers stop looking up.
    expected["all"] += tables(model) - tables(smaller)
    assert half["parameters"] == expected
    for rows, tokens in measure.fitting(model, SHAPES):
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}
        if takes_images(model):
            inputs = random_images(model, rows)
        dense, count = measure.flops(model, inputs), measure.flops(smaller, inputs)
        assert half["flops"][f"{rows}x{tokens}"] == count
        assert half["speedup"][f"{rows}x{tokens}"] == pytest.approx(dense / count)


def tables(model: nn.Module) -> int:
    shared = (parameter for name, parameter in model.named_parameters() if "relative_attention_bias" in name)
    return sum(parameter.numel() for parameter in shared)


@torch.no_grad()
def with_half_dead(model: nn.Module, layout: PrunableLayout) -> nn.Module:
    """The first half of the heads and units of each group that can shrink is zero, biases too."""
    for group in layout.groups:
        if obstacle(layout, group) is None:
            for reader in group.members[:-1]:
                weight, bias = reader.weight(model), reader.bias_of(model)
                weight[: weight.shape[0] // 2] = 0
                if bias is not None:
                    bias[: bias.shape[0] // 2] = 0
            last = group.members[-1].weight(model)
            last[:, : last.shape[1] // 2] = 0
    return model


def test_a_schedules_density_is_the_target() -> None:
    made = planned("bert", Ranked(WHOLE, density=0.25))["estimates"]
    assert made["density_from"] == "schedule"
    (target,) = made["at"]
    assert target["parameters"]["encoder_linear"] == pytest.approx(
        0.25 * LAYERS * (4 * 32 * 32 + 2 * 32 * 24), rel=0.02
    )


def test_a_strategy_that_chooses_anew_only_every_so_often_is_seen_at_its_target() -> None:
    strategy = Movement(target=Target(density=0.25), granularity=WHOLE, refresh_every=101)
    made = planned("bert", strategy, end=Progress(1000, 1000, warmup_steps=50))  # the schedule ends at step 900
    (target,) = made["estimates"]["at"]
    assert target["by_role"] == {"attention": 0.25, "feed_forward": 0.25}


def test_a_ranking_of_untrained_scores_favours_no_role() -> None:
    (target,) = planned("bert", Ranked({"attention": "4x4", "feed_forward": "unit"}, density=0.25))["estimates"]["at"]
    assert target["by_role"] == {
        "attention": pytest.approx(0.25, abs=0.03),
        "feed_forward": pytest.approx(0.25, abs=0.03),
    }


def test_without_a_schedules_density_examples_are_shown() -> None:
    made = planned("bert", Ranked(WHOLE))
    assert made["estimates"]["density_from"] == "training"
    assert [point["density"] for point in made["estimates"]["at"]] == [0.5, 0.25, 0.1]
    assert "follows from training" in drawn(made, 80)


def test_neighbours_that_stay_in_every_row_make_nothing_smaller() -> None:
    made = planned("bert", Ranked({"attention": "2:4", "feed_forward": "unit"}, density=0.5))["estimates"]
    (target,) = made["at"]
    attention, units = LAYERS * 4 * 32 * 32, LAYERS * 2 * 32 * 24
    assert target["by_role"]["attention"] == 0.5
    assert target["parameters"]["encoder_linear"] == attention + units / 2


def test_only_whole_heads_and_units_are_promised() -> None:
    assert "At the target, at best" in drawn(planned("bert", Ranked({**WHOLE, "attention": "4x4"}, density=0.5)), 80)
    assert "at best" not in drawn(planned("bert", Ranked(WHOLE, density=0.5)), 80)


def test_no_more_tokens_than_positions() -> None:
    made = plan(tiny("bert"), Ranked(WHOLE), shapes=((2, 500),))
    assert list(made["estimates"]["dense_flops"]) == ["2x40"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_all_blocks_that_do_not_divide_with_those_that_would() -> None:
    chosen = {"attention": "8x8", "feed_forward": "5x7"}
    made = planned("bert", Ranked(chosen))
    assert [problem["group"] for problem in made["problems"]] == [f"encoder.{n}.feed_forward" for n in range(LAYERS)]
    first = made["problems"][0]
    assert first["shapes"] == [[UNITS, HIDDEN], [HIDDEN, UNITS]]
    assert first["rows"] == first["columns"] == [1, 2, 4, 8]
    assert made["estimates"] is None
    attention, feed_forward = made["roles"]
    assert (attention["granularity"], feed_forward["granularity"]) == (["8x8"], [])
    for size in first["rows"]:
        assert not planned("bert", Ranked({**chosen, "feed_forward": f"{size}x{size}"}))["problems"]
    text = " ".join(drawn(made, 80).split())
    assert "feed_forward: refused in 3 of 3 groups, with weights of 24x32, 32x24" in text
    assert "block 5x7 does not divide bert.encoder.layer.0.intermediate.dense.weight of shape 24 x 32" in text
    assert "have rows and columns: 1 2 4 8. Always possible: unit, row, column and element." in text


@pytest.mark.parametrize(
    ("refuses", "message"),
    [("together", "too many groups"), ("schedule", "no step left of 1000000 (1,000,000 steps are assumed")],
)
def test_what_is_refused_of_the_whole(refuses: str, message: str) -> None:
    made = planned("bert", Ranked(WHOLE, refuses=refuses))
    (problem,) = made["problems"]
    assert (problem["group"], problem["role"]) == (None, None)
    assert problem["message"].startswith(message)
    assert made["estimates"] is None
    assert made["roles"][0]["granularity"] == ["head"]
    assert message in " ".join(drawn(made, 80).split())


def test_the_end_of_training_can_be_said() -> None:
    made = planned("bert", Ranked(WHOLE, refuses="schedule"), end=Progress(step=7, total_steps=7, warmup_steps=1))
    assert made["problems"][0]["message"] == "no step left of 7"


# -- the document ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ROWS)
def test_plain_json_drawn_within_its_width(model_type: str) -> None:
    made = planned(model_type, Ranked(WHOLE, density=0.5))
    again = json.loads(json.dumps(made))
    assert again == made
    width = 80
    for text in (drawn(again, width), drawn(planned(model_type, Ranked({**WHOLE, "attention": "5x5"})), width)):
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert max(map(len, text.splitlines())) <= width


def test_layers_that_are_alike_are_one_row() -> None:
    made = planned("bert", Ranked(WHOLE))
    assert "encoder 0 to 2 " in drawn(made, 80)
    made["groups"][1]["size"] = 1
    text = drawn(made, 80)
    assert "encoder 0 " in text
    assert "encoder 1  " in text
    assert isinstance(make("bert")[1].groups[1], AttentionGroup)


def test_what_is_found_from_data_without_training_is_no_estimate() -> None:
    planned = plan(tiny("bert"), PostTraining())
    (problem,) = planned["problems"]
    assert "follows from data, which `plan` does not read: `prune` reports it" in problem["message"]
    assert planned["estimates"] is None
