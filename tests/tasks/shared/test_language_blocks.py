from __future__ import annotations

import math

import pytest
import torch

from bplightning.tasks.language_modeling import cut
from bplightning.tasks.shared.language_blocks import IGNORED, mask_tokens, masked, padded, surprise

PAD, CLS, SEP, MASK = 0, 2, 3, 4
SPECIAL = [PAD, 1, CLS, SEP, MASK]


def mask(**given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return mask_tokens(special=SPECIAL, mask_id=MASK, vocabulary=100, **given)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("tokens", range(2, 14))
def test_blocks_hold_every_token_in_order(tokens: int, overlap: int) -> None:
    blocks = cut(list(range(tokens)), length=4, overlap=overlap)
    assert all(2 <= len(block) <= 4 for block in blocks)
    joined = blocks[0] + [token for block in blocks[1:] for token in block[overlap:]]
    assert joined in (list(range(tokens)), list(range(tokens - 1)))  # a last token alone has nothing to say
    assert len(joined) == tokens or (overlap == 0 and tokens % 4 == 1)


def test_a_shared_token_lets_every_token_but_the_first_be_predicted() -> None:
    for tokens in range(2, 20):
        predicted = [token for block in cut(list(range(tokens)), length=5, overlap=1) for token in block[1:]]
        assert predicted == list(range(1, tokens))


def test_padding_is_neither_seen_nor_predicted() -> None:
    batch = padded([{"input_ids": [7, 8, 9], "index": 5}, {"input_ids": [6], "index": 2}], pad=1)
    assert batch["input_ids"].tolist() == [[7, 8, 9], [6, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[7, 8, 9], [6, IGNORED, IGNORED]]
    assert batch["index"].tolist() == [5, 2]


def test_a_chosen_token_is_masked_or_changed_or_stays_by_its_draws() -> None:
    ids = torch.tensor([[CLS, 10, 11, 12, 13, SEP]])
    draws = torch.zeros(1, 6, 3)
    draws[0, :, 0] = torch.tensor([0.0, 0.1499, 0.1, 0.05, 0.1501, 0.0])  # chosen are the three between, none special
    draws[0, :, 1] = torch.tensor([0.0, 0.79, 0.81, 0.91, 0.0, 0.0])
    draws[0, :, 2] = 0.999
    changed, labels = mask(ids_BL=ids, draws_BL3=draws)
    assert changed.tolist() == [[CLS, MASK, 99, 12, 13, SEP]]
    assert labels.tolist() == [[IGNORED, 10, 11, 12, IGNORED, IGNORED]]


def test_shares_are_15_and_80_and_10_per_cent() -> None:
    ids = torch.randint(5, 100, (50, 400), generator=torch.Generator().manual_seed(1))
    draws = torch.rand(50, 400, 3, generator=torch.Generator().manual_seed(0))
    changed, labels = mask(ids_BL=ids, draws_BL3=draws)
    chosen = labels != IGNORED
    assert torch.equal(changed[~chosen], ids[~chosen])
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (changed[chosen] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (changed[chosen] == ids[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_a_block_has_one_token_to_predict_at_least_and_none_of_special_ones() -> None:
    ids = torch.tensor([[CLS, 10, 11, SEP], [CLS, SEP, PAD, PAD]])
    draws = torch.full((2, 4, 3), 0.9)
    draws[0, 2, 0] = 0.8
    _, labels = mask(ids_BL=ids, draws_BL3=draws)
    assert labels.tolist() == [[IGNORED, IGNORED, 11, IGNORED], [IGNORED] * 4]


def test_a_seeded_block_is_masked_alike_in_any_batch_and_at_any_time() -> None:
    rows = [{"input_ids": list(range(10, 10 + size)), "index": index} for index, size in enumerate((40, 30, 20))]
    first = masked(rows, pad=PAD, mask=mask, seeded=True)
    torch.rand(7)
    alone = masked(rows[1:2], pad=PAD, mask=mask, seeded=True)
    assert torch.equal(first["input_ids"][1, :30], alone["input_ids"][0])
    assert torch.equal(first["labels"][1, :30], alone["labels"][0])
    assert not torch.equal(first["labels"][0, :20] == IGNORED, first["labels"][2, :20] == IGNORED)


def test_a_training_block_is_masked_anew_by_the_common_random_numbers() -> None:
    rows = [{"input_ids": list(range(10, 50)), "index": 0}]
    torch.manual_seed(3)
    first, second = (masked(rows, pad=PAD, mask=mask, seeded=False) for _ in range(2))
    torch.manual_seed(3)
    again = masked(rows, pad=PAD, mask=mask, seeded=False)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["labels"], second["labels"])


def test_surprise_is_the_sum_over_labels_and_their_number() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 1] = math.log(3)  # probability 1/2, others 1/6
    labels = torch.tensor([[1, 2, IGNORED], [IGNORED] * 3])
    assert surprise(logits, labels).tolist() == [[pytest.approx(math.log(2) + math.log(4)), 2], [0, 0]]
