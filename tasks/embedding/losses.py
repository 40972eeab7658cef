"""Losses of embeddings, as pure functions.

Legend: `B` examples of a batch, `C` candidates, `D` numbers of a vector.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize

TeacherLoss = Literal["cosine", "squared", "similarities"]
"""How a vector is compared with a teacher's."""


def ranking_loss(
    queries_BD: Tensor, candidates_CD: Tensor, same_BC: Tensor | None, *, scale: float, offset: int = 0
) -> Tensor:
    """Cross-entropy of finding each query's own passage among the passages of the batch.

    The multiple negatives ranking loss (Henderson et al. 2017, arXiv 1705.00652, section 4.4).

    Args:
        queries_BD: Vectors of queries.
        candidates_CD: Vectors of passages: the own one of query ``i`` is at ``offset + i``.
        same_BC: Where a candidate has the same text as the query's own passage, or answers the same query, which makes
            it no negative; `None` where none does.
        scale: What similarities are multiplied by.
        offset: Place of the first query's passage.
    """
    logits_BC = scale * queries_BD @ candidates_CD.T
    own_B = offset + torch.arange(len(queries_BD), device=queries_BD.device)
    if same_BC is not None:
        own_BC = torch.zeros_like(same_BC).scatter(1, own_B[:, None], True)
        logits_BC = logits_BC.masked_fill(same_BC & ~own_BC, -torch.inf)
    return cross_entropy(logits_BC.float(), own_B)


def distance(vectors_BD: Tensor, wanted_BD: Tensor, kind: TeacherLoss) -> Tensor:
    """How far vectors are from those of a teacher.

    Args:
        vectors_BD: The model's.
        wanted_BD: The teacher's; for ``similarities`` they may have another number of dimensions.
        kind: ``cosine`` for one minus the cosine, ``squared`` for the squared distance, ``similarities`` for the
            squared error of the cosines between all texts of the batch, summed over the batch's other texts.

    >>> distance(torch.eye(2), torch.eye(2).flip(0), "cosine").item()
    1.0
    """
    vectors_BD, wanted_BD = vectors_BD.float(), wanted_BD.float()
    if kind == "cosine":
        return (1 - cosine_similarity(vectors_BD, wanted_BD)).mean()
    if kind == "squared":
        return (vectors_BD - wanted_BD).square().sum(-1).mean()
    own, theirs = (each @ each.T for each in (normalize(vectors_BD, dim=-1), normalize(wanted_BD, dim=-1)))
    return mse_loss(own, theirs, reduction="sum") / len(own)


def gathered(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, through which gradients flow back, and the place of this rank's first one.

    Args:
        tensor: Rows of this rank, as many as every other rank has.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor, 0
    return torch.cat(all_gather(tensor.contiguous())), dist.get_rank() * len(tensor)


def fingerprints(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """A number for each row of tokens, ``(B,)``: equal rows have the same one, however they are padded.

    Args:
        ids_BL: Tokens.
        mask_BL: 1 where a token is, 0 where padding is.

    >>> rows, mask = torch.tensor([[5, 6, 0], [0, 5, 6], [6, 5, 0]]), torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 0]])
    >>> one, other, third = fingerprints(rows, mask).tolist()
    >>> one == other, one == third
    (True, False)
    """
    places_BL = mask_BL.long().cumsum(1)
    mixed_BL = (ids_BL.long() + 1) * 0x9E3779B97F4A7C1 + places_BL * 0x2545F4914F6CDD1D  # integers wrap around
    mixed_BL = (mixed_BL ^ (mixed_BL >> 29)) * 0x369DEA0F31A53F85
    return ((mixed_BL ^ (mixed_BL >> 32)) * mask_BL.long()).sum(1)
