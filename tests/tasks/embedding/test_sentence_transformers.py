"""What is saved is a folder of sentence-transformers too, which gives the same vectors and scores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import PAIRS, embedder, reranker

from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.contracts.task import Task
from bplightning.contracts.task_file import save_task
from bplightning.runs.predicting import predict

library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
QUESTIONS = [*(pair["text"] for pair in PAIRS), "the nile " * 20]
"""The last one is cut."""


def save_smaller(task: Task, folder: Path) -> Any:
    """A compact model without one head and half of the units."""
    model: Any = task.build_model().eval()
    layer = model.base_model.encoder.layer[0]
    with torch.no_grad():
        torch.nn.init.normal_(layer.output.dense.weight)
        layer.attention.output.dense.weight[:, :8] = 0
        layer.output.dense.weight[:, ::2] = 0
    small = compact(model, CompactionPlan.of(model))
    save_compact(small, folder, task.processor, complete=partial(save_task, task))
    return small


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_sentence_transformers_gives_the_same_vectors(
    pooling: Any, normalize: bool, bert_folder: str, tmp_path: Path
) -> None:
    task = embedder(bert_folder, tmp_path, PAIRS, pooling=pooling, normalize=normalize)
    small = save_smaller(task, tmp_path / "compact")
    assert small.encoder.layer[0].output.dense.weight.shape == (16, 8)
    theirs = library.SentenceTransformer(str(tmp_path / "compact"), device="cpu")
    assert theirs.max_seq_length == 32
    vectors = torch.from_numpy(theirs.encode(QUESTIONS))
    ours = torch.tensor(
        [answer["embedding"] for answer in predict(tmp_path / "compact", [{"text": q} for q in QUESTIONS])]
    )
    torch.testing.assert_close(ours, vectors, atol=1e-5, rtol=1e-5)
    assert (vectors.norm(dim=-1) - 1).abs().max().item() < 1e-5 or not normalize


def test_what_sentence_transformers_saves_is_read(bert_folder: str, tmp_path: Path) -> None:
    """Folders of its newest version name modules and modes in another way than its older ones."""
    task = embedder(bert_folder, tmp_path, PAIRS, pooling="cls", normalize=False)
    save_smaller(task, tmp_path / "compact")
    library.SentenceTransformer(str(tmp_path / "compact"), device="cpu").save_pretrained(str(tmp_path / "theirs"))
    again = embedder(str(tmp_path / "theirs"), tmp_path, PAIRS, max_length=None)
    assert (again.pooling.mode, again.pooling.normalized, again.length) == ("cls", False, 32)
    (one,) = predict(tmp_path / "theirs", [{"text": "the sea"}], task="sentence-embedding")
    (other,) = predict(tmp_path / "compact", [{"text": "the sea"}])
    assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-6)


@pytest.mark.parametrize("most", [1.0, 8.0], ids=["probabilities", "scores of a teacher"])
def test_cross_encoder_gives_the_same_scores(most: float, bert_folder: str, tmp_path: Path) -> None:
    rows = [pair | {"label": most * (row % 2)} for row, pair in enumerate(PAIRS)]
    save_smaller(reranker(bert_folder, tmp_path, rows), tmp_path / "compact")
    theirs = library.CrossEncoder(str(tmp_path / "compact"), device="cpu")
    assert theirs.max_seq_length == 32
    passages = [*(pair["text_pair"] for pair in PAIRS), "the nile " * 20]
    (ours,) = predict(tmp_path / "compact", [{"text": "is it long", "text_pair": passages}])
    ranked = theirs.rank("is it long", passages)
    assert [each["passage"] for each in ours["ranking"]] == [each["corpus_id"] for each in ranked]
    assert [each["score"] for each in ours["ranking"]] == pytest.approx([each["score"] for each in ranked], abs=1e-5)
    if most == 1:
        assert 0 < ours["ranking"][-1]["score"] < ours["ranking"][0]["score"] < 1
