"""The task of rerankers: what is learned, what is measured, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import PAIRS, reranker
from transformers import BertConfig, BertForSequenceClassification

from bplightning.contracts.task_file import save_task
from bplightning.errors import UserError
from bplightning.runs.predicting import predict
from bplightning.tasks.embedding.folder import IDENTITY, SIGMOID
from bplightning.tasks.embedding.rankings import ranking_scores
from bplightning.tasks.reranking import Reranking

PASSAGES = [pair["text_pair"] for pair in PAIRS]
LABELLED = [
    {"text": pair["text"], "text_pair": passage, "label": float(passage == PASSAGES[1])}
    for pair in PAIRS
    for passage in PASSAGES
]


def learn(task: Reranking, *, steps: int = 100) -> tuple[dict[str, float], Any]:
    """Learn the training data by heart, without dropout, and measure on the validation data."""
    torch.manual_seed(0)
    model = task.build_model().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = next(iter(task.train_dataloader()))
    for _ in range(steps):
        task.loss(model(**task.model_inputs(batch)), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    metric = task.build_metric()
    with torch.no_grad():
        for each in task.val_dataloader():
            metric.update(task.evaluate_batch(model, each), each)
    return {name: value.item() for name, value in metric.compute().items()}, model


@pytest.mark.parametrize("most", [1, 3], ids=["labels", "scores of a teacher"])
def test_labels_and_scores_of_a_teacher_are_learned(most: int, bert_folder: str, tmp_path: Path) -> None:
    rows = [row | {"label": most * row["label"]} for row in LABELLED]
    found, model = learn(reranker(bert_folder, tmp_path, rows, batch_size=16))
    assert found == pytest.approx({"ndcg_at_10": 100, "mrr_at_10": 100})
    model.save_pretrained(tmp_path / "saved")
    task = reranker(bert_folder, tmp_path, rows)
    task.tokenizer.save_pretrained(tmp_path / "saved")
    save_task(task, tmp_path / "saved")
    ((best, *_),) = [
        a["ranking"] for a in predict(tmp_path / "saved", [{"text": PAIRS[1]["text"], "text_pair": PASSAGES}])
    ]
    assert best["passage"] == 1
    assert best["score"] == pytest.approx(most, abs=0.1 * most)  # a probability, or a score of the teacher's kind
    one, other = predict(
        tmp_path / "saved", [{"id": 7, "text": PAIRS[1]["text"], "text_pair": p} for p in PASSAGES[:2]]
    )
    assert (one["id"], other["score"]) == (7, pytest.approx(best["score"], abs=1e-5))


def test_a_cross_encoder_keeps_the_scale_of_its_scores(bert_folder: str, tmp_path: Path) -> None:
    """Who prunes without training has thresholds that fit the scores as they are."""
    raw = tmp_path / "raw"
    task = reranker(bert_folder, tmp_path, [row | {"label": 8 * row["label"]} for row in LABELLED])
    task.build_model().save_pretrained(raw)
    task.tokenizer.save_pretrained(raw)
    assert reranker(str(raw), tmp_path, LABELLED).activation == task.activation == IDENTITY
    assert reranker(bert_folder, tmp_path, LABELLED).activation == SIGMOID  # a new head


def test_equal_scores_rank_the_less_relevant_passage_first() -> None:
    """Data often has the relevant passage first: a network that says one thing must not look perfect by that."""
    labels, groups = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1])
    found = {name: values.tolist() for name, values in ranking_scores(torch.zeros(5), labels, groups).items()}
    assert found["mrr_at_10"] == pytest.approx([100 / 3, 50])
    assert found["ndcg_at_10"] == pytest.approx([50, 100 / math.log2(3)])
    mixed = torch.tensor([3, 0, 4, 1, 2])  # the order of the data makes no difference
    again = ranking_scores(torch.zeros(5), labels[mixed], groups[mixed])
    assert {name: values.tolist() for name, values in again.items()} == found
    assert [len(values) for values in ranking_scores(*torch.zeros(3, 0)).values()] == [0, 0]


def test_queries_without_a_relevant_passage_are_left_out_and_said(
    bert_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*LABELLED, {"text": "why", "text_pair": "the sea", "label": 0.0}]
    task = reranker(bert_folder, tmp_path, rows)
    with caplog.at_level("INFO"):
        task.features("validation")
    assert "1 of the 5 validation queries have no relevant passage" in caplog.text
    with pytest.raises(UserError, match=r"none of the 1 queries of .* has a relevant passage"):
        reranker(bert_folder, tmp_path, None, rows[-1:]).features("validation")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "", "text_pair": "a", "label": 1}, "example 1 of .* has an empty 'text'"),
        (
            {"text": "a", "text_pair": "b", "label": "good"},
            "example 1 of .* has the label 'good', which must be a number",
        ),
        ({"text": "a", "label": 1}, r"lacks the columns \['text_pair'\]"),
    ],
)
def test_bad_data_is_refused(row: Any, message: str, bert_folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        reranker(bert_folder, tmp_path, None, [row]).examples("validation")


def test_bad_records_and_models_are_refused(bert_folder: str, tmp_path: Path) -> None:
    task = reranker(bert_folder, tmp_path, LABELLED)
    for record, message in (
        ({"text": "a", "text_pair": []}, "line 1 has an empty list as 'text_pair'"),
        ({"text": "a"}, "line 1 must have 'text_pair', a text"),
        ({"text": " ", "text_pair": ["a"]}, "line 1 has an empty 'text', which means nothing"),
    ):
        with pytest.raises(UserError, match=message):
            task.read_inputs([record], ["line 1"])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=512, num_labels=3, **sizes)).save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match="it has 3 outputs, and a score is one"):
        task.load_model(tmp_path / "three")
    config = json.loads((Path(bert_folder) / "config.json").read_text())
    config |= {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}
    (tmp_path / "three" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"makes its scores with 'torch\.nn\.modules\.activation\.Tanh'"):
        reranker(str(tmp_path / "three"), tmp_path, None, LABELLED).activation  # noqa: B018
