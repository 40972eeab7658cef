"""Models, configurations and tokenizers are read through one gate, which says in one line what it refuses."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_folders import CANARY, MODELS, MODULE, edited, model_that
from safetensors.torch import load_file, save_file
from tiny_families import tiny
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from bplightning.compaction.saved_models import load_saved, read_part, unread_weights
from bplightning.errors import UserError

QA, CLASSES = AutoModelForQuestionAnswering, AutoModelForSequenceClassification


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(folder: Path, auto: Any = QA, *, new_head: bool = False) -> str:
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load_saved(auto.from_pretrained, folder, what="the model", new_head=new_head)
    assert time.process_time() - start < 10
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"the model {str(folder)!r} cannot be loaded: ")
    return str(caught.value).partition("cannot be loaded: ")[2]


def rename(folder: Path, name: Callable[[str], str | None]) -> None:
    """Give weights other names, or none."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({new: weights[old] for old in weights if (new := name(old))}, file, {"format": "pt"})


@pytest.mark.parametrize("new_head", [False, True])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (lambda name: None if ".layer.1." in name else name, "its weights lack 'bert.encoder.layer.1."),
        (lambda name: None if "position_embeddings" in name else name, "lack 'bert.embeddings.position_embeddings."),
        (lambda name: f"other.{name}", "none of its .* weights, such as 'other.* has a name that a BertForQ"),
        (lambda name: name.replace("bert.", "roberta."), "its weights lack 'bert.embeddings"),
    ],
)
def test_weights_of_the_body_must_be_there(
    model: Path, name: Callable[[str], str | None], said: str, new_head: bool
) -> None:
    rename(model, name)
    assert re.search(said, refused(model, new_head=new_head))


def test_a_head_may_be_new_for_training_only(model: Path) -> None:
    rename(model, lambda name: None if name.startswith("qa_outputs") else name)
    assert "its weights lack 'qa_outputs.weight' and 1 more, of its head, which would be random" in refused(model)
    found = load_saved(QA.from_pretrained, model, what="the model", new_head=True)
    assert {name.partition(".")[0] for name in unread_weights(found)} == {"qa_outputs"}
    assert "of its head" in refused(model, CLASSES)
    load_saved(CLASSES.from_pretrained, model, what="the model", new_head=True)  # which makes a pooler, too


@pytest.mark.parametrize("family", ["bart", "t5", "llama", "gpt2", "roberta", "deberta-v2", "vit", "distilbert"])
def test_what_was_saved_is_whole(tmp_path: Path, family: str) -> None:
    whole = tiny(family)
    whole.save_pretrained(tmp_path / "model")
    load_saved(type(whole).from_pretrained, tmp_path / "model", what="the model")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "unheard_of"}, "has model_type 'unheard_of', which this version of transformers does not know"),
        ({"num_labels": 10**9}, "num_labels 1000000000, but with the folder's weights it must be 0 to "),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings 1000000000000, but "),
        ({"eos_token_id": [1, 10**12]}, "eos_token_id 1000000000000, but "),
        ({"text_config": {"hidden_size": [10**9]}}, "hidden_size 1000000000, but "),
        ({"id2label": ["no", "yes"]}, "has id2label ['no', 'yes'], and it must have numbers and labels"),
        ({"id2label": {"a": "b"}}, "has id2label {'a': 'b'}, and it must"),
        ({"label2id": {"no": "one"}}, "has label2id {'no': 'one'}, and it must"),
        ({"pad_token_id": 10**6}, "has pad_token_id 1000000, and with its vocab_size it must be 0 to "),
        ({"_attn_implementation": "its/kernel"}, "has _attn_implementation 'its/kernel', and it must be one of eager"),
        ({"attn_implementation": {"": "its/kernel"}}, "has attn_implementation {'': 'its/kernel'}, and"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config of 'gptq', and quantized weights are"),
        ({"quantization_config": 3}, "quantization_config of 3, and quantized weights are not read"),
        ({"dtype": "load"}, "has dtype 'load', and weights are read as float32, float16 or bfloat16"),
        ({"dtype": "int8"}, "has dtype 'int8', and weights are"),
        ({"architectures": 5}, ""),
        ({"problem_type": "none_such"}, ""),
    ],
)
def test_a_forged_configuration_is_one_line(model: Path, fields: dict[str, Any], said: str) -> None:
    edited(model, "config.json", **fields)
    assert said in refused(model) if said else True


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"num_labels": ' + "9" * 5000 + "}", '"\\ud800"', "null"])
def test_what_is_no_configuration_is_one_line(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    refused(model)


def test_an_architecture_that_is_unknown_to_the_table_is_bounded_too(tmp_path: Path) -> None:
    """Nothing is built before the numbers are looked at."""
    edited(tmp_path, "config.json", model_type="mamba", hidden_size=50_000, vocab_size=50_000)
    save_file({"weight": torch.zeros(4)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert "the sizes in config.json make a model of" in refused(tmp_path, AutoModel)


def test_whole_numbers_are_no_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: value.to(torch.int8) for name, value in weights.items()}, model / "model.safetensors")
    assert "is of type I8, as quantized ones are" in refused(model)


def test_an_adapter_is_to_be_merged_first(model: Path) -> None:
    MODELS["an adapter"](model)
    assert "it holds an adapter (adapter_config.json)" in refused(model)
    assert "`merge_and_unload()`" in refused(model, new_head=True)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_no_code_of_a_folder_is_run_nor_asked_about(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, part: str
) -> None:
    folder = model_that(kind, saved, tmp_path / "model")
    monkeypatch.setenv(CANARY, str(tmp_path / "canary"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    with suppress(UserError):
        if part == "model":
            load_saved(partial(QA.from_pretrained, trust_remote_code=False), folder, what="the model")
        else:
            read_part(AutoTokenizer, folder, what="the tokenizer")
    assert not (tmp_path / "canary").exists()
    assert MODULE not in sys.modules
