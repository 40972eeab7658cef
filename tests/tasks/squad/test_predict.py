"""Prediction, from records to answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import all_spans, least_null_score, random_logits, step
from datasets import config as datasets_config
from lightning.pytorch import Trainer
from tiny_squad import CAFE, NILE, windows_of
from tokenizers.pre_tokenizers import ByteLevel
from transformers import RobertaConfig, RobertaForQuestionAnswering, RobertaTokenizer

from bplightning.contracts.strategy import PruningStrategy
from bplightning.errors import UserError
from bplightning.tasks.qa import QuestionAnswering
from bplightning.tasks.squad.answers import find_spans
from bplightning.tasks.squad.metric import SquadMetric
from bplightning.training.module import PruningModule

Examples = list[dict[str, Any]]
SIZES: dict[str, Any] = {"max_length": 32, "stride": 4, "eval_batch_size": 3}


def places(records: Examples) -> list[str]:
    return [f"line {number}" for number, _ in enumerate(records, 1)]


def predict(task: QuestionAnswering, records: Examples, model: torch.nn.Module) -> Examples:
    task.read_inputs(records, places(records))
    model.eval()
    with torch.no_grad():
        return task.predictions([task.predict_batch(model, batch) for batch in task.predict_dataloader()])


def pruned_by_nobody(task: QuestionAnswering) -> PruningModule:
    return PruningModule(task, PruningStrategy())


def trainer(folder: Path) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, enable_checkpointing=False, **quiet)


@pytest.fixture
def task(bert_folder: str) -> QuestionAnswering:
    return QuestionAnswering(model=bert_folder, **SIZES)


def validated(examples: Examples, model: str, folder: Path, **changes: Any) -> QuestionAnswering:
    (folder / "validation.json").write_text(json.dumps(examples), encoding="utf-8")
    files = {"validation_file": str(folder / "validation.json"), "cache_dir": str(folder / "cache")}
    return QuestionAnswering(model=model, **files, **(SIZES | changes))


def measured(task: QuestionAnswering, model: torch.nn.Module) -> SquadMetric:
    task.setup("validate")
    metric = task.build_metric()
    model.eval()
    with torch.no_grad():
        for batch in task.val_dataloader():
            metric.update(model(**task.model_inputs(batch)), batch)
    return metric


@pytest.mark.parametrize("version_2", [False, True])
def test_predictions_on_the_validation_set_are_the_metrics(
    some_unanswerable: Examples, bert_folder: str, tmp_path: Path, version_2: bool
) -> None:
    rows = some_unanswerable[: 6 if version_2 else 4]
    task = validated(rows, bert_folder, tmp_path, version_2_with_negative=version_2)
    model = task.build_model()
    torch.nn.init.normal_(model.qa_outputs.weight, std=3)  # type: ignore[union-attr]
    metric = measured(task, model)
    if version_2:  # half of them get an answer
        ahead = metric._best()[1].values()
        task.null_score_diff_threshold = sorted(ahead)[len(ahead) // 2]
        metric = measured(task, model)
    expected = metric.predictions()
    found = predict(task, rows, model)
    assert {row["id"]: row["answer"] for row in found} == expected
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert any(expected.values())
    assert ("" in expected.values()) == version_2
    for row, source in zip(found, rows, strict=True):
        assert 0 < row["score"] <= 1
        if row["answer"]:
            assert source["context"][row["start"] : row["end"]] == row["answer"]
        else:
            assert (row["start"], row["end"]) == (None, None)


@pytest.mark.parametrize("threshold", [None, -1e9, 1e9])
def test_the_score_is_the_share_of_what_is_predicted(
    examples: Examples, bert_folder: str, tmp_path: Path, threshold: float | None
) -> None:
    changes = {} if threshold is None else {"version_2_with_negative": True, "null_score_diff_threshold": threshold}
    task = QuestionAnswering(model=bert_folder, **SIZES, n_best=4, max_answer_length=5, **changes)
    features = windows_of(examples, bert_folder, tmp_path)[1]
    logits = tuple(values / 3 for values in random_logits(len(features)))
    task.read_inputs(examples, places(examples))
    batch = step(features, list(range(len(features))), logits)  # type: ignore[arg-type]
    for index, row in enumerate(task.predictions([find_spans(*batch, **task._span_limits)])):
        spans = all_spans(features, index, logits, width=5)  # type: ignore[arg-type]
        chances = [math.exp(score) for score in list(spans.values())[:4]]
        no_answer = math.exp(least_null_score(features, index, logits))  # type: ignore[arg-type]
        if threshold is None:
            assert row["score"] == pytest.approx(chances[0] / sum(chances), rel=1e-4)
            continue
        chosen = no_answer if threshold < 0 else chances[0]
        assert row["score"] == pytest.approx(chosen / (sum(chances) + no_answer), rel=1e-4)
        assert (row["answer"] == "") == (threshold < 0)


def test_records_come_back_in_order_with_their_own_ids(task: QuestionAnswering) -> None:
    records: Examples = [
        {"question": "What tea?", "context": CAFE[:20]},
        {"question": "How long is the Nile?", "context": NILE, "id": 7, "answers": None, "title": 3},
        {"question": "What tea?", "context": CAFE, "id": "7"},
        {"question": "What tea?", "context": CAFE, "id": "7"},  # the same once more
    ]
    found = predict(task, records, task.build_model())
    assert [row.get("id", "none") for row in found] == ["none", 7, "7", "7"]
    assert found[2] == found[3]
    assert list(found[1]) == ["id", "answer", "score", "start", "end"]
    assert found[0]["answer"] in CAFE[:20]
    assert json.loads(json.dumps(found)) == found


def test_a_context_without_a_token_has_no_answer(bert_folder: str) -> None:
    records = [{"question": "What tea?", "context": "\u200b\ufeff"}, {"question": "What tea?", "context": "tea"}]
    task = QuestionAnswering(model=bert_folder, **SIZES)
    empty, other = predict(task, records, task.build_model())
    assert empty == {"answer": "", "score": 0.0, "start": None, "end": None}
    assert other["answer"]
    task = QuestionAnswering(model=bert_folder, **SIZES, version_2_with_negative=True, null_score_diff_threshold=1e9)
    assert predict(task, records, task.build_model())[0] == {"answer": "", "score": 1.0, "start": None, "end": None}


def test_lightning_predicts_and_touches_no_other_data(bert_folder: str, examples: Examples, tmp_path: Path) -> None:
    task = QuestionAnswering(model=bert_folder, dataset="no/such-data-set", **SIZES)
    task.read_inputs(examples, places(examples))
    module = pruned_by_nobody(task)
    given = trainer(tmp_path).predict(module, datamodule=task)
    assert given is not None
    assert task.predictions(given) == predict(task, examples, module.model)


def test_inputs_need_no_labels_and_leave_no_file(
    task: QuestionAnswering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    task.read_inputs([{"question": "What tea?", "context": CAFE}] * 2, ["line 1", "line 2"])
    batches = list(task.predict_dataloader())
    assert not {"start_positions", "end_positions"} & set(batches[0])
    assert "start_positions" not in task.model_inputs(batches[0])
    assert sorted(int(i) for batch in batches for i in batch["feature_index"]) == list(range(len(batches) * 3))
    assert not list(tmp_path.rglob("*"))
    assert capfd.readouterr().err == ""


def test_a_batch_makes_the_host_wait_for_nothing(task: QuestionAnswering, examples: Examples) -> None:
    task.read_inputs(examples, places(examples))
    batch = next(iter(task.predict_dataloader()))
    del batch["attention_mask"]  # into which transformers itself looks
    nowhere = {name: values.to("meta") for name, values in batch.items()}  # without values: who asks for one fails
    spans = task.predict_batch(task.build_model().to("meta").eval(), nowhere)
    assert {values.device.type for values in spans} == {"meta"}


def test_a_byte_level_tokenizer_without_token_types(tmp_path: Path, some_unanswerable: Examples) -> None:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    RobertaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=300, max_position_embeddings=140, pad_token_id=1, **sizes)
    RobertaForQuestionAnswering(config).save_pretrained(tmp_path)
    settings: dict[str, Any] = {"max_length": 64, "stride": 8, "version_2_with_negative": True}
    task = validated(some_unanswerable, str(tmp_path), tmp_path, **settings)
    model = task.build_model()
    torch.nn.init.normal_(model.qa_outputs.weight, std=3)  # type: ignore[union-attr]
    found = predict(task, some_unanswerable, model)
    assert "token_type_ids" not in next(iter(task.predict_dataloader()))
    assert {row["id"]: row["answer"] for row in found} == measured(task, model).predictions()
    for row, source in zip(found, some_unanswerable, strict=True):
        assert row["answer"] == (source["context"][row["start"] : row["end"]] if row["answer"] else "")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"context": "c"}, r"^line 2 lacks 'question'; it has \['context'\]"),
        ({"question": "q", "text": "c"}, r"^line 2 lacks 'context'; it has \['question', 'text'\]"),
        ({"question": "q", "context": " \n"}, r"^line 2: 'context' is ' \\n'; it must be a string that is not blank"),
        ({"question": None, "context": "c"}, "^line 2: 'question' is None; it must be a string"),
        ({"question": ["q"], "context": "c"}, r"^line 2: 'question' is \['q'\]; it must be a string"),
        ({"question": "\ud800", "context": "c"}, r"^line 2: 'question' is '\\ud800'"),
        ({"question": "q", "context": "c", "id": 1.5}, "^line 2: 'id' is 1.5; it must be a string or an integer"),
        ({"question": "q", "context": "c", "id": True}, "^line 2: 'id' is True"),
        (["q", "c"], r"^line 2 is \['q', 'c'\]: it must be an object"),
        ({"question": "nile " * 50, "context": "c"}, "question of example 'line 2' has 50 tokens"),
    ],
)
def test_a_record_that_breaks_the_rule_is_named(task: QuestionAnswering, record: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task.read_inputs([{"question": "q", "context": "c"}, record], ["line 1", "line 2"])


def test_no_records_and_missing_windows_are_refused(task: QuestionAnswering, examples: Examples) -> None:
    with pytest.raises(UserError, match="nothing to predict: give examples with `read_inputs`"):
        task.predict_dataloader()
    with pytest.raises(UserError, match="The inputs hold no record: give at least one"):
        task.read_inputs([], [])
    task.read_inputs(examples, places(examples))
    model = task.build_model().eval()
    batches = [task.predict_batch(model, batch) for batch in task.predict_dataloader()]
    with pytest.raises(UserError, match=r"Only \d+ of the \d+ windows of the inputs were predicted"):
        task.predictions(batches[1:])


def test_the_saved_settings_repeat_the_prediction(examples: Examples, bert_folder: str) -> None:
    settings: dict[str, Any] = {"max_length": 30, "stride": 5, "max_answer_length": 3, "n_best": 2}
    settings |= {"version_2_with_negative": True, "null_score_diff_threshold": 0.1}
    task = QuestionAnswering(model=bert_folder, **settings)
    saved = {name: getattr(task, name) for name in task.saved_settings}
    assert saved == settings
    model = task.build_model()
    assert predict(QuestionAnswering(model=bert_folder, **saved), examples, model) == predict(task, examples, model)
