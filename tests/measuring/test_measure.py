"""What a model weighs and how fast it is."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    DebertaV2Config,
    DebertaV2Model,
    ViTConfig,
    ViTModel,
)

from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring.measure import (
    bytes_on_disk,
    fitting,
    flops,
    flops_by_module,
    latency,
    machine,
    median_ms,
    parameters,
    speedup,
)
from bplightning.measuring.timing import Times

HIDDEN, LAYERS, UNITS = 64, 2, 96
LINEAR = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * UNITS)


def tiny_config(**changes: object) -> BertConfig:
    shapes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": UNITS}
    return BertConfig(**{**shapes, "vocab_size": 50, "max_position_embeddings": 64, **changes})


def tiny_inputs(batch_size: int, length: int) -> dict[str, Tensor]:
    input_ids = torch.arange(batch_size * length).reshape(batch_size, length) % 50
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class Recorder(nn.Module):
    """Writes down each pass: its name, whether it was in training mode, whether gradients were on."""

    def __init__(self, name: str, log: list[tuple[str, bool, bool]]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.body, self.frozen = nn.Linear(2, 2), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        self.log.append((self.name, self.training or self.body.training, torch.is_inference_mode_enabled()))
        return self.body(x)


def record(
    **settings: float,
) -> tuple[list[tuple[str, bool, bool]], dict[str, Recorder], dict[str, dict[str, Times]]]:
    log: list[tuple[str, bool, bool]] = []
    models = {name: Recorder(name, log) for name in ("dense", "compact")}
    for model in models.values():
        model.frozen.eval()
    times = latency(models, lambda b, n: {"x": torch.zeros(b, n)}, [(1, 2)], seconds=0, block_ms=0, **settings)  # type: ignore[arg-type]
    return log, models, times


def test_what_is_timed_can_be_another_call_than_a_forward_pass() -> None:
    model, called = nn.Linear(2, 2), []
    times = latency({"dense": model}, tiny_inputs, [(1, 2)], call=lambda *given: called.append(given), seconds=0)
    assert set(times["dense"]) == {"1x2"}
    assert called[0][0] is model
    assert set(called[0][1]) == {"input_ids", "attention_mask"}


def test_models_are_timed_in_turns_whose_order_alternates() -> None:
    log, _, times = record(min_rounds=3)
    assert "".join(name[0] for name, _, _ in log[-6:]) == "dccddc"
    assert [len(time["1x2"].rounds_ms) for time in times.values()] == [3, 3]


def test_latency_runs_in_evaluation_mode_and_leaves_every_module_as_it_was() -> None:
    log, models, _ = record()
    assert {(training, inference) for _, training, inference in log} == {(False, True)}
    for model in models.values():
        assert (model.training, model.body.training, model.frozen.training) == (True, True, False)


def test_latency_keeps_to_its_budget() -> None:
    model = BertForQuestionAnswering(tiny_config())
    start = time.perf_counter()
    times = latency({"dense": model}, tiny_inputs, [(1, 16), (2, 16)], seconds=0.3)
    assert 0.6 <= time.perf_counter() - start < 3
    assert set(times["dense"]) == {"1x16", "2x16"}
    assert all(0.01 < milliseconds < 1000 for milliseconds in median_ms(times["dense"]).values())


def test_a_smaller_model_is_measured_as_faster() -> None:
    models = {
        "dense": BertForQuestionAnswering(tiny_config(intermediate_size=8192)),
        "compact": BertForQuestionAnswering(tiny_config(intermediate_size=8)),
    }
    times = latency(models, tiny_inputs, [(4, 32)], seconds=0.5)
    assert speedup(times["dense"], times["compact"])["4x32"] > 1.5


def test_speedup_is_the_median_of_paired_ratios() -> None:
    """The machine slows down threefold half-way: each pair still says 2x, the quotient of the medians would not."""
    dense = Times((2.0, 2.0, 6.0, 6.0, 6.0), (2.0, 2.0, 6.0, 6.0, 6.0))
    compact = Times((1.0, 1.0, 1.0, 3.0, 3.0), (1.0, 1.0, 1.0, 3.0, 3.0))
    assert dense.median_ms / compact.median_ms == 6
    assert speedup({"1x8": dense}, {"1x8": compact}) == {"1x8": 2.0}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_flops_count_every_product_attention_included(attention: str) -> None:
    rows, tokens = 2, 16
    model = BertForQuestionAnswering(tiny_config(attn_implementation=attention)).train()
    products = 2 * rows * tokens * (LINEAR + 2 * HIDDEN)  # the last: the head's two logits
    mixing = LAYERS * 2 * (2 * rows * tokens * tokens * HIDDEN)  # queries by keys, weights by values
    assert flops(model, tiny_inputs(rows, tokens)) == products + mixing
    assert model.training


def test_flops_are_counted_by_module_over_all_calls() -> None:
    rows, tokens = 2, 16
    counts = flops_by_module(BertForQuestionAnswering(tiny_config()), tiny_inputs(rows, tokens))
    projection, mixing = 2 * rows * tokens * HIDDEN * HIDDEN, 4 * rows * tokens * tokens * HIDDEN
    assert counts["bert.encoder.layer.1.attention.output.dense"] == projection
    assert counts["bert.encoder.layer.1.attention.self"] == 3 * projection + mixing
    assert counts[""] == counts["bert"] + counts["qa_outputs"]
    config = {"embedding_size": 8, "num_hidden_layers": 5, "num_hidden_groups": 1}
    shared = AlbertModel(AlbertConfig(**{**tiny_config().to_dict(), "model_type": "albert", **config}))
    layer = "encoder.albert_layer_groups.0.albert_layers.0"
    assert flops_by_module(shared, tiny_inputs(rows, tokens))[f"{layer}.attention.dense"] == 5 * projection


def test_flops_of_a_module_that_reads_a_parameter() -> None:
    """DeBERTa normalizes its table of positions."""
    config = {"relative_attention": True, "norm_rel_ebd": "layer_norm", "model_type": "deberta-v2"}
    model = DebertaV2Model(DebertaV2Config(**{**tiny_config().to_dict(), **config}))
    model.encoder.layer.requires_grad_(False)
    asking = [parameter.requires_grad for parameter in model.parameters()]
    assert flops(model, tiny_inputs(2, 16)) > 2 * 2 * 16 * LINEAR
    assert [parameter.requires_grad for parameter in model.parameters()] == asking


def test_shapes_are_fitted_to_the_model() -> None:
    shapes = [(1, 128), (8, 16)]
    assert fitting(BertForQuestionAnswering(tiny_config()), shapes) == [(1, 64), (8, 16)]
    image = ViTConfig(hidden_size=8, num_hidden_layers=0, num_attention_heads=1, image_size=(8, 12), patch_size=(4, 2))
    assert fitting(ViTModel(image), shapes) == [(1, 13), (8, 13)]


def test_parameters_by_both_denominators() -> None:
    model = BertForMaskedLM(tiny_config())  # its decoder is tied to the word embeddings
    layout = PrunableLayout.of(model)
    counted = parameters(model, layout)
    assert counted["encoder_linear"] == LINEAR
    every = {tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}
    assert counted["all"] == sum(every.values())
    assert len(every) < sum(1 for _ in model.named_parameters(remove_duplicate=False))


def test_parameters_that_are_not_zero() -> None:
    model = BertForQuestionAnswering(tiny_config())
    layout = PrunableLayout.of(model)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    before = parameters(model, layout, nonzero=True)
    assert before == parameters(model, layout)
    with torch.no_grad():
        layout.attention[0].query.weight(model)[:16] = 0
        model.qa_outputs.bias[0] = 0
    after = parameters(model, layout, nonzero=True)
    assert after == {"encoder_linear": LINEAR - 16 * HIDDEN, "all": before["all"] - 16 * HIDDEN - 1}
    assert parameters(model, layout) == before


def test_parameters_of_a_compact_model_by_the_dense_layout() -> None:
    layout = PrunableLayout.of(BertForQuestionAnswering(tiny_config()))
    compact = BertForQuestionAnswering(tiny_config(intermediate_size=10))
    compact.bert.encoder.layer[0].intermediate.dense = nn.Identity()  # a sub-layer that became a constant
    compact.bert.encoder.layer[0].output.dense = nn.Identity()
    assert parameters(compact, layout)["encoder_linear"] == LAYERS * 4 * HIDDEN * HIDDEN + 2 * HIDDEN * 10


def test_bytes_on_disk_are_those_of_all_shards(tmp_path: Path) -> None:
    model = BertForQuestionAnswering(tiny_config())
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert bytes_on_disk(tmp_path) == sum(len(shard.read_bytes()) for shard in shards)
    assert bytes_on_disk(tmp_path) == pytest.approx(4 * sum(p.numel() for p in model.parameters()), rel=0.1)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no weights .* give a folder written by `save_pretrained`"):
        bytes_on_disk(tmp_path)


def test_machine_says_what_was_used_and_not_whose_it_is() -> None:
    described = machine()
    assert described["threads"] == torch.get_num_threads()
    assert described["cpu"]
    assert described["device"] == "cpu"
    assert platform.node() not in described.values()
