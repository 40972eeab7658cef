"""The field's metrics of rankings, query by query: what is reported is their mean.

Legend: `Q` queries, `P` passages, `D` numbers of a vector, `K` places of a ranking.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bplightning.tasks.shared.bootstrap import bootstrap

PLACES = 10
"""Places of a ranking that nDCG and MRR look at."""
BLOCK = 256
"""Queries whose similarities to all passages are computed at a time."""


def retrieval_scores(queries_QD: Tensor, passages_PD: Tensor, relevant: Tensor) -> dict[str, Tensor]:
    """How well passages are found by the dot product of vectors, in per cent.

    Args:
        queries_QD: A vector of each query.
        passages_PD: A vector of each passage.
        relevant: Pairs of a query's number and a relevant passage's, ``(N, 2)``; each query has one or more.

    Returns:
        ``recall_at_1``, ``recall_at_5``, ``ndcg_at_10`` and ``mrr_at_10`` of each query, ``(Q,)``. A similarity that is
        no number finds nothing.

    >>> found = retrieval_scores(torch.eye(2), torch.eye(2), torch.tensor([[0, 0], [1, 0]]))
    >>> {name: round(value.item(), 1) for name, value in means(found).items()}
    {'recall_at_1': 50.0, 'recall_at_5': 100.0, 'ndcg_at_10': 81.5, 'mrr_at_10': 75.0}
    """
    if not len(queries_QD):
        return dict.fromkeys(("recall_at_1", "recall_at_5", "ndcg_at_10", "mrr_at_10"), torch.zeros(0))
    places = min(PLACES, len(passages_PD))
    found = [(block @ passages_PD.T).topk(places, dim=1) for block in queries_QD.split(BLOCK)]
    best_QK = torch.cat([each.indices for each in found])
    real_QK = ~torch.cat([each.values for each in found]).isnan()
    pairs = relevant[:, 0] * len(passages_PD) + relevant[:, 1]
    numbers_Q1 = torch.arange(len(queries_QD))[:, None]
    hits_QK = (torch.isin(numbers_Q1 * len(passages_PD) + best_QK, pairs) & real_QK).double()
    count_Q = torch.bincount(relevant[:, 0], minlength=len(queries_QD)).double()
    ideal_QK = (torch.arange(places) < count_Q[:, None]).double()
    return {
        **{f"recall_at_{k}": 100 * hits_QK[:, :k].sum(1) / count_Q for k in (1, 5)},
        "ndcg_at_10": 100 * discounted(hits_QK) / discounted(ideal_QK),
        "mrr_at_10": 100 * reciprocal_rank(hits_QK),
    }


def discounted(gains_QK: Tensor) -> Tensor:
    """Discounted cumulative gain, ``(Q,)``, with the gain as it is.

    Args:
        gains_QK: What each place of a ranking is worth.
    """
    return (gains_QK / torch.log2(torch.arange(gains_QK.shape[1]) + 2.0)).sum(1)


def reciprocal_rank(hits_QK: Tensor) -> Tensor:
    """One divided by the place of the first hit, ``(Q,)``; 0 where there is none.

    Args:
        hits_QK: 1 at places with a relevant passage, else 0.
    """
    return (hits_QK / (torch.arange(hits_QK.shape[1]) + 1.0)).amax(1)


def ranking_scores(scores_N: Tensor, labels_N: Tensor, groups_N: Tensor) -> dict[str, Tensor]:
    """How well the passages of each query are ranked by scores, in per cent; queries with none relevant are left out.

    Of equal scores the less relevant passage comes first: else a model that scores all alike would rank as the data
    does, which often has the relevant passage first.

    Args:
        scores_N: A score of each pair of query and passage.
        labels_N: How relevant the passage is, 0 or more.
        groups_N: Number of the pair's query.

    Returns:
        ``ndcg_at_10`` and ``mrr_at_10`` (relevant is what is labelled above half of the query's best) of each query.

    >>> found = ranking_scores(torch.tensor([0.1, 0.9]), torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    >>> {name: round(value.item(), 1) for name, value in means(found).items()}
    {'ndcg_at_10': 63.1, 'mrr_at_10': 50.0}
    """
    order_N = labels_N.argsort(stable=True)
    order_N = order_N[scores_N[order_N].argsort(descending=True, stable=True)]
    order_N = order_N[groups_N[order_N].argsort(stable=True)]
    sizes = groups_N.unique(return_counts=True)[1].tolist()
    gained, reciprocal = [], []
    for labels in labels_N[order_N].double().split(sizes):
        if not labels.max() > 0:
            continue
        ranked_1K, ideal_1K = labels[None, :PLACES], labels.sort(descending=True).values[None, :PLACES]
        gained.append(discounted(ranked_1K) / discounted(ideal_1K))
        reciprocal.append(reciprocal_rank((ranked_1K > labels.max() / 2).double()))
    if not gained:
        return {"ndcg_at_10": torch.zeros(0), "mrr_at_10": torch.zeros(0)}
    return {"ndcg_at_10": 100 * torch.cat(gained), "mrr_at_10": 100 * torch.cat(reciprocal)}


def means(by_query: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over queries; 0 where there is none, as in a check of a few batches.

    Args:
        by_query: Metric to its value of each query.
    """
    return {name: values.mean() if len(values) else torch.tensor(0.0) for name, values in by_query.items()}


def intervals(by_query: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Ends of the 95 % confidence interval of each mean, by drawing other queries.

    Args:
        by_query: Metric to its value of each query.
    """
    rows = torch.stack(list(by_query.values()), dim=1)
    return bootstrap(rows, lambda rows: dict(zip(by_query, rows.mean(0), strict=True)))
