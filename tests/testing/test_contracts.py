"""The contract suites themselves: what breaks a promise fails the test of that promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import PYTEST, Program

pytestmark = pytest.mark.slow

BROKEN = '''
import torch
from bplightning.contracts.target import NO_TARGET, Target
from bplightning.strategies.magnitude import Magnitude
from bplightning.strategies.movement import Movement
from bplightning.testing import StrategyContract, TaskContract
from bplightning_star_rating.star_rating import StarRating


class Forgets(Magnitude):
    """Counts its steps where no checkpoint sees it, and prunes by the count."""

    count = 0

    def prune(self, amount, *, steps_after):
        self.count += 1
        super().prune(min(1.0, self.count / 40), steps_after=steps_after)


class Waits(Magnitude):
    """Looks at a value on the host."""

    def after_optimizer_step(self):
        self.seen = float(self.all_masks[0].kept.float().mean())


class Blind(Magnitude):
    """Needs gradients after the step, as it is promised."""

    def after_optimizer_step(self):
        assert all(member.grad(self.layout.model) is not None for member in self.layout.members)


class Ungrouped(Movement):
    """Has scores that no optimizer is told of."""

    def parameter_groups(self, *, total_steps):
        return []


class Restless(Movement):
    """Chooses what to keep to the end, whatever its window says."""

    masks_stay = False


class Unexplained(Magnitude):
    """Says nothing of an argument."""

    def __init__(self, target: Target = NO_TARGET, secret: int = 1) -> None:
        super().__init__(target)


class Unheard(Magnitude):
    """Has a hook of a capability that it does not inherit from, so that nobody calls it."""

    def prepare(self, dense):
        self.seen = dense()


class TestForgets(StrategyContract):
    strategy = Forgets
    options = ({},)


class TestWaits(StrategyContract):
    strategy = Waits
    options = ({},)


class TestBlind(StrategyContract):
    strategy = Blind
    options = ({},)


class TestUngrouped(StrategyContract):
    strategy = Ungrouped
    options = ({},)


class TestRestless(StrategyContract):
    strategy = Restless
    options = ({},)


class TestUnexplained(StrategyContract):
    strategy = Unexplained
    options = ({},)


class TestUnheard(StrategyContract):
    strategy = Unheard
    options = ({},)


class Deaf(StarRating):
    """Counts an example as often as it comes, is its own worst teacher, and takes what it cannot answer."""

    embedded_recipe = None

    def distillation_loss(self, student, teacher, *, temperature):
        return 1 - super().distillation_loss(student, teacher, temperature=temperature)

    def check_input(self, name, value, *, place):
        pass

    def build_metric(self):
        metric = super().build_metric()
        update, seen = metric.update, []

        def count(outputs, batch):
            seen.append(len(seen) * 1000)
            update(outputs, {**batch, "index": batch["index"] + seen[-1]})

        metric.update = count
        return metric


class TestDeaf(TaskContract):
    task = Deaf
    options = {"eval_batch_size": 8}
    records = ({"text": "Good."}, {"text": "Bad."})
'''


@pytest.mark.timeout(300)
def test_each_broken_promise_fails_its_test(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text(BROKEN)
    words = ["-q", "-p", "no:cacheprovider", "--tb=line", "-rf", "test_broken.py"]
    variables = {"PYTHONPATH": str(Path(__file__).parents[2] / "examples" / "custom_task")}
    program = Program(PYTEST, *words, cwd=tmp_path, variables=variables)
    assert program.end() == pytest.ExitCode.TESTS_FAILED
    failed = set(re.findall(r"^FAILED test_broken\.py::Test(\w+)::test_(\w+)", program.said, flags=re.M))
    assert failed >= {
        ("Forgets", "resumed_equals_uninterrupted"),
        ("Waits", "a_step_never_waits_for_the_host"),
        ("Ungrouped", "every_parameter_is_in_one_group"),
        ("Restless", "masks_that_are_to_stay_do"),
        ("Unexplained", "every_argument_is_explained"),
        ("Unheard", "hooks_of_a_capability_come_with_it"),
        ("Deaf", "a_model_is_the_best_teacher_of_itself"),
        ("Deaf", "what_is_measured_and_that_a_repeated_example_counts_once"),
        ("Deaf", "a_record_that_is_not_right_is_named"),
    }, program.said
    assert "Blind" not in {name for name, _ in failed}
