"""What is left inside the heads, tile by tile."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny

from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.reporting.patterns import head_patterns, levels, tile_edge


def test_a_digit_says_how_much_of_a_tile_is_left() -> None:
    weight_OI = torch.ones(2, 32)
    weight_OI[:, 8:16] = 0
    weight_OI[0, 16:24] = 0
    weight_OI[:, 24:] = 0
    weight_OI[1, 30] = -1e-30
    assert levels(weight_OI, (2, 8)) == "9051"


def test_rows_and_columns_that_do_not_stay_do_not_count() -> None:
    weight_OI = torch.ones(4, 32)
    weight_OI[:, 1:16] = 0
    columns = torch.tensor([0, 15, 24])
    assert levels(weight_OI, (2, 8)) == "2099 2099"
    assert levels(weight_OI, (2, 8), columns=columns) == "909 909"  # of the third tile no column stays
    assert levels(weight_OI, (2, 8), rows=torch.tensor([3]), columns=columns) == "909"


@pytest.mark.parametrize("size", [768, 1024, 4096, 80, 5120, 33])
def test_tiles_divide_and_are_not_many(size: int) -> None:
    edge = tile_edge(size)
    assert size % edge == 0
    assert size // edge <= 32


def test_tiles_lie_within_heads() -> None:
    for head_size, heads in ((64, 12), (80, 32), (128, 64), (8, 4)):
        assert head_size % tile_edge(head_size, heads) == 0


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_a_head_s_tiles_are_rows_of_its_weights_and_columns_of_the_output(family: str) -> None:
    """Of weights of their own, of one fused weight, with grouped queries, with heads of a size of their own."""
    model = tiny(family)
    layout = PrunableLayout.of(model)
    group = layout.attention[0]
    per_query = group.heads // group.kv_heads
    last = slice((group.kv_heads - 1) * group.head_size, None)
    with torch.no_grad():
        group.value.weight(model)[last] = 0
        group.output.weight(model)[:, (group.heads - per_query) * group.head_size :] = 0
    pattern = head_patterns(layout)[0]
    assert pattern["name"] == group.name
    rows = {name: text.split(" ") for name, text in pattern["projections"].items()}
    each = len(rows["value"]) // group.kv_heads
    assert set("".join(rows["value"][-each:])) == {"0"}
    assert set("".join(rows["value"][:-each])) == {"9"}
    assert all(set("".join(rows[name])) == {"9"} for name in ("query", "key"))
    gone = len(rows["output"][0]) // group.kv_heads
    assert {row[-gone:] for row in rows["output"]} == {"0" * gone}
    assert {digit for row in rows["output"] for digit in row[:-gone]} == {"9"}
