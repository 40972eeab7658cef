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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole programs come first: begun last, one of them would hold up the end."""
    items.sort(key=lambda item: item.path.parent.name != "whole_program")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
