"""What every test runs under: no network, one thread a process, its own random seed."""

from __future__ import annotations

import os

# Before anything imports the hub's client, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models gain nothing from more threads, and the processes that run the tests share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

pytest.register_assert_rewrite("exactness", "parsed_page", "steered_training")  # so that a failure shows values


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="run the combinations that `make test` leaves out, alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that run whole programs are slow and come first: begun last, one of them would hold up the end."""
    for item in items:
        if item.path.parent.name == "whole_program":
            item.add_marker("slow")
    of_the_matrix = [item for item in items if item.get_closest_marker("matrix") is not None]
    others = [item for item in items if item.get_closest_marker("matrix") is None]
    items[:], left_out = (of_the_matrix, others) if config.option.matrix else (others, of_the_matrix)
    config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
