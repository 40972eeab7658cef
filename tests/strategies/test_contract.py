"""One suite over every registered strategy, at every granularity it takes."""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple, cast

import pytest
import torch
from syncs import NoHostSync
from tiny_families import padded_inputs, tiny
from torch import Tensor, nn

from bplightning import compact
from bplightning.layout import PrunableLayout
from bplightning.masking import Mask, has_masks, remove_masks
from bplightning.plugins import STRATEGIES, available, load
from bplightning.strategy import Progress, PruningStrategy

STEPS = 45
SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}


def train(model: nn.Module, strategy: PruningStrategy, *, first: int = 0, last: int = STEPS, state=None) -> dict:
    """A bare loop: what a strategy is promised, and no more."""
    torch.manual_seed(first)
    groups = strategy.parameter_groups(total_steps=STEPS)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters())}, *groups], lr=1e-3, weight_decay=0.0)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in range(first, last):
        strategy.advance(Progress(step, STEPS, warmup_steps=2))
        inputs = padded_inputs("right", seed=step)
        loss = model(**inputs).start_logits.softmax(-1)[:, 2].neg().mean()
        penalty = strategy.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
        strategy.after_optimizer_step()
    strategy.advance(Progress(last, STEPS, warmup_steps=2))
    return optimizer.state_dict()


class Case(NamedTuple):
    """A strategy and what it is made with."""

    name: str
    options: dict[str, Any]

    def make(self) -> PruningStrategy:
        return cast(PruningStrategy, load(STRATEGIES, self.name)(**self.options))


GRANULARITIES = [("element", "element"), ("16x16", "16x8"), ("row", "column"), ("head", "unit"), ("2:4", "1:4")]


def cases() -> list[Case]:
    """Each strategy as it is, and at each granularity and scope that its constructor can be told."""
    found = []
    for name in sorted(available(STRATEGIES)):
        cls: Any = load(STRATEGIES, name)
        accepted = inspect.signature(cls).parameters
        found.append(Case(name, {}))
        if "granularity" in accepted:
            pairs = [pair for pair in GRANULARITIES if ":" not in pair[0] or getattr(cls, "keeps_patterns", False)]
            found += [
                Case(name, {"granularity": dict(zip(("attention", "feed_forward"), p, strict=True))}) for p in pairs
            ]
        if "scope" in accepted:
            mixed = {"granularity": {"attention": "16x16", "feed_forward": "unit"}}
            found += [Case(name, {"scope": "global"}), Case(name, {"scope": "global", **mixed})]
        if "freeze_masks" in accepted:
            found.append(Case(name, {"freeze_masks": True}))
    return found


def attached(case: Case) -> tuple[nn.Module, PruningStrategy, PrunableLayout]:
    model = tiny("bert", **SHAPE)
    strategy = case.make()
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    return model, strategy, layout


def multipliers(mask: Mask) -> Tensor:
    """What a mask multiplies its tiles by: ones and zeros, or evaluation's gates."""
    return mask.kept.float() if mask.gate is None else mask.gate(cast(Tensor, mask.scores), None)


def title(case: Case) -> str:
    values = [
        v for option in case.options.values() for v in (option.values() if isinstance(option, dict) else [option])
    ]
    return "-".join([case.name, *map(str, values)])


@pytest.fixture(params=cases(), ids=title)
def case(request: pytest.FixtureRequest) -> Case:
    return cast(Case, request.param)


def test_attaching_changes_nothing_yet(case: Case) -> None:
    """But for gates that are not binary: they may begin a little below one, all alike."""
    plain, (model, strategy, _) = tiny("bert", **SHAPE), attached(case)
    strategy.advance(Progress(0, STEPS, warmup_steps=2))
    assert all(mask.kept.all() for mask in strategy.all_masks)
    begun = torch.cat([multipliers(mask).flatten() for mask in strategy.all_masks] or [torch.ones(1)]).unique()
    assert begun.tolist() == pytest.approx([1.0], abs=0.03)
    if begun == 1:
        inputs = padded_inputs("left")
        assert torch.equal(model(**inputs).start_logits, plain(**inputs).start_logits)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_it_prunes_and_its_compaction_is_exact(case: Case) -> None:
    model, strategy, layout = attached(case)
    train(model, strategy)
    density, masks = strategy.density(), strategy.all_masks
    sizes, total = [mask.weights_per_entry for mask in masks], sum(mask.total_weights for mask in masks)
    inputs = padded_inputs("left", seed=1)
    with torch.no_grad():
        masked = model(**inputs).start_logits
    strategy.harden(layout)
    assert not has_masks(model)
    with torch.no_grad():
        assert torch.equal(model(**inputs).start_logits, masked)
        torch.testing.assert_close(compact(model)(**inputs).start_logits, masked, rtol=1e-5, atol=1e-5)
    kept = sum(int(member.weight(model).count_nonzero()) for member in layout.members) / layout.weights()
    assert kept == pytest.approx(float(density["total"]) if density else 1.0, abs=1e-6)
    if density:
        assert 0 < kept < 1
    asked = getattr(strategy, "target_density", None)
    if asked is not None and not any(mask.pattern for mask in masks):
        assert kept == pytest.approx(asked, abs=0.5 * max(sizes) * len(sizes) / total)


def test_gradients_are_exact(case: Case) -> None:
    """Against a plain model that holds the masked weights: dW gated by the mask, dS the sum of dL/dW' * W, ungated.

    Where a mask holds gates, that sum is the gradient of the gate, and goes on through it.
    """
    model, strategy, _ = attached(case)
    train(model, strategy, last=40)
    plain = copy.deepcopy(model)
    remove_masks(plain)
    for each in (model, plain):
        each.zero_grad()
        each(**padded_inputs("left", seed=5)).start_logits.square().sum().backward()
    masks = [(cover.member, mask, cover.transposed) for mask in strategy.all_masks for cover in mask.covers]
    expected_scores: dict[int, Tensor] = {}
    for member, mask, transposed in masks:
        masked_grad = member.view(model.get_submodule(member.module)._parameters[member.parameter].grad)
        grad = member.view(plain.get_submodule(member.module).weight.grad)
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


def test_the_target_is_reached_at_the_end_and_not_before(case: Case) -> None:
    model, strategy, _ = attached(case)
    reached = [strategy.target_reached(Progress(step, STEPS, warmup_steps=2)) for step in range(STEPS + 1)]
    assert reached == sorted(reached)
    assert reached[-1]
    if len(strategy.masks):
        train(model, strategy, last=5)
        assert float(strategy.density()["total"]) > 0.5  # hardly begun
        assert not reached[5]


def test_every_parameter_is_in_one_group(case: Case) -> None:
    _, strategy, _ = attached(case)
    grouped = [id(value) for group in strategy.parameter_groups(total_steps=STEPS) for value in group["params"]]
    assert sorted(grouped) == sorted(id(value) for value in strategy.parameters())


def test_resumed_equals_uninterrupted(case: Case) -> None:
    model, strategy, _ = attached(case)
    train(model, strategy, last=25)
    half = copy.deepcopy((model.state_dict(), strategy.state_dict()))
    torch.manual_seed(0)
    optimizer_state = train(model, strategy, first=25, last=25)  # a fresh optimizer on both sides
    train(model, strategy, first=25, state=optimizer_state)

    model2, strategy2, _ = attached(case)
    model2.load_state_dict(half[0])
    strategy2.load_state_dict(half[1])
    for key, value in half[1].items():
        assert torch.equal(strategy2.state_dict()[key], value), key
    train(model2, strategy2, first=25, state=optimizer_state)
    for mine, theirs in zip(strategy.state_dict().items(), strategy2.state_dict().items(), strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1]), mine[0]
    inputs = padded_inputs("right")
    assert torch.equal(model(**inputs).start_logits, model2(**inputs).start_logits)


def test_masks_follow_from_the_state_dict(case: Case) -> None:
    model, strategy, _ = attached(case)
    train(model, strategy, last=40)
    again, strategy2, _ = attached(case)
    again.load_state_dict(model.state_dict())
    strategy2.load_state_dict(strategy.state_dict())
    inputs = padded_inputs("right")
    assert torch.equal(model(**inputs).start_logits, again(**inputs).start_logits)


def test_a_step_never_waits_for_the_host(case: Case) -> None:
    model, strategy, _ = attached(case)
    train(model, strategy, last=3)
    ids = padded_inputs("right")["input_ids"]
    with NoHostSync():
        strategy.advance(Progress(3, STEPS, warmup_steps=2))
        loss: Tensor = model(input_ids=ids).start_logits.square().mean()
        penalty = strategy.penalty()
        (loss if penalty is None else loss + penalty).backward()
        strategy.after_optimizer_step()
        strategy.density()
        strategy.metrics()
