"""A pretrained model with a head: what it is built from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_folders import edited
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

from bplightning.errors import UserError
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL, Pretrained


def classifier(name: str | Path, **options: Any) -> Pretrained:
    head = {"head": "sequence-classification head", "default_length": 128}
    return Pretrained(str(name), AutoModelForSequenceClassification, **(head | options))


def test_it_is_built_in_float32_with_the_fields_asked_for() -> None:
    model = classifier(EMBEDDED_MODEL).build(num_labels=3)  # its weights are stored in half precision
    assert model.dtype == torch.float32
    assert model.classifier.weight.shape[0] == model.config.num_labels == 3


def test_a_folder_without_weights_is_random_only_where_a_seed_is_said(bert_folder: str, tmp_path: Path) -> None:
    BertConfig.from_pretrained(bert_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the model '.*' cannot be loaded: .*give a folder that holds"):
        classifier(tmp_path).build()
    state = torch.random.get_rng_state()
    one, same, other = (classifier(tmp_path, seed=seed).build(num_labels=3).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    assert one["classifier.weight"].shape[0] == 3


def test_a_new_head_is_no_excuse_for_a_damaged_body(bert_folder: str, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    classifier(bert_folder).build(num_labels=2).save_pretrained(tmp_path)
    assert classifier(tmp_path).build(num_labels=3, new_head=True).classifier.weight.shape[0] == 3
    with pytest.raises(UserError, match="cannot be loaded: its weights are of other shapes"):
        classifier(tmp_path).build(num_labels=3)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.encoder.layer.0.intermediate.dense.weight"] = torch.zeros(3, 16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"cannot be loaded: its weights lack 'bert\.encoder.*the file is damaged"):
        classifier(tmp_path).build(num_labels=3, new_head=True)


def test_a_tokenizer_that_has_nothing_to_pad_with(bert_folder: str, tmp_path: Path) -> None:
    BertConfig.from_pretrained(bert_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder, pad_token=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has neither a token to pad with nor one that ends a text: set pad_token"):
        _ = classifier(tmp_path).tokenizer
    AutoTokenizer.from_pretrained(bert_folder, pad_token=None, eos_token="[SEP]").save_pretrained(tmp_path)
    assert classifier(tmp_path).tokenizer.pad_token == "[SEP]"


@pytest.mark.parametrize("config", [BertConfig(), RobertaConfig(), T5Config(), GPT2Config()])
def test_a_folder_without_a_tokenizer_is_refused(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)  # transformers makes a tokenizer without words of its own
    with pytest.raises(UserError, match=r"has special tokens only, .* unknown to the model .*: save the tokenizer"):
        classifier(tmp_path).build()


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (30_522, r"has 125 tokens, and the model 30522: it is another model's, .* save the tokenizer"),
        (100, r"has embeddings for 100 tokens, but its tokenizer has the id 1\d\d, .*model\.resize_token_embeddings"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(
    vocabulary: int, message: str, bert_folder: str, tmp_path: Path
) -> None:
    BertConfig.from_pretrained(bert_folder, vocab_size=vocabulary).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        classifier(tmp_path, seed=0).build()


def test_padding_on_the_right_where_a_head_counts_positions(bert_folder: str, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(bert_folder, padding_side="left").save_pretrained(tmp_path)
    BertConfig.from_pretrained(bert_folder).save_pretrained(tmp_path)
    assert classifier(tmp_path).tokenizer.padding_side == "left"
    assert classifier(tmp_path, right_padding=True).tokenizer.padding_side == "right"


def test_a_model_without_such_a_head_is_refused(bert_folder: str, tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    message = "is a vit, for which transformers has no sequence-classification head: choose another"
    with pytest.raises(UserError, match=message):
        classifier(tmp_path).build()


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (BertConfig(max_position_embeddings=40), 40),
        (RobertaConfig(max_position_embeddings=42, pad_token_id=1), 40),  # its first position is its third
        (T5Config(n_positions=40), None),  # it has distances
    ],
)
def test_the_length_follows_the_model(config: Any, positions: int | None, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    model = classifier(tmp_path)
    assert model.length(None) == (positions or 128)
    assert model.length(30) == 30
    if positions is None:
        assert model.length(4000) == 4000
        return
    with pytest.raises(UserError, match=rf"max_length=41 tokens, but the model .* has {positions} positions: lower"):
        model.length(41)


def test_inputs_are_those_that_the_head_takes(bert_folder: str) -> None:
    assert classifier(bert_folder).input_names == ["input_ids", "token_type_ids", "attention_mask", "labels"]
    spans = {"head": "h", "labels": ("start_positions",), "default_length": 9}
    names = Pretrained(bert_folder, AutoModelForQuestionAnswering, **spans).input_names  # type: ignore[arg-type]
    assert names[-1] == "start_positions"


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the model '.*none' cannot be loaded: .*: give a folder"):
        _ = classifier(tmp_path / "none").config


@pytest.mark.parametrize(("positions", "multiple"), [(64, 8), (50, None)])
def test_padding_does_not_go_past_the_positions(
    bert_folder: str, tmp_path: Path, positions: int, multiple: int | None
) -> None:
    config = BertConfig.from_pretrained(bert_folder, max_position_embeddings=positions)
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    assert classifier(tmp_path).pad_to_multiple_of == multiple


def test_a_model_looks_for_the_padding_that_its_tokenizer_makes(bert_folder: str) -> None:
    pretrained = classifier(Path(bert_folder))
    model = pretrained.build()
    model.config.pad_token_id = 5
    assert pretrained.padded_alike(model).config.pad_token_id == pretrained.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("tokenizer_config.json", {"model_input_names": ["x"]}, r"makes \['x'\] .*: correct model_input_names"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "at most 'x' tokens, .*: correct model_input_names"),
        ("tokenizer.json", {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}}, "Exception"),
    ],
)
def test_a_forged_tokenizer_is_refused(
    file: str, fields: dict[str, Any], message: str, bert_folder: str, tmp_path: Path
) -> None:
    BertConfig.from_pretrained(bert_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    edited(tmp_path, file, **fields)
    with pytest.raises(UserError, match=message):
        _ = classifier(tmp_path).tokenizer
