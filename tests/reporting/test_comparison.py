"""Runs side by side."""

from __future__ import annotations

from typing import Any

import pytest
from built_reports import built, run_of
from parsed_page import Page

from bplightning.errors import UserError
from bplightning.reporting.comparison import Point, compare, dominated
from bplightning.reporting.comparison_page import draw


def point(score: float, latency_ms: float | None) -> Point:
    return Point(
        **{"run": "", "kind": "compact", "model": "", "strategy": "", "seed": 0, "density": 1.0},
        **{"score": score, "latency_ms": latency_ms, "bytes": None, "speedup": None, "beaten": {}},
    )


def test_after_a_refill_all_that_is_stored_counts() -> None:
    refill = built()["refill"]
    assert refill is not None
    runs = {
        "filled": run_of(87.0, 50.0, 100_000_000),
        "held": run_of(87.0, 50.0, 100_000_000, refill=refill | {"hold_masks": True}),
    }
    found = {point["run"]: point["density"] for point in compare(runs)["points"] if point["kind"] == "compact"}
    assert found == {"filled": 0.3, "held": 0.25}


def test_a_model_is_beaten_by_one_that_costs_no_more_and_scores_no_worse() -> None:
    points = [point(88, 100), point(87, 50), point(86, 60), point(87, 70), point(85, None), point(88, 100)]
    assert dominated(points, "latency_ms") == [False, False, True, True, None, False]
    assert dominated(points, "latency_ms", least_is_best=True) == [True, False, False, True, None, True]
    assert dominated(points, "bytes") == [None] * 6


def test_runs_and_the_dense_model_they_share_are_set_side_by_side() -> None:
    found = compare({"a": run_of(87.5, 50.0, 176), "b": run_of(86.0, 60.0, 150), "c": run_of(85.0, 70.0, 180)})
    assert (found["metric"], found["mode"], found["shape"]) == ("f1", "max", "8x128")
    assert [(p["run"], p["kind"]) for p in found["points"]] == [
        *(("a", "compact"), ("b", "compact"), ("c", "compact")),
        ("a", "dense"),
    ]
    assert [p["beaten"]["latency_ms"] for p in found["points"]] == [False, True, True, False]
    assert [p["beaten"]["bytes"] for p in found["points"]] == [False, False, True, False]
    assert found["points"][0]["speedup"] == 2.4


def test_a_busy_machine_does_not_decide_which_run_is_faster() -> None:
    quiet = built(latency_ms={"dense": {"8x128": 100.0}, "compact": {"8x128": 50.0}}, speedup={"8x128": 2.0})
    busy = built(latency_ms={"dense": {"8x128": 300.0}, "compact": {"8x128": 100.0}}, speedup={"8x128": 3.0})
    slower, faster, dense = compare({"quiet": quiet, "busy": busy})["points"]
    assert (slower["latency_ms"], dense["latency_ms"]) == (100.0, 200.0)
    assert faster["latency_ms"] == pytest.approx(200 / 3)
    assert slower["beaten"]["latency_ms"]


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
