"""Capabilities: a strategy is asked for them, and its type is not looked at."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import bplightning
from bplightning.contracts import capabilities
from bplightning.contracts.capabilities import CAPABILITIES, LearnsFromTeacher, OneShot, Staged, Steered, hooks_of
from bplightning.contracts.strategy import Capability, Progress, PruningStrategy
from bplightning.contracts.suitability import prunes_by_training
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.magnitude import Magnitude
from bplightning.strategies.wanda import Wanda
from bplightning.strategies.ziplm.ziplm import ZipLM

CORE = Path(capabilities.__file__).parents[1]
HOOKS = {
    "attach",
    "advance",
    "target_reached",
    "penalty",
    "parameter_groups",
    "after_optimizer_step",
    "metrics",
    "harden",
}
SHARED = {"offers", "capability", "add_mask", "all_masks", "density", "older_names", "take_older_names"}


def test_a_strategy_is_asked_and_answers_by_what_it_inherits() -> None:
    ziplm = ZipLM()
    assert ziplm.capability(Staged) is ziplm
    assert ziplm.capability(OneShot) is ziplm
    assert ziplm.capability(Steered) is None
    assert PruningStrategy().capability(OneShot) is None
    assert all(Hybrid.offers(kind) is (Hybrid().capability(kind) is not None) for kind in CAPABILITIES)


def test_what_prunes_only_without_training_is_known_by_its_capability() -> None:
    assert [prunes_by_training(strategy) for strategy in (Hybrid(), Magnitude(), ZipLM(), Wanda())] == [
        True,
        True,
        True,
        False,
    ]


def test_settings_may_decide() -> None:
    assert CoFi.offers(LearnsFromTeacher)
    assert CoFi(alpha_layer=0.9).capability(LearnsFromTeacher) is not None
    assert CoFi(alpha_layer=0.0).capability(LearnsFromTeacher) is None


def test_a_strategy_around_another_hands_the_question_on() -> None:
    class Asked(Staged):
        def wants_calibration(self, progress: Progress) -> int:
            return 3

    class Around(PruningStrategy):
        def __init__(self, inner: PruningStrategy) -> None:
            super().__init__()
            self.inner = inner

        def capability(self, kind: type[Capability]) -> Capability | None:
            return self.inner.capability(kind)

    staged = Around(Asked()).capability(Staged)
    assert staged is not None
    assert staged.wants_calibration(Progress(0, 1, warmup_steps=0)) == 3


def test_a_capability_without_its_hook_is_refused_when_built() -> None:
    class Silent(LearnsFromTeacher):
        pass

    with pytest.raises(TypeError, match="layer_loss"):
        Silent()  # type: ignore[abstract]


def test_every_base_is_listed() -> None:
    found = [
        cls for _, cls in inspect.getmembers(capabilities, inspect.isclass) if cls.__module__ == capabilities.__name__
    ]
    assert set(found) == set(CAPABILITIES)


def test_the_contract_of_all_has_eight_hooks() -> None:
    assert {name for name in vars(PruningStrategy) if not name.startswith("_")} - SHARED - {"puts_back"} == HOOKS
    assert all(f"`{hook}`" in (inspect.getdoc(inspect.getmodule(PruningStrategy)) or "") for hook in HOOKS)


def test_each_hook_of_a_capability_says_when_it_is_called() -> None:
    hooks = [(base, name) for base in CAPABILITIES for name in hooks_of(base)]
    assert len(hooks) == 10
    assert [name for base, name in hooks if "called" not in (getattr(base, name).__doc__ or "").lower()] == []
    assert [base.__name__ for base in CAPABILITIES if f"`{base.__name__}`" not in (capabilities.__doc__ or "")] == []


def asked_of_type(text: str) -> list[str]:
    """Where a module asks `isinstance` or `issubclass` of a strategy."""
    kinds = {"PruningStrategy", "ScheduledStrategy", *(base.__name__ for base in CAPABILITIES)}
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    asked = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("isinstance", "issubclass")]
    return [
        ast.unparse(call)
        for call in asked
        if kinds & {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
    ]


def test_core_code_never_looks_at_a_strategy_s_type() -> None:
    assert [found for file in sorted(CORE.rglob("*.py")) for found in asked_of_type(file.read_text())] == []
    assert asked_of_type("if isinstance(strategy, Staged): ...")


@pytest.mark.parametrize("name", [*(base.__name__ for base in CAPABILITIES), "ScheduledStrategy", "keep_largest"])
def test_what_a_strategy_is_made_of_comes_from_the_package(name: str) -> None:
    assert name in bplightning.__all__
    assert getattr(bplightning, name).__name__ == name
