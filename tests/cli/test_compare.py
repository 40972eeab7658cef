"""The verb `compare`: runs that are there, and runs that it makes first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from built_reports import run_of
from parsed_page import Page

from bplightning.cli import compare as compare_cli
from bplightning.cli import main
from bplightning.errors import UserError
from bplightning.reporting.report import save_report
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.hybrid import Hybrid


def test_the_verb_writes_table_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, report in (("one", run_of(87.5, 50.0, 176_000_000)), ("two", run_of(86.0, 60.0, 150_000_000))):
        (tmp_path / name / "version_0").mkdir(parents=True)
        save_report(report, tmp_path / name / "version_0" / "report.json")
    runs = [str(tmp_path / name / "version_0") for name in ("one", "two")]
    (tmp_path / "one" / "version_0" / "report.html").write_text("")
    files = ["--output", str(tmp_path / "c.json"), "--page", str(tmp_path / "c.html")]
    main(["compare", *runs, *files])
    said = capsys.readouterr().out
    assert "87.50" in said
    found = json.loads((tmp_path / "c.json").read_text())
    dense = "dense bert-base-uncased"
    assert [p["name"] for p in found["points"]] == ["one/version_0", "two/version_0", dense]
    page = Page((tmp_path / "c.html").read_text())
    words = [picture.findtext("desc") or "" for picture in page.pictures]
    assert words[0] == f"Pareto-optimal: 1 (one/version_0, 87.50), 3 ({dense}, 88.50)."
    assert [of["href"] for tag, of in page.elements if tag == "a"] == ["one/version_0/report.html"]
    with pytest.raises(SystemExit):  # before any run is made
        main(["compare", "--strategies", "l0", "--folder", str(tmp_path / "none"), *files])
    assert not (tmp_path / "none").exists()
    assert "is there already: name another file, or give --overwrite true." in capsys.readouterr().err
    main(["compare", *runs, *files, "--overwrite", "true"])


def test_runs_are_made_one_for_each_combination_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def fit(command: list[str]) -> int:
        """Stands for minutes of training; the command line itself has its tests."""
        calls.append(command)
        run = Path(command[-1]) / "runs" / "qa-hybrid" / "version_0"
        run.mkdir(parents=True)
        save_report(run_of(80 + len(calls), 50.0, 176), run / "report.json")
        return 0

    monkeypatch.setattr(compare_cli, "_status", fit)
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
    monkeypatch.setattr(compare_cli, "_status", lambda _: pytest.fail("a run is made"))
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
    for strategies in ("dense,hybrid,cofi", "dense,hybrid,movement"):
        with pytest.raises(UserError, match="does not exist"):
            compare_cli.run_compare(["--strategies", strategies])
        said = capsys.readouterr().err
        if "cofi" in strategies:
            first, second = (f"{kind.default_target.density:g}" for kind in (Hybrid, CoFi))
            told = f"(hybrid: target.density {first}, cofi: target.density {second})"
            assert f"different targets {told}: give one to all" in said
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
    monkeypatch.setattr(compare_cli, "_status", lambda _: pytest.fail("a run is made"))
    with pytest.raises(UserError, match=f"no run was made, as `.*{message}"):
        compare_cli.run_compare(["--strategies", strategies, "--folder", str(tmp_path), "--", *behind])


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_cli, "_status", lambda _: 2)
    with pytest.raises(UserError, match=r"`fit --strategy l0 --seed_everything 0` ended with status 2 and without"):
        compare_cli.run_compare(["--strategies", "l0", "--folder", str(tmp_path)])
