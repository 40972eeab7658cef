"""Old spellings of a strategy's options are refused in one line with the new spelling and the user's value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bplightning.errors import UserError
from bplightning.runs.training_options import add_run_options, new_parser


def refusal(*args: str) -> str:
    parser = new_parser()
    add_run_options(parser)
    with pytest.raises(UserError) as refused:
        parser.parse_args(list(args))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("strategy", "typed", "new"),
    [
        ("movement", ["density=0.25"], "target.density 0.25"),
        ("hybrid", ["target_density=0.25"], "target.density 0.25"),
        ("hybrid", ["target_flops_speedup=2"], "target.flops 0.5"),
        ("hybrid", ["init_args.target_flops_speedup=4"], "target.flops 0.25"),
        ("hybrid", ["target_flops_speedup=2x"], "target.flops VALUE"),
        ("post-training", ["target_flops=0.7"], "target.flops 0.7"),
        (
            "hybrid",
            ["target_latency_speedup=2", "latency_table=t.json"],
            "target.latency_speedup 2 --strategy.target.latency_table t.json",
        ),
        ("ziplm", ["target_speedups=[1.5, 2]"], "target.latency_speedup '[1.5,2]'"),
        ("cofi", ["initial_warmup=2"], "window.initial_warmup 2"),
        ("l0", ["final_warmup=2"], "window.final_warmup 2"),
        ("magnitude", ["freeze_masks=true"], "window.freeze_masks true"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_typed_old_spelling_names_the_new_one(strategy: str, typed: list[str], new: str, apart: bool) -> None:
    words = [f"--strategy.{option}" for option in typed]
    words = [part for word in words for part in word.split("=")] if apart else words
    assert f": use --strategy.{new} instead." in refusal(*words, "--strategy", strategy)


def test_an_old_spelling_in_a_file_names_the_new_one(tmp_path: Path) -> None:
    options = {"target_flops_speedup": 2, "target_density": None, "final_warmup": 3.0, "freeze_masks": False}
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump({"strategy": {"class_path": "hybrid", "init_args": options}}, sort_keys=False))
    said = refusal("--config", str(file))
    assert "target_flops_speedup: 2" in said
    assert "use target: {flops: 0.5} and window: {final_warmup: 3, freeze_masks: false} instead" in said
    file.write_text("strategy: {class_path: hybrid, init_args: {target_density: null}}")
    assert "target_density: null in strategy.init_args is an old spelling: leave it out" in refusal(f"--config={file}")


def test_the_strategy_may_be_chosen_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("strategy: l0")
    assert "l0 has no target: leave it out" in refusal("--config", str(file), "--strategy.target.density", "0.5")
    assert "use --strategy.window.final_warmup 1" in refusal("--strategy.final_warmup=1", "--config", str(file))


@pytest.mark.parametrize("word", ["--strategy.target=0.25", "--strategy.init_args.target=1"])
def test_a_number_for_the_whole_target_is_refused(word: str) -> None:
    assert "has options of its own: give one of those, such as --strategy.target.density" in refusal(word)


def test_null_takes_back_what_a_file_says() -> None:
    parser = new_parser()
    add_run_options(parser)
    file = "strategy: {class_path: hybrid, init_args: {target: {density: 0.3}, window: {final_warmup: 3}}}"
    words = ["--strategy.target.density", "null", "--strategy.target.flops", "0.5", f"--config={file}"]
    target = parser.parse_args(words).strategy.init_args.target
    assert (target.density, target.flops) == (None, 0.5)
