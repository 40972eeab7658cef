from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_squad import save_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

import bplightning
from bplightning.compaction.loading import save_compact
from bplightning.contracts.task_file import save_task
from bplightning.errors import UserError
from bplightning.tasks.language_modeling import LanguageModeling
from bplightning.tasks.masked_language_modeling import MaskedLanguageModeling
from bplightning.tasks.shared.language_blocks import IGNORED
from bplightning.training.resuming import Place, RepeatableLoader

TEXTS = ["The Nile is long.", "It flows north to the sea.", "Where does it flow?"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def saved(folder: Path, model: Any, config: Any, *, task: str) -> Path:
    """A random model, its tokenizer, and for which task it is."""
    save_tokenizer(folder)
    torch.manual_seed(0)
    tokens = len(AutoTokenizer.from_pretrained(folder))
    model(config(vocab_size=tokens, max_position_embeddings=64, **SIZES)).save_pretrained(folder)
    (folder / "task.json").write_text(json.dumps({"version": 1, "task": task, "settings": {"max_length": 12}}))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), LlamaForCausalLM, LlamaConfig, task="language-modeling")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bert"), BertForMaskedLM, BertConfig, task="masked-language-modeling")


def task_of(
    cls: type[LanguageModeling], tmp_path: Path, model: Path, texts: list[str] = TEXTS, **settings: Any
) -> LanguageModeling:
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    files = dict.fromkeys(("train_file", "validation_file"), str(tmp_path / "texts.txt"))
    return cls(model=str(model), cache_dir=str(tmp_path / "cache"), **{"max_length": 12, **files, **settings})


def test_lines_of_a_text_file_are_joined_with_the_tokenizers_own_borders(tmp_path: Path, llama: Path) -> None:
    task = task_of(LanguageModeling, tmp_path, llama)
    assert task.examples("train")["text"][:] == [f"{text}\n" for text in TEXTS]  # some models predict line breaks too
    blocks = task.features("train")["input_ids"][:]
    assert [len(block) for block in blocks[:-1]] == [12] * (len(blocks) - 1)
    joined = [token for block in blocks for token in block]
    assert joined == [token for text in TEXTS for token in task.tokenizer(text)["input_ids"]][: len(joined)]


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_texts_come_from_tables_too(tmp_path: Path, llama: Path, ending: str) -> None:
    file = tmp_path / f"rows{ending}"
    rows = [f'{{"words": "{text}"}}' for text in TEXTS] if ending == ".jsonl" else ["words", *TEXTS]
    file.write_text("\n".join(rows) + "\n")
    files = dict.fromkeys(("train_file", "validation_file"), str(file))
    table = task_of(LanguageModeling, tmp_path, llama, columns={"text": "words"}, **files)
    assert (
        table.features("train")["input_ids"][:]
        == task_of(LanguageModeling, tmp_path, llama).features("train")["input_ids"][:]
    )


def test_perplexity_is_that_of_every_token_but_the_first_of_a_block(tmp_path: Path, llama: Path) -> None:
    task = task_of(LanguageModeling, tmp_path, llama, eval_batch_size=2)
    model = task.build_model().eval()
    metric = task.build_metric()
    surprises = []
    with torch.no_grad():
        for batch in task.val_dataloader():
            metric.update(task.evaluate_batch(model, batch), batch)
        metric.update(task.evaluate_batch(model, batch), batch)  # a repeated batch counts once
        for block in task.features("validation")["input_ids"][:]:
            for place in range(1, len(block)):
                log = model(torch.tensor([block[:place]])).logits[0, -1].log_softmax(-1)
                surprises.append(-log[block[place]].item())
    assert metric.compute()["perplexity"].item() == pytest.approx(math.exp(sum(surprises) / len(surprises)), rel=1e-4)
    assert task.scores(torch.zeros(2, 2))["perplexity"] == math.inf  # nothing was predicted: never the best
    assert (task.monitor, task.monitor_mode) == ("perplexity", "min")


def test_the_training_loss_is_the_mean_surprise(tmp_path: Path, llama: Path, bert: Path) -> None:
    for cls, folder in ((LanguageModeling, llama), (MaskedLanguageModeling, bert)):
        task = task_of(cls, tmp_path, folder)
        model = task.build_model().eval()
        batch = next(iter(task.train_dataloader()))
        outputs = model(**task.model_inputs(batch))
        total, tokens = task.example_values(outputs, batch).sum(dim=0).tolist()
        assert task.loss(outputs, batch).item() == pytest.approx(total / tokens, rel=1e-4)


def test_validation_masks_the_same_tokens_always(tmp_path: Path, bert: Path) -> None:
    scores = []
    for batch_size in (1, 2, 8):
        task = task_of(MaskedLanguageModeling, tmp_path, bert, eval_batch_size=batch_size)
        model, metric = task.build_model().eval(), task.build_metric()
        with torch.no_grad():
            for batch in task.val_dataloader():
                assert (batch["labels"] != IGNORED).any(dim=1).all()
                metric.update(task.evaluate_batch(model, batch), batch)
        scores.append(metric.compute()["perplexity"].item())
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_masks_what_the_interrupted_one_would_have(tmp_path: Path, bert: Path, workers: int) -> None:
    task = task_of(MaskedLanguageModeling, tmp_path, bert, texts=TEXTS * 4, batch_size=2, num_workers=workers)
    loader = task.train_dataloader()

    def batches(place: Place) -> list[dict[str, Any]]:
        return [batch for batch, *_ in RepeatableLoader(loader, 7, lambda: place)]

    whole, rest, next_epoch = batches(Place(0)), batches(Place(0, batches=2)), batches(Place(1))
    assert len(whole) > 3
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["labels"], other["labels"])
    by_block = [
        {int(i): row for batch in epoch for i, row in zip(batch["index"], batch["labels"].tolist(), strict=True)}
        for epoch in (whole, next_epoch)
    ]
    assert by_block[0].keys() == by_block[1].keys()
    assert by_block[0] != by_block[1]  # masked anew


def test_predict_judges_each_text_for_itself_whatever_its_length(llama: Path) -> None:
    texts = ["It is long.", "the nile flows north to the sea, " * 5]
    answers = bplightning.predict(llama, [{"text": text, "id": text[:2]} for text in texts], accelerator="cpu")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer(text)["input_ids"]
        assert answer["tokens"] == len(ids) - 1
        assert answer["id"] == text[:2]
        assert answer["perplexity"] == pytest.approx(math.exp(answer["negative_log_likelihood"]))
    loss = model(
        torch.tensor([tokenizer(texts[0])["input_ids"]]), labels=torch.tensor([tokenizer(texts[0])["input_ids"]])
    ).loss
    assert answers[0]["negative_log_likelihood"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_a_compact_folder_answers_as_the_whole_model(tmp_path: Path, llama: Path, bert: Path, masked: bool) -> None:
    cls, folder = (MaskedLanguageModeling, bert) if masked else (LanguageModeling, llama)
    task = task_of(cls, tmp_path, folder)
    model = task.build_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("mlp.gate_proj.weight", "intermediate.dense.weight", "intermediate.dense.bias")):
                parameter[4:] = 0
    small = bplightning.compact(model.eval())
    for out, saved_model in (("whole", model), ("small", small)):
        save_compact(saved_model, tmp_path / out, task.tokenizer, complete=partial(save_task, task))
    assert small.num_parameters() < model.num_parameters()
    records = [{"text": "The [MASK] flows north to the sea."}]
    whole, answers = (bplightning.predict(tmp_path / out, records, accelerator="cpu")[0] for out in ("whole", "small"))
    assert answers == {
        name: pytest.approx(value, rel=1e-4) if "tokens" not in name and name != "text" else value
        for name, value in whole.items()
    }


def test_masks_are_filled_with_what_the_model_finds_most_likely(bert: Path) -> None:
    text = "The [MASK] flows to the [MASK]."
    plain, filled = bplightning.predict(bert, [{"text": "[MASK]"}, {"text": text, "id": 1}], accelerator="cpu")
    tokenizer, model = AutoTokenizer.from_pretrained(bert), BertForMaskedLM.from_pretrained(bert).eval()
    inputs = tokenizer(text, return_tensors="pt")
    probabilities = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id].softmax(-1)
    best = probabilities.max(-1)
    assert filled["tokens"] == tokenizer.convert_ids_to_tokens(best.indices.tolist())
    assert filled["scores"] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert filled["id"] == 1
    assert len(plain["tokens"]) == 1


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "the sea"}, r"record 0 has no \[MASK\] among the first 12 tokens of its 'text'"),
        ({"text": "the " * 20 + "[MASK]"}, r"record 0 has no \[MASK\]"),
        ({"text": 5}, "record 0 must have 'text', a text; it has 5"),
    ],
)
def test_a_record_that_cannot_be_filled_is_named(bert: Path, record: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        bplightning.predict(bert, [record], accelerator="cpu")


def test_an_empty_text_cannot_be_judged(llama: Path) -> None:
    with pytest.raises(UserError, match="record 1 has an empty 'text'"):
        bplightning.predict(llama, [{"text": "the"}, {"text": "\n"}], accelerator="cpu")


def test_a_model_without_the_head_or_the_mask_is_refused(tmp_path: Path, llama: Path, bert: Path) -> None:
    with pytest.raises(UserError, match="llama, for which transformers has no masked language-modeling head"):
        task_of(MaskedLanguageModeling, tmp_path, llama).build_model()


def test_a_model_of_both_sides_sees_one_only(tmp_path: Path, bert: Path) -> None:
    model = task_of(LanguageModeling, tmp_path, bert).build_model().eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    changed = ids.clone()
    changed[0, -1] = 11
    with torch.no_grad():
        first, second = model(input_ids=ids).logits, model(input_ids=changed).logits
    torch.testing.assert_close(first[:, :-1], second[:, :-1])
    model.save_pretrained(tmp_path / "saved")
    assert task_of(LanguageModeling, tmp_path, bert).load_model(tmp_path / "saved").config.is_decoder
    with pytest.raises(UserError, match="sees the tokens it is to predict: set is_decoder"):
        task_of(LanguageModeling, tmp_path, bert).load_model(bert)
    assert not task_of(MaskedLanguageModeling, tmp_path, bert).build_model().config.is_decoder
