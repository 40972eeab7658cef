"""Tokenized windows, their cache, batches and the order of training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_squad import CAFE
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch.utils.data.distributed import DistributedSampler
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bplightning.errors import UserError
from bplightning.tasks.shared.batching import collate, length_grouped_sampler
from bplightning.tasks.squad import data as squad_data
from bplightning.tasks.squad import features as squad_features
from bplightning.tasks.squad.data import from_records
from bplightning.tasks.squad.features import find_span, tokenize, tokenize_inputs

Examples = list[dict[str, Any]]


@pytest.fixture
def tokenizer(bert_folder: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(bert_folder)


def windows(rows: Examples, tokenizer: PreTrainedTokenizerBase, folder: Path, **changes: Any) -> Dataset:
    settings: dict[str, Any] = {"max_length": 32, "stride": 4, "description": "Tokenizing"} | changes
    return tokenize(from_records(rows, origin="test"), tokenizer=tokenizer, cache_dir=str(folder), **settings)


def test_windows_cover_the_context_and_share_the_stride(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    features = windows(examples, tokenizer, tmp_path)
    assert features["feature_index"][:] == list(range(len(features)))
    assert features["length"][:] == [len(ids) for ids in features["input_ids"]]
    assert max(features["length"]) == 32
    for index, row in enumerate(examples):
        whole = tokenizer(row["context"], add_special_tokens=False)["input_ids"]
        question = tokenizer(row["question"])["input_ids"]
        assert all(f["input_ids"][: len(question)] == question for f in features if f["example_index"] == index)
        parts = [
            feature["input_ids"][feature["context_start"] : feature["context_end"]]
            for feature in features
            if feature["example_index"] == index
        ]
        assert len(parts) > 1
        for left, right in itertools.pairwise(parts):
            assert left[-4:] == right[:4]
        assert [*parts[0], *(token for part in parts[1:] for token in part[4:])] == whole


def test_a_window_holds_the_answer_or_points_at_cls(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    features = windows(examples, tokenizer, tmp_path)
    found = set()
    for feature in features:
        row = examples[feature["example_index"]]
        first, start, end = feature["context_start"], feature["start_positions"], feature["end_positions"]
        if start == 0:
            assert end == 0
            begin = row["answers"]["answer_start"][0]
            after = begin + len(row["answers"]["text"][0])
            assert not (feature["char_start_C"][0] <= begin and after <= feature["char_end_C"][-1])
        else:
            text = row["context"][feature["char_start_C"][start - first] : feature["char_end_C"][end - first]]
            assert text == row["answers"]["text"][0]
            found.add(row["id"])
    assert found == {row["id"] for row in examples}
    assert 0 in features["start_positions"][:]


def test_a_window_without_an_answer_points_at_cls(
    some_unanswerable: Examples, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="'cafe-3' has no answer: set version_2_with_negative"):
        windows(some_unanswerable, tokenizer, tmp_path)
    features = windows(some_unanswerable, tokenizer, tmp_path, may_lack_answers=True).to_list()
    unanswerable = [feature for feature in features if feature["example_index"] >= 4]
    assert len(unanswerable) > 2
    assert all(feature["start_positions"] == feature["end_positions"] == 0 for feature in unanswerable)
    others = [feature for feature in features if feature["example_index"] < 4]
    assert others == windows(some_unanswerable[:4], tokenizer, tmp_path).to_list()


@pytest.mark.parametrize(
    ("template", "specials", "place"),
    [
        ("$A [SEP] $B:1 [SEP]:1 [CLS]:2", {"cls_token": "[CLS]"}, -1),  # XLNet's way
        ("[MASK] $A $B:1", {"bos_token": "[MASK]"}, 0),
        ("$A [MASK] $B:1", {"bos_token": "[MASK]"}, 2),
        ("$A [SEP] $B:1", {}, 0),  # T5's: nothing stands for no answer, so the first token does
    ],
)
def test_what_stands_for_no_answer(
    template: str, specials: dict[str, str], place: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    tokens = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]", "[MASK]")]
    backend.post_processor = TemplateProcessing(single="$A", pair=template, special_tokens=tokens)
    other = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", **specials)
    row = {"id": "1", "context": CAFE, "question": "they what", "answers": {"text": [], "answer_start": []}}
    features = windows([row], other, tmp_path, may_lack_answers=True)
    assert len(features) > 1
    for feature in features:
        expected = range(len(feature["input_ids"]))[place]
        assert feature["cls_index"] == feature["start_positions"] == feature["end_positions"] == expected


def test_inputs_are_cut_as_examples_are(
    some_unanswerable: Examples, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row | {"answers": {"text": [], "answer_start": []}} for row in some_unanswerable]
    examples = windows(rows, tokenizer, tmp_path, may_lack_answers=True)
    monkeypatch.setattr(squad_features, "CHUNK", 4)  # and in several parts, the last one smaller
    inputs = tokenize_inputs(from_records(rows, origin="test"), tokenizer=tokenizer, max_length=32, stride=4)
    assert inputs.to_list() == examples.to_list()
    assert inputs.features == examples.features


def test_blanks_around_an_answer_and_dropped_characters() -> None:
    tokens = {"char_start_C": [0, 3, 6], "char_end_C": [2, 5, 8]}  # "ab cd ef"
    assert find_span(**tokens, text=" cd ", answer_start=2) == (1, 1)
    assert find_span(**tokens, text="b c", answer_start=1) == (0, 1)
    assert find_span(**tokens, text="ab cd ef", answer_start=0) == (0, 2)
    assert find_span(**tokens, text="ef g", answer_start=6) is None
    assert find_span(char_start_C=[0, 4], char_end_C=[1, 5], text="x", answer_start=2) is None
    assert find_span(char_start_C=[], char_end_C=[], text="x", answer_start=2) is None


def test_the_second_run_reads_the_first_ones_result(
    examples: Examples, bert_folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    first = windows(examples, tokenizer, tmp_path)
    assert "Tokenizing: 100%" in capfd.readouterr().err
    (file,) = tmp_path.rglob("*.arrow")
    written = file.stat().st_mtime_ns
    for again in (tokenizer, AutoTokenizer.from_pretrained(bert_folder)):  # used, truncation set inside; and fresh
        assert windows(examples, again, tmp_path).to_list() == first.to_list()
        assert "Tokenizing" not in capfd.readouterr().err
    assert list(tmp_path.rglob("*.arrow")) == [file]
    assert file.stat().st_mtime_ns == written


def test_what_changes_the_windows_is_tokenized_anew(examples: Examples, bert_folder: str, tmp_path: Path) -> None:
    tokenizer, other = (AutoTokenizer.from_pretrained(bert_folder) for _ in range(2))
    other.add_tokens(["crêpes"])
    windows(examples, tokenizer, tmp_path)
    windows(examples, tokenizer, tmp_path, max_length=31)
    windows(examples, tokenizer, tmp_path, stride=3)
    windows(examples, other, tmp_path)
    windows(examples[:3], tokenizer, tmp_path)
    windows(examples, tokenizer, tmp_path, may_lack_answers=True)
    assert len(list(tmp_path.rglob("*.arrow"))) == 6


def test_another_rule_for_answers_is_tokenized_anew(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "squad_data.py"
    changed.write_text(Path(squad_data.__file__).read_text() + "# changed")
    windows(examples, tokenizer, tmp_path)
    monkeypatch.setattr(squad_data, "__file__", str(changed))
    windows(examples, tokenizer, tmp_path)
    assert len(list(tmp_path.rglob("*.arrow"))) == 2


def test_a_question_too_long_and_a_wrong_answer_are_named(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"question of example 'nile-1' has 50 tokens.* less than 25: raise max_length"):
        windows([examples[0] | {"question": "nile " * 50}], tokenizer, tmp_path)
    wrong = {"text": ["Nile"], "answer_start": [5]}
    with pytest.raises(UserError, match="Example 'nile-1': the answer 'Nile' is not in its context"):
        windows([examples[0] | {"answers": wrong}], tokenizer, tmp_path)


def test_a_batch_is_padded_to_a_multiple_of_eight(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"input_ids": [5] * length, "start_positions": length} for length in (3, 9)]
    batch = collate(rows, collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8))
    assert type(batch) is dict
    assert batch["input_ids"].shape == (2, 16)
    assert batch["attention_mask"].sum(1).tolist() == [3, 9]
    assert batch["start_positions"].tolist() == [3, 9]


def order(epoch: int, *, world_size: int = 1, rank: int = 0, count: int = 400) -> list[int]:
    lengths = torch.randint(10, 200, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    sampler = length_grouped_sampler(lengths, batch_size=8, world_size=world_size, rank=rank)
    assert isinstance(sampler, DistributedSampler)  # or Lightning would wrap it and shuffle it anew
    sampler.set_epoch(epoch)
    return list(sampler)


def test_training_order_depends_on_seed_and_epoch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    first = order(0)
    torch.rand(3)  # the global generator has no say
    assert order(0) == first
    assert sorted(order(1)) == sorted(first) == list(range(400))
    assert order(1) != first
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert order(0) != first


def test_batches_hold_features_of_like_length() -> None:
    lengths = torch.randint(10, 200, (400,), generator=torch.Generator().manual_seed(1))

    def padded(indices: list[int]) -> int:
        return sum(8 * int(chunk.max()) for chunk in lengths[torch.tensor(indices)].split(8))

    tokens = int(lengths.sum())
    assert padded(torch.randperm(400, generator=torch.Generator().manual_seed(2)).tolist()) > 1.5 * tokens
    assert padded(order(0)) < 1.1 * tokens
    assert padded(order(0, world_size=2, rank=1)) < 1.2 * tokens / 2


def test_ranks_share_the_features() -> None:
    ranks = [order(3, world_size=2, rank=rank) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 200
    assert sorted(ranks[0] + ranks[1]) == list(range(400))
