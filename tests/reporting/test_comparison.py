"""Runs side by side."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from built_reports import built
from parsed_page import Page

from bplightning.cli import compare as compare_cli
from bplightning.cli import main
from bplightning.errors import UserError
from bplightning.reporting.comparison import Point, compare, dominated
from bplightning.reporting.comparison_page import draw
from bplightning.reporting.report import Report, save_report
from bplightning.strategies.movement import Movement


def point(score: float, latency_ms: float | None) -> Point:
    return Point(
        **{"run": "", "kind": "compact", "model": "", "strategy": "", "seed": 0, "density": 1.0},
        **{"score": score, "latency_ms": latency_ms, "bytes": None, "speedup": None, "beaten": {}},
    )


def run_of(f1: float, ms: float, size: int, **changes: Any) -> Report:
    return built(
        metrics={"dense": {"exact_match": 80.0, "f1": 88.5}, "compact": {"exact_match": f1 - 9, "f1": f1}},
        latency_ms={"dense": {"8x128": 120.0}, "compact": {"8x128": ms}},
        speedup={"8x128": 120 / ms},
        bytes_on_disk={"dense": 400_000_000, "compact": size},
        **changes,
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


def test_the_verb_writes_table_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, report in (("one", run_of(87.5, 50.0, 176_000_000)), ("two", run_of(86.0, 60.0, 150_000_000))):
        (tmp_path / name / "version_0").mkdir(parents=True)
        save_report(report, tmp_path / name / "version_0" / "report.json")
    runs = [str(tmp_path / name / "version_0") for name in ("one", "two")]
    files = ["--output", str(tmp_path / "c.json"), "--page", str(tmp_path / "c.html")]
    main(["compare", *runs, *files])
    said = capsys.readouterr().out
    assert "87.50" in said
    found = json.loads((tmp_path / "c.json").read_text())
    assert [p["run"] for p in found["points"]] == ["one/version_0", "two/version_0", "one/version_0"]
    page = Page((tmp_path / "c.html").read_text())
    words = [picture.findtext("desc") or "" for picture in page.pictures]
    assert words[0] == "Pareto-optimal: 1 (one/version_0, compact, 87.50), 3 (one/version_0, dense, 88.50)."
    with pytest.raises(SystemExit):  # before any run is made
        main(["compare", "--strategies", "l0", "--folder", str(tmp_path / "none"), *files])
    assert not (tmp_path / "none").exists()
    assert "is there already: name another file, or give --overwrite true." in capsys.readouterr().err
    main(["compare", *runs, *files, "--overwrite", "true"])


def test_runs_are_made_one_for_each_combination_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def fit(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """Stands for minutes of training; the command line itself has its tests."""
        calls.append(command)
        run = Path(command[-1]) / "runs" / "qa-hybrid" / "version_0"
        run.mkdir(parents=True)
        save_report(run_of(80 + len(calls), 50.0, 176), run / "report.json")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(compare_cli.subprocess, "run", fit)
    args = ["compare", "--strategies", "hybrid,l0", "--seeds", "0,1", "--folder", str(tmp_path / "all")]
    main([*args, "--", "--trainer.max_epochs", "1"])
    assert len(calls) == 4
    assert calls[0][2:6] == ["bplightning", "fit", "--strategy", "hybrid"]
    assert calls[0][-4:-1] == ["--resume", "true", "--trainer.default_root_dir"]
    assert calls[0][-6:-4] == ["--trainer.max_epochs", "1"]
    assert {call[5] + call[7] for call in calls} == {"hybrid0", "hybrid1", "l00", "l01"}
    main([*args, "--", "--trainer.max_epochs", "1"])
    assert len(calls) == 4
    main([*args, "--", "--trainer.max_epochs", "2"])
    assert len(calls) == 8
    assert "hybrid-seed1-" in capsys.readouterr().out.replace("\n", "")
    for wrong, said in (
        (["compare"], "there is nothing to compare: name folders of runs, or give --strategies"),
        (["compare", "--seeds", "1"], "are for runs to make: give --strategies too"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "behind", "instead"),
    [
        ([], ["--strategy", "l0"], "--strategy is given after --, .* give --strategies before"),
        ([], ["--strategy.class_path=l0"], "--strategy is given after --, .* give --strategies before"),
        ([], ["--trainer.max_steps", "1", "--seed_everything=1"], "--seed_everything is given after .* give --seeds"),
        (["--models", "a,b"], ["--task.model", "c"], "--task.model is given after --, .* give --models before"),
        (["--models", "a,b"], ["--task.init_args.model=c"], "--task.model is given after --, .* give --models before"),
    ],
)
def test_what_runs_differ_in_does_not_stand_behind_the_dashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[str], behind: list[str], instead: str
) -> None:
    monkeypatch.setattr(compare_cli.subprocess, "run", lambda *_, **__: pytest.fail("a run is made"))
    given = ["--strategies", "hybrid,movement", "--folder", str(tmp_path), *models]
    with pytest.raises(UserError, match=instead):
        compare_cli.run_compare([*given, "--", *behind])


def test_one_model_for_all_runs_may_stand_behind_the_dashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(compare_cli, "_run", lambda root, options: calls.append(options) or tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        compare_cli.run_compare(["--strategies", "cofi", "--", "--task.model", "c", "--strategy.target.density", "0.5"])
    assert calls[0][-4:] == ["--task.model", "c", "--strategy.target.density", "0.5"]


def test_all_strategies_get_one_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(compare_cli, "_run", lambda root, options: calls.append(options) or tmp_path)
    strategies = ["hybrid", "movement", "magnitude", "cofi"]
    with pytest.raises(UserError, match="does not exist"):
        compare_cli.run_compare(["--strategies", ",".join(strategies), "--", "--strategy.target.density", "0.4"])
    assert [options[1] for options in calls] == strategies
    assert all(options[-2:] == ["--strategy.target.density", "0.4"] for options in calls)


@pytest.mark.parametrize(
    "typed",
    [
        ["--strategy.target.density", "0.4"],
        ["--strategy.target.density=0.4"],
        ["--strategy.init_args.target.density=0.4"],
    ],
)
def test_rows_without_a_target_are_made_next_to_those_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: list[str]
) -> None:
    calls: dict[str, list[str]] = {}
    monkeypatch.setattr(compare_cli, "_run", lambda root, options: calls.update({options[1]: options}) or tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        compare_cli.run_compare(["--strategies", "dense,hybrid,l0,movement", "--", *typed, "--trainer.max_steps", "9"])
    for name in ("hybrid", "movement"):
        assert calls[name][4:] == [*typed, "--trainer.max_steps", "9"]
    for name in ("dense", "l0"):
        assert calls[name][4:] == ["--trainer.max_steps", "9"]
    said = capsys.readouterr().err
    assert f"{' '.join(typed)} is left out for what has no target: dense, l0\n" in said
    assert "different targets" not in said


def test_defaults_that_differ_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_cli, "_run", lambda root, options: tmp_path)
    for strategies in ("dense,hybrid,movement", "dense,hybrid"):
        with pytest.raises(UserError, match="does not exist"):
            compare_cli.run_compare(["--strategies", strategies])
        said = capsys.readouterr().err
        if "movement" in strategies:
            default = Movement.default_target.density
            assert f"different targets (hybrid: none, movement: target.density {default:g}): give one to all" in said
        else:
            assert "targets" not in said


@pytest.mark.parametrize(
    ("strategies", "behind", "message"),
    [
        ("hybrid,movement", ["--strategy.target.flops", "0.5"], "fit --strategy movement .* movement cannot prune to"),
        ("l0", ["--strategy.target.density", "0.5"], "fit --strategy l0 .* l0 has no target: leave it out"),
        ("hybrid,movement", ["--strategy.regularization", "5"], "strategy movement .*regularization.* not accepted"),
        ("hybrid,hybird", [], "hybird"),
        ("hybrid,wanda", [], "fit --strategy wanda .* prunes without training"),
        ("hybrid,movement", ["--trainer.max_epochs", "many"], "fit --strategy hybrid .*trainer.max_epochs"),
    ],
)
def test_a_run_that_would_be_refused_is_so_before_any_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategies: str, behind: list[str], message: str
) -> None:
    monkeypatch.setattr(compare_cli.subprocess, "run", lambda *_, **__: pytest.fail("a run is made"))
    with pytest.raises(UserError, match=f"no run was made, as `.*{message}"):
        compare_cli.run_compare(["--strategies", strategies, "--folder", str(tmp_path), "--", *behind])


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_cli.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2))
    with pytest.raises(UserError, match=r"`fit --strategy l0 --seed_everything 0` ended with status 2 and without"):
        compare_cli.run_compare(["--strategies", "l0", "--folder", str(tmp_path)])
