"""Why it is fast, by structure and not by time: operations and allocations beside those of the dense model."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from masked_models import masked
from tiny_families import padded_inputs, tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bplightning.compaction.exact_compaction import compact
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.masks.masking import freeze_masks, remove_masks

VIEWS = {
    "view",
    "_unsafe_view",
    "reshape",
    "t",
    "transpose",
    "expand",
    "unsqueeze",
    "slice",
    "select",
    "detach",
    "alias",
}


class Operations(TorchDispatchMode):
    """Counts operations that compute, and tensors that are made, by their number of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.made: Counter[int] = Counter()
        self._storages: list[Any] = []  # held, so that no address is given out twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name not in VIEWS:
            self.names[name] += 1
        if isinstance(out, Tensor):
            there = {storage.data_ptr() for storage in self._storages}
            given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
            storage = out.untyped_storage()
            if storage.data_ptr() not in there | given:
                self.made[out.numel()] += 1
                self._storages.append(storage)
        return out


def of(model: nn.Module, *, backward: bool = False) -> Operations:
    """Operations of a pass over padded rows; of the backward pass alone, if asked."""
    inputs = padded_inputs("right")
    with Operations() as operations:
        out = model(**inputs).start_logits
    if backward:
        with Operations() as operations:
            out.sum().backward()
    return operations


def weights(layout: PrunableLayout) -> Counter[int]:
    """How many prunable weights of each size there are; of sizes that no activation of these rows has."""
    return Counter(member.weight(layout.model).numel() for member in layout.members)


def test_a_masked_weight_is_one_product_and_one_tensor_of_its_size() -> None:
    model, layout, masks = masked("bert", "4x4", "unit")
    dense = copy.deepcopy(model)
    remove_masks(dense)
    plain, with_masks = of(dense), of(model)
    members = sum(weights(layout).values())
    more = with_masks.names - plain.names
    assert more["mul"] == members
    assert more.total() <= 4 * members, f"beside the product a grid is only widened: {dict(more)}"
    for size, count in weights(layout).items():
        assert with_masks.made[size] - plain.made[size] == count
    assert masks


def test_the_backward_pass_makes_one_tensor_for_both_gradients() -> None:
    model, layout, _ = masked("bert", "4x4", "unit")
    dense = copy.deepcopy(model)
    remove_masks(dense)
    plain, with_masks = of(dense, backward=True), of(model, backward=True)
    for size, count in weights(layout).items():
        assert with_masks.made[size] - plain.made[size] == count


def test_evaluation_with_frozen_masks_does_what_the_dense_model_does() -> None:
    model, _, _ = masked("bert", "4x4", "unit")
    dense = copy.deepcopy(model)
    remove_masks(dense)
    freeze_masks(model)
    with torch.no_grad():
        assert of(model).names == of(dense).names


def test_a_compact_model_does_what_the_dense_model_does_on_less() -> None:
    dense = tiny("bert").eval()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        for index, group in enumerate(PrunableLayout.of(pruned).groups):
            size = group.members[-1].weight(pruned).shape[1] // 2 - (index % 2) * 4
            group.members[-1].weight(pruned)[:, :size] = 0
        small = compact(pruned)
        large_operations, small_operations = of(dense), of(small)
    assert small_operations.names == large_operations.names
    assert sum(size * count for size, count in small_operations.made.items()) < sum(
        size * count for size, count in large_operations.made.items()
    )
