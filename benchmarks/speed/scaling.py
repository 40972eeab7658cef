"""What training with masks takes, planned on paper for models of any size and counted on one that fits here.

    python benchmarks/speed/scaling.py             # the plans, from shapes alone; no weight is made
    python benchmarks/speed/scaling.py --check     # one training step of a small BERT, its tensors counted

Both land in benchmarks/results/scaling.json; `python benchmarks/tables/tables.py` makes the tables of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from bplightning import PrunableLayout
from bplightning.contracts.strategy import PruningStrategy
from bplightning.strategies.hybrid import Hybrid
from bplightning.strategies.soft_movement import SoftMovement

RESULT = Path(__file__).resolve().parents[1] / "results" / "scaling.json"
MODELS: dict[str, PretrainedConfig] = {
    "BERT-base": BertConfig(),
    "BERT-large": BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "decoder of 1 B": LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128_256,
        tie_word_embeddings=True,
    ),
}
SMALL = BertConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, vocab_size=1000)
STRATEGIES = {"hybrid": Hybrid, "single weights": lambda: SoftMovement(granularity={"attention": "element"})}
SINGLE, ADAM = 4, 2
"""Bytes of a float32, and numbers of that kind that Adam keeps for each one it moves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="count, too")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found["plans"] = {
        name: {of: plan(config, make()) for of, make in STRATEGIES.items()} for name, config in MODELS.items()
    }
    if arguments.check:
        found["check"] = {
            of: {"planned": plan(SMALL, make()), "counted": counted(SMALL, make())} for of, make in STRATEGIES.items()
        }
        found["date"] = datetime.now(UTC).date().isoformat()
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def build(config: PretrainedConfig) -> PreTrainedModel:
    of = AutoModelForCausalLM if isinstance(config, LlamaConfig) else AutoModelForSequenceClassification
    model: PreTrainedModel = of.from_config(config)
    return model.train()


def plan(config: PretrainedConfig, strategy: PruningStrategy) -> dict[str, int]:
    """Bytes on each rank, and bytes that each rank hands to DDP in each step, from shapes alone."""
    with torch.device("meta"):
        model = build(config)
        strategy.attach(PrunableLayout.of(model))
    weights = sum(value.numel() for value in model.parameters())
    scores = sum(value.numel() for value in strategy.parameters())
    return {
        "weights": SINGLE * weights,
        "gradients": SINGLE * (weights + scores),
        "optimizer": ADAM * SINGLE * (weights + scores),
        "scores": SINGLE * scores,
        "grids": sum(mask.kept.numel() for mask in strategy.all_masks),
        "masked_copies": SINGLE * sum(mask.total_weights for mask in strategy.all_masks),
        "communicated": SINGLE * (weights + scores),
    }


def counted(config: PretrainedConfig, strategy: PruningStrategy) -> dict[str, int]:
    """The same of a real training step, from the tensors that there are."""
    torch.manual_seed(0)
    model = build(config)
    dense = saved_bytes(model, model)
    strategy.attach(PrunableLayout.of(model))
    both = nn.ModuleDict({"model": model, "strategy": strategy})
    masked = saved_bytes(model, both)
    optimizer = torch.optim.AdamW(both.parameters())
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    return {
        "weights": size(model.parameters()),
        "gradients": size(value.grad for value in both.parameters() if value.grad is not None),
        "optimizer": size(states),
        "scores": size(strategy.parameters()),
        "grids": size(mask.kept for mask in strategy.all_masks),
        "masked_copies": masked - dense,
        "communicated": communicated(both),
    }


def size(tensors: Any) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


def saved_bytes(model: PreTrainedModel, parameters: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass beside parameters and buffers; the pass is then made."""
    torch.manual_seed(1)
    there = {value.untyped_storage().data_ptr() for value in (*parameters.parameters(), *parameters.buffers())}
    seen: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in there:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    with saved_tensors_hooks(note, lambda value: value):
        loss = model(input_ids=torch.arange(64).reshape(4, 16), labels=torch.tensor([0, 1, 0, 1])).loss
    total = sum(seen.values())
    loss.backward()
    return total


def communicated(module: nn.Module) -> int:
    """Bytes that DDP sums over the ranks in each step, by its own account."""
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        wrapped = DistributedDataParallel(module)
        data = wrapped._get_ddp_logging_data()
        torch.distributed.destroy_process_group()
    return int(data["total_parameter_size_bytes"])


if __name__ == "__main__":
    main()
