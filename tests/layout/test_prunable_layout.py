"""The layout against the models themselves: every shipped family, and the hard cases that later families bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from read_families import make
from thinned import one_of_each
from tiny_encoders import VARIANTS
from tiny_families import DENSE, HEADS, HIDDEN, LAYERS, ONE_OF_EACH_ROW, UNITS, inputs_for, tiny
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from bplightning.errors import UserError
from bplightning.layout.families import FAMILIES
from bplightning.layout.groups import AttentionGroup, ParameterAxis
from bplightning.layout.prunable_layout import PrunableLayout

HEAD_SIZE = HIDDEN // HEADS
ROWS = [*ONE_OF_EACH_ROW, *(model_type for model_type in FAMILIES if model_type not in DENSE)]
"""What is read in one way each, of which one model type is enough every day."""


@torch.no_grad()
def run(model: nn.Module, **kwargs: Any) -> Any:
    return model(**inputs_for(model, "right", batch=2), **kwargs)


def logits(model: nn.Module) -> Tensor:
    outputs = run(model)
    return outputs.logits if "logits" in outputs else torch.cat([outputs.start_logits, outputs.end_logits])


@contextmanager
def inputs_zeroed(module: nn.Module, columns: slice) -> Iterator[None]:
    """Within the context `module` reads zeros at `columns` of what transformers' own computation gives it."""

    def zero(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        changed = args[0].clone()
        changed[..., columns] = 0
        return (changed,)

    hook = module.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("model_type", one_of_each(FAMILIES, ROWS))
def test_a_head_is_its_value_rows_and_its_output_columns(model_type: str) -> None:
    model, layout = make(model_type)
    dense = logits(model)
    for group in layout.attention:
        queries = group.heads // group.kv_heads
        size = group.head_size
        head = group.kv_heads - 1
        columns = slice(head * queries * size, (head + 1) * queries * size)
        with inputs_zeroed(model.get_submodule(group.output.module), columns):
            expected = logits(model)
        value, bias = group.value.weight(model), group.value.bias_of(model)
        with torch.no_grad():
            rows = slice(head * size, (head + 1) * size)
            before = value[rows].clone(), None if bias is None else bias[rows].clone()
            value[rows] = 0
            if bias is not None:
                bias[rows] = 0
            by_rows = logits(model)
            value[rows] = before[0]
            if bias is not None:
                bias[rows] = before[1]
            output = group.output.weight(model)
            kept = output[:, columns].clone()
            output[:, columns] = 0
            by_columns = logits(model)
            output[:, columns] = kept
        torch.testing.assert_close(by_rows, expected)
        torch.testing.assert_close(by_columns, expected)
        assert not torch.allclose(expected, dense)


@pytest.mark.parametrize("model_type", one_of_each(FAMILIES, ROWS))
@pytest.mark.parametrize("part", ["query", "key"])
def test_query_and_key_rows_of_a_head_steer_that_head_alone(model_type: str, part: str) -> None:
    model, layout = make(model_type)
    for group in (group for group in layout.attention if group.layer == 0):
        names = {"encoder": "encoder_attentions", "decoder": "decoder_attentions"}
        key = names[group.name.split(".")[0]] if model.config.is_encoder_decoder else "attentions"
        key = "cross_attentions" if group.role == "cross_attention" else key
        before = run(model, output_attentions=True)[key][0]
        count = group.heads if part == "query" else group.kv_heads
        with torch.no_grad():
            getattr(group, part).weight(model)[(count - 1) * group.head_size : count * group.head_size] = 0
        after = run(model, output_attentions=True)[key][0]
        changed = [h for h in range(group.heads) if not torch.allclose(before[:, h], after[:, h])]
        assert changed == list(range(group.heads))[-(group.heads // count) :]


@pytest.mark.parametrize("model_type", one_of_each(DENSE, ROWS))
def test_a_unit_is_its_up_rows_and_its_down_column(model_type: str) -> None:
    model, layout = make(model_type)
    dense = logits(model)
    for group in layout.feed_forward:
        with inputs_zeroed(model.get_submodule(group.down.module), slice(5, 7)):
            expected = logits(model)
        assert not torch.allclose(expected, dense)
        for up in group.up:
            weight, bias = up.weight(model), up.bias_of(model)
            with torch.no_grad():
                kept = weight[5:7].clone(), None if bias is None else bias[5:7].clone()
                weight[5:7] = 0
                if bias is not None:
                    bias[5:7] = 0  # the activations of these families are 0 at 0
                torch.testing.assert_close(logits(model), expected)
                weight[5:7] = kept[0]
                if bias is not None:
                    bias[5:7] = kept[1]


def test_a_unit_of_one_stacked_expert_is_its_rows_and_its_column() -> None:
    model, layout = make("mixtral")
    dense = logits(model)
    group = next(group for group in layout.feed_forward if group.name == "decoder.1.feed_forward.expert.2")
    assert [tuple(member.weight(model).shape) for member in group.members] == [(UNITS, HIDDEN)] * 2 + [(HIDDEN, UNITS)]
    stacked = {name: parameter.clone() for name, parameter in model.named_parameters() if ".experts." in name}
    results = []
    for member in group.members:
        weight = member.weight(model)
        with torch.no_grad():
            part = weight[:, 5:7] if member is group.down else weight[5:7]
            kept = part.clone()
            part.zero_()
            results.append(logits(model))
            for name, before in stacked.items():
                others = [index for index in range(3) if index != 2 or "layers.1" not in name]
                assert torch.equal(model.get_parameter(name)[others], before[others])
            part.copy_(kept)
    assert not torch.allclose(results[0], dense)
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("model_type", ["modernbert", "mt5", "qwen2", "mixtral"])
@torch.no_grad()
def test_the_second_up_projection_of_a_gated_layer_is_the_one_beside_the_activation(model_type: str) -> None:
    model, layout = make(model_type)
    for group in layout.feed_forward[:2]:
        _, beside = group.up
        rows = [part[3] for part in (beside.weight(model), beside.bias_of(model)) if part is not None]
        for row in rows:
            row *= 2
        expected = logits(model)
        for row in rows:
            row /= 2
        group.down.weight(model)[:, 3] *= 2
        torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_members_cover_their_parameters_without_overlap(model_type: str) -> None:
    model, layout = make(model_type)
    parameters = [model.get_parameter(member.name) for member in layout.members]
    for parameter in parameters:
        parameter.zero_()
    for number, member in enumerate(layout.members, 1):
        member.weight(model).fill_(number)
    assert all((member.weight(model) == number).all() for number, member in enumerate(layout.members, 1))
    assert all(parameter.all() for parameter in parameters)


def test_a_fused_conv1d_is_written_through_its_members() -> None:
    model, layout = make("gpt2")
    group = layout.attention[1]
    weight = model.transformer.h[1].attn.c_attn.weight
    assert group.query.weight(model).shape == (HIDDEN, HIDDEN)
    with torch.no_grad():
        weight.zero_()
        group.value.weight(model)[3] = 1
    assert (weight[:, 2 * HIDDEN + 3] == 1).all()
    assert weight.sum() == HIDDEN


def test_t5_layers_of_a_stack_share_the_bias_of_its_first_layer() -> None:
    model, layout = make("t5")
    for stack in ("encoder", "decoder"):
        own = [group for group in layout.attention if group.name.startswith(stack) and group.name.endswith("self")]
        assert len(own) == LAYERS
        (shared,) = {group.position_bias for group in own}
        assert shared is not None
        assert shared.weight(model).shape[1] == HEADS
        key = f"{stack}_attentions"
        before = run(model, output_attentions=True)[key]
        with torch.no_grad():
            shared.weight(model)[:, 1] += torch.arange(shared.weight(model).shape[0])
        after = run(model, output_attentions=True)[key]
        assert [h for h in range(HEADS) if not torch.allclose(before[0][:, h], after[0][:, h])] == [1]
        assert not any(torch.allclose(old[:, 1], new[:, 1]) for old, new in zip(before, after, strict=True))
    cross = [group for group in layout.attention if group.role == "cross_attention"]
    assert [group.name for group in cross] == [f"decoder.{layer}.cross" for layer in range(LAYERS)]
    assert all(group.position_bias is None and group.head_size == 4 for group in cross)


def test_grouped_queries_share_a_key_value_head() -> None:
    _, layout = make("qwen2")
    assert {(group.heads, group.kv_heads, group.head_size) for group in layout.attention} == {
        (HEADS, 2, HIDDEN // HEADS)
    }


@torch.no_grad()
def _permute(model: nn.Module, axes: list[ParameterAxis], order: Tensor) -> None:
    for axis in axes:
        parameter = model.get_parameter(axis.parameter)
        part = parameter if axis.expert is None else parameter[axis.expert]
        part.copy_(part.index_select(axis.axis, order))


@pytest.mark.parametrize("model_type", one_of_each([*FAMILIES, *VARIANTS], [*ROWS, *VARIANTS]))
def test_the_residual_dimension_is_every_axis_it_runs_along(model_type: str) -> None:
    model, layout = make(model_type)
    axes = list(layout.residual)
    order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = logits(model)
    _permute(model, axes, order)
    # Root-mean-square norms compute in float32 whatever the model's type, and sum in another order now.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(logits(model), expected, **close)
    # Leaving any one of them out is noticed, but for a variant whose softmax takes away a shift of all keys.
    for axis in axes if model_type in FAMILIES else ():
        _permute(model, [axis], torch.argsort(order))
        changed = not torch.allclose(logits(model), expected, **close)
        _permute(model, [axis], order)
        assert changed or axis.expert is not None or "pooler" in axis.parameter, axis  # an expert may get no token


def test_electra_embeddings_as_wide_as_the_stream_are_part_of_it() -> None:
    same = tiny("electra", embedding_size=HIDDEN)
    narrow = tiny("electra", embedding_size=HIDDEN // 2)
    for model, embedded in ((same, True), (narrow, False)):
        names = {axis.parameter for axis in PrunableLayout.of(model).residual}
        assert ("electra.embeddings.word_embeddings.weight" in names) is embedded
        assert ("electra.embeddings_project.weight" in names) is not embedded


@pytest.mark.parametrize("model_type", DENSE)
def test_groups_have_stable_names_with_and_without_a_head(model_type: str) -> None:
    stacks = FAMILIES[model_type].stacks
    names = [f"{stack.name}.{i}.{each.kind}" for stack in stacks for i in range(LAYERS) for each in stack.attention]
    names += [f"{stack.name}.{i}.feed_forward" for stack in stacks for i in range(LAYERS)]
    roles = {
        ("encoder", "self"): "attention",
        ("encoder", "feed_forward"): "feed_forward",
        ("decoder", "self"): "decoder_attention",
        ("decoder", "cross"): "cross_attention",
        ("decoder", "feed_forward"): "decoder_feed_forward",
    }
    for auto in (AutoModel, None):
        model = tiny(model_type) if auto is None else tiny(model_type, auto=auto)
        layout = PrunableLayout.of(model)
        assert [group.name for group in layout.groups] == names
        for group in layout.groups:
            stack, _, kind = group.name.split(".")
            assert group.role == roles[stack, kind]
            assert isinstance(group, AttentionGroup) is (kind != "feed_forward")
        in_layers = [
            parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.ndim == 2 and any(part.isdigit() for part in name.split(".")) and "_bias" not in name
        ]
        assert layout.weights() == sum(in_layers)


def _unknown(config: Callable[[], Any]) -> nn.Module:
    model = BertModel(BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8))
    model.config = config()
    return model


def test_an_unknown_architecture_lists_the_known_ones_and_says_how_to_add_a_row() -> None:
    with pytest.raises(UserError) as caught:
        PrunableLayout.of(_unknown(lambda: AutoConfig.for_model("funnel")))
    message = str(caught.value)
    assert "'funnel' is not supported" in message
    assert ", ".join(sorted(FAMILIES)) in message
    assert "write its row in bplightning/layout/families/" in message
    with pytest.raises(UserError, match="architecture 'Linear' is not supported"):
        PrunableLayout.of(nn.Linear(1, 1))
