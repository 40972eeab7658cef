"""Runs side by side."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
from built_reports import built, run_of
from parsed_page import Page
from rich.console import Console

from bplightning.errors import UserError
from bplightning.reporting.comparison import Comparison, compare, dominated
from bplightning.reporting.comparison_page import draw, render
from bplightning.reporting.comparison_points import Point
from bplightning.reporting.label_places import Box, label_boxes


def drawn(comparison: Comparison) -> str:
    output = io.StringIO()
    Console(file=output, width=80).print(render(comparison))
    return output.getvalue()


def point(score: float, latency_ms: float | None) -> Point:
    return Point(
        **{"name": "", "runs": [], "kind": "compact", "model": "", "strategy": "", "seeds": [0], "density": 1.0},
        **{"score": score, "score_spread": None, "scaled_ms": latency_ms, "latency_ms": latency_ms, "bytes": None},
        **{"speedup": None, "settled": True, "collapsed": False, "beaten": {}},
    )


def test_after_a_refill_all_that_is_stored_counts() -> None:
    refill = built()["refill"]
    assert refill is not None
    runs = {
        "filled": run_of(87.0, 50.0, 100_000_000),
        "held": run_of(87.0, 50.0, 100_000_000, refill=refill | {"hold_masks": True}),
    }
    found = {point["name"]: point["density"] for point in compare(runs)["points"] if point["kind"] == "compact"}
    assert found == {"filled": 0.3, "held": 0.25}


def test_a_model_is_beaten_by_one_that_costs_no_more_and_scores_no_worse() -> None:
    points = [point(88, 100), point(87, 50), point(86, 60), point(87, 70), point(85, None), point(88, 100)]
    assert dominated(points, "latency_ms") == [False, False, True, True, None, False]
    assert dominated(points, "latency_ms", least_is_best=True) == [True, False, False, True, None, True]
    assert dominated(points, "bytes") == [None] * 6


def test_runs_and_the_dense_model_they_share_are_set_side_by_side() -> None:
    found = compare({"a": run_of(87.5, 50.0, 176), "b": run_of(86.0, 60.0, 150), "c": run_of(85.0, 70.0, 180)})
    assert (found["metric"], found["mode"], found["shape"]) == ("f1", "max", "8x128")
    assert [(p["name"], p["kind"]) for p in found["points"]] == [
        *(("a", "compact"), ("b", "compact"), ("c", "compact")),
        ("dense bert-base-uncased", "dense"),
    ]
    assert [p["beaten"]["latency_ms"] for p in found["points"]] == [False, True, True, False]
    assert [p["beaten"]["bytes"] for p in found["points"]] == [False, False, True, False]
    assert found["points"][0]["speedup"] == 2.4


def test_a_busy_machine_does_not_decide_which_run_is_faster() -> None:
    quiet = built(latency_ms={"dense": {"8x128": 100.0}, "compact": {"8x128": 50.0}}, speedup={"8x128": 2.0})
    busy = built(latency_ms={"dense": {"8x128": 300.0}, "compact": {"8x128": 100.0}}, speedup={"8x128": 3.0})
    slower, faster, dense = compare({"quiet": quiet, "busy": busy})["points"]
    assert (slower["scaled_ms"], dense["scaled_ms"]) == (100.0, 200.0)
    assert faster["scaled_ms"] == pytest.approx(200 / 3)
    assert slower["beaten"]["latency_ms"]
    assert [slower["latency_ms"], faster["latency_ms"]] == [50.0, 100.0]  # what is printed as ms was measured


def test_a_metric_that_is_to_be_low_is_best_low() -> None:
    lower = {"monitor": {"metric": "f1", "mode": "min"}}
    found = compare({"a": run_of(87.5, 50.0, 176, **lower), "b": run_of(86.0, 60.0, 150, **lower)})
    assert [p["beaten"]["latency_ms"] for p in found["points"]] == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": "classification"}, "task is 'classification' in one, 'qa' in the other"),
        ({"data": {"dataset": "other/squad"}}, "data is {'dataset': 'other/squad'} in one"),
        ({"data": None}, "data is None in one"),
        ({"evaluation": {"examples": 499}}, "evaluation is {'examples': 499} in one, {'examples': 500}"),
    ],
)
def test_scores_of_other_tasks_or_validation_sets_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as error:
        compare({"a": run_of(87.5, 50.0, 176), "b": run_of(87.5, 50.0, 176, **changes)})
    assert "scores of 'b' and 'a' cannot be compared" in str(error.value)
    assert named in str(error.value)


def test_latencies_of_two_machines_are_not_compared() -> None:
    other = {"machine": {"cpu": "Another", "threads": 2, "device": "cpu", "platform": "Linux x86_64"}}
    found = compare({"a": run_of(87.5, 50.0, 176), "b": run_of(86.0, 60.0, 150, **other)})
    assert {p["beaten"]["latency_ms"] for p in found["points"]} == {None}
    assert found["points"][1]["beaten"]["bytes"] is False
    page = Page(draw(found))
    assert "Latencies are from 2 machines and are not compared." in page.text
    assert [picture.findtext("title") for picture in page.pictures] == ["f1 against weights on disk (MB)"]


OPTIONS = {"strategy": "hybrid", "task.model": "m"}


def test_seeds_of_one_configuration_are_one_row_with_mean_and_spread() -> None:
    runs = {
        "a": run_of(87.0, 50.0, 176, seed=0),
        "b": run_of(85.0, 60.0, 176, seed=1),
        "c": run_of(80.0, 40.0, 176, seed=0),
    }
    options = {
        "a": OPTIONS | {"seed_everything": "0", "strategy.target.density": "0.5"},
        "b": OPTIONS | {"seed_everything": "1", "strategy.target.density": "0.5"},
        "c": OPTIONS | {"seed_everything": "0", "strategy.target.density": "0.25"},
    }
    found = compare(runs, options)
    both, other, dense = found["points"]
    assert (both["name"], both["seeds"], both["score"]) == ("a and 1 more", [0, 1], 86.0)
    assert both["score_spread"] == pytest.approx(2**0.5)
    assert both["latency_ms"] == 55.0
    assert other["score_spread"] is None
    assert dense["kind"] == "dense"
    assert found["options"] == {"strategy.target.density": ["0.5", "0.25"]}
    text = drawn(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "86.00 ± 1.41" in text
    assert "1  a, b" in text
    assert "strategy.target.density: 0.5 (1); 0.25 (2)" in text
    each = compare(runs, options, each=True)
    assert [p["name"] for p in each["points"]] == ["a", "b", "c", "dense bert-base-uncased"]
    assert each["options"] == {"strategy.target.density": ["0.5", "0.5", "0.25"]}


def test_a_model_of_which_nothing_is_left_is_not_the_best() -> None:
    full, left = {"encoder_linear": 80_000_000, "all": 100_000_000}, {"encoder_linear": 0, "all": 20_000_000}
    empty = run_of(84.0, 10.0, 9, refill=None, parameters={"dense": full, "masked": left, "compact": left})
    found = compare({"a": run_of(87.5, 50.0, 176), "empty": empty})
    assert [p["beaten"]["latency_ms"] for p in found["points"]] == [False, None, False]
    assert "0.0 %, collapsed" in drawn(found)


def test_an_unsettled_speed_up_is_marked() -> None:
    shaky = {"speedup_interval": {"8x128": {"low": 1.0, "high": 4.0, "settled": False}}}
    report = built(**shaky)
    text = drawn(compare({"a": report, "b": run_of(86.0, 60.0, 150)}))
    assert "2.44x?" in text
    assert "?: the speed-up is not settled." in " ".join(text.split())


def test_the_page_has_a_colour_for_each_strategy_links_and_labels_apart() -> None:
    strategies = ("hybrid", "movement", "l0")
    runs = {
        f"{name}/{seed}": run_of(87.0, 50.0, 176, strategy=name, seed=seed) for name in strategies for seed in (0, 1)
    }
    page = Page(draw(compare(runs), {"hybrid/0": "../a b/report.html"}))
    plane = page.pictures[0]
    assert [circle.get("class") for circle in plane.findall("circle")] == [
        *("kind-0", "kind-0", "kind-1", "kind-1", "kind-2", "kind-2"),
        "dense",
    ]
    places = {(text.get("x"), text.get("y")) for text in plane.findall("text") if text.text in [*"1234567"]}
    assert len(places) == 7
    assert [attributes["href"] for tag, attributes in page.elements if tag == "a"] == ["../a b/report.html"]


def test_labels_of_points_in_one_place_do_not_cover_each_other() -> None:
    boxes = label_boxes([(100.0, 100.0, str(place)) for place in range(12)], Box(0, 0, 400, 300))
    assert not [1 for one, other in itertools.combinations(boxes, 2) if one.covers(other)]


def test_what_is_not_there_is_refused() -> None:
    runs = {"a": run_of(87.5, 50.0, 176)}
    with pytest.raises(UserError, match="'a' has no metric 'bleu': give --metric, one of exact_match, f1"):
        compare(runs, metric="bleu")
    with pytest.raises(UserError, match="the runs were not all timed at 1x1: give --shape, one of 8x128"):
        compare(runs, shape="1x1")
    elsewhere = built(latency_ms={"dense": {"1x9": 1.0}, "compact": {"1x9": 1.0}}, speedup={"1x9": 1.0})
    with pytest.raises(UserError, match="not all timed at one shape: compare runs that have one in common"):
        compare(runs | {"b": elsewhere})
    with pytest.raises(UserError, match="do not say which metric is the score: give --metric, one of exact_match, f1"):
        compare({"a": run_of(87.5, 50.0, 176, monitor=None)})
