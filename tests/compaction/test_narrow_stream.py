"""The residual stream made narrower: norms that count what lives, zeros, exact compaction, loading and export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from reload_in_fresh_process import logits
from tiny_families import auto_of, inputs_for, padded_inputs, tiny
from tiny_task import TinyTask
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.compaction.narrow_stream import (
    SurvivingNorm,
    clear_dimensions,
    narrowing_covers,
    require_narrowable,
    set_narrowing,
    surviving,
)
from bplightning.compaction.plan import CompactionPlan
from bplightning.compaction.skipped_sublayers import skip
from bplightning.contracts.strategy import PruningStrategy
from bplightning.distillation.distillation import Distillation, Teacher
from bplightning.errors import UserError
from bplightning.exporting.export import export_model
from bplightning.layout.instance_mixin import mix_in
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.resizing import stream_width
from bplightning.masks.masking import Mask, install_mask, remove_masks
from bplightning.reporting.patterns import head_patterns
from bplightning.stages.finishing import computing_all
from bplightning.stages.refill import Refill, _module
from bplightning.training.module import PruningModule

KEPT = (0, 2, 3, 5, 8, 9, 10, 29)


def narrowed(model_type: str = "bert", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model of which only some dimensions of the stream live, by gates between 0 and 1, hardened."""
    model = tiny(model_type, dtype=dtype, **options)
    layout = PrunableLayout.of(model)
    require_narrowable(layout)
    covers = narrowing_covers(layout)
    width = stream_width(layout)
    mask = Mask("stream", covers, (width, 1), 1)
    gates = torch.zeros(width, 1, dtype=dtype)
    gates[list(KEPT)] = torch.linspace(0.2, 1, len(KEPT), dtype=dtype)[:, None]
    mask.gate = lambda scores, noise: gates
    install_mask(model, mask)
    set_narrowing(model, narrows=True)
    masked = logits(model, inputs_for(model, "right"))
    remove_masks(model)
    clear_dimensions(layout, gates.flatten() > 0)
    assert torch.equal(logits(model, inputs_for(model, "right")), masked)
    return model


def test_a_norm_that_narrows_is_one_of_fewer_dimensions() -> None:
    torch.manual_seed(0)
    norm: Any = nn.LayerNorm(12)
    small = nn.LayerNorm(5)
    mix_in(norm, SurvivingNorm)
    with torch.no_grad():
        for parameter in (*norm.parameters(), *small.parameters()):
            parameter.normal_()
        alive = [0, 3, 4, 7, 11]
        for name in ("weight", "bias"):
            own = getattr(norm, name)
            own[[index for index in range(12) if index not in alive]] = 0
            own[alive] = getattr(small, name)
    rows = torch.randn(2, 3, 12, requires_grad=True)
    less = rows.detach()[..., alive].requires_grad_()
    torch.testing.assert_close(norm(rows)[..., alive], small(less))
    assert norm(rows).count_nonzero() == 2 * 3 * 5
    (norm(rows)[..., alive] * less.detach()).sum().backward()
    (small(less) * less.detach()).sum().backward()
    torch.testing.assert_close(rows.grad[..., alive], less.grad)  # type: ignore[index]
    torch.testing.assert_close(norm.weight.grad[alive], small.weight.grad)  # type: ignore[index]
    norm.narrows = False
    assert torch.equal(norm(rows), nn.functional.layer_norm(rows, (12,), norm.weight, norm.bias))
    assert norm.bfloat16()(rows.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model_type", "auto", "options"),
    [
        ("bert", None, {}),
        ("bert", AutoModelForTokenClassification, {}),
        ("xlm-roberta", AutoModelForSequenceClassification, {}),
        ("electra", AutoModelForSequenceClassification, {"embedding_size": 8}),
    ],
)
def test_compaction_is_exact_and_loads(model_type: str, auto: Any, options: Any, tmp_path: Path) -> None:
    model = narrowed(model_type, **({} if auto is None else {"auto": auto}), **options)
    inputs = inputs_for(model, "right")
    small = compact(model)
    plan = small.compaction_plan
    assert plan.stream.kept == KEPT
    assert plan == CompactionPlan.from_json(plan.to_json()) == CompactionPlan.of(copy.deepcopy(model))
    layout = PrunableLayout.of(small)
    assert {small.get_parameter(axis.parameter).shape[axis.axis] for axis in layout.residual} == {len(KEPT)}
    assert not any(isinstance(module, SurvivingNorm) for module in small.modules())
    torch.testing.assert_close(logits(small, inputs), logits(model, inputs), rtol=0, atol=1e-10)
    save_compact(small, tmp_path / "compact")  # type: ignore[arg-type]
    again = (auto or auto_of(model_type)).from_pretrained(tmp_path / "compact")
    assert torch.equal(logits(again, inputs), logits(small, inputs))
    torch.testing.assert_close(logits(compact(again), inputs), logits(small, inputs))  # once more: there is nothing


def test_heads_whose_constant_stays_are_removed_with_it() -> None:
    model = narrowed()
    group = PrunableLayout.of(model).attention[1]
    with torch.no_grad():
        group.value.weight(model).zero_()  # its bias is not
    inputs = padded_inputs("right")
    small = compact(model)
    assert small.config.compaction["widths"]["encoder.1.self"] == 0  # type: ignore[union-attr]
    torch.testing.assert_close(logits(small, inputs), logits(model, inputs), rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_narrower_model_that_skips_exports(tmp_path: Path) -> None:
    model = narrowed(dtype=torch.float32)
    for group in PrunableLayout.of(model).groups[1:4]:
        skip(model, group)
    small = compact(model)
    save_compact(small, tmp_path / "compact")  # type: ignore[arg-type]
    export_model(tmp_path / "compact", tmp_path / "onnx")
    inputs = padded_inputs("right") | {"token_type_ids": torch.zeros(3, 11, dtype=torch.long)}
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "onnx" / "model.onnx")
    got, *_ = session.run(None, {each.name: inputs[each.name].numpy() for each in session.get_inputs()})
    torch.testing.assert_close(torch.from_numpy(got), small(**inputs)[0], rtol=1e-4, atol=1e-5)


def test_where_only_shapes_count_a_hardened_model_computes_as_a_dense_one() -> None:
    model, dense = narrowed(), tiny("bert", dtype=torch.float64)
    skip(model, PrunableLayout.of(model).groups[1])
    alike = computing_all(model)
    assert [type(module) for module in alike.modules()] == [type(module) for module in dense.modules()]
    assert [type(module) for module in model.modules()] != [type(module) for module in dense.modules()]
    assert computing_all(dense) is dense


def test_patterns_inside_heads_are_of_the_dimensions_that_stay() -> None:
    """Dimensions that went are no zeros inside a head: the compact model does not have them."""
    model = narrowed()
    group = PrunableLayout.of(model).attention[0]
    with torch.no_grad():
        group.query.weight(model)[: group.head_size] = 0
    for pattern in head_patterns(PrunableLayout.of(model)):
        first = "0" if pattern["name"] == group.name else "9"
        for name, text in pattern["projections"].items():
            head, *others = text if name == "output" else text.split(" ")
            assert set(others) == {"9"}
            assert head == (first if name == "query" else "9")


def test_a_plan_for_other_dimensions_is_refused() -> None:
    plan = CompactionPlan.of(narrowed())
    with pytest.raises(UserError, match=r"plan keeps 8 of 32 dimensions of the residual stream, but 32 of 32"):
        compact(tiny("bert"), plan)
    with pytest.raises(UserError, match=r"plan keeps 32 of 32 dimensions .*, but 8 of 32 are in use"):
        compact(narrowed(), CompactionPlan.of(tiny("bert")))
    text = plan.to_json().replace("[0, 2,", "[2, 0,")
    with pytest.raises(UserError, match="kept dimensions of stream must be ascending"):
        CompactionPlan.from_json(text)


def test_a_refill_leaves_out_hidden_states_that_lost_dimensions(tmp_path: Path) -> None:
    learning = Distillation("teacher", alpha_hidden=0.5)
    pruned = PruningModule(TinyTask(tmp_path), PruningStrategy(), distillation=learning)
    pruned.model = tiny("bert")
    assert _module(pruned, compact(narrowed()), Refill(max_epochs=1)).distillation.alpha_hidden == 0  # type: ignore[arg-type]
    assert _module(pruned, tiny("bert"), Refill(max_epochs=1)).distillation.alpha_hidden == 0.5


def test_a_teacher_of_another_width_than_what_is_left_is_refused(tmp_path: Path) -> None:
    task, narrow = TinyTask(tmp_path), compact(narrowed())
    student: Any = tiny("bert")
    student.save_pretrained(tmp_path / "teacher")
    learning = Distillation(str(tmp_path / "teacher"), alpha_hidden=1.0)
    Teacher(learning, task, student)
    with pytest.raises(UserError, match="have 32 numbers and the model's 8: use a teacher of the same width"):
        Teacher(learning, task, narrow)  # type: ignore[arg-type]


def test_ordinary_norms_keep_all_dimensions() -> None:
    layout = PrunableLayout.of(tiny("bert"))
    clear_dimensions(layout, torch.arange(32) < 8)
    assert surviving(layout) is None  # a LayerNorm's mean would change


@pytest.mark.parametrize(
    ("auto", "reason"),
    [(AutoModel, "outputs the stream itself"), (AutoModelForMaskedLM, "a narrower copy does not run")],
)
def test_what_hangs_on_the_width_is_refused_at_once(auto: Any, reason: str) -> None:
    layout = PrunableLayout.of(tiny("bert", auto=auto))
    with pytest.raises(
        UserError, match=f"cannot be made narrower: (it )?{reason}.*its width, or use a model"
    ) as caught:
        require_narrowable(layout)
    assert "prune_hidden" not in str(caught.value)  # one strategy's setting, which that adds
