from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

import bplightning
from bplightning.compaction.loading import save_compact
from bplightning.contracts.task_file import save_task
from bplightning.errors import UserError
from bplightning.tasks.token_classification import WORD, TokenClassification, first_pieces

TRAIN = [
    {"tokens": ["The", "Nile", "flows", "north", "."], "tags": ["O", "B-river", "O", "O", "O"]},
    {"tokens": ["Egypt", "and", "the", "Mediterranean", "Sea"], "tags": ["B-land", "O", "O", "B-sea", "I-sea"]},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task_of(
    tmp_path: Path, model: str, *, train: Any = TRAIN, validation: Any = TRAIN, **settings: Any
) -> TokenClassification:
    files = {
        f"{name}_file": write(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("train", train), ("validation", validation))
        if rows is not None
    }
    return TokenClassification(model=model, cache_dir=str(tmp_path / "cache"), **{**files, **settings})


def words_with_labels(task: TokenClassification, row: int) -> list[tuple[str, str]]:
    """The token at each label, and the label."""
    features = task.features("train")[row]
    tokens = task.tokenizer.convert_ids_to_tokens(features["input_ids"])
    return [
        (token, task.labels.names[label]) for token, label in zip(tokens, features["labels"], strict=True) if label >= 0
    ]


def test_the_first_piece_of_a_word_carries_its_tag(tmp_path: Path, bert_folder: str) -> None:
    task = task_of(tmp_path, bert_folder)
    assert task.labels.names == ("B-land", "B-river", "B-sea", "I-sea", "O")
    assert words_with_labels(task, 1) == [
        ("e", "B-land"),  # the first of its letters
        ("a", "O"),
        ("the", "O"),
        ("mediterranean", "B-sea"),
        ("sea", "I-sea"),
    ]
    assert task.build_model().config.id2label == dict(enumerate(task.labels.names))


def test_a_blank_that_is_part_of_a_piece_stays_where_it_was_in_pretraining() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"Ġ": 0, "a": 1, "b": 2, "Ġb": 3}, merges=[("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    encoded = PreTrainedTokenizerFast(tokenizer_object=tokenizer)("ab ba a", return_offsets_mapping=True)
    pieces = encoded.tokens()
    assert pieces == ["a", "b", "Ġb", "a", "Ġ", "a"]
    firsts = first_pieces(["ab", "ba", "a"], encoded["offset_mapping"])
    assert [piece for piece, word in zip(pieces, firsts, strict=True) if word is not None] == ["a", "Ġb", "a"]


def test_a_word_without_a_piece_shifts_no_other(bert_folder: str) -> None:
    words = ["the", "", "\u200b", "sea"]
    encoded = AutoTokenizer.from_pretrained(bert_folder)(" ".join(words), return_offsets_mapping=True)
    assert first_pieces(words, encoded["offset_mapping"]) == [None, 0, 3, None]


def test_numbers_are_named_by_the_data_set(tmp_path: Path, bert_folder: str) -> None:
    names = ["O", "B-x", "I-x"]
    features = Features({"words": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    rows = {"words": [["the", "Nile"]], "ner_tags": [[0, 1]]}
    folder = tmp_path / "data"
    for split in ("train", "validation"):
        path = folder / f"{split}.parquet"
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(path)
    task = TokenClassification(
        model=bert_folder,
        train_file=str(folder / "train.parquet"),
        validation_file=str(folder / "validation.parquet"),
        columns={"tokens": "words", "tags": "ner_tags"},
        cache_dir=str(tmp_path / "cache"),
    )
    assert task.labels.names == tuple(names)
    assert words_with_labels(task, 0) == [("the", "O"), ("nile", "B-x")]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"tokens": ["the"], "tags": ["B-town"]}, "example 2 .* 'B-town', which the training data .* does not know"),
        ({"tokens": ["the", "sea"], "tags": ["O"]}, "example 2 .* as many tags as words.* 2 words and 1 tags"),
        ({"tokens": ["the"], "tags": [None]}, "example 2 .* none missing"),
        ({"tokens": ["the"], "tags": None}, "example 2 .* none missing"),
    ],
)
def test_an_example_that_cannot_be_learned_from_is_named(
    tmp_path: Path, bert_folder: str, row: dict[str, Any], text: str
) -> None:
    task = task_of(tmp_path, bert_folder, validation=[TRAIN[0], row])
    with pytest.raises(UserError, match=text):
        task.features("validation")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"tokens": "the sea", "tags": "O O"}, r"column 'tokens' .* must hold a list .* it is Value\('string'\)"),
        ({"tokens": [1, 2], "tags": ["A", "B"]}, r"column 'tokens' .* of texts .* it is List\(Value\('int64'\)\)"),
        ({"tokens": ["the"], "tags": "O"}, r"column 'tags' .* must hold a list"),
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path: Path, bert_folder: str, row: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        task_of(tmp_path, bert_folder, train=[row]).features("train")


def test_words_cut_off_are_counted_and_told_once(tmp_path: Path, bert_folder: str) -> None:
    long = {"tokens": ["the"] * 20, "tags": ["O"] * 20}
    task = task_of(tmp_path, bert_folder, train=[*TRAIN, long], validation=[long, long], max_length=16)
    # Of 20 words 14 have room; the letters of "Egypt and" push out "Mediterranean Sea" of the second example.
    with pytest.warns(UserWarning, match="6 words of the train set get no tag.*max_length=16"):
        task.features("train")
    with pytest.warns(UserWarning, match="12 words of the validation set get no tag"):
        task.features("validation")
    task.features("train")  # no second warning: in these tests it would be an error


def test_the_metric_is_of_words_and_counts_a_repeated_example_once(tmp_path: Path, bert_folder: str) -> None:
    task = task_of(tmp_path, bert_folder)
    (batch,) = task.val_dataloader()
    names = task.labels.names
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), len(names)).float()
    logits[batch["labels"] < 0] = torch.nn.functional.one_hot(torch.tensor(names.index("B-sea")), len(names)).float()
    place = (batch["labels"] == names.index("I-sea")).nonzero()[0]
    logits[*place] = torch.nn.functional.one_hot(torch.tensor(names.index("O")), len(names)).float()
    metric = task.build_metric()
    outputs = type("Outputs", (), {"logits": logits})
    metric.update(outputs, batch)
    metric.update(outputs, batch)
    scores = {name: value.item() for name, value in metric.compute().items()}
    # Right are the river and the land, the sea is cut short: 2 of 3 found, of 3 wanted; 9 of 10 words.
    assert scores == pytest.approx({"precision": 200 / 3, "recall": 200 / 3, "f1": 200 / 3, "accuracy": 90.0})


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, bert_folder: str) -> Path:
    """A tagger whose answer hangs on the token alone: "nile" is B-river, "sea" I-river, all else O."""
    folder = tmp_path_factory.mktemp("tagger")
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    names = ["O", "B-river", "I-river"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, id2label=dict(enumerate(names)), **sizes)
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" not in name:
                parameter.zero_()
        embeddings = model.bert.embeddings.word_embeddings.weight
        embeddings[:, 0] = 1
        for place, word in enumerate(("nile", "sea"), start=1):
            row = tokenizer.convert_tokens_to_ids(word)
            embeddings[row, 0], embeddings[row, place] = 0, 1
        model.classifier.weight[:, :3] = torch.eye(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "task.json").write_text(
        json.dumps({"version": 1, "task": "token-classification", "settings": {"max_length": 16}})
    )
    return folder


def test_predictions_are_entities_at_the_places_of_the_record(tagger: Path) -> None:
    text = "See (the) Nile\nSea, Nile!"
    answers = bplightning.predict(
        tagger, [{"text": text, "id": 7}, {"tokens": ["the", "Nile", "", "sea"]}], batch_size=1, accelerator="cpu"
    )
    assert answers[0]["id"] == 7
    assert answers[0]["tags"] == ["O"] * 4 + ["B-river", "I-river", "O", "B-river", "O"]
    entities = answers[0]["entities"]
    assert [(one["type"], one["text"], one["words"]) for one in entities] == [
        ("river", "Nile\nSea", [4, 6]),
        ("river", "Nile", [7, 8]),
    ]
    assert [text[one["start"] : one["end"]] for one in entities] == [one["text"] for one in entities]
    assert entities[0]["score"] == pytest.approx(sum(answers[0]["scores"][4:6]) / 2)
    assert answers[1]["tags"] == ["O", "B-river", None, "I-river"]  # the empty word has no token
    assert [(one["text"], one["words"]) for one in answers[1]["entities"]] == [("Nile", [1, 2]), ("sea", [3, 4])]
    assert "start" not in answers[1]["entities"][0]


def test_a_compact_folder_tags_as_the_whole_model(tmp_path: Path, tagger: Path) -> None:
    task = TokenClassification(model=str(tagger), max_length=16)
    model = task.load_model(tagger).eval()  # it has one layer, in which all is dead
    small = bplightning.compact(model)
    save_compact(small, tmp_path / "compact", task.tokenizer, complete=partial(save_task, task))
    assert small.num_parameters() < model.num_parameters()
    records = [{"text": "The Nile Sea!"}]
    whole, answer = (
        bplightning.predict(folder, records, accelerator="cpu") for folder in (tagger, tmp_path / "compact")
    )
    assert answer[0]["entities"] == [
        entity | {"score": pytest.approx(entity["score"], rel=1e-5)} for entity in whole[0]["entities"]
    ]
    assert answer[0]["entities"][0]["text"] == "Nile Sea"


def test_words_of_a_text_keep_what_is_inside_them() -> None:
    text = "In the U.S., “Zoë's” 3.5 km (co-op)…"
    words = ["In", "the", "U.S", ".", ",", "“", "Zoë's", "”", "3.5", "km", "(", "co-op", ")", "…"]
    assert [match.group() for match in WORD.finditer(text)] == words


@pytest.mark.parametrize("record", [{}, {"text": " "}, {"text": 3}, {"tokens": []}, {"tokens": "the"}, {"tokens": [1]}])
def test_a_record_without_words_is_named(tagger: Path, record: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="record 1 must have 'tokens', a list of words, or 'text'"):
        bplightning.predict(tagger, [{"text": "the"}, record], accelerator="cpu")


def test_words_beyond_the_models_reach_have_no_tag(tagger: Path) -> None:
    with pytest.warns(UserWarning, match="6 words of what is to be predicted get no tag"):
        (answer,) = bplightning.predict(tagger, [{"tokens": ["Nile"] * 20}], accelerator="cpu")
    assert answer["tags"] == ["B-river"] * 14 + [None] * 6
    assert len(answer["entities"]) == 14


def test_a_model_for_other_tags_is_not_measured(tmp_path: Path, bert_folder: str, tagger: Path) -> None:
    task = task_of(tmp_path, bert_folder)
    (batch,) = task.val_dataloader()
    with pytest.raises(UserError, match=r"predicts other tags.*'B-river'.*the data has 'B-land'"):
        task.evaluate_batch(task.load_model(tagger), batch)


def test_a_heads_order_of_tags_is_kept(tmp_path: Path, tagger: Path) -> None:
    rows = [{"tokens": ["the", "nile", "sea"], "tags": ["O", "B-river", "I-river"]}]
    task = task_of(tmp_path, str(tagger), train=rows, validation=rows)
    assert task.labels.names == ("O", "B-river", "I-river")
    (batch,) = task.val_dataloader()
    metric, model = task.build_metric(), task.build_model().eval()
    metric.update(task.evaluate_batch(model, batch), batch)
    assert metric.compute()["f1"].item() == 100  # the head was kept too


def test_plain_tags_make_no_entities(tmp_path: Path, bert_folder: str) -> None:
    rows = [{"tokens": ["the", "sea"], "tags": ["DET", "NOUN"]}]
    task = task_of(tmp_path, bert_folder, train=rows, validation=rows)
    (batch,) = task.val_dataloader()
    metric = task.build_metric()
    metric.update(task.build_model().eval()(**task.model_inputs(batch)), batch)
    assert set(metric.compute()) == {"f1", "accuracy"}


def test_tags_without_names_are_said_to_be_scored_one_by_one(tmp_path: Path, bert_folder: str) -> None:
    rows = [{"tokens": ["the", "sea"], "tags": [0, 3]}]
    task = task_of(tmp_path, bert_folder, train=rows, validation=rows)
    with pytest.warns(UserWarning, match="are numbers without names, so it is unknown where a span begins"):
        assert task.labels.names == ("0", "3")
