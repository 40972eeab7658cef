"""Every task with every strategy on every family that has a head for it: from `fit` to the reloaded compact model.

Not part of `make test`, since it takes half an hour. `make matrix` runs it, and all other combinations that are marked
so. To run a part of it: `python -m pytest --matrix tests/matrix/matrix.py -k "bart and hybrid"`.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tiny_families import tiny, zero_randomly
from transformers import CONFIG_MAPPING, AutoTokenizer

from bplightning.compaction.equivalence import logit_difference
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.contracts.suitability import prunes_by_training
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.exporting.variants import export_onnx
from bplightning.layout.families import FAMILIES
from bplightning.measuring import measure
from bplightning.plugins import STRATEGIES, TASKS, available, load
from bplightning.stages import one_shot, pipeline
from bplightning.training.module import PruningModule

pytestmark = pytest.mark.matrix

SETTINGS = {"max_length": 64, "stride": 8, "max_answer_length": 8, "max_summary_length": 12, "batch_size": 4}
TILES = {"attention": "4x4", "feed_forward": "unit"}
QUICK = {"granularity": TILES, "score_learning_rate": 2.0, "regularization": 100.0}
QUICK |= {"calibration_examples": 8, "search_tries": 2}
TARGETS = {"density": Target(density=0.4), "flops": Target(flops=0.85), "latency_speedup": Target(latency_speedup=1.1)}
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions")
NOTHING_TO_REMOVE = "can lose heads or units one by one"
OF_SOME_FAMILIES = {
    "cofi": ("cofi prunes encoders", "cannot be made narrower"),
    "one-shot-taylor": (NOTHING_TO_REMOVE,),
    "post-training": (NOTHING_TO_REMOVE,),
    "wanda": ("of stacked experts",),
    "ziplm": ("no head or unit that can be removed", "was never computed"),
}
"""Strategies that refuse others, by what they say then."""

CASES = [
    (task, family, strategy)
    for task in available(TASKS)
    for family in FAMILIES
    if load(TASKS, task).supports(CONFIG_MAPPING[family]())  # type: ignore[attr-defined]
    for strategy in available(STRATEGIES)
]


def accepted(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in inspect.signature(cls).parameters}


def quick(cls: Any) -> dict[str, Any]:
    """Options with which a strategy prunes within ten steps; one that has a target by default is given another."""
    options = accepted(cls, QUICK)
    parameters = inspect.signature(cls).parameters
    if "window" in parameters:
        options["window"] = replace(parameters["window"].default, final_warmup=2.0)
    if "target" in parameters and cls.default_target.kind is not None:
        options["target"] = TARGETS[cls.target_kinds[0]]
    return options


@pytest.mark.filterwarnings("ignore:.*words of the .* set get no tag")
@pytest.mark.parametrize(("task_name", "family", "strategy_name"), CASES, ids=["-".join(case) for case in CASES])
def test_fit_and_reload(
    task_name: str, family: str, strategy_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latency = measure.latency
    brief = {"seconds": 0.0, "block_ms": 0.0, "min_rounds": 1}
    monkeypatch.setattr(measure, "latency", lambda *args, **options: latency(*args, **(options | brief)))
    task_class, strategy_class = load(TASKS, task_name), load(STRATEGIES, strategy_name)
    embedded = task_class()
    start = tmp_path / "start"
    images = {"num_channels": 3, "image_size": 32, "patch_size": 8}
    config: dict[str, Any] = images if embedded.tokenizer is None else {}
    if embedded.tokenizer is not None:
        embedded.tokenizer.eos_token = embedded.tokenizer.sep_token  # where BART and T5 look for what they classify by
        special = ("pad_token_id", "bos_token_id", "eos_token_id")
        config |= {name: getattr(embedded.tokenizer, name) for name in special}
        config |= {"vocab_size": len(embedded.tokenizer) + 8}  # some families' tokenizers add their own tokens
        config |= {name: 160 for name in POSITIONS if getattr(CONFIG_MAPPING[family](), name, None)}
    model = tiny(family, auto=task_class.auto, **config)  # type: ignore[attr-defined]
    model.save_pretrained(start)
    embedded.processor.save_pretrained(start)
    task = task_class(model=str(start), **accepted(task_class, SETTINGS))
    strategy = strategy_class(**quick(strategy_class))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=10,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=CSVLogger(tmp_path, name="run"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run = pipeline.fit if prunes_by_training(strategy) else partial(one_shot.prune, calibration_examples=8)
    try:
        report = run(trainer, PruningModule(task, strategy, learning_rate=1e-3, warmup=1))
    except UserError as error:
        if family == "bert" or not any(words in str(error) for words in OF_SOME_FAMILIES.get(strategy_name, ())):
            raise
        pytest.skip(str(error))
    assert report is not None
    assert report["metrics"]["masked"] == pytest.approx(report["metrics"]["compact"], rel=1e-3, abs=1e-3, nan_ok=True)
    assert (report["density"]["encoder_linear"] < 1) == (strategy_name != "dense")
    folder = Path(str(trainer.log_dir)) / "compact"
    once, again = task.load_model(folder), task_class(model=str(folder)).load_model(folder)
    assert logit_difference(once, again, comparison_inputs(once)).absolute == 0
    if embedded.tokenizer is not None:
        assert AutoTokenizer.from_pretrained(folder).get_vocab() == embedded.tokenizer.get_vocab()
    assert not torch.is_grad_enabled() or once.training is False


@pytest.mark.parametrize(("task_name", "family"), list(dict.fromkeys(case[:2] for case in CASES)))
def test_export_to_onnx(task_name: str, family: str, tmp_path: Path) -> None:
    """It is checked against torch by `export_onnx` itself."""
    images = {"num_channels": 3, "image_size": 32, "patch_size": 8} if family == "vit" else {}
    model = tiny(family, auto=load(TASKS, task_name).auto, **images)  # type: ignore[attr-defined]
    zero_randomly(model, "heads", seed=1)
    files = export_onnx(compact(model).eval(), tmp_path)
    assert len(files) == (3 if model.can_generate() and model.config.is_encoder_decoder else 1)
