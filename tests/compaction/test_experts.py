"""Mixtures of experts: routing around some of them, and taking these away, is one function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from programs import said_by
from tiny_experts import CONFIGS, EXPERTS
from tiny_families import LAYERS, padded_inputs, tiny
from torch import Tensor
from transformers import PreTrainedModel

from bplightning.compaction.compact_config import CONFIG_FIELD
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.routing import RouterMask, mask_router, routers_of

BY_LAYER = [0, 2, 1]
"""The expert that each layer loses, where it has any."""


def with_dropped(model_type: str, dropped: list[list[int]] | None = None, **options: object) -> PreTrainedModel:
    """A model whose routers go around an expert each, another one in each layer."""
    model = tiny(model_type, **options)  # type: ignore[arg-type]
    for router, experts in routers_of(PrunableLayout.of(model)).items():
        mask = RouterMask(len(experts))
        layer = experts[0].layer
        mask.set_kept(torch.tensor([i not in (dropped or [[i] for i in BY_LAYER])[layer] for i in range(len(experts))]))
        mask_router(model, router, mask)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    inputs = padded_inputs("right")
    return model(**inputs).logits[inputs["attention_mask"].bool()]


@torch.no_grad()
def test_a_masked_router_is_one_with_logits_of_minus_infinity() -> None:
    for model_type in CONFIGS:
        model = tiny(model_type, norm_topk_prob=False) if model_type == "olmoe" else tiny(model_type)
        router, experts = next(iter(routers_of(PrunableLayout.of(model)).items()))
        gate = model.get_submodule(router)
        inputs = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        dense = gate(inputs)
        mask = RouterMask(len(experts))
        mask_router(model, router, mask)
        for got, expected in zip(gate(inputs), dense, strict=True):
            assert torch.equal(got, expected), model_type  # while all are kept, to the bit
            assert got.dtype == expected.dtype
        mask.set_kept(torch.tensor([True, False, True]))
        found, weights, indices = gate(inputs)
        assert (found[:, 1] == -torch.inf).all()
        assert torch.equal(found[:, [0, 2]], dense[0][:, [0, 2]])
        odds = found[:, [0, 2]].softmax(-1)  # of two, each token goes to both
        assert set(indices.flatten().tolist()) == {0, 2}
        torch.testing.assert_close(weights, odds.gather(1, indices // 2))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_masked_and_compact_agree(model_type: str) -> None:
    model = with_dropped(model_type, dtype=torch.float64)
    layout = PrunableLayout.of(model)
    with torch.no_grad():
        for group in layout.attention:
            group.value.weight(model)[: group.head_size] = 0
    smaller = compact(model)
    torch.testing.assert_close(logits(smaller), logits(model), rtol=1e-10, atol=1e-10)
    for name, kept, total in smaller.compaction_plan.units:
        _, layer, _, *expert = name.split(".")
        gone = expert[:1] == ["expert"] and int(expert[1]) == BY_LAYER[int(layer)]
        assert kept == (() if gone else tuple(range(total)))
    assert smaller.config.num_experts == EXPERTS - 1
    for router, experts in routers_of(PrunableLayout.of(smaller)).items():
        assert len(experts) == EXPERTS - 1
        assert len(smaller.get_submodule(router).weight) == EXPERTS - 1
        assert type(smaller.get_submodule(router)).__name__.endswith("TopKRouter")
        assert not hasattr(smaller.get_submodule(router), "router_mask")
    assert model.config.num_experts == EXPERTS
    again = compact(smaller)
    assert torch.equal(logits(again), logits(smaller))
    smaller.train()(**padded_inputs("right"), output_router_logits=True).aux_loss.backward()  # it counts experts, too


def test_an_expert_of_zeros_that_tokens_go_to_stays() -> None:
    """Its tokens lose that share of their weights: taking it away would hand the share on."""
    model = tiny("mixtral", dtype=torch.float64)
    group = PrunableLayout.of(model).feed_forward[1]
    with torch.no_grad():
        for member in group.members:
            member.weight(model).zero_()
    smaller = compact(model)
    assert torch.equal(logits(smaller), logits(model))
    assert smaller.config.num_experts == EXPERTS


def test_a_plan_drops_experts_of_a_copy_with_the_same_masks_only() -> None:
    model = with_dropped("mixtral")
    plan = CompactionPlan.from_json(CompactionPlan.of(model).to_json())
    assert torch.equal(logits(compact(model, plan)), logits(compact(model)))
    with pytest.raises(UserError, match=r"removes units .* of decoder\.0\.feed_forward\.expert\.0, which are not dead"):
        compact(tiny("mixtral"), plan)


def test_what_transformers_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"different numbers of experts, from 2 to 3, .* keep the same number in each"):
        compact(with_dropped("mixtral", [[0], [], [1]]))
    with pytest.raises(UserError, match=r"gate keeps 1 experts and sends each token to 2: keep 2 or more"):
        compact(with_dropped("mixtral", [[0, 1]] * LAYERS))


SCRIPT = """
import json, sys, torch
from transformers import AutoModelForCausalLM
folders, results = sys.argv[1:], {}
assert "bplightning" not in sys.modules
for when in ("without", "with"):
    for folder in folders:
        saved = torch.load(folder + "/saved.pt")
        try:
            model = AutoModelForCausalLM.from_pretrained(folder)
            with torch.no_grad():
                equal = torch.equal(model(**saved["inputs"]).logits, saved["logits"])
            results[folder.rpartition("/")[2] + " " + when] = equal
        except RuntimeError:
            results[folder.rpartition("/")[2] + " " + when] = False
    import bplightning
print(json.dumps(results))
"""


def test_a_fresh_process_loads_it(tmp_path: Path) -> None:
    """An ordinary folder, which loads without bplightning too, as long as nothing but experts went."""
    for model_type in CONFIGS:
        for heads in (False, True):
            model = with_dropped(model_type)
            groups = PrunableLayout.of(model).attention
            if heads and not groups:
                continue
            with torch.no_grad():
                for group in groups[:heads]:
                    group.value.weight(model)[: group.head_size] = 0
            smaller, folder = compact(model), tmp_path / f"{model_type}{'+heads' * heads}"
            assert hasattr(smaller.config, CONFIG_FIELD) is heads
            save_compact(smaller, folder)  # type: ignore[arg-type]
            smaller.set_experts_implementation("grouped_mm")  # as from_pretrained chooses it
            inputs = padded_inputs("right")
            with torch.no_grad():
                torch.save({"inputs": inputs, "logits": smaller(**inputs).logits}, folder / "saved.pt")
    folders = sorted(map(str, tmp_path.iterdir()))
    results = json.loads(said_by(SCRIPT, *folders, cwd=tmp_path).splitlines()[-1])
    assert len(results) == 2 * 7
    assert all(found == ("+heads" not in name or name.endswith(" with")) for name, found in results.items()), results
