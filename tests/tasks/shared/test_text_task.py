"""What tasks on text share: the cache of tokenized data, loaders, prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from programs import said_by
from tiny_texts import NAMES, TEXTS, make, rows, write
from transformers import AutoTokenizer

import bplightning
from bplightning.compaction.loading import save_compact
from bplightning.contracts.task_file import save_task
from bplightning.errors import UserError
from bplightning.tasks.classification import Classification

FINGERPRINT = """
import sys
from bplightning.tasks.classification import Classification
model, train, validation, cache = sys.argv[1:]
task = Classification(model=model, train_file=train, validation_file=validation, cache_dir=cache, max_length=32)
print(task.features("train")._fingerprint, task.features("validation")._fingerprint)
embedded = Classification(cache_dir=cache)
embedded.generate = lambda split: [{"text": "The sea.", "label": "bad"}, {"text": "A river.", "label": "good"}]
print(embedded.features("train")._fingerprint)
"""


def cached(task: Classification) -> set[str]:
    """Names of the tokenized files on disk, once the task's training set is among them."""
    task.features("train")
    return {path.name for path in Path(str(task.cache_dir), "bplightning").glob("*.arrow")}


def test_every_process_finds_what_one_has_tokenized(bert_folder: str, tmp_path: Path) -> None:
    files = [write(tmp_path / name, rows(NAMES)) for name in ("a.jsonl", "b.jsonl")]
    words = [bert_folder, *map(str, files), str(tmp_path / "cache")]
    first = said_by(FINGERPRINT, *words, cwd=tmp_path)  # with a seed of hashes of its own
    command, environment = [sys.executable, "-c", FINGERPRINT, *words], os.environ | {"PYTHONHASHSEED": "1"}
    second = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert len(second.stdout.splitlines()) == 2
    assert set(second.stdout.splitlines()) <= set(first.splitlines())
    assert "Tokenizing the train set" in first
    assert "Tokenizing" not in second.stderr


def test_whatever_makes_a_difference_is_tokenized_anew(bert_folder: str, tmp_path: Path) -> None:
    start = rows(NAMES)
    seen = cached(make(bert_folder, tmp_path, start))

    def is_new(task: Classification) -> bool:
        before = set(seen)
        seen.update(cached(task))
        return seen != before

    assert not is_new(make(bert_folder, tmp_path, start))  # the same again
    assert not is_new(make(bert_folder, tmp_path, start, batch_size=2))  # which makes no difference
    assert is_new(make(bert_folder, tmp_path, start, max_length=16))
    assert is_new(make(bert_folder, tmp_path, rows(["short" if name == "long" else "long" for name in NAMES])))
    assert is_new(make(bert_folder, tmp_path, start[:5]))
    assert is_new(make(bert_folder, tmp_path, [{"text": row["text"], "label": row["label"] + "er"} for row in start]))
    for number, change in enumerate(({"do_lower_case": False}, {"truncation_side": "left"}, {"sep_token": "[CLS]"})):
        other = tmp_path / f"model{number}"
        make(bert_folder, tmp_path, start).build_model().save_pretrained(other)
        AutoTokenizer.from_pretrained(bert_folder, **change).save_pretrained(other)
        assert is_new(make(str(other), tmp_path, start)), change


def test_the_order_of_the_labels_makes_a_difference(bert_folder: str, tmp_path: Path) -> None:
    orders = []
    for number, names in enumerate((("long", "short"), ("short", "long"))):
        model = make(bert_folder, tmp_path, rows(NAMES)).build_model()
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: index for index, name in enumerate(names)}
        model.save_pretrained(tmp_path / f"model{number}")
        AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path / f"model{number}")
        orders.append(make(str(tmp_path / f"model{number}"), tmp_path, rows(NAMES)).features("train")["labels"][:])
    assert orders == [[0, 1, 0, 0, 1, 1], [1, 0, 1, 1, 0, 0]]


def test_setup_reads_what_prepare_data_cached(
    bert_folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = make(bert_folder, tmp_path, rows(NAMES))
    task.prepare_data()
    assert "Tokenizing the train set" in capfd.readouterr().err
    task.setup("fit")
    assert "Tokenizing" not in capfd.readouterr().err


# -- loaders -------------------------------------------------------------------------------------------------------


def batches(task: Classification) -> list[dict[str, Any]]:
    return [{name: value.tolist() for name, value in batch.items()} for batch in task.val_dataloader()]


def test_other_processes_prepare_the_same_batches(bert_folder: str, tmp_path: Path) -> None:
    here, there = (make(bert_folder, tmp_path, rows(NAMES), num_workers=number) for number in (0, 2))
    assert batches(here) == batches(there)
    assert sorted(i for batch in there.train_dataloader() for i in batch["index"].tolist()) == list(range(6))


def test_validation_comes_longest_first(bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, tmp_path, rows(NAMES))
    lengths = [int(n) for batch in task.val_dataloader() for n in batch["attention_mask"].sum(1)]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch["input_ids"][0]) % 8 == 0 for batch in batches(task))
    assert [batch["index"].tolist() for batch in task.test_dataloader()] == [batch["index"] for batch in batches(task)]


def test_each_rank_trains_on_its_share(bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, tmp_path, rows(NAMES), batch_size=2)
    shares = []
    for rank in range(2):
        task.trainer = SimpleNamespace(world_size=2, global_rank=rank)  # type: ignore[assignment]
        shares.append({int(i) for batch in task.train_dataloader() for i in batch["index"]})
    assert shares[0] | shares[1] == set(range(6))
    assert not shares[0] & shares[1]


def test_validation_alone_needs_no_training_data(bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, tmp_path, None, rows(["LABEL_0", "LABEL_1"] * 3))
    task.prepare_data()
    task.setup("validate")
    assert len(task.val_dataloader()) == 2
    with pytest.raises(UserError, match=r"no training data.*give train_file"):
        task.train_dataloader()


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "m", "dataset": "d", "train_file": "t"}, "Data given twice: dataset='d'"),
        ({"model": "m", "train_file": "t"}, "train_file='t' without validation_file"),
        ({"dataset": "d"}, "Data given without a model"),
        ({"validation_file": "v"}, "Data given without a model"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1: it must be at least 1"),
        ({"max_length": 3}, "max_length=3: it must be at least 4"),
        ({"num_workers": -1}, "num_workers=-1: it must be at least 0"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Classification(**arguments)


# -- prediction ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(bert_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, with its task beside it."""
    folder = tmp_path_factory.mktemp("saved")
    task = make(bert_folder, folder, rows(NAMES))
    model = task.build_model()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.classifier.weight, std=3.0)
    with torch.no_grad():  # answers that differ
        logits = model.eval()(**task.tokenizer(list(TEXTS), padding=True, return_tensors="pt")).logits
        model.classifier.bias -= logits.mean(dim=0)
    save_compact(model, folder / "model", task.tokenizer, complete=lambda place: save_task(task, place))
    return folder / "model"


def test_answers_come_in_the_order_of_the_records_with_their_ids(saved: Path) -> None:
    records = [{"text": text, "id": number, "more": None} for number, text in enumerate(TEXTS)]
    del records[2]["id"]
    answers = bplightning.predict(saved, records, batch_size=4)
    assert [answer.get("id") for answer in answers] == [0, 1, None, 3, 4, 5]
    alone = [bplightning.predict(saved, [record])[0] for record in records]
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in alone]
    assert len({answer["label"] for answer in answers}) == 2
    assert answers[0]["score"] == pytest.approx(alone[0]["score"], abs=1e-5)
    json.dumps(answers)


def test_a_saved_model_remembers_what_columns_were_called(bert_folder: str, tmp_path: Path) -> None:
    records = [{"my review": text, "stars": name} for text, name in zip(TEXTS, NAMES, strict=True)]
    columns = {"text": "my review", "label": "stars"}
    task = make(bert_folder, tmp_path, records, columns=columns)
    save_compact(task.build_model(), tmp_path / "model", task.tokenizer, complete=lambda place: save_task(task, place))
    answers = bplightning.predict(tmp_path / "model", records)
    assert answers == bplightning.predict(tmp_path / "model", [{"text": text} for text in TEXTS])
    with pytest.raises(UserError, match="record 0 must have 'my review', a text; it has None"):
        bplightning.predict(tmp_path / "model", {"stars": "long"})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "a"}, {"texts": "b"}], "record 1 must have 'text', a text; it has None"),
        ([{"text": 3}], "record 0 must have 'text', a text; it has 3"),
        ([{"text": "a", "text_pair": "b"}, {"text": "a"}], "record 1 must have 'text_pair', a text; it has None"),
    ],
)
def test_records_that_are_not_right(records: list[dict[str, Any]], message: str, saved: Path) -> None:
    with pytest.raises(UserError, match=message):
        bplightning.predict(saved, records)


def test_a_column_is_called_by_a_text(bert_folder: str) -> None:
    with pytest.raises(UserError, match=r"columns says that 'text' is called \['a'\]: give the name of a column"):
        Classification(model=bert_folder, columns={"text": ["a"]})  # type: ignore[dict-item]


def test_nothing_to_predict(bert_folder: str) -> None:
    with pytest.raises(UserError, match="The inputs hold no record"):
        Classification(model=bert_folder).read_inputs([], [])
    with pytest.raises(UserError, match="There is nothing to predict"):
        Classification(model=bert_folder).predict_dataloader()
