"""Run by a test, once for each of two ranks: RANK FOLDER. Writes what the metric is, over both, to FOLDER/RANK."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from bplightning.tasks.shared.example_metric import ExampleMetric


def main(rank: int, folder: str) -> None:
    """Five examples on two ranks: the sampler has repeated the first one; the ranks have not as many batches."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric = ExampleMetric(lambda outputs, batch: outputs, lambda rows: {"sum": rows.sum(), "count": len(rows)})
    for index in ([0, 2], [4]) if rank == 0 else ([1], [3], [0]):
        metric.update(torch.tensor([[float(10**i)] for i in index]), {"index": torch.tensor(index)})
    torch.save({name: value.item() for name, value in metric.compute().items()}, f"{folder}/{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
