"""Prune in a training loop of your own: `attach` before it, `penalty` and `advance` in it.

    python examples/in_a_bare_loop.py compact --steps 300

Data and small pretrained model are made up and come with bplightning, so that this runs anywhere; put yours in their
place.
"""

from __future__ import annotations

import argparse
from itertools import chain, islice, repeat
from pathlib import Path

import torch

from bplightning import Progress, PrunableLayout, PruningWindow, Target, compact, save_compact
from bplightning.strategies.hybrid import Hybrid
from bplightning.tasks.classification import Classification


def main(out: Path, steps: int) -> None:
    """Train, prune and save."""
    torch.manual_seed(0)
    data = Classification(max_length=64)
    model = data.build_model().train()  # as from AutoModelForSequenceClassification.from_pretrained
    warmup = round(0.05 * steps)

    strategy, layout = Hybrid(Target(density=0.25), window=PruningWindow(final_warmup=4)), PrunableLayout.of(model)
    strategy.attach(layout)
    groups = [{"params": list(model.parameters())}, *strategy.parameter_groups(total_steps=steps)]
    optimizer = torch.optim.AdamW(groups, lr=5e-4)

    batches = chain.from_iterable(repeat(data.train_dataloader()))
    for step, batch in enumerate(islice(batches, steps)):
        strategy.advance(Progress(step, steps, warmup))
        loss = model(**data.model_inputs(batch)).loss
        penalty = strategy.penalty()  # some strategies have none
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        strategy.after_optimizer_step()  # some strategies look at the gradients
        optimizer.zero_grad()
    strategy.advance(Progress(steps, steps, warmup))

    print({role: round(float(density), 3) for role, density in strategy.density().items()})
    strategy.harden(layout)
    save_compact(compact(model.eval()), out, data.tokenizer)
    print(f"The compact model is in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the compact model; it must not exist yet")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps")
    main(**vars(parser.parse_args()))
