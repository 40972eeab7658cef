"""Learning from a teacher's layers: which layer learns from which, how far they are, and that training counts it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny
from tiny_task import TinyTask, rows
from torch.utils.data import DataLoader

from bplightning.contracts.strategy import Progress
from bplightning.distillation.distillation import Distillation, Teacher
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.cofi.cofi import CoFi
from bplightning.strategies.cofi.layer_matching import layer_distance, match_layers


def test_matches_are_live_ordered_and_the_nearest_from_the_top() -> None:
    torch.manual_seed(0)
    for live in itertools.product([False, True], repeat=4):
        distances = torch.rand(3, 4)
        matched = match_layers(distances, torch.tensor(live)).tolist()
        below = 4
        for row in (2, 1, 0):
            free = [layer for layer in range(below) if live[layer]]
            nearest = min(free, key=lambda layer: float(distances[row, layer]), default=-1)
            assert matched[row] == nearest
            below = nearest if free else 0


def test_the_distance_is_the_sum_of_mean_squares_without_padding() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask, mapped = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]), torch.randn(8, 8)
    live = torch.tensor([True, False, True])
    found = layer_distance(list(student), list(teacher), map_HH=mapped, live_S=live, mask_BL=mask)
    there = mask.bool()
    pairs = [(0, 0), (1, 2)]  # two live layers for two of the teacher's: there is no choice
    expected = sum((student[s] @ mapped.T - teacher[t])[there].square().mean() for t, s in pairs)
    torch.testing.assert_close(found, expected)
    none = layer_distance(list(student), list(teacher), map_HH=mapped, live_S=live & False, mask_BL=None)
    assert float(none) == 0


def test_gradients_are_kept_of_the_chosen_pairs_only() -> None:
    student = [torch.randn(2, 5, 8, requires_grad=True) for _ in range(12)]
    kept: list[int] = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        every = torch.ones(12, dtype=torch.bool)
        found = layer_distance(student, list(torch.randn(2, 2, 5, 8)), map_HH=torch.eye(8), live_S=every, mask_BL=None)
    found.backward()
    assert sum(states.grad.any() for states in student if states.grad is not None) == 2  # type: ignore[misc]
    assert sum(kept) < 12 * 80  # of 24 pairs of 80 numbers


def test_training_counts_it_beside_what_the_teacher_decides(tmp_path: Path) -> None:
    tiny("bert", seed=7, hidden_size=64, num_attention_heads=2, num_hidden_layers=2).save_pretrained(tmp_path / "t")
    task = TinyTask(tmp_path)
    model: Any = task.build_model()
    strategy = CoFi(alpha_layer=0.5)
    strategy.attach(PrunableLayout.of(model))
    strategy.advance(Progress(0, 100, 5))
    batch = next(iter(DataLoader(rows(4, seed=3), batch_size=4)))
    losses = []
    for learner in (strategy, None):
        teacher = Teacher(Distillation(str(tmp_path / "t")), task, model, learner)
        outputs = model(**batch, **teacher.student_options)
        losses.append(teacher.loss(outputs.loss, outputs, batch)[0])
    given = teacher.model(**batch, output_hidden_states=True).hidden_states
    own = model(**batch, output_hidden_states=True).hidden_states
    every = torch.ones(2, dtype=torch.bool)
    distance = layer_distance(own[1:], given[1:], map_HH=torch.eye(64), live_S=every, mask_BL=None)
    torch.testing.assert_close(losses[0] - losses[1], 0.5 * distance)  # the map begins as the identity
    losses[0].backward()
    assert strategy.layer_map.grad.any()

    gate = strategy.masks["encoder-1-feed_forward"]
    gate.gate = None
    gate.set_grid(torch.zeros_like(gate.kept))  # a layer whose feed-forward part is gone learns nothing
    below = strategy.layer_loss(own, given, None)
    torch.testing.assert_close(below, 0.5 * (own[1] - given[2]).square().mean())


def test_teachers_that_layers_cannot_learn_from_are_refused(tmp_path: Path) -> None:
    tiny("bert", seed=7, hidden_size=32, num_attention_heads=2, num_hidden_layers=2).save_pretrained(tmp_path / "t")
    task = TinyTask(tmp_path)
    model, strategy = task.build_model(), CoFi()
    strategy.attach(PrunableLayout.of(model))
    with pytest.raises(UserError, match="teacher's hidden states have 32 numbers and the model's 64: take a teacher"):
        Teacher(Distillation(str(tmp_path / "t")), task, model, strategy)
    with pytest.raises(UserError, match="cache_megabytes caches logits, but with a strategy that learns from layers"):
        Teacher(Distillation(str(tmp_path / "t"), cache_megabytes=1.0), task, model, strategy)
