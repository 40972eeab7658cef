"""Blocks of tokens for language modelling: padding them, masking them, and how likely a model finds them.

Legend: `B` blocks of a batch, `L` tokens, `V` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100
"""The label of tokens that are not to be predicted."""


def padded(rows: list[dict[str, Any]], *, pad: int) -> dict[str, Tensor]:
    """A batch of blocks, padded on the right, each token a label.

    Args:
        rows: With ``input_ids``; what else they have is a number each.
        pad: The token to pad with, any of the vocabulary.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, ``(B, L)``, and the numbers, ``(B,)``.
    """
    blocks = [torch.tensor(row["input_ids"]) for row in rows]
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "input_ids"}
    batch["input_ids"] = pad_sequence(blocks, batch_first=True, padding_value=pad)
    batch["attention_mask"] = pad_sequence([torch.ones_like(block) for block in blocks], batch_first=True)
    batch["labels"] = pad_sequence(blocks, batch_first=True, padding_value=IGNORED)
    return batch


def masked(rows: list[dict[str, Any]], *, pad: int, mask: Callable[..., Any], seeded: bool) -> dict[str, Tensor]:
    """A batch of blocks with some tokens to be predicted masked.

    Args:
        rows: With ``input_ids`` and ``index``.
        pad: The token to pad with.
        mask: `mask_tokens` with all but ``ids_BL`` and ``draws_BL3`` given.
        seeded: Whether a block is masked the same each time, by its ``index``, whatever batch it is in; or else
            differently, from torch's common random numbers.
    """
    batch = padded(rows, pad=pad)
    draws_BL3 = torch.zeros(*batch["input_ids"].shape, 3)
    for place, row in enumerate(rows):
        generator = torch.Generator().manual_seed(row["index"]) if seeded else None
        draws_BL3[place, : len(row["input_ids"])] = torch.rand(len(row["input_ids"]), 3, generator=generator)
    batch["input_ids"], batch["labels"] = mask(ids_BL=batch["input_ids"], draws_BL3=draws_BL3)
    return batch


def mask_tokens(
    *, ids_BL: Tensor, draws_BL3: Tensor, special: list[int], mask_id: int, vocabulary: int, fraction: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict; of these 80 % are masked, 10 % become another token, 10 % stay (Devlin et al. 2019).

    Args:
        ids_BL: Tokens.
        draws_BL3: Uniform random numbers in [0, 1): whether a token is chosen, what it becomes, which other one.
        special: Tokens that are never chosen; those that pad are among them.
        mask_id: The token that masks.
        vocabulary: Tokens there are, ``V``.
        fraction: Of the tokens that is chosen, in (0, 1); one of a block at least, so that each has something to say.

    Returns:
        The tokens as the model gets them, and the labels.
    """
    chance_BL, fate_BL, other_BL = draws_BL3.unbind(-1)
    chance_BL = chance_BL.masked_fill(torch.isin(ids_BL, torch.tensor(special)), 2.0)
    lowest_B1 = chance_BL.amin(dim=1, keepdim=True)
    chosen_BL = (chance_BL < fraction) | ((chance_BL == lowest_B1) & (chance_BL < 1))
    labels_BL = ids_BL.where(chosen_BL, IGNORED)
    changed_BL = torch.where(fate_BL < 0.9, (other_BL * vocabulary).long(), ids_BL)
    changed_BL = changed_BL.masked_fill(fate_BL < 0.8, mask_id)
    return changed_BL.where(chosen_BL, ids_BL), labels_BL


def surprise(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Of each block the summed negative log-likelihood of its labels, natural logarithm, and how many these are.

    Args:
        logits_BLV: A model's output at the place of each label.
        labels_BL: Tokens, or `IGNORED`.

    Returns:
        ``(B, 2)``, float32.
    """
    each_BL = cross_entropy(logits_BLV.float().transpose(1, 2), labels_BL, ignore_index=IGNORED, reduction="none")
    return torch.stack([each_BL.sum(dim=1), (labels_BL != IGNORED).sum(dim=1)], dim=1)
