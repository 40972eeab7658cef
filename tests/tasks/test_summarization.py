"""The summarization task as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tiny_squad import save_tokenizer
from tiny_texts import hub_folder, write
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    GenerationConfig,
    PreTrainedConfig,
    T5Config,
)

from bplightning import predict
from bplightning.contracts.target import Target
from bplightning.errors import UserError
from bplightning.measuring import measure
from bplightning.stages import pipeline
from bplightning.strategies.dense import Dense
from bplightning.strategies.movement import Movement
from bplightning.tasks.shared.generation import Generation
from bplightning.tasks.summarization import Summarization
from bplightning.training.module import PruningModule, frozen_module

ROWS = [
    {"text": "The Nile flows north, through what they long to see.", "summary": "The Nile is long."},
    {"text": "What does it flow to? The sea.", "summary": "The sea is north."},
    {"text": "Where is it? It is what they long to see, the sea.", "summary": "What is it? The Mediterranean sea."},
    {"text": "It flows.", "summary": "They long to see it."},
]
TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "vocab_size": 256}


def save_model(folder: Path, config: PreTrainedConfig, **generation: Any) -> str:
    """A random model, with the tokenizer of the question-answering tests."""
    save_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return save_model(tmp_path_factory.mktemp("t5"), T5Config(**sizes, **TOKENS))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> str:
    stacks = {
        f"{stack}_{name}": size
        for stack in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))
    }
    config = BartConfig(
        d_model=64, max_position_embeddings=160, forced_eos_token_id=None, dropout=0.0, **stacks, **TOKENS
    )
    return save_model(tmp_path_factory.mktemp("bart"), config, num_beams=2, no_repeat_ngram_size=3)


def make(model: str, folder: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> Summarization:
    files = {f"{split}_file": write(folder / f"{split}.jsonl", rows) for split in ("train", "validation")}
    sizes = {"batch_size": 4, "eval_batch_size": 3, "max_length": 64, "max_summary_length": 24}
    return Summarization(**({"model": model, "cache_dir": str(folder / "cache")} | files | sizes | options))


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    bars = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return Trainer(**(quiet | bars | options))


def validate(task: Summarization, model: torch.nn.Module, folder: Path) -> dict[str, float]:
    (found,) = trainer(folder).validate(frozen_module(task, model, prefix="of"), datamodule=task, verbose=False)
    return {name.removeprefix("of_"): value for name, value in found.items()}


# -- data --------------------------------------------------------------------------------------------------------------


def test_labels_are_padded_with_what_the_loss_passes_over(t5: str, tmp_path: Path) -> None:
    task = make(t5, tmp_path)
    model = task.build_model().eval()
    batch = next(iter(task.train_dataloader()))
    inputs = task.model_inputs(batch)
    assert set(inputs) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].shape[1] % 8 == 0
    for row, index in enumerate(batch["index"].tolist()):
        own = batch["labels"][row][batch["labels"][row] != -100]
        assert own.tolist() == task.tokenizer(ROWS[index]["summary"])["input_ids"]
    outputs = model(**inputs)
    seen = torch.cat([torch.full((4, 1), 2), batch["labels"][:, :-1]], dim=1).clamp(min=0)  # the summary so far
    again = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], decoder_input_ids=seen).logits
    assert torch.allclose(outputs.logits, again, atol=1e-6)
    expected = cross_entropy(again.flatten(0, 1), batch["labels"].flatten())
    assert task.loss(outputs, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_teacher_says_nothing_where_there_is_padding(t5: str, tmp_path: Path) -> None:
    task = make(t5, tmp_path)
    batch = next(iter(task.train_dataloader()))
    outputs = task.build_model()(**task.model_inputs(batch))
    logits = task.logits(outputs, batch)
    padding = batch["labels"] == -100
    assert padding.any()
    assert (logits[padding] == -torch.inf).all()
    assert torch.equal(logits[~padding], outputs.logits[~padding])


def test_a_prefix_is_t5s_own_and_can_be_another(t5: str, bart: str, tmp_path: Path) -> None:
    def first(**options: Any) -> str:
        task = make(folder=tmp_path, **options)
        return str(task.tokenizer.decode(task.features("train")[3]["input_ids"], skip_special_tokens=True))

    spelt = AutoTokenizer.from_pretrained(t5).decode
    assert first(model=bart) == first(model=t5, prefix="") == "it flows."
    with_prefix = AutoTokenizer.from_pretrained(t5)("summarize: It flows.")["input_ids"]
    assert first(model=t5) == spelt(with_prefix, skip_special_tokens=True)
    assert first(model=bart, prefix="what? ") == "what? it flows."


def test_lengths_cut_texts_and_summaries_to_be_learned(t5: str, tmp_path: Path) -> None:
    rows = make(t5, tmp_path, max_length=12, max_summary_length=5).features("train")
    assert max(rows["length"][:]) == 12
    assert max(map(len, rows["labels"][:])) == 5


@pytest.mark.parametrize("name", ["cnn_dailymail", "xsum"])
def test_the_columns_of_known_data_sets_are_known(name: str, bart: str, tmp_path: Path) -> None:
    config, text, summary = {
        "cnn_dailymail": ("3.0.0", "article", "highlights"),
        "xsum": ("default", "document", "summary"),
    }[name]
    table = Dataset.from_list([{text: row["text"], summary: row["summary"], "id": "x"} for row in ROWS])
    older = Dataset.from_list([{text: "older", summary: "older", "id": "x"}])
    tables = {"1.0.0": {"train": older, "validation": older}} if name == "cnn_dailymail" else {}
    (tmp_path / name).mkdir()
    folder = hub_folder(tmp_path / name, tables | {config: {"train": table, "validation": table}})
    task = Summarization(bart, dataset=folder, max_length=64, max_summary_length=24, cache_dir=str(tmp_path / "cache"))
    assert task.examples("validation")[:] == {key: [row[key] for row in ROWS] for key in ("text", "summary")}


def test_training_validates_on_a_choice_and_the_end_takes_all(t5: str, tmp_path: Path) -> None:
    class Counting(Summarization):
        def evaluate_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
            seen.append(batch["index"].tolist())
            return batch["labels"].clamp(min=0)

    seen: list[list[int]] = []
    rows = [{"text": "it " * (1 + index % 7), "summary": "sea"} for index in range(30)]
    files = {f"{split}_file": write(tmp_path / f"{split}.jsonl", rows) for split in ("train", "validation")}
    task = Counting(
        t5, **files, eval_examples=7, batch_size=15, eval_batch_size=30, max_length=16, max_summary_length=4
    )
    module = PruningModule(task, Dense(), learning_rate=1e-5)
    for _ in range(2):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=task)
    first, second = seen
    assert first == second
    assert len(first) == 7 < max(first)  # not the first ones
    seen.clear()
    validate(task, module.model, tmp_path)
    assert [sorted(indices) for indices in seen] == [list(range(30))]
    assert task.evaluation_settings(task.build_metric())["examples"] is None


# -- scores ------------------------------------------------------------------------------------------------------------


def test_it_learns_and_is_measured_by_what_it_generates(bart: str, tmp_path: Path) -> None:
    task = make(bart, tmp_path, generation=Generation(max_length=24))
    module = PruningModule(task, Dense(), learning_rate=1e-2)
    before = validate(task, task.build_model(), tmp_path)
    run = trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=60)
    run.fit(module, datamodule=task)
    after = {name: float(value) for name, value in run.callback_metrics.items()}
    assert before[task.monitor] < 20
    assert {name: after[f"val_{name}"] for name in before} == pytest.approx(dict.fromkeys(before, 100.0))


def test_the_whole_reference_counts_and_of_several_the_best(t5: str, tmp_path: Path) -> None:
    long = "the sea is north " * 10
    rows = [{"text": "it", "summary": [long, "what flows"]}, {"text": "is it", "summary": ["where is it"]}]
    task = make(t5, tmp_path, rows, max_summary_length=4, generation=Generation(max_length=200))
    assert list(map(len, task.features("train")["labels"][:])) == [4, 4]  # of the first one

    def scores(*summaries: str) -> dict[str, float]:
        metric = task.build_metric()
        tokens = task.tokenizer(list(summaries), return_tensors="pt", padding=True)["input_ids"]
        metric.update(tokens, {"index": torch.arange(2)})
        return {name: value.item() for name, value in metric.compute().items()}

    assert scores(long, "where is it") == dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 100)
    assert scores("what flows", "where is it")["rouge2"] == 100
    assert scores("the sea is", "where is it")["rouge1"] == pytest.approx(50 + 50 * 2 * 3 / (3 + 40))


# -- generation --------------------------------------------------------------------------------------------------------


def test_what_is_generated_follows_the_settings(t5: str, bart: str, tmp_path: Path) -> None:
    def lengths(model: str, **settings: Any) -> set[int]:
        task = make(model, tmp_path, generation=Generation(**settings))
        tokens = task.evaluate_batch(task.build_model().eval(), next(iter(task.val_dataloader())))
        return {int((row != 0).sum()) for row in tokens}

    assert max(lengths(t5, max_length=6)) <= 6
    assert min(lengths(bart, min_length=11, max_length=12)) >= 11
    task = make(bart, tmp_path)
    assert task.build_model().generation_config.num_beams == 2
    assert task.build_model().generation_config.max_new_tokens == 24  # max_summary_length
    task = make(bart, tmp_path, generation=Generation(num_beams=3))
    assert task.build_model().generation_config.num_beams == task.load_model(bart).generation_config.num_beams == 3


def test_a_run_says_how_it_was_measured_and_saves_that_with_the_model(
    bart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latency = measure.latency
    monkeypatch.setattr(
        measure, "latency", lambda *args, **call: latency(*args, **call, seconds=0.0, block_ms=0.0, min_rounds=1)
    )
    task = make(bart, tmp_path, generation=Generation(max_length=9), eval_examples=2, prefix="it ")
    pruning = Movement(target=Target(density=0.5), granularity={"attention": "head", "feed_forward": "unit"})
    module = PruningModule(task, pruning, learning_rate=1e-3)
    run = trainer(tmp_path, max_steps=6, logger=CSVLogger(tmp_path))
    report = pipeline.fit(run, module)
    assert report is not None
    generation = {"num_beams": 2, "no_repeat_ngram_size": 3, "max_length": 9}
    assert report["evaluation"] == {"examples": 4, "prefix": "it ", "max_length": 64, "generation": generation}
    assert set(report["latency_ms"]["compact"]) == {"1x128", "8x128", "1x128+32", "8x128+32"}
    assert set(report["speedup"] or {}) == set(report["latency_ms"]["compact"])
    assert report["density"]["encoder_linear"] == pytest.approx(0.5, abs=0.01)
    assert {"decoder_attention", "cross_attention", "decoder_feed_forward"} < set(report["density"]["by_role"])
    assert report["metrics"]["masked"] == report["metrics"]["compact"]

    compact = Path(str(run.log_dir)) / "compact"
    saved = json.loads((compact / "generation_config.json").read_text())
    assert {name: saved[name] for name in generation} == generation
    assert json.loads((compact / "task.json").read_text())["settings"] == {
        "columns": {},
        "max_length": 64,
        "prefix": "it ",
    }
    # The folder says it all: what `predict` gives is what was measured.
    records = [{"text": row["text"], "id": index} for index, row in enumerate(ROWS)]
    answers = predict(compact, records, batch_size=2, accelerator="cpu")
    model = task.load_model(compact).eval()
    tokens = task.tokenizer(["it " + row["text"] for row in ROWS], return_tensors="pt", padding=True)
    summaries = task.tokenizer.batch_decode(
        model.generate(tokens["input_ids"], attention_mask=tokens["attention_mask"]), skip_special_tokens=True
    )
    assert answers == [{"id": index, "summary": text.strip()} for index, text in enumerate(summaries)]


def test_generation_is_timed_at_the_length_that_is_asked_for(bart: str, t5: str, tmp_path: Path) -> None:
    task = make(bart, tmp_path, generation=Generation(min_length=3, max_length=5))
    model = task.build_model().eval()
    generate = task.example_generation(12)
    assert generate is not None
    tokens = generate(model, task.example_inputs(2, 16))
    assert tokens.shape == (2, 13)  # and the one that begins it
    assert (tokens[:, 1:] != 3).all()  # nowhere an end
    t5_task = make(t5, tmp_path)  # BART makes what the decoder reads by itself, T5 does not
    assert t5_task.build_model()(**t5_task.example_inputs(2, 16)).logits.shape == (2, 16, 256)


def test_pegasus_breaks_lines_in_its_own_way(t5: str, tmp_path: Path) -> None:
    task = make(t5, tmp_path)
    task.tokenizer.add_tokens(["<n>"])
    tokens = task.tokenizer(["the sea<n>it is"], return_tensors="pt")["input_ids"]
    (answer,) = task.answers({"tokens": tokens})
    assert [line.strip() for line in answer["summary"].split("\n")] == ["the sea", "it is"]


def test_the_command_line_takes_each_setting_of_generation(t5: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Summarization, "task")
    words = [f"--task.model={t5}", "--task.generation.num_beams=4", "--task.generation.length_penalty=2"]
    task = parser.instantiate(parser.parse_args(words)).task
    assert task.generation == Generation(num_beams=4, length_penalty=2.0)
    assert parser.instantiate(parser.parse_args([])).task.generation == Generation()


# -- what can go wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_summary_length": 1}, "max_summary_length=1: it must be at least 2 tokens"),
        ({"eval_examples": 0}, "eval_examples=0: it must be at least 1, or null for all"),
        ({"columns": {"title": "x"}}, "columns names 'title', which is no column of this task: it has text, summary"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str, t5: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make(t5, tmp_path, **options)


def test_lengths_beyond_the_models_positions_are_refused(bart: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_summary_length=200 tokens, but the model .* has 160 positions"):
        make(bart, tmp_path, max_summary_length=200).features("train")
    with pytest.raises(UserError, match=r"generation\.max_length=161 tokens, but the model .* has 160 positions"):
        make(bart, tmp_path, generation=Generation(max_length=161)).build_model()


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        (None, "example 2 of .* has no 'summary'"),
        (5, "'summary' of .* must hold texts"),
        ([], r"has the summaries \[\]"),
    ],
)
def test_summaries_that_are_no_texts_are_refused(summary: Any, message: str, t5: str, tmp_path: Path) -> None:
    first: Any = {None: "it", 5: 4}.get(summary if summary != [] else "", ["it"])
    rows = [{"text": "it", "summary": first}, {"text": "it", "summary": summary}]
    with pytest.raises(UserError, match=message):
        make(t5, tmp_path, rows).prepare_data()


def test_an_encoder_alone_is_refused(bert_folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a bert, for which transformers has no sequence-to-sequence"):
        make(bert_folder, tmp_path).build_model()


def test_a_model_without_generation_settings_of_its_own_takes_those_of_its_configuration(tmp_path: Path) -> None:
    folder = save_model(tmp_path, T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, **TOKENS))
    (tmp_path / "generation_config.json").unlink()
    config = make(folder, tmp_path).generation_config
    assert isinstance(config, GenerationConfig)
    assert config.decoder_start_token_id == 2
    assert config.max_new_tokens == 24


def test_settings_that_do_not_suit_the_model_are_one_line(t5: str, tmp_path: Path) -> None:
    task = make(t5, tmp_path)
    model: Any = task.build_model()
    model.generation_config.eos_token_id = "x"
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(UserError, match=r"cannot generate \(.*\): correct its generation_config.json"):
        task.evaluate_batch(model, {"input_ids": ids, "attention_mask": ids})
