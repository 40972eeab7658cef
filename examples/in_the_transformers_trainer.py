"""Prune in the transformers Trainer, by one callback.

    python examples/in_the_transformers_trainer.py compact --steps 300

Data and small pretrained model are made up and come with bplightning, so that this runs anywhere; put yours in their
place. It needs accelerate, as the Trainer does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers import DataCollatorWithPadding, TrainingArguments

from bplightning import PruningWindow, Target
from bplightning.integrations.transformers_trainer import PruningTrainer, PruningTrainerCallback
from bplightning.strategies.hybrid import Hybrid
from bplightning.tasks.classification import Classification


def main(out: Path, steps: int) -> None:
    """Train, prune and save."""
    data = Classification(max_length=64)
    pruning = PruningTrainerCallback(Hybrid(Target(density=0.25), window=PruningWindow(final_warmup=4)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = PruningTrainer(
            model=data.build_model(),  # as from AutoModelForSequenceClassification.from_pretrained
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=32,
                learning_rate=5e-4,
                warmup_steps=round(0.05 * steps),
                logging_steps=20,
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=data.features("train"),
            data_collator=DataCollatorWithPadding(data.tokenizer),
            callbacks=[pruning],
        )
        trainer.train()
    pruning.save(out, data.tokenizer)
    print(f"The compact model is in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the compact model; it must not exist yet")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps")
    main(**vars(parser.parse_args()))
