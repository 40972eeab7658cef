"""The question-answering task as a whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForQuestionAnswering, ViTConfig

from bplightning.errors import UserError
from bplightning.tasks.qa import QuestionAnswering

Examples = list[dict[str, Any]]


@pytest.fixture
def task(examples: Examples, bert_folder: str, tmp_path: Path) -> QuestionAnswering:
    return make(bert_folder, examples, tmp_path)


def make(model: str, examples: Examples, folder: Path, **changes: Any) -> QuestionAnswering:
    for name in ("train", "validation"):
        (folder / f"{name}.json").write_text(json.dumps(examples), encoding="utf-8")
    files = {f"{name}_file": str(folder / f"{name}.json") for name in ("train", "validation")}
    sizes = {"max_length": 32, "stride": 4, "batch_size": 4, "eval_batch_size": 3}
    return QuestionAnswering(**({"model": model, "cache_dir": str(folder / "cache")} | files | sizes | changes))


class Plain(LightningModule):
    """The least module that trains a task; it notes the order of the features."""

    def __init__(self, task: QuestionAnswering) -> None:
        super().__init__()
        self.task = task
        self.model = task.build_model().train()
        self.metric = task.build_metric()
        self.orders: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.orders.append([])

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.orders[-1] += batch["feature_index"].tolist()
        return self.task.loss(self.model(**self.task.model_inputs(batch)), batch)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        self.metric.update(self.model(**self.task.model_inputs(batch)), batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.metric.compute())
        self.metric.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(module: Plain, folder: Path, *, epochs: int) -> dict[str, float]:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=epochs,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=module.task)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_it_trains_and_is_measured(task: QuestionAnswering, tmp_path: Path) -> None:
    module = Plain(task)
    assert fit(module, tmp_path, epochs=40)[task.monitor] > 99  # it has learnt four examples by heart
    count = len(task.features("train"))
    assert all(sorted(order) == list(range(count)) for order in module.orders)
    assert module.orders[0] != module.orders[1]


def test_it_learns_which_questions_have_no_answer(
    some_unanswerable: Examples, bert_folder: str, tmp_path: Path
) -> None:
    task = make(bert_folder, some_unanswerable, tmp_path, version_2_with_negative=True)
    values = fit(Plain(task), tmp_path, epochs=60)
    assert {name: round(values[name]) for name in ("NoAns_exact", "HasAns_f1", task.monitor)} == dict.fromkeys(
        ("NoAns_exact", "HasAns_f1", "f1"), 100
    )
    with pytest.raises(UserError, match="'cafe-3' has no answer: set version_2_with_negative"):
        make(bert_folder, some_unanswerable, tmp_path).prepare_data()


def test_the_contract_on_one_batch(task: QuestionAnswering) -> None:
    model = task.build_model()
    *_, batch = task.val_dataloader()  # the shortest windows
    batch["attention_mask"][0, -1] = 0
    inputs = task.model_inputs(batch)
    assert list(inputs) == ["input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions"]
    outputs = model(**inputs)
    assert math.isfinite(float(task.loss(outputs, batch).detach()))
    rows, length = batch["input_ids"].shape
    logits = task.logits(outputs, batch)
    assert logits.shape == (rows, 2, length)
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert torch.equal(logits[:, 1][~padding], outputs.end_logits[~padding])
    assert (logits[:, 1][padding] == -torch.inf).all()
    assert task.monitor in {"exact_match", "f1"}


def test_inputs_that_the_model_does_not_take_are_left_out(examples: Examples, bert_folder: str, tmp_path: Path) -> None:
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": 512, "max_position_embeddings": 64}
    DistilBertForQuestionAnswering(DistilBertConfig(**sizes)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)  # BERT's, which makes token types
    task = make(str(tmp_path), examples, tmp_path)
    batch = next(iter(task.train_dataloader()))
    inputs = task.model_inputs(batch)
    assert list(inputs) == ["input_ids", "attention_mask", "start_positions", "end_positions"]
    assert math.isfinite(float(task.build_model()(**inputs).loss.detach()))


def test_validation_comes_longest_first_with_little_padding(task: QuestionAnswering) -> None:
    lengths = [int(n) for batch in task.val_dataloader() for n in batch["attention_mask"].sum(1)]
    assert lengths == sorted(lengths, reverse=True)
    assert all(batch["input_ids"].shape[1] % 8 == 0 for batch in task.test_dataloader())


def test_each_rank_trains_on_its_share(task: QuestionAnswering) -> None:
    shares = []
    for rank in range(2):
        task.trainer = SimpleNamespace(world_size=2, global_rank=rank)  # type: ignore[assignment]
        shares.append({int(i) for batch in task.train_dataloader() for i in batch["feature_index"]})
    assert shares[0] | shares[1] == set(range(len(task.features("train"))))
    assert len(shares[0] & shares[1]) <= 1  # one is repeated where the number is odd


def test_setup_reads_what_prepare_data_cached(task: QuestionAnswering, capfd: pytest.CaptureFixture[str]) -> None:
    task.prepare_data()
    assert "Tokenizing the train set" in capfd.readouterr().err
    task.setup("fit")
    assert "Tokenizing" not in capfd.readouterr().err


def test_a_tokenizer_that_pads_on_the_left(examples: Examples, bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, examples, tmp_path)
    (tmp_path / "left").mkdir()
    task.build_model().save_pretrained(tmp_path / "left")
    AutoTokenizer.from_pretrained(bert_folder, padding_side="left").save_pretrained(tmp_path / "left")
    left = make(str(tmp_path / "left"), examples, tmp_path)
    for ours, theirs in zip(task.val_dataloader(), left.val_dataloader(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_validation_alone_needs_no_training_data(examples: Examples, bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, examples, tmp_path, train_file=None)
    task.prepare_data()
    task.setup("validate")
    assert len(task.val_dataloader()) > 0
    with pytest.raises(UserError, match=r"no training data.*give train_file"):
        task.train_dataloader()


def test_a_saved_model_loads_in_its_precision(task: QuestionAnswering, tmp_path: Path) -> None:
    saved = str(tmp_path / "half")
    task.build_model().half().save_pretrained(saved)
    task.tokenizer.save_pretrained(saved)
    assert task.load_model(saved).dtype == torch.float16
    assert QuestionAnswering(model=saved).build_model().dtype == torch.float32  # what is trained


def test_a_local_folder_in_the_layout_of_the_hub(examples: Examples, bert_folder: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Dataset.from_list(examples).to_parquet(tmp_path / "set" / "train.parquet")
    task = QuestionAnswering(model=bert_folder, dataset=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert task.examples("train")["id"][:] == [row["id"] for row in examples]
    with pytest.raises(UserError, match=r"split 'validation'.* cannot be loaded: .*train_file"):
        task.examples("validation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "m", "dataset": "d", "train_file": "t"}, "Data given twice: dataset='d'"),
        ({"model": "m", "train_file": "t"}, "train_file='t' without validation_file"),
        ({"dataset": "d"}, "Data given without a model"),
        ({"validation_file": "v"}, "Data given without a model"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"max_length": 64, "stride": 64}, "stride=64 with max_length=64: .* below max_length"),
        ({"stride": -1}, "stride=-1"),
        ({"null_score_diff_threshold": 1.5}, "null_score_diff_threshold=1.5 without version_2_with_negative"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuestionAnswering(**arguments)


def test_a_model_that_cannot_serve_is_named(examples: Examples, bert_folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_length=65 tokens, but the model .* has 64 positions"):
        make(bert_folder, examples, tmp_path, max_length=65).prepare_data()
    missing = str(tmp_path / "no_such_model")
    with pytest.raises(UserError, match=r"the model '.*no_such_model' cannot be loaded: .*: give a folder"):
        make(missing, examples, tmp_path).build_model()
    (tmp_path / "vit").mkdir()
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="is a vit, for which transformers has no question-answering head"):
        make(str(tmp_path / "vit"), examples, tmp_path).build_model()


def test_every_argument_is_explained() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(QuestionAnswering, "task")
    options = [action for action in parser._actions if action.dest.startswith("task.")]
    assert len(options) == 15
    assert all(action.help for action in options)


def test_the_embedded_default(tmp_path: Path) -> None:
    task = QuestionAnswering(cache_dir=str(tmp_path), max_length=64, stride=16)
    batch = next(iter(task.val_dataloader()))
    assert math.isfinite(float(task.build_model()(**task.model_inputs(batch)).loss.detach()))


def test_the_window_follows_the_model_where_nothing_is_said() -> None:
    task = QuestionAnswering()  # embedded: a model of 256 positions
    task.setup("validate")
    assert max(len(row) for row in task.features("validation")["input_ids"][:]) <= 256
    with pytest.raises(UserError, match=r"max_length=300 tokens, but the model .* has 256 positions"):
        QuestionAnswering(max_length=300).setup("validate")
