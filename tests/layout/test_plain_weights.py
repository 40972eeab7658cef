"""Models whose layers hold their weights another way: what is pruned is removed, the rest is refused in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import padded_inputs, tiny
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import AutoModelForQuestionAnswering

from bplightning import CompactionPlan, UserError, compact, plain_weights
from bplightning.integrations.attachment import Attachment
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.strategies.magnitude import Magnitude

pytestmark = [
    # peft and torch's own quantization call what transformers and torch are going to remove.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated:FutureWarning"),
]


class FirstHalf(nn.Module):
    """Zeros in the second half of a weight's columns."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * (torch.arange(weight.shape[1]) < weight.shape[1] // 2)


def pruned() -> Any:
    model = tiny("bert")
    for layer in model.bert.encoder.layer:
        prune.ln_structured(layer.output.dense, "weight", amount=0.5, n=2, dim=1)
        prune.l1_unstructured(layer.output.dense, "bias", amount=0.1)
    return model


def parametrized() -> Any:
    model = tiny("bert")
    for layer in model.bert.encoder.layer:
        parametrize.register_parametrization(layer.output.dense, "weight", FirstHalf())
    return model


def lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False, **options)


def adapted() -> Any:
    model = tiny("bert")
    model.add_adapter(lora(modules_to_save=["qa_outputs"]))
    return model


def wrapped() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(tiny("bert"), lora(task_type="QUESTION_ANS"))


def quantized() -> Any:
    return torch.ao.quantization.quantize_dynamic(tiny("bert"), {nn.Linear}, dtype=torch.qint8)


def in_eight_bits() -> Any:
    model = tiny("bert")
    for layer in model.bert.encoder.layer:
        dense = layer.output.dense
        dense.weight = nn.Parameter(dense.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return model


def elsewhere() -> Any:
    model = tiny("bert")
    torch.nn.utils.weight_norm(model.bert.encoder.layer[0].output.dense)
    return model


@pytest.mark.parametrize("make", [pruned, parametrized])
def test_what_torchs_own_tools_have_zeroed_is_removed_exactly(make: Callable[[], Any]) -> None:
    model = make().eval()
    inputs = padded_inputs("right")
    before = model(**inputs).start_logits  # with gradients: the weight is then a result, which torch does not copy
    plan, small = CompactionPlan.of(model), compact(model)
    assert [len(kept) / total for _, kept, total in plan.units] == [0.5] * len(plan.units)
    torch.testing.assert_close(small(**inputs).start_logits, before)  # type: ignore[operator]
    assert torch.equal(model(**inputs).start_logits, before)
    assert small.num_parameters() < tiny("bert").num_parameters()  # type: ignore[operator]


@pytest.mark.parametrize("make", [adapted, wrapped])
def test_adapters_are_merged_on_request(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make().eval()
    inputs = padded_inputs("right")
    before = model(**inputs).start_logits
    plain: Any = plain_weights(model)
    torch.testing.assert_close(plain(**inputs).start_logits, before)
    assert torch.equal(model(**inputs).start_logits, before)
    plain.save_pretrained(tmp_path)
    again = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**inputs).start_logits, before)
    compact(plain)
    Attachment(Magnitude(), plain, plain)


@pytest.mark.parametrize(
    ("make", "uses", "message"),
    [
        (
            pruned,
            "attach",
            r"a Linear, is pruned by torch.nn.utils.prune, .* 2 more .*: make it permanent with model = ",
        ),
        (
            parametrized,
            "attach",
            r"is parametrized by torch.nn.utils.parametrize, .*: remove the parametrization with ",
        ),
        (adapted, "both", r"is an adapter of peft, .*: merge adapters with model = bplightning.plain_weights\(model\)"),
        (wrapped, "both", r"is an adapter of peft, .*: merge adapters with model = bplightning.plain_weights\(model\)"),
        (quantized, "both", r"is quantized, .*: take the model that is not quantized, prune or compact that"),
        (in_eight_bits, "both", r"is quantized, .*: take the model that is not quantized, prune or compact that"),
        (
            elsewhere,
            "both",
            r"output.dense.weight is no parameter of its layer, a Linear, which holds its weight another",
        ),
    ],
)
def test_the_rest_is_refused_in_one_line_with_the_remedy(make: Callable[[], Any], uses: str, message: str) -> None:
    model = make().eval()
    with pytest.raises(UserError, match=message):
        Attachment(Magnitude(), model, model)
    with pytest.raises(UserError, match=message):
        PrunableLayout.of(model)
    if uses == "both":
        with pytest.raises(UserError, match=message):
            compact(model)


def test_a_learned_prompt_cannot_be_merged() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="QUESTION_ANS", num_virtual_tokens=2)
    model = peft.get_peft_model(copy.deepcopy(tiny("bert")), config)
    with pytest.raises(UserError, match=r"learned prompt, which is in no layer and cannot be merged"):
        plain_weights(model)
