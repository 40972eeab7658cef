"""Sub-layers that are skipped with their norm: in training by their gates, and for good in a compact model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reload_in_fresh_process import logits
from tiny_families import auto_of, inputs_for, padded_inputs, tiny
from torch import Tensor

from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.compaction.skipped_sublayers import is_skipped, settle_skips, skip, skip_when_shut
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import Cover, Mask, install_mask, remove_masks


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_a_skipped_sublayer_passes_the_stream_on(model_type: str, tmp_path: Path) -> None:
    model = tiny(model_type, dtype=torch.float64)
    layout = PrunableLayout.of(model)
    attention, feed_forward = layout.attention[0], layout.feed_forward[1]
    inputs = inputs_for(model, "right")

    def states() -> tuple[Tensor, ...]:
        return model(**inputs, output_hidden_states=True).hidden_states

    for group in (attention, feed_forward):
        skip(model, group)
    before, after = states()[1:3]
    other = model.get_submodule(layout.attention[1].adds or "")
    seen: list[Tensor] = []
    other.register_forward_hook(lambda module, args, output: seen.append(output))
    states()
    assert torch.equal(after, seen[0])  # layer 1 ends where its attention does
    assert not torch.equal(before, after)
    assert [is_skipped(model, group) for group in layout.groups] == [
        group in (attention, feed_forward) for group in layout.groups
    ]
    with torch.no_grad():  # what skipped sub-layers hold is gone, and nothing changes
        expected = logits(model, inputs)
        for group in (attention, feed_forward):
            group.members[-1].weight(model).zero_()
    small = compact(model)
    torch.testing.assert_close(logits(small, inputs), expected, rtol=0, atol=1e-10)
    save_compact(small, tmp_path / "compact")  # type: ignore[arg-type]
    again = auto_of(model_type).from_pretrained(tmp_path / "compact")
    assert is_skipped(again, PrunableLayout.of(again).attention[0])
    torch.testing.assert_close(logits(again, inputs), logits(small, inputs), rtol=0, atol=1e-10)


def test_a_shut_mask_skips_and_settles_so() -> None:
    model = tiny("bert", dtype=torch.float64)
    layout = PrunableLayout.of(model)
    group = layout.feed_forward[0]
    mask = Mask(group.role, (Cover(group.down, transposed=True),), (group.width, 1), 1, scores=False)
    install_mask(model, mask)
    skip_when_shut(model, group, mask)
    inputs = padded_inputs("right")
    whole, original = logits(model, inputs), tiny("bert", dtype=torch.float64)
    assert torch.equal(whole, logits(original, inputs))
    mask.set_grid(torch.zeros_like(mask.kept))
    shut = logits(model, inputs)
    skip(original, group)
    assert torch.equal(shut, logits(original, inputs))
    settle_skips(layout)
    remove_masks(model)
    assert is_skipped(model, group)
    assert torch.equal(shut, logits(model, inputs))


def test_all_parameters_of_a_skipped_sublayer_take_part_in_training() -> None:
    model = tiny("bert", dtype=torch.float64).train()
    layout = PrunableLayout.of(model)
    for group in layout.groups:
        skip(model, group)
    model(**padded_inputs("right")).start_logits.sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "encoder" in name)
