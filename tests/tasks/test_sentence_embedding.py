"""The task of embeddings: what is learned from each kind of data, what is measured, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import PAIRS, SCORED, TAUGHT, TEXTS, embedder
from tiny_texts import write
from transformers import BertConfig, BertModel

from bplightning.contracts.task_file import save_task
from bplightning.distillation.distillation import Distillation, Teacher
from bplightning.errors import UserError
from bplightning.runs.predicting import predict
from bplightning.stages.pipeline import _require_consistent
from bplightning.stages.request import RunRequest
from bplightning.strategies.dense import Dense
from bplightning.tasks.embedding.rankings import retrieval_scores
from bplightning.tasks.sentence_embedding import SentenceEmbedding
from bplightning.training.module import PruningModule


def learn(task: SentenceEmbedding, *, steps: int = 60) -> dict[str, float]:
    """Learn the training data by heart, without dropout, and measure on the validation data."""
    model = task.build_model().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = next(iter(task.train_dataloader()))
    for _ in range(steps):
        task.loss(model(**task.model_inputs(batch)), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return measure(task, model)


@torch.no_grad()
def measure(task: SentenceEmbedding, model: Any) -> dict[str, float]:
    metric = task.build_metric()
    for batch in task.val_dataloader():
        metric.update(task.evaluate_batch(model, batch), batch)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    ("rows", "metric", "least"),
    [(PAIRS, "recall_at_1", 100), (SCORED, "spearman", 99), (TAUGHT, "agreement", 95)],
    ids=["pairs", "scored", "taught"],
)
def test_each_kind_of_data_is_learned(rows: Any, metric: str, least: float, bert_folder: str, tmp_path: Path) -> None:
    task = embedder(bert_folder, tmp_path, rows)
    assert learn(task)[metric] >= least
    assert task.monitor in measure(task, task.build_model().eval())


def test_a_hard_negative_is_one_more_passage_to_tell_apart(bert_folder: str, tmp_path: Path) -> None:
    rows = [pair | {"negative": "they flows"} for pair in PAIRS]
    task = embedder(bert_folder, tmp_path, rows)
    assert learn(task)["recall_at_1"] == 100
    assert task.evaluation_settings(task.build_metric()) == {"queries": 4, "passages": 5}


def test_the_same_passage_of_another_question_is_no_negative(bert_folder: str, tmp_path: Path) -> None:
    """SQuAD asks several questions about a passage: to push that away would unlearn the answer."""
    twice = [PAIRS[0], {"text": "where is the sea", "text_pair": PAIRS[0]["text_pair"]}]
    other = [PAIRS[0], {"text": PAIRS[0]["text"], "text_pair": PAIRS[1]["text_pair"]}]  # two answers to one question
    for rows in (twice, other):
        task = embedder(bert_folder, tmp_path, rows, PAIRS)
        batch = next(iter(task.train_dataloader()))
        model = task.build_model().eval()
        assert task.loss(model(**task.model_inputs(batch)), batch).item() == 0  # there is nothing else to be told from


def test_passages_of_a_file_are_in_the_way(bert_folder: str, tmp_path: Path) -> None:
    more = write(tmp_path / "more.jsonl", [{"text": pair["text"]} for pair in PAIRS])  # the questions themselves
    task = embedder(bert_folder, tmp_path, None, PAIRS, passages_file=more)
    assert task.evaluation_settings(task.build_metric()) == {"queries": 4, "passages": 8}
    assert measure(task, task.build_model().eval())["recall_at_1"] == 0
    rows = [{"question": pair["text"], "answer": pair["text_pair"]} for pair in PAIRS]
    columns = {"text": "question", "text_pair": "answer"}  # of the pairs only
    task = embedder(bert_folder, tmp_path, None, rows, passages_file=more, columns=columns)
    assert len(task.search.texts) == 12


def test_a_network_that_gives_all_texts_one_vector_has_no_correlation(bert_folder: str, tmp_path: Path) -> None:
    task = embedder(bert_folder, tmp_path, SCORED)
    rounding = torch.tensor([[1 - 1e-7, 0.1], [1.0, 0.5]], dtype=torch.float64)
    assert task.scores(rounding)["spearman"].item() == task.scores(rounding[:1])["spearman"].item() == 0


def test_a_similarity_that_is_no_number_finds_nothing() -> None:
    broken = torch.full((2, 4), torch.nan)
    found = retrieval_scores(broken, broken, torch.tensor([[0, 0], [1, 1]]))
    assert not any(values.any() for values in found.values())


def test_the_report_counts_what_was_searched(bert_folder: str, tmp_path: Path) -> None:
    task = embedder(bert_folder, tmp_path, PAIRS)
    metric, model = task.build_metric(), task.build_model().eval()
    batch = next(iter(task.val_dataloader()))  # as with limit_val_batches
    with torch.no_grad():
        metric.update(task.evaluate_batch(model, batch), batch)
    metric.compute()
    found = task.evaluation_settings(metric)
    assert sum(found.values()) <= 4


def test_texts_alone_are_learned_from_a_teacher(bert_folder: str, tmp_path: Path) -> None:
    task = embedder(bert_folder, tmp_path, TEXTS, PAIRS)
    module = PruningModule(task, Dense(), distillation=Distillation(teacher=bert_folder))
    _require_consistent(module, RunRequest(), None)
    with pytest.raises(UserError, match="nothing to learn from but a teacher, and there is none"):
        _require_consistent(PruningModule(task, Dense()), RunRequest(), None)
    with pytest.raises(UserError, match="baseline is 'train', and the training data has nothing to learn from"):
        _require_consistent(module, RunRequest(baseline="train"), lambda folder, epochs: None)  # type: ignore[arg-type,return-value]
    student = task.build_model().eval()
    torch.nn.init.normal_(student.encoder.layer[0].output.dense.weight)
    teacher, batch = Teacher(module.distillation, task, student), next(iter(task.train_dataloader()))
    outputs = student(**task.model_inputs(batch))
    loss, far = teacher.loss(task.loss(outputs, batch), outputs, batch)
    assert far > 0.01
    loss.backward()
    assert student.encoder.layer[0].output.dense.weight.grad.any()


def test_a_teacher_pools_as_its_own_folder_says(bert_folder: str, tmp_path: Path) -> None:
    other = embedder(bert_folder, tmp_path, TEXTS, PAIRS, pooling="cls")
    saved = tmp_path / "cls"
    other.build_model().save_pretrained(saved)
    other.tokenizer.save_pretrained(saved)
    save_task(other, saved)
    task = embedder(bert_folder, tmp_path, TEXTS, PAIRS)
    batch, teacher = next(iter(task.train_dataloader())), task.load_model(saved).eval()
    outputs = teacher(**task.model_inputs(batch))
    first = torch.nn.functional.normalize(outputs.last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(task.teacher_logits(teacher, outputs, batch), first)
    assert not torch.allclose(task.logits(outputs, batch), first)


def test_a_teacher_of_another_width_needs_a_loss_that_compares_it(bert_folder: str, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=512, hidden_size=24, **sizes)).save_pretrained(wide)
    task = embedder(bert_folder, tmp_path, TEXTS, PAIRS)
    with pytest.raises(UserError, match=r"vectors have 24 numbers, and those of .* 16: give --task.teacher_loss"):
        task.load_model(wide)
    task = embedder(bert_folder, tmp_path, TEXTS, PAIRS, teacher_loss="similarities")
    student, batch = task.build_model(), next(iter(task.train_dataloader()))
    teacher = Teacher(Distillation(teacher=str(wide)), task, student)
    outputs = student(**task.model_inputs(batch))
    _, far = teacher.loss(task.loss(outputs, batch), outputs, batch)
    assert far > 0


def test_a_query_found_twice_counts_once_and_may_have_several_passages(bert_folder: str, tmp_path: Path) -> None:
    rows = [*PAIRS, {"text": PAIRS[0]["text"], "text_pair": "the sea"}]
    task = embedder(bert_folder, tmp_path, None, rows)
    assert (task.search.queries, len(task.search.texts)) == (4, 9)
    assert task.search.relevant.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3], [0, 4]]


def test_predictions_are_what_another_model_learns_from(bert_folder: str, tmp_path: Path) -> None:
    task = embedder(bert_folder, tmp_path, PAIRS)
    saved = tmp_path / "saved"
    task.build_model().save_pretrained(saved)
    task.tokenizer.save_pretrained(saved)
    save_task(task, saved)
    answers = predict(saved, TEXTS)
    assert [answer["text"] for answer in answers] == [row["text"] for row in TEXTS]
    assert sum(value**2 for value in answers[0]["embedding"]) == pytest.approx(1)
    taught = embedder(bert_folder, tmp_path / "saved", answers)
    assert measure(taught, taught.build_model().eval())["agreement"] == pytest.approx(100)


def test_csv_and_text_files_are_read(bert_folder: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the sea\n\n  where is it  \n")
    (tmp_path / "scored.csv").write_text("a,b,s\nthe sea,the nile,0.5\nit flows,it is long,1\n")
    columns = {"text": "a", "text_pair": "b", "score": "s"}
    scored = str(tmp_path / "scored.csv")
    task = SentenceEmbedding(bert_folder, train_file=scored, validation_file=scored, columns=columns)
    assert task.examples("train")["score"][:] == [0.5, 1.0]
    lines = str(tmp_path / "texts.txt")
    task = SentenceEmbedding(bert_folder, train_file=lines, validation_file=lines)
    assert task.examples("train")["text"][:] == ["the sea", "where is it"]


def test_prompts_of_the_folder_go_before_queries_and_passages(bert_folder: str, tmp_path: Path) -> None:
    task = embedder(bert_folder, tmp_path, PAIRS)
    saved = tmp_path / "saved"
    task.build_model().save_pretrained(saved)
    task.tokenizer.save_pretrained(saved)
    save_task(task, saved)
    file = saved / "config_sentence_transformers.json"
    prompts = {"query": "what ", "passage": "the "}
    file.write_text(json.dumps({"prompts": prompts, "default_prompt_name": "query", "similarity_fn_name": "dot"}))
    task = embedder(str(saved), tmp_path, PAIRS)
    assert task.pooling.dot
    assert task.examples("train")[1] == {"text": "what what is long", "text_pair": "the the nile is long"}
    assert embedder(str(saved), tmp_path, TEXTS, PAIRS).examples("train")[1]["text"] == "what what is long"
    (with_prompt,) = predict(saved, [{"text": "is long"}])
    save_task(task, saved)  # keeps what it does not know
    assert json.loads(file.read_text())["prompts"]["passage"] == "the "
    file.unlink()
    (written_out,) = predict(saved, [{"text": "what is long"}])
    assert with_prompt["embedding"] == pytest.approx(written_out["embedding"], abs=1e-6)


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([{"text": " ", "text_pair": "a"}], {}, "example 1 of .*train.jsonl' has an empty 'text'"),
        ([{"text": "a", "text_pair": "b", "score": 2.5}], {}, "example 1 .* has the score 2.5, which a cosine learns"),
        ([SCORED[0] | {"negative": "a"}], {}, "has pairs with a score and a column 'negative', which has none"),
        (PAIRS[:1], {}, "has one pair only, but pairs are learned against the passages of others"),
        ([{"text": "a", "score": 0.5}], {}, "has a column 'score' without 'text_pair': give both"),
        ([{"text": "a", "text_pair": "b", "embedding": [1.0]}], {}, "has pairs and a column 'embedding'"),
        ([{"text": "a", "embedding": [1.0]}], {}, r"have 1 numbers, and those of the model .* 16: give --task.teacher"),
        ([{"text": "a", "embedding": [1.0]}, {"text": "b", "embedding": [1.0, 2.0]}], {}, "example 2 .* of 2 numbers"),
        ([{"text": "a", "embedding": "1 2"}], {}, "example 1 .* has no embedding that is a list of numbers"),
        (PAIRS, {"batch_size": 1}, "batch_size is 1, but pairs are learned against the other passages"),
    ],
)
def test_bad_training_data_is_refused(train: Any, options: Any, message: str, bert_folder: str, tmp_path: Path) -> None:
    task = embedder(bert_folder, tmp_path, train, PAIRS, **options)
    with pytest.raises(UserError, match=message):
        task.examples("train")


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (TEXTS, "has texts alone, by which nothing can be measured: add a column 'text_pair'"),
        (PAIRS[:1], "has one passage only"),
        ([{"text": "a", "text_pair": ""}], "has an empty 'text_pair'"),
    ],
)
def test_bad_validation_data_is_refused(validation: Any, message: str, bert_folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        embedder(bert_folder, tmp_path, None, validation).examples("validation")


def test_long_texts_are_cut_and_counted(bert_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*PAIRS, {"text": "what", "text_pair": "the nile " * 20}]
    task = embedder(bert_folder, tmp_path, rows, max_length=16)
    with caplog.at_level("INFO"):
        features = task.features("train")
    assert "1 of the 5 rows of the train set are longer than 16 tokens and cut" in caplog.text
    assert max(map(len, features["text_pair"])) == 16


def test_options_that_do_not_match_the_folder_are_refused(bert_folder: str, tmp_path: Path) -> None:
    task = embedder(bert_folder, tmp_path, PAIRS)
    saved = tmp_path / "saved"
    task.build_model().save_pretrained(saved)
    task.tokenizer.save_pretrained(saved)
    save_task(task, saved)
    for options in ({"pooling": "cls"}, {"normalize": False}):
        ((name, value),) = options.items()
        with pytest.raises(UserError, match=rf"{name} is {value!r}, but the model .* was made for .* leave --task"):
            embedder(str(saved), tmp_path, PAIRS, **options).build_model()
    (saved / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pools by max_tokens, and what is supported is one of mean, cls, last"):
        embedder(str(saved), tmp_path, PAIRS).build_model()
    (saved / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.WordEmbeddings"}]))
    with pytest.raises(UserError, match=r"is made of WordEmbeddings by its modules\.json"):
        embedder(str(saved), tmp_path, PAIRS).build_model()
