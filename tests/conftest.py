"""What every test runs under: no network, one thread, its own random seed."""

from __future__ import annotations

import os

# Before anything imports the hub's client, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
