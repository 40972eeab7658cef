"""What is measured for a plan: copies pruned at random, compacted, beside the dense model; and where it saturates."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from ranked_strategy import ROWS, WHOLE, Ranked
from read_families import make
from rich.console import Console
from tiny_families import HEADS, LAYERS, UNITS, inputs_for, tensors_of, tiny
from torch import nn

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.layout.families import FAMILIES
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import size_of
from bplightning.measuring import measure
from bplightning.measuring.random_copies import compact_copy, kept_at_random
from bplightning.planning.inventory import obstacle
from bplightning.planning.measured import DEFAULT_DENSITIES, Measuring, measured, saturation
from bplightning.planning.plan import plan
from bplightning.planning.schema import Measured, Plan
from bplightning.planning.table import render
from bplightning.strategies.movement import Movement

QUICK: dict[str, Any] = {"batch_sizes": (2,), "lengths": (8,), "seconds": 0.01}


def planned(model: nn.Module, strategy: PruningStrategy | None = None) -> Plan:
    return plan(model, strategy or Ranked(WHOLE), shapes=((1, 8),))


def found(model: nn.Module, made: Plan, **options: Any) -> Measured:
    seed = options.pop("seed", 0)
    return measured(model, made, Measuring(**(QUICK | options)), seed=seed)


def drawn(made: Plan) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(render(made))
    return console.file.getvalue()  # type: ignore[attr-defined]


# -- which heads and units go ------------------------------------------------------------------------------------------


def kept(density: float, seed: int = 0) -> dict[str, list[int]]:
    layout = PrunableLayout.of(tiny("bert"))
    by_role = {"attention": density, "feed_forward": density}
    return {name: each.tolist() for name, each in kept_at_random(layout.groups, by_role, seed=seed).items()}


def test_as_many_stay_as_asked_in_unlike_numbers_from_layer_to_layer() -> None:
    half = kept(0.5)
    heads, units = (
        [len(half[f"encoder.{layer}.{kind}"]) for layer in range(LAYERS)] for kind in ("self", "feed_forward")
    )
    assert (sum(heads), sum(units)) == (LAYERS * HEADS / 2, LAYERS * UNITS / 2)
    assert max(units) - min(units) > UNITS / 4
    assert all(each == sorted(set(each)) for each in half.values())


def test_one_seed_one_choice_and_less_is_a_part_of_more() -> None:
    assert kept(0.5) == kept(0.5)
    assert kept(0.5) != kept(0.5, seed=1)
    more, less = kept(0.5), kept(0.25)
    assert all(set(less[name]) <= set(more[name]) for name in more)


def test_roles_may_differ() -> None:
    layout = PrunableLayout.of(tiny("bert"))
    chosen = kept_at_random(layout.groups, {"attention": 1.0, "feed_forward": 0.0}, seed=0)
    assert [len(chosen[group.name]) for group in layout.groups] == [HEADS] * LAYERS + [0] * LAYERS


# -- the copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.5, 0.0])
@pytest.mark.parametrize("model_type", ROWS)
def test_copies_are_compact_models_that_share_what_did_not_shrink(
    model_type: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layout = make(model_type)
    monkeypatch.setitem(FAMILIES, model_type, layout.family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    free = [group for group in layout.groups if obstacle(layout, group) is None]
    chosen = kept_at_random(free, dict.fromkeys((group.role for group in free), density), seed=0)
    copied = compact_copy(layout, chosen)
    sizes = {group.name: size_of(group) for group in PrunableLayout.of(copied).groups}
    assert sizes == {group.name: len(chosen.get(group.name, range(size_of(group)))) for group in layout.groups}
    own = {id(parameter) for parameter in model.parameters()}
    assert own & {id(parameter) for parameter in copied.parameters()}
    for name, parameter in copied.named_parameters():
        dense = model.get_parameter(name) if name in before else None
        assert dense is None or id(parameter) in own or parameter.shape != dense.shape
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    outputs = tensors_of(copied, inputs_for(model, "right", batch=1))  # type: ignore[arg-type]
    assert outputs
    assert all(value.isfinite().all() for value in outputs.values())


# -- what is measured --------------------------------------------------------------------------------------------------


def test_sizes_and_work_are_those_of_the_copies() -> None:
    model = tiny("bert")
    layout = PrunableLayout.of(model)
    made = planned(model)
    result = found(model, made, densities=(0.25, 0.5))
    assert [row["density"] for row in result["at"]] == [0.5, 0.25]
    inputs = {"input_ids": torch.zeros(2, 8, dtype=torch.long)}
    for row in (result["dense"], *result["at"], result["limit"]):
        assert row is not None
        copied = compact_copy(layout, kept_at_random(layout.groups, row["by_role"], seed=0))
        assert row["parameters"] == measure.parameters(copied, layout)
        assert row["flops"] == {"2x8": measure.flops(copied, inputs)}
        assert row["ideal"]["2x8"] == result["dense"]["flops"]["2x8"] / row["flops"]["2x8"]
        assert row["efficiency"]["2x8"] == row["speedup"]["2x8"] / row["ideal"]["2x8"]
        low, high = row["within"]["2x8"]
        assert low <= row["speedup"]["2x8"] <= high
        assert row["kept"] == row["parameters"]["encoder_linear"] / result["dense"]["parameters"]["encoder_linear"]
    assert result["dense"]["speedup"] == {"2x8": 1.0}
    assert (result["at"][0]["heads"], result["at"][0]["units"]) == (LAYERS * HEADS // 2, LAYERS * UNITS // 2)
    assert result["limit"] is not None
    assert (result["limit"]["heads"], result["limit"]["units"], result["limit"]["kept"]) == (0, 0, 0)
    rows = [result["dense"], *result["at"], result["limit"]]
    assert result["saturation"] == {"2x8": saturation([(row["kept"], 1 / row["speedup"]["2x8"]) for row in rows])}


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "t5", "vit", "mixtral"])
def test_whatever_the_layout_covers(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, layout = make(model_type)
    monkeypatch.setitem(FAMILIES, model_type, layout.family)
    made = planned(model)
    result = made["measured"] = found(model, made, densities=(0.5,))
    assert next(model.parameters()).dtype == torch.float64, "the model is left as it is"
    (half,) = result["at"]
    assert half["by_role"] == dict.fromkeys({group["role"] for group in made["groups"] if not group["obstacle"]}, 0.5)
    assert half["kept"] == pytest.approx(0.5)
    assert half["ideal"] == {shape: pytest.approx(value, rel=0.2) for shape, value in half["ideal"].items()}
    stuck = sum(group["size"] for group in made["groups"] if group["obstacle"])
    assert result["limit"] is not None
    assert (result["limit"]["heads"], result["limit"]["units"]) == (0, stuck)
    assert json.loads(json.dumps(made)) == made
    text = drawn(made)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_by_default_the_schedules_own_density_is_among_the_usual() -> None:
    model = tiny("bert")
    usual = sorted(DEFAULT_DENSITIES, reverse=True)
    assert [row["density"] for row in found(model, planned(model))["at"]] == usual
    made = planned(model, Ranked(WHOLE, density=0.4))
    result = made["measured"] = found(model, made)
    assert made["estimates"] is not None
    (estimate,) = made["estimates"]["at"]
    assert [row["density"] for row in result["at"]] == sorted([*usual, estimate["density"]], reverse=True)
    (target,) = (row for row in result["at"] if row["target"])
    assert target["by_role"] == estimate["by_role"]
    assert "target, " in drawn(made)
    again = found(model, planned(model, Movement(target=Target(density=0.25), granularity=WHOLE)))
    assert [row["target"] for row in again["at"]] == [density == 0.25 for density in usual], "it is measured once"
    assert not any(row["target"] for row in found(model, made, densities=(0.4,))["at"])


def test_a_role_without_masks_stays_dense() -> None:
    model = tiny("bert")
    made = planned(model)
    for group in made["groups"]:
        if group["kind"] == "heads":
            group["granularity"], group["masked_weights"] = [], 0
    (half,) = found(model, made, densities=(0.5,))["at"]
    assert (half["heads"], half["units"]) == (LAYERS * HEADS, LAYERS * UNITS // 2)
    assert half["kept"] == 0.5


def test_where_nothing_gets_smaller_nothing_is_measured() -> None:
    model = tiny("bert")
    made = planned(model, Ranked({"attention": "2:4", "feed_forward": "2:4"}, density=0.5))
    result = made["measured"] = found(model, made)
    assert (result["at"], result["limit"], result["saturation"], result["dense"]["speedup"]) == ([], None, {}, {})
    assert "not measured" in drawn(made)


def test_what_finer_grains_leave_open_is_said() -> None:
    model = tiny("bert")
    for grain, open_ in (("4x4", True), ("head", False)):
        made = planned(model, Ranked({"attention": grain, "feed_forward": "unit"}))
        made["measured"] = found(model, made, densities=(0.5,))
        text = " ".join(drawn(made).split())
        assert ("attention is pruned by 4x4, and only training shows which heads become dead" in text) == open_
        assert "which units become dead" not in text


def test_shapes_are_fitted_and_each_is_timed_once() -> None:
    model = tiny("bert")
    result = found(model, planned(model), densities=(0.5,), batch_sizes=(1, 2), lengths=(8, 100, 200))
    assert list(result["dense"]["flops"]) == ["1x8", "2x8", "1x40", "2x40"]


def test_progress_is_told() -> None:
    model, told = tiny("bert"), []
    measured(model, planned(model), Measuring(densities=(0.5,), **QUICK), on_progress=lambda *done: told.append(done))
    fractions, whats = zip(*told, strict=True)
    assert list(fractions) == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert "compacting at a density of 50 %" in whats
    assert "timing 3 models, 2x8" in whats


# -- where it saturates ------------------------------------------------------------------------------------------------


def test_halving_gains_a_tenth_at_the_density_found() -> None:
    def line(density: float) -> float:
        return 0.1 + 0.9 * density

    end = saturation([(density, line(density)) for density in (1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.02, 0.0)])
    assert end is not None
    assert line(end) / line(end / 2) == pytest.approx(1.1, abs=1e-3)
    assert saturation([(0.0, 10.0), (0.01, 10.9), (1.0, 100.0)]) == end, "whatever the unit, between what was measured"


def test_below_what_was_measured_nothing_is_claimed() -> None:
    assert saturation([(0.0, 0.1), (0.05, 0.145), (0.1, 0.19), (1.0, 1.0)]) is None


def test_a_bend_between_measurements_is_found() -> None:
    times = [(0.0, 0.5), (0.2, 0.5), (0.4, 0.6), (1.0, 1.0)]  # nothing is gained below 0.2
    end = saturation(times)
    assert end is not None
    assert 0.2 < end < 0.4
    assert (0.5 + (end - 0.2) / 2) / 0.5 == pytest.approx(1.1, abs=1e-3)


def test_it_may_saturate_from_the_beginning() -> None:
    assert saturation([(0.0, 0.95), (1.0, 1.0)]) == 1


@pytest.mark.parametrize(
    ("density", "said"),
    [(0.31, "2x8: below 31 %; "), (None, "2x8: not down to 25 %; "), (1.0, "2x8: from the beginning; ")],
)
def test_where_it_saturates_is_said(density: float | None, said: str) -> None:
    model = tiny("bert")
    made = planned(model)
    result = made["measured"] = found(model, made, densities=(0.25,))
    result["saturation"]["2x8"] = density
    assert said in drawn(made)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"densities": ()}, r"--measure.densities is \[\]"),
        ({"densities": (0.5, 0.0)}, r"--measure.densities is \[0.5, 0.0\]"),
        ({"densities": (1.5,)}, "at most 1"),
        ({"batch_sizes": (0,)}, r"--measure.batch_sizes is \[0\]"),
        ({"lengths": ()}, r"--measure.lengths is \[\]"),
        ({"seconds": 0}, "--measure.seconds is 0; it must be above 0"),
        ({"seconds": float("inf")}, "--measure.seconds is inf; it must be above 0 and not infinite"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Measuring(**wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"torch finds no GPU here: give --measure\.device cpu"):
        Measuring(device="cuda")
