"""What is special of ALBERT, DeBERTa, ModernBERT and ViT; what all families share is tested over the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exactness import assert_exact
from safetensors import safe_open
from tiny_families import HEADS, HIDDEN, LAYERS, UNITS, inputs_for, tensors_of, tiny, zero_randomly
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForMaskedImageModeling

from bplightning.compaction.equivalence import LogitDifference, logit_difference
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.loading import save_compact
from bplightning.contracts.strategy import Progress
from bplightning.contracts.target import Target
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.granularity import make_masks
from bplightning.measuring import measure
from bplightning.planning.plan import plan
from bplightning.strategies.movement import Movement
from bplightning.strategies.soft_movement import SoftMovement

TYPES = ["albert", "deberta-v2", "modernbert", "vit"]
D = HIDDEN // HEADS
WHOLE = {"attention": "head", "feed_forward": "unit"}


@torch.no_grad()
def with_last_heads_dead(model: nn.Module, count: int = 1) -> nn.Module:
    """The last heads of every layer read by nothing, the others as they were."""
    for group in PrunableLayout.of(model).attention:
        group.output.weight(model)[:, (group.heads - count) * D :] = 0
    return model


# -- every way to configure them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", [*TYPES, "albert-shared", "deberta-v2-shared-key", "modernbert-no-bias"])
@pytest.mark.parametrize("granularity", [WHOLE, {"attention": "4x4", "feed_forward": "8x8"}], ids=["whole", "blocks"])
def test_a_step_moves_the_scores_of_every_role_and_what_is_pruned_compacts(
    model_type: str, granularity: dict[str, str]
) -> None:
    model = tiny(model_type, dtype=torch.float64)
    layout = PrunableLayout.of(model)
    strategy = Movement(target=Target(density=0.4), granularity=granularity)
    strategy.attach(layout)
    strategy.advance(Progress(0, 10, warmup_steps=1))
    before = [mask.scores.clone() for mask in strategy.all_masks if mask.scores is not None]
    optimizer = torch.optim.SGD(strategy.parameters(), lr=1.0)
    outputs = tensors_of(model.train(), inputs_for(model, "left"))
    sum((output**2).sum() for output in outputs.values()).backward()
    optimizer.step()
    for mask, old in zip(strategy.all_masks, before, strict=True):
        assert mask.scores is not None
        assert not torch.equal(mask.scores, old), mask.role
    strategy.advance(Progress(10, 10, warmup_steps=1))
    model.eval()
    with torch.no_grad():
        masked = tensors_of(model, inputs_for(model, "right"))
        strategy.harden(layout)
        hardened = tensors_of(model, inputs_for(model, "right"))
    assert all(torch.equal(masked[name], hardened[name]) for name in masked)
    kept = sum(int(member.weight(model).count_nonzero()) for member in layout.members) / layout.weights()
    assert kept == pytest.approx(0.4, abs=0.11)  # a head of four is a quarter of its layer's
    smaller = compact(model)
    assert (smaller.num_parameters() < model.num_parameters()) or granularity != WHOLE
    assert_exact(model, smaller)


# -- ALBERT ------------------------------------------------------------------------------------------------------------


def test_a_shared_layer_is_one_group_pruned_once_and_run_many_times() -> None:
    model = tiny("albert-shared", dtype=torch.float64)
    layout = PrunableLayout.of(model)
    assert [group.name for group in layout.groups] == ["encoder.0.self", "encoder.0.feed_forward"]
    weights = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * UNITS
    assert measure.parameters(model, layout) == {"encoder_linear": weights, "all": model.num_parameters()}
    made = plan(model, SoftMovement(target=Target(density=0.5), granularity=WHOLE), shapes=((2, 16),))
    assert made["prunable"]["weights"] == weights
    half = made["estimates"]["at"][0]
    smaller = compact(with_half_dead(model))
    ids = torch.zeros(2, 16, dtype=torch.long)
    dense, count = (measure.flops(each, {"input_ids": ids}) for each in (model, smaller))
    in_layers = 2 * 2 * 16 * weights + 4 * 2 * 16 * 16 * HIDDEN
    assert dense - count == LAYERS * in_layers // 2
    assert half["flops"]["2x16"] == count
    assert half["parameters"] == measure.parameters(smaller, PrunableLayout.of(smaller))


@torch.no_grad()
def with_half_dead(model: nn.Module) -> nn.Module:
    for group in PrunableLayout.of(model).groups:
        for reader in group.members[:-1]:
            weight, bias = reader.weight(model), reader.bias_of(model)
            weight[: len(weight) // 2] = 0
            if bias is not None:
                bias[: len(weight) // 2] = 0
    return model


def test_layers_of_groups_are_numbered_as_they_run() -> None:
    model = tiny("albert-groups-of-two")
    layout = PrunableLayout.of(model)
    assert [group.name for group in layout.attention] == [f"encoder.{layer}.self" for layer in range(4)]
    assert [group.module.removeprefix("albert.encoder.albert_layer_groups.") for group in layout.attention] == [
        f"{group}.albert_layers.{layer}.attention" for group in range(2) for layer in range(2)
    ]


# -- DeBERTa -----------------------------------------------------------------------------------------------------------


def test_a_deberta_told_the_wrong_number_of_heads_runs_and_is_wrong() -> None:
    """So the module's own count is what all the tests of agreement hang on."""
    model = with_last_heads_dead(tiny("deberta-v2", dtype=torch.float64), 2)
    smaller = compact(model)
    assert logit_difference(model, smaller, comparison_inputs(model)).relative < 1e-10
    for module in smaller.modules():
        if hasattr(module, "num_attention_heads"):
            module.num_attention_heads = HEADS
    assert logit_difference(model, smaller, comparison_inputs(model)).relative > 1e-4


@pytest.mark.parametrize(
    ("name", "projections"),
    [
        ("deberta-v2", ["query_proj", "key_proj", "pos_query_proj", "pos_key_proj", "value_proj"]),
        ("deberta-v2-c2p", ["query_proj", "key_proj", "pos_key_proj", "value_proj"]),
        ("deberta-v2-p2c", ["query_proj", "key_proj", "pos_query_proj", "value_proj"]),
        ("deberta-v2-shared-key", ["query_proj", "key_proj", "value_proj"]),
        ("deberta-v2-absolute", ["query_proj", "key_proj", "value_proj"]),
    ],
)
def test_what_projects_positions_apart_goes_with_the_heads(name: str, projections: list[str]) -> None:
    model = with_last_heads_dead(tiny(name))
    smaller = compact(model)
    for group in PrunableLayout.of(model).attention:
        assert [member.module.rpartition(".")[2] for member in group.members[:-1]] == projections
        own = [name for name, _ in smaller.get_submodule(group.module).named_children() if name.endswith("_proj")]
        assert sorted(own) == sorted(projections)
        for member in group.members[:-1]:
            assert torch.equal(member.weight(smaller), member.weight(model)[: (HEADS - 1) * D])
    masks = dict(make_masks(PrunableLayout.of(tiny(name)), {"attention": "head", "feed_forward": "unit"}))
    assert len(masks["encoder.0.self"].covers) == len(projections) + 1
    labels = {
        name.rpartition(".")[2] for name, _ in make_masks(PrunableLayout.of(tiny(name)), dict.fromkeys(WHOLE, "4x4"))
    }
    assert labels >= {each.removesuffix("_proj").replace("pos_", "position_") for each in projections}


@pytest.mark.parametrize("part", ["position_query", "position_key"])
@torch.no_grad()
def test_rows_that_project_positions_steer_their_head_alone(part: str) -> None:
    model = tiny("deberta-v2", dtype=torch.float64)
    group = PrunableLayout.of(model).attention[0]
    inputs = inputs_for(model, "right")
    before = model(**inputs, output_attentions=True).attentions[0]
    getattr(group, part).weight(model)[D : 2 * D] = 0
    after = model(**inputs, output_attentions=True).attentions[0]
    assert [head for head in range(HEADS) if not torch.allclose(before[:, head], after[:, head])] == [1]


# -- ModernBERT --------------------------------------------------------------------------------------------------------


def test_two_fused_projections_stay_two_and_no_bias_is_made() -> None:
    model = tiny("modernbert-no-bias")
    zero_randomly(model, "heads", seed=1)
    smaller = compact(model)
    assert smaller.config.compaction["biases"] == []
    assert not any("bias" in name for name, _ in smaller.model.named_parameters())
    for layer, group in zip(smaller.model.layers, PrunableLayout.of(smaller).attention, strict=True):
        assert layer.attn.Wqkv.out_features == 3 * group.heads * D
        assert layer.mlp.Wi.out_features == 2 * layer.mlp.Wo.in_features
    (wi,) = {member.module for member in PrunableLayout.of(smaller).feed_forward[0].up}
    assert wi == "model.layers.0.mlp.Wi"
    made = plan(model, Movement(granularity=WHOLE), shapes=((1, 8),))
    stored = [tie["what"] for tie in made["tied"] if tie["how"] == "storage"]
    assert [what.partition(" ")[0] for what in stored] == [
        "model.layers.*.attn.Wqkv.weight:",
        "model.layers.*.mlp.Wi.weight:",
    ]


# -- ViT ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "tokens"), [("vit", (12, 12), 10), ("vit-oblong-no-bias", (8, 12), 13)])
def test_images_are_made_and_counted_as_a_model_takes_them(name: str, size: tuple[int, int], tokens: int) -> None:
    model = tiny(name)
    inputs = comparison_inputs(model)
    assert {key: tuple(tensor.shape) for key, tensor in inputs.items()} == {"pixel_values": (4, 2, *size)}
    assert measure.fitting(model, ((1, 128), (8, 3))) == [(1, tokens), (8, tokens)]
    made = plan(model, Movement(target=Target(density=0.5), granularity=WHOLE))["estimates"]
    assert list(made["dense_flops"]) == [f"1x{tokens}", f"8x{tokens}"]
    products = 2 * tokens * PrunableLayout.of(model).weights() + LAYERS * 4 * tokens * tokens * HIDDEN
    pixels = 2 * size[0] * size[1]  # of two channels, each in one patch
    assert made["dense_flops"][f"1x{tokens}"] == products + 2 * pixels * HIDDEN + 2 * HIDDEN * 3


def test_an_image_classifier_is_stored_under_other_names_and_loads(tmp_path: Path) -> None:
    model = tiny("vit")
    zero_randomly(model, "heads", seed=1)
    smaller = compact(model)
    assert save_compact(smaller, tmp_path / "compact") == LogitDifference(0.0, 0.0)
    with safe_open(tmp_path / "compact" / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert stored != {name for name, _ in smaller.named_parameters()}  # so widths must not go by names
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "compact")
    inputs = comparison_inputs(model)
    with torch.no_grad():
        assert torch.equal(reloaded(**inputs).logits, smaller(**inputs).logits)
    loss: Tensor = reloaded.train()(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    masked = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "compact")
    assert PrunableLayout.of(masked).weights() == PrunableLayout.of(smaller).weights()
