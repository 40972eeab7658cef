"""The contract suite of strategies: subclass it, name the strategy, and all tests run on it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering

from bplightning.compaction.exact_compaction import compact
from bplightning.contracts.capabilities import CAPABILITIES, OneShot, Prepared, Staged, hooks_of
from bplightning.contracts.strategy import Progress, PruningStrategy
from bplightning.contracts.suitability import prunes_by_training
from bplightning.contracts.targeted import Targeted
from bplightning.contracts.window import PruningWindow
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import UNDER_MASK, Mask, has_masks, remove_masks
from bplightning.testing.arguments import unexplained
from bplightning.testing.syncs import NoHostSync
from bplightning.testing.tiny_model import padded_inputs, tiny_bert

STEPS = 45
"""Optimizer steps of a whole run."""

MIDWAY = 30
"""Steps after which much is pruned, and more will be."""

GRANULARITIES = [("element", "element"), ("16x16", "16x8"), ("row", "column"), ("head", "unit"), ("2:4", "1:4")]
"""Of attention and feed-forward layers."""


class StrategyCase(NamedTuple):
    """A strategy and the arguments of its constructor."""

    cls: type[PruningStrategy]
    options: Mapping[str, Any]

    def make(self) -> PruningStrategy:
        """A fresh one."""
        return self.cls(**self.options)

    def attached(self) -> tuple[nn.Module, PruningStrategy, PrunableLayout]:
        """A fresh one on a fresh model."""
        model, strategy = tiny_bert(), self.make()
        layout = PrunableLayout.of(model)
        strategy.attach(layout)
        return model, strategy, layout

    def __str__(self) -> str:
        values = [
            v for option in self.options.values() for v in (option.values() if isinstance(option, dict) else [option])
        ]
        names = (
            "frozen" if isinstance(value, PruningWindow) and value.freeze_masks else str(value) for value in values
        )
        return "-".join([self.cls.__name__, *names])


def strategy_cases(cls: type[PruningStrategy]) -> list[StrategyCase]:
    """A strategy as it is, and at each granularity and scope that its constructor can be told."""
    accepted = inspect.signature(cls).parameters
    options: list[dict[str, Any]] = [{}]
    if "granularity" in accepted:
        pairs = [pair for pair in GRANULARITIES if ":" not in pair[0] or getattr(cls, "keeps_patterns", False)]
        options += [{"granularity": dict(zip(("attention", "feed_forward"), pair, strict=True))} for pair in pairs]
    if "scope" in accepted:
        mixed = {"granularity": {"attention": "16x16", "feed_forward": "unit"}}
        options += [{"scope": "global"}, {"scope": "global", **mixed}]
    if "window" in accepted and getattr(cls, "freezes_masks", False):
        options.append({"window": replace(accepted["window"].default, freeze_masks=True)})
    return [StrategyCase(cls, each) for each in options]


class StrategyContract:
    """Tests of what `PruningStrategy` promises, on a tiny random BERT, in seconds.

    Attributes:
        strategy: The class.
        options: Constructor arguments to try it with, one dictionary each; by default none, and each granularity and
            scope that the constructor takes.
    """

    strategy: ClassVar[type[PruningStrategy]]
    options: ClassVar[Sequence[Mapping[str, Any]] | None] = None

    @classmethod
    def cases(cls) -> list[StrategyCase]:
        """The strategy to test."""
        if cls.options is None:
            return strategy_cases(cls.strategy)
        return [StrategyCase(cls.strategy, each) for each in cls.options]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each test for each case."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases(), ids=str)

    def test_attaching_changes_nothing_yet(self, case: StrategyCase) -> None:
        """Nothing is pruned before training begins, and the model's `state_dict` has the keys it had.

        What it has besides is under masks, for resuming. Gates that are not binary may start a little below one, but
        all equal.
        """
        plain, (model, strategy, _) = tiny_bert(), case.attached()
        strategy.advance(Progress(0, STEPS, warmup_steps=2))
        assert all(mask.kept.all() for mask in strategy.all_masks)
        begun = torch.cat([multipliers(mask).flatten() for mask in strategy.all_masks] or [torch.ones(1)]).unique()
        assert begun.tolist() == pytest.approx([1.0], abs=0.03)
        if begun == 1:
            inputs = padded_inputs(seed=0)
            assert torch.equal(model(**inputs).start_logits, plain(**inputs).start_logits)
        keys = [name for name in model.state_dict() if not name.endswith(UNDER_MASK)]
        assert keys == list(plain.state_dict())

    def test_it_prunes_and_its_compaction_is_exact(self, case: StrategyCase) -> None:
        """After training something is gone, as much as was asked for, and the compact model computes the same."""
        model, strategy, layout = case.attached()
        train(model, strategy)
        density, masks = strategy.density(), strategy.all_masks
        sizes, total = [mask.weights_per_entry for mask in masks], sum(mask.total_weights for mask in masks)
        inputs = padded_inputs(seed=1)
        with torch.no_grad():
            masked = model(**inputs).start_logits
        saved_as_pruned(model, inputs, masked)
        strategy.harden(layout)
        assert not has_masks(model)
        with torch.no_grad():
            assert torch.equal(model(**inputs).start_logits, masked)
            torch.testing.assert_close(compact(model)(**inputs).start_logits, masked, rtol=1e-5, atol=1e-5)
        kept = sum(int(member.weight(model).count_nonzero()) for member in layout.members) / layout.weights()
        assert kept == pytest.approx(float(density["total"]) if density else 1.0, abs=1e-6)
        if density:
            assert 0 < kept < 1
        targeted = strategy.capability(Targeted)
        asked = None if targeted is None else targeted.target.density
        if asked is not None and not any(mask.pattern for mask in masks):
            assert kept == pytest.approx(asked, abs=0.5 * max(sizes) * len(sizes) / total)

    def test_masks_that_are_to_stay_do(self, case: StrategyCase) -> None:
        """With `window.freeze_masks` they stay after the target is reached; a strategy that cannot do that refuses."""
        accepted = inspect.signature(case.cls).parameters
        if "window" not in accepted:
            pytest.skip("it has no pruning window")
        window = replace(case.options.get("window", accepted["window"].default), freeze_masks=True)
        frozen = case._replace(options={**case.options, "window": window})
        if not getattr(case.cls, "freezes_masks", True):
            with pytest.raises(UserError, match=r"window\.freeze_masks"):
                frozen.make()
            return
        model, strategy, _ = frozen.attached()
        _, end = window.steps(Progress(0, STEPS, warmup_steps=2))
        train(model, strategy, last=end)
        reached = [mask.kept.clone() for mask in strategy.all_masks]
        with torch.no_grad():  # whatever is learned from here on
            for parameter in (*model.parameters(), *strategy.parameters()):
                parameter.normal_()
        _advance(model, strategy, STEPS)
        assert all(torch.equal(mask.kept, kept) for mask, kept in zip(strategy.all_masks, reached, strict=True))

    def test_it_prunes_without_training(self, case: StrategyCase) -> None:
        """If it says so: calibration and one look at the end are enough, and its compaction is exact."""
        model, strategy, layout = case.attached()
        one_shot = strategy.capability(OneShot)
        if one_shot is None:
            pytest.skip("it prunes by training alone")
        calibrate(model, one_shot)
        strategy.advance(Progress(1, 1, warmup_steps=0))
        assert 0 < float(strategy.density()["total"]) < 1
        inputs = padded_inputs(seed=1)
        with torch.no_grad():
            masked = model(**inputs).start_logits
            strategy.harden(layout)
            torch.testing.assert_close(compact(model)(**inputs).start_logits, masked, rtol=1e-5, atol=1e-5)

    def test_gradients_are_exact(self, case: StrategyCase) -> None:
        """Against a plain model that holds the masked weights: dW gated by the mask, dS the sum of dL/dW' * W, ungated.

        Where a mask holds gates, that sum is the gradient of the gate, which is passed on through it.
        """
        model, strategy, _ = case.attached()
        train(model, strategy, last=MIDWAY if prunes_by_training(strategy) else STEPS)
        plain = copy.deepcopy(model)
        remove_masks(plain)
        for each in (model, plain):
            each.zero_grad()
            each(**padded_inputs(seed=5)).start_logits.square().sum().backward()
        covers = [(mask, cover) for mask in strategy.all_masks for cover in mask.covers]
        masks = [(cover.member, mask, cover.transposed) for mask, cover in covers if not cover.idle]
        expected_scores: dict[int, Tensor] = {}
        for member, mask, transposed in masks:
            masked_grad, grad = member.grad(model), member.grad(plain)
            assert masked_grad is not None
            assert grad is not None
            weight = member.weight(model).detach()
            kept = multipliers(mask).detach()
            kept = kept.T if transposed else kept
            tile = torch.ones(weight.shape[0] // kept.shape[0], weight.shape[1] // kept.shape[1])
            torch.testing.assert_close(masked_grad, grad * torch.kron(kept, tile), rtol=1e-4, atol=1e-6)
            tiles = (grad * weight).view(kept.shape[0], tile.shape[0], kept.shape[1], tile.shape[1]).sum((1, 3))
            sums = expected_scores.setdefault(id(mask), torch.zeros(mask.kept.shape))
            sums += tiles.T if transposed else tiles
        for mask in strategy.all_masks:
            if mask.scores is not None:
                expected = expected_scores[id(mask)]
                if mask.gate is not None:
                    (expected,) = torch.autograd.grad(multipliers(mask), mask.scores, expected)
                torch.testing.assert_close(mask.scores.grad, expected, rtol=1e-4, atol=1e-5)
        if masks:
            assert not all(mask.kept.all() for mask in strategy.all_masks)

    def test_the_target_is_reached_at_the_end_and_not_before(self, case: StrategyCase) -> None:
        """`target_reached` is false during pruning, true at the end, and never becomes false again."""
        model, strategy, _ = case.attached()
        reached = [strategy.target_reached(Progress(step, STEPS, warmup_steps=2)) for step in range(STEPS + 1)]
        assert reached == sorted(reached)
        assert reached[-1]
        if len(strategy.masks) and not reached[0]:  # a strategy that prunes immediately has reached it at the start
            train(model, strategy, last=5)
            assert float(strategy.density()["total"]) > 0.5  # hardly begun
            assert not reached[5]

    def test_every_argument_is_explained(self) -> None:
        """The constructor's docstring is the command line's help, so it has a word on each argument."""
        for cls in {case.cls for case in self.cases()}:
            assert unexplained(cls) == []

    def test_hooks_of_a_capability_come_with_it(self) -> None:
        """A hook such as `calibrate` is called only of strategies that inherit from its capability."""
        for cls in {case.cls for case in self.cases()}:
            missing = [kind for kind in CAPABILITIES if not cls.offers(kind)]
            hooks = [(kind.__name__, hook) for kind in missing for hook in hooks_of(kind)]
            never_called = [f"{kind}.{hook}" for kind, hook in hooks if hasattr(cls, hook)]
            assert never_called == [], f"{cls.__name__} has these hooks and does not inherit from their capability"

    def test_every_parameter_is_in_one_group(self, case: StrategyCase) -> None:
        """`parameter_groups` has all that the strategy learns, once."""
        _, strategy, _ = case.attached()
        grouped = [id(value) for group in strategy.parameter_groups(total_steps=STEPS) for value in group["params"]]
        assert sorted(grouped) == sorted(id(value) for value in strategy.parameters())

    def test_resumed_equals_uninterrupted(self, case: StrategyCase) -> None:
        """All that a strategy remembers is in its `state_dict`: a resumed run is the run that was interrupted."""
        model, strategy, _ = case.attached()
        train(model, strategy, last=MIDWAY)
        half = copy.deepcopy((model.state_dict(), strategy.state_dict()))
        torch.manual_seed(0)
        optimizer_state = train(model, strategy, first=MIDWAY, last=MIDWAY)  # a fresh optimizer on both sides
        train(model, strategy, first=MIDWAY, state=optimizer_state)

        model2, strategy2, _ = case.attached()
        model2.load_state_dict(half[0])
        strategy2.load_state_dict(half[1])
        for key, value in half[1].items():
            assert same(strategy2.state_dict()[key], value), key
        train(model2, strategy2, first=MIDWAY, state=optimizer_state)
        for mine, theirs in zip(strategy.state_dict().items(), strategy2.state_dict().items(), strict=True):
            assert mine[0] == theirs[0]
            assert same(mine[1], theirs[1]), mine[0]
        inputs = padded_inputs(seed=0)
        assert torch.equal(model(**inputs).start_logits, model2(**inputs).start_logits)

    def test_masks_follow_from_the_state_dict(self, case: StrategyCase) -> None:
        """A checkpoint alone, without a further `advance`, gives the same network."""
        model, strategy, _ = case.attached()
        train(model, strategy, last=MIDWAY if prunes_by_training(strategy) else STEPS)
        again, strategy2, _ = case.attached()
        again.load_state_dict(model.state_dict())
        strategy2.load_state_dict(strategy.state_dict())
        inputs = padded_inputs(seed=0)
        assert torch.equal(model(**inputs).start_logits, again(**inputs).start_logits)

    def test_a_step_never_waits_for_the_host(self, case: StrategyCase) -> None:
        """No ``.item()`` and no ``if tensor``: an accelerator would wait in every step."""
        model, strategy, _ = case.attached()
        train(model, strategy, last=3)
        ids = padded_inputs(seed=0)["input_ids"]
        with NoHostSync():
            strategy.advance(Progress(3, STEPS, warmup_steps=2))
            loss: Tensor = model(input_ids=ids).start_logits.square().mean()
            penalty = strategy.penalty()
            (loss if penalty is None else loss + penalty).backward()
            strategy.after_optimizer_step()
            strategy.density()
            strategy.metrics()


def train(
    model: nn.Module,
    strategy: PruningStrategy,
    *,
    first: int = 0,
    last: int = STEPS,
    state: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A bare loop that only keeps the contract; one-shot strategies are calibrated first."""
    torch.manual_seed(first)
    one_shot = strategy.capability(OneShot)
    if first == 0 and one_shot is not None and not one_shot.by_training:
        calibrate(model, one_shot)
    groups = strategy.parameter_groups(total_steps=STEPS)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters())}, *groups], lr=1e-3, weight_decay=0.0)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in range(first, last):
        _advance(model, strategy, step)
        inputs = padded_inputs(seed=step)
        loss = example_loss(model(**inputs), inputs)
        penalty = strategy.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        strategy.after_optimizer_step()
        optimizer.zero_grad()
    _advance(model, strategy, last)
    return optimizer.state_dict()


def _advance(model: nn.Module, strategy: PruningStrategy, step: int) -> None:
    progress = Progress(step, STEPS, warmup_steps=2)
    strategy.advance(progress)
    staged = strategy.capability(Staged)
    if staged is not None and staged.wants_calibration(progress):
        staged.calibrate(model, [padded_inputs(seed=seed) for seed in range(10)], example_loss)


def example_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of the tiny model, which learns that every answer starts at the third token."""
    loss: Tensor = outputs.start_logits.softmax(-1)[:, 2].neg().mean()
    return loss


def saved_as_pruned(model: Any, inputs: dict[str, Tensor], logits: Tensor) -> None:
    """What transformers saves of a model with masks is the pruned model, or is refused when it is loaded."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = None
        with suppress(
            UserError
        ):  # of a model that skips sub-layers or narrows its norms, which only `compact` can save
            again = AutoModelForQuestionAnswering.from_pretrained(folder)
        if again is not None:
            with torch.no_grad():
                torch.testing.assert_close(again(**inputs).start_logits, logits)


def same(value: Any, other: Any) -> bool:
    """Whether two values of a `state_dict` are equal; extra states are no tensors."""
    return torch.equal(value, other) if isinstance(value, Tensor) else bool(value == other)


def calibrate(model: nn.Module, strategy: OneShot) -> None:
    """Gather statistics as the verb `prune` lets a strategy do it."""
    if (prepared := strategy.capability(Prepared)) is not None:
        prepared.prepare(lambda: copy.deepcopy(model))
    strategy.calibrate(model, [padded_inputs(seed=seed) for seed in range(4)], example_loss)


def multipliers(mask: Mask) -> Tensor:
    """The factors of a mask's tiles: ones and zeros, or the gates of evaluation."""
    return mask.kept.float() if mask.gate is None else mask.gate(cast(Tensor, mask.scores), None)
