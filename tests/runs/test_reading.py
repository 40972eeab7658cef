"""Reading a run's folder back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pointing_task import PointingTask, make_run
from transformers import PreTrainedModel

from bplightning.errors import UserError
from bplightning.io.run_folder import baseline_of
from bplightning.runs import reading
from bplightning.runs.compact_run import _alignment_of, compact_run
from bplightning.runs.reading import checkpoint_of, load_run, refill_of, task_of_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("made")
    return folder, make_run(folder)


@pytest.fixture
def run(made: tuple[Path, PreTrainedModel], tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(made[0] / "run", tmp_path / "run"))


def checkpoints(run: Path, *names: str) -> None:
    """Checkpoints of these names only, the oldest first."""
    (run / "checkpoints" / "epoch=0-step=12.ckpt").unlink()
    for age, name in enumerate(reversed(names)):
        file = run / "checkpoints" / name
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))


def change(run: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    edit(settings)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def test_a_run_is_read_as_it_was(made: tuple[Path, PreTrainedModel], run: Path) -> None:
    """The trainer's section, here with an option nobody knows, is no part of it."""
    module = load_run(run)
    masked = module.harden()
    zeros = sum(int((value == 0).sum()) for value in masked.parameters())
    assert zeros > 1000
    for name, value in made[1].state_dict().items():
        assert torch.equal(masked.state_dict()[name], value), name


def test_reading_draws_no_random_numbers_of_the_caller(run: Path) -> None:
    state = torch.get_rng_state()
    load_run(run)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_task_of_a_run_for_another_model(run: Path, tmp_path: Path) -> None:
    task = task_of_run(run, model=tmp_path)
    assert isinstance(task, PointingTask)
    assert (task.model, task.offset) == (str(tmp_path), 100)


@pytest.mark.parametrize("read", [load_run, baseline_of, refill_of, _alignment_of])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no config\\.yaml: give the folder of a run"),
        ("", "cannot be read .* it is damaged"),
        ("[1, 2]", "cannot be read .* it is damaged"),
        ("a: [", "cannot be read .* it is damaged"),
        (b"\xff", "cannot be read .* it is damaged"),
        (
            "{baseline: [1], refill: {epochs: 1}, alignment: {old: 1}}",
            "cannot be read .* of a version that knows other",
        ),
    ],
)
def test_every_reader_of_a_configuration_says_what_is_wrong_with_it(
    run: Path, read: Callable[[Path], Any], content: str | bytes | None, said: str
) -> None:
    file = run / "config.yaml"
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said) as e:
        read(run)
    assert "\n" not in str(e.value)


def test_a_run_of_prune_has_no_checkpoints_and_says_so(run: Path) -> None:
    change(run, lambda settings: settings.update(calibration_examples=None))
    said = r"is a run of `prune`, which keeps no checkpoints: its model is its compact/, which `validate --ckpt_path .*"
    with pytest.raises(UserError, match=said):
        load_run(run)
    with pytest.raises(UserError, match=said):
        compact_run(run, run / "out")


def test_the_checkpoint_by_its_word(run: Path) -> None:
    checkpoints(run, "last.ckpt", "best-step=3.ckpt", "epoch=2-step=9.ckpt")
    state = {"monitor": "val_accuracy", "best_model_path": "best-step=3.ckpt"}
    torch.save({"state_dict": {}, "callbacks": {"best": state}}, run / "checkpoints" / "epoch=2-step=9.ckpt")
    assert checkpoint_of(run).name == checkpoint_of(run, "last").name == "epoch=2-step=9.ckpt"
    assert checkpoint_of(run, "best").name == "best-step=3.ckpt"


def test_a_checkpoint_by_its_path(run: Path) -> None:
    module = load_run(run, run / "checkpoints" / "epoch=0-step=12.ckpt")
    other = torch.load(run / "checkpoints" / "epoch=0-step=12.ckpt", weights_only=True)
    other["state_dict"]["model.qa_outputs.bias"] += 1
    torch.save(other, run / "other.ckpt")
    difference = load_run(run, str(run / "other.ckpt")).model.qa_outputs.bias - module.model.qa_outputs.bias
    assert difference.tolist() == pytest.approx([1, 1])


def test_a_checkpoint_that_is_not_there(run: Path) -> None:
    with pytest.raises(UserError, match=r"'nowhere\.ckpt' is not there: .* there are: .*epoch=0-step=12\.ckpt\."):
        load_run(run, "nowhere.ckpt")
    with pytest.raises(UserError, match=r"checkpoint 'best' is not there: .* there are: .*epoch=0-step=12\.ckpt"):
        load_run(run, "best")
    checkpoints(run)
    with pytest.raises(UserError, match=r"checkpoint 'last' is not there: .*run/checkpoints' there are: none\."):
        load_run(run)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"run' has no config\.yaml: give the folder of a run"):
        load_run(run)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-5000]), r"cannot be read \(PytorchStreamReader"),
        (
            lambda file: file.write_bytes(b""),
            r"cannot be read \(EOFError\): give a \.ckpt file that is there and whole",
        ),
        (lambda file: file.write_text("no checkpoint"), r"cannot be read \(it is damaged, or holds other things"),
        (
            lambda file: torch.save({"state_dict": {"model.other": torch.zeros(1)}}, file),
            r"is of another model or strategy \(the file lacks model\.bert.*\): give the options of the run it is of",
        ),
        (lambda file: torch.save({"weights": torch.zeros(1)}, file), r"cannot be read \(it holds no state_dict\)"),
        (lambda file: torch.save([torch.zeros(1)], file), r"cannot be read \(it holds no state_dict\)"),
        (lambda file: torch.save({"state_dict": Path("x")}, file), r"cannot be read \(it is damaged, or holds other"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused(run: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(run / "checkpoints" / "epoch=0-step=12.ckpt")
    with pytest.raises(UserError, match=rf"checkpoint '.*step=12\.ckpt' {said}"):
        load_run(run)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda settings: settings.update(old_option=1), "old_option"),
        (lambda settings: settings["strategy"]["init_args"].update(old_option=1), "old_option"),
        (lambda settings: settings["model"].update(old_option=1), "old_option"),
        (lambda settings: settings.update(start="somewhere"), "somewhere"),
    ],
)
def test_a_configuration_of_another_version_is_refused(run: Path, edit: Callable[[Any], Any], said: str) -> None:
    change(run, edit)
    with pytest.raises(
        UserError, match=rf"config\.yaml' cannot be read \(.*{said}.*of a version that knows other"
    ) as e:
        load_run(run)
    assert "\n" not in str(e.value)


def test_a_mistake_in_a_users_own_task_is_not_called_a_damaged_configuration(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(vocabulary: str) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr("tiny_task.BertTokenizer", wrong)
    with pytest.raises(TypeError, match=r"^unsupported operand$"):
        load_run(run)


def test_a_mistake_in_this_package_is_not_called_a_damaged_configuration(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(settings: dict[str, Any]) -> None:
        raise KeyError("a name that somebody misspelt")

    monkeypatch.setattr(reading, "renewed", wrong)
    with pytest.raises(KeyError, match="misspelt"):
        load_run(run)


@pytest.mark.parametrize("content", ["{", "[]", '{"alignment": {"auto": true}}'])
def test_a_damaged_report_does_not_say_which_widths_were_chosen(run: Path, content: str) -> None:
    change(run, lambda settings: settings.update(alignment={"multiple_of": "auto"}))
    (run / "report.json").write_text(content)
    with pytest.raises(UserError, match=r"report\.json' is damaged \(.* stand there: give --multiple_of\.$"):
        compact_run(run, run / "out")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2]",
        "a: [",
        "\x00",
        "task: 3",
        "task: {init_args: 3}",
        "strategy: [1]",
        "strategy: {init_args: {density: 0.5}}",
        "strategy: {class_path: cofi, init_args: {target_flops_speedup: fast}}",
        "strategy: {class_path: cofi, init_args: {target_flops_speedup: 0}}",
        "strategy: {class_path: hybrid, init_args: {density: 0.5, target: much}}",
        "strategy: {class_path: hybrid, init_args: {target: much}}",
    ],
)
def test_a_damaged_configuration_is_refused(run: Path, content: str) -> None:
    (run / "config.yaml").write_text(content)
    for read in (load_run, partial(task_of_run, model=run)):
        with pytest.raises(UserError, match=r"config\.yaml") as e:
            read(run)
        assert "\n" not in str(e.value)
