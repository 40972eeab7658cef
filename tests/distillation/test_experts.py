"""Experts learn from a teacher's, on the tokens that their own router sends them."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path

import pytest
import torch
from tiny_experts import EXPERTS
from tiny_families import LAYERS, padded_inputs, tiny
from tiny_task import TinyTask, rows
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

from bplightning.distillation.distillation import Distillation, Teacher
from bplightning.distillation.experts import ExpertDistillation
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.moe_pruner.moe_pruner import MoEPruner


def test_the_loss_is_the_sum_over_layers_and_experts_of_mean_squared_distances() -> None:
    student, teacher = tiny("mixtral", dtype=torch.float64).train(), tiny("mixtral", seed=1, dtype=torch.float64)
    strategy, batch = MoEPruner(), padded_inputs("right")
    strategy.attach(PrunableLayout.of(student))
    for mask in strategy.all_masks:
        mask.kept[:, ::2] = False
    learned = ExpertDistillation(student, teacher)
    seen: list[tuple[torch.Tensor, ...]] = []
    blocks = [layer.mlp for layer in student.model.layers]
    for block in blocks:
        block.experts.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    student(**batch)
    loss = learned.loss()
    loss.backward()
    strategy.harden(PrunableLayout.of(student))
    expected = torch.zeros((), dtype=torch.float64)
    for layer, (hidden, indices, _) in enumerate(seen):
        for expert in range(EXPERTS):
            tokens = hidden[(indices == expert).any(1)].detach()
            outputs = []
            for model in (student, teacher):
                experts = model.model.layers[layer].mlp.experts
                gate, up = (tokens @ experts.gate_up_proj[expert].T).chunk(2, 1)
                outputs.append((nn.functional.silu(gate) * up) @ experts.down_proj[expert].T)
            expected = expected + (outputs[0] - outputs[1]).square().mean().nan_to_num()
    assert len(seen) == LAYERS
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-7, check_dtype=False)
    grads = {name for name, value in student.named_parameters() if value.grad is not None and value.grad.any()}
    assert grads == {name for name, _ in student.named_parameters() if ".experts." in name}


class ExpertTask(TinyTask):
    def build_model(self) -> PreTrainedModel:
        return tiny("mixtral", auto=AutoModelForQuestionAnswering)


def test_a_teacher_adds_it_by_its_weight(tmp_path: Path) -> None:
    task = ExpertTask(tmp_path)
    tiny("mixtral", seed=1, auto=AutoModelForQuestionAnswering).save_pretrained(tmp_path / "teacher")
    batch = next(iter(DataLoader(rows(4, seed=3), batch_size=4)))
    losses, distances = [], []
    for weight in (0.0, 1.0, 3.0):
        student = task.build_model().train()
        teacher = Teacher(Distillation(str(tmp_path / "teacher"), alpha_experts=weight), task, student)
        outputs = student(**batch)
        losses.append(float(teacher.loss(outputs.loss, outputs, batch)[0].detach()))
        distances.append(teacher.experts_loss)
    assert losses[1] > losses[0]
    assert distances[0] is None
    assert float(distances[1]) == float(distances[2]) == pytest.approx(losses[1] - losses[0], rel=1e-4)  # for the log
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


def test_nothing_is_left_of_it() -> None:
    student = tiny("mixtral").train()
    learned = ExpertDistillation(student, tiny("mixtral", seed=1))
    copied = copy.deepcopy(student)
    student(**padded_inputs("right"))
    assert learned.loss() > 0
    with torch.no_grad():
        student(**padded_inputs("right"))
    student.eval()(**padded_inputs("right"))
    assert not learned._distances
    del learned
    gc.collect()
    copied(**padded_inputs("right"))
    assert not any(module._forward_pre_hooks for module in student.modules())
    pickle.dumps(student)


def test_a_teacher_with_other_experts_is_refused() -> None:
    for other, said in ((tiny("llama"), "no experts"), (tiny("mixtral", num_experts=4), "3 layers of 4 experts")):
        with pytest.raises(UserError, match=rf"has 3 layers of 3 experts, the teacher {said}: use the dense model"):
            ExpertDistillation(tiny("mixtral"), other)
    model = tiny("mixtral")
    model.activation_checkpointing_enable()
    with pytest.raises(UserError, match="with activation_checkpointing experts are computed twice"):
        ExpertDistillation(model, tiny("mixtral"))
