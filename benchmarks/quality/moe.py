"""One-shot pruning of a mixture of experts, on real text: perplexity dense, by Wanda, by moe-pruner, experts dropped.

Trains a small Mixtral (4 layers, hidden 128, 8 experts of 256 units, 2 of them a token) on the paragraphs of a split of
SQuAD, the abstracts of SciTLDR and the sentences of SST-2, one epoch, then prunes it in each row's way by the
statistics of 128 training blocks, and measures perplexity on other texts. Rows land in benchmarks/results/moe/ROW.json;
a row that is there is not run again.

    python benchmarks/quality/moe.py --data DATA_FOLDER

`DATA_FOLDER` holds squad/split-train-v1.1.json, scitldr/train.jsonl, sst2/train.jsonl, and their evaluation parts. The
dense model takes about 20 minutes on a busy core, a row less than one, a row with fine-tuning about five.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from bplightning.compaction.exact_compaction import compact
from bplightning.contracts.target import Target
from bplightning.distillation.experts import ExpertDistillation
from bplightning.io.provenance import now
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring.measure import machine, parameters
from bplightning.stages.refill import HeldZeros
from bplightning.strategies.moe_pruner.moe_pruner import MoEPruner

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "moe"
VOCABULARY, LENGTH = 4096, 128
TEXTS = {"train": None, "validation": 800}
BATCH, RATE, WARMUP = 16, 2e-3, 100
CALIBRATION, EVALUATED = 128, 320
LEARNED, EPOCHS, LEARNING_RATE = 512, 2, 3e-4


@dataclass(frozen=True)
class Row:
    """What is done to the dense model.

    Attributes:
        pruner: Settings of moe-pruner; `None` prunes nothing.
        seeds: Choices of calibration blocks.
        learn: Whether what is left is fine-tuned, zeros held.
        by_experts: Weight of the distance to the dense model's experts in that.
    """

    pruner: dict[str, Any] | None = None
    seeds: int = 1
    learn: bool = False
    by_experts: float = 0.0


WANDA, PATTERN = {"router_weighted": False}, {"pattern": "2:4"}
ROWS = {
    "dense": Row(),
    "wanda-50": Row(WANDA, seeds=3),
    "moe-pruner-50": Row({}, seeds=3),
    "wanda-25": Row(WANDA | {"target": Target(density=0.25)}, seeds=3),
    "moe-pruner-25": Row({"target": Target(density=0.25)}, seeds=3),
    "wanda-2-4": Row(WANDA | PATTERN, seeds=3),
    "moe-pruner-2-4": Row(PATTERN, seeds=3),
    "experts-7": Row({"target": Target(density=1), "experts": 7}),
    "experts-6": Row({"target": Target(density=1), "experts": 6}),
    "experts-4": Row({"target": Target(density=1), "experts": 4}),
    "moe-pruner-2-4-tuned": Row(PATTERN, learn=True),
    "moe-pruner-2-4-distilled": Row(PATTERN, learn=True, by_experts=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the three data sets")
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where the dense model goes")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to run")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    folder = arguments.runs / "moe"
    dense = trained(arguments.data, folder)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    texts = {name: blocks_of(tokenizer, folder / f"{name}.txt") for name in TEXTS}
    for row in arguments.rows:
        file = RESULTS / f"{row}.json"
        if file.exists():
            print(f"{row}: already there", flush=True)
            continue
        start = time.monotonic()
        found = measured(ROWS[row], dense, texts["train"], texts["validation"][:EVALUATED])
        found |= {"seconds": round(time.monotonic() - start), "machine": machine(), "date": now()}
        file.write_text(json.dumps({"options": asdict(ROWS[row]), **found}, indent=1) + "\n")
        print(f"{row}: perplexity {found['perplexity']:.2f}", flush=True)


def measured(row: Row, dense: Path, training: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Perplexity after each choice of calibration blocks, and what is left."""
    perplexities, density = [], 1.0
    for seed in range(row.seeds):
        model = loaded(dense)
        if row.pruner is not None:
            layout, strategy = PrunableLayout.of(model), MoEPruner(**row.pruner)
            strategy.attach(layout)
            generator = torch.Generator().manual_seed(seed)
            chosen = training[torch.randperm(len(training), generator=generator)[:CALIBRATION]]
            batches = [{"input_ids": batch} for batch in chosen.split(BATCH)]
            strategy.calibrate(model, batches, lambda outputs, batch: outputs.logits.mean())
            density = float(strategy.density()["total"])
            strategy.harden(layout)
            model = compact(model)  # type: ignore[assignment]
        if row.learn:
            fine_tune(model, loaded(dense), training, by_experts=row.by_experts, seed=seed)
        perplexities.append(perplexity(model, held_out))
    return {
        "perplexity": mean(perplexities),
        "perplexities": perplexities,
        "density": density,
        "parameters": parameters(model, PrunableLayout.of(model)),
        "experts": model.config.num_experts,
        "tokens": held_out[:, 1:].numel(),
    }


def loaded(folder: Path) -> MixtralForCausalLM:
    # On a processor the fastest way to run experts.
    return MixtralForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()


def fine_tune(
    model: MixtralForCausalLM, teacher: MixtralForCausalLM, training: Tensor, *, by_experts: float, seed: int
) -> None:
    """Let what is left learn, zeros held, from texts and, with `by_experts`, from the dense model's experts."""
    held, layout = HeldZeros(), PrunableLayout.of(model)
    held.attach(layout)
    experts = ExpertDistillation(model, teacher) if by_experts else None
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(100 + seed))[:LEARNED]
    batches = [batch for _ in range(EPOCHS) for batch in training[order].split(BATCH)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, len(batches))
    model.train()
    for batch in batches:
        loss = model(batch, labels=batch).loss
        if experts is not None:
            loss = loss + by_experts * experts.loss()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    held.harden(layout)
    model.eval()


@torch.no_grad()
def perplexity(model: MixtralForCausalLM, blocks: Tensor) -> float:
    """The exponential of the mean over all tokens of all blocks but the first of each."""
    losses = [model(batch, labels=batch).loss * len(batch) for batch in blocks.split(BATCH)]
    return float((torch.stack(losses).sum() / len(blocks)).exp())


def trained(data: Path, folder: Path) -> Path:
    """The dense model's folder, trained unless it is there."""
    dense = folder / "dense"
    if dense.exists():
        return dense
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(data, folder)
    tokenizer, model = begin(folder / "train.txt")
    blocks = blocks_of(tokenizer, folder / "train.txt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    batches = DataLoader(blocks, BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, len(batches))
    model.train()
    for step, batch in enumerate(batches, 1):
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"dense: step {step} of {len(batches)}, loss {loss.item():.3f}", flush=True)
    model.config.output_router_logits = False
    model.save_pretrained(dense)
    tokenizer.save_pretrained(dense)
    return dense


def blocks_of(tokenizer: PreTrainedTokenizerFast, texts: Path) -> Tensor:
    """The tokens of a file's texts, joined, in blocks ``(N, L)``."""
    ids = [id for text in tokenizer(texts.read_text(encoding="utf-8").splitlines())["input_ids"] for id in text]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def write_texts(data: Path, folder: Path) -> None:
    """A text a line, shuffled, to train on and to measure by."""
    parts = {
        "train": ("squad/split-train-v1.1.json", "scitldr/train.jsonl", "sst2/train.jsonl"),
        "validation": ("squad/split-eval-v1.1.json", "scitldr/validation.jsonl", "sst2/validation.jsonl"),
    }
    for name, (squad, scitldr, sst2) in parts.items():
        articles = json.loads((data / squad).read_text(encoding="utf-8"))["data"]
        texts = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
        texts += [json.loads(line)["document"] for line in (data / scitldr).read_text(encoding="utf-8").splitlines()]
        texts += [json.loads(line)["text"] for line in (data / sst2).read_text(encoding="utf-8").splitlines()]
        texts = [" ".join(text.split()) for text in texts]
        random.Random(0).shuffle(texts)
        texts = texts[: TEXTS[name]]
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def begin(texts: Path) -> tuple[PreTrainedTokenizerFast, MixtralForCausalLM]:
    """A tokenizer of these texts, and a model that has learned nothing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(texts)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
        max_position_embeddings=2 * LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        output_router_logits=True,  # so that experts share the work while they learn
        router_aux_loss_coef=0.01,
    )
    return fast, MixtralForCausalLM._from_config(config, experts_implementation="eager")


if __name__ == "__main__":
    main()
