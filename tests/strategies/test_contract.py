"""One suite over every registered strategy."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from syncs import NoHostSync
from tiny_families import padded_inputs, tiny
from torch import Tensor, nn

from bplightning import compact
from bplightning.layout import PrunableLayout
from bplightning.masking import has_masks
from bplightning.plugins import STRATEGIES, available, load
from bplightning.strategy import Progress, PruningStrategy

STEPS = 60
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 48}  # two heads of 32: whole blocks of 32


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


def attached(name: str) -> tuple[nn.Module, PruningStrategy, PrunableLayout]:
    model = tiny("bert", **SHAPE)
    strategy = cast(PruningStrategy, load(STRATEGIES, name)())
    layout = PrunableLayout.of(model)
    strategy.attach(layout)
    return model, strategy, layout


@pytest.fixture(params=sorted(available(STRATEGIES)))
def name(request: pytest.FixtureRequest) -> str:
    return cast(str, request.param)


def test_attaching_changes_nothing_yet(name: str) -> None:
    plain, (model, strategy, _) = tiny("bert", **SHAPE), attached(name)
    strategy.advance(Progress(0, STEPS, warmup_steps=2))
    inputs = padded_inputs("left")
    assert torch.equal(model(**inputs).start_logits, plain(**inputs).start_logits)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_it_prunes_and_its_compaction_is_exact(name: str) -> None:
    model, strategy, layout = attached(name)
    train(model, strategy)
    density = strategy.density()
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
        assert 0 <= kept < 1


def test_every_parameter_is_in_one_group(name: str) -> None:
    _, strategy, _ = attached(name)
    grouped = [id(value) for group in strategy.parameter_groups(total_steps=STEPS) for value in group["params"]]
    assert sorted(grouped) == sorted(id(value) for value in strategy.parameters())


def test_resumed_equals_uninterrupted(name: str) -> None:
    model, strategy, _ = attached(name)
    train(model, strategy, last=25)
    half = copy.deepcopy((model.state_dict(), strategy.state_dict()))
    torch.manual_seed(0)
    optimizer_state = train(model, strategy, first=25, last=25)  # a fresh optimizer on both sides
    train(model, strategy, first=25, state=optimizer_state)

    model2, strategy2, _ = attached(name)
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


def test_masks_follow_from_the_state_dict(name: str) -> None:
    model, strategy, _ = attached(name)
    train(model, strategy, last=40)
    again, strategy2, _ = attached(name)
    again.load_state_dict(model.state_dict())
    strategy2.load_state_dict(strategy.state_dict())
    inputs = padded_inputs("right")
    assert torch.equal(model(**inputs).start_logits, again(**inputs).start_logits)


def test_a_step_never_waits_for_the_host(name: str) -> None:
    model, strategy, _ = attached(name)
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
