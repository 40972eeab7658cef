"""The generated question-answering set (spans, disjoint names, distractors, reproducibility) and the shipped start."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from bplightning.tasks.embedded.names import ENDINGS, POOLS, name_pool
from bplightning.tasks.embedded.passages import generate_passages
from bplightning.tasks.embedded.qa import generate
from bplightning.tasks.embedded.relations import RELATIONS
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL

START = EMBEDDED_MODEL
SOME = 400


def _digest(split: str) -> str:
    return hashlib.sha256(json.dumps(generate(split, size=SOME)).encode()).hexdigest()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_answers_stand_where_the_record_says(split: str) -> None:
    for record in generate(split, size=SOME):
        (text,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
        assert record["context"][start : start + len(text)] == text
        assert record["question"].endswith("?")
        assert "{" not in record["question"] + record["context"]


def test_default_sizes_and_unique_ids() -> None:
    train, validation = generate("train"), generate("validation")
    assert (len(train), len(validation)) == (5000, 500)
    assert len({record["id"] for record in train + validation}) == 5500
    assert set(train[0]) == {"id", "title", "context", "question", "answers"}


@pytest.mark.parametrize("kind", [*ENDINGS, "book"])
def test_pools_share_no_name(kind: str) -> None:
    pools = [set(name_pool(kind, pool)) for pool in POOLS]
    assert all(pools)
    assert len(set.union(*pools)) == sum(map(len, pools))


def test_no_name_is_spelt_twice_over_all_kinds() -> None:
    names = [name for kind in [*ENDINGS, "book"] for pool in POOLS for name in name_pool(kind, pool)]
    assert len(names) == len(set(names))


def test_evaluation_names_never_occur_in_training() -> None:
    def text(split: str, seed: int) -> str:
        return " ".join(f"{record['context']} {record['question']}" for record in generate(split, size=SOME, seed=seed))

    names = {name for kind in ENDINGS for name in name_pool(kind, "validation")}
    seen_in_validation = names & set(re.findall(r"\w+", text("validation", 0)))
    assert len(seen_in_validation) > 500
    for seed in range(3):
        train = text("train", seed)
        assert not names & set(re.findall(r"\w+", train))
        assert not any(title in train for title in name_pool("book", "validation"))


@pytest.mark.parametrize("pool", POOLS)
def test_neither_type_nor_subject_alone_finds_the_answer(pool: str) -> None:
    for passage in generate_passages(pool, size=SOME):
        asked = passage.facts[0]
        rivals = [fact for fact in passage.facts[1:] if fact.relation is asked.relation]
        assert len({fact.answer for fact in [asked, *rivals]}) >= 3
        assert len({fact.subject for fact in [asked, *rivals]}) == 1 + len(rivals)
        assert any(fact.subject == asked.subject for fact in passage.facts if fact.relation is not asked.relation)
        for fact in passage.facts:
            assert passage.text[fact.start :].startswith(fact.answer)
            assert fact.subject in passage.text


def test_every_relation_and_every_phrasing_of_a_question_occurs() -> None:
    records = generate("train")
    assert {record["title"] for record in records} == {f"{d}: {r.name}" for d, rs in RELATIONS.items() for r in rs}
    for relations in RELATIONS.values():
        for question in (question for relation in relations for question in relation.questions):
            pattern = re.compile(re.escape(question).replace(re.escape("{s}"), ".+"))
            assert any(pattern.fullmatch(record["question"]) for record in records), question


def test_seed_and_split_decide_everything_in_any_process() -> None:
    assert _digest("train") != _digest("validation")
    assert generate("train", size=5, seed=1) != generate("train", size=5, seed=2)
    command = (
        "import hashlib, json; from bplightning.tasks.embedded.qa import generate;"
        f"print(hashlib.sha256(json.dumps(generate('train', size={SOME})).encode()).hexdigest())"
    )
    other = os.environ | {"PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", command], env=other, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == _digest("train")


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"split is 'test', but the generated set has \['train', 'validation'\]"):
        generate("test")


def test_the_shipped_start_is_small_loads_and_knows_every_word() -> None:
    assert sum(file.stat().st_size for file in START.iterdir()) < 5_000_000
    tokenizer = AutoTokenizer.from_pretrained(START)
    model, loading = AutoModelForQuestionAnswering.from_pretrained(START, output_loading_info=True)
    assert set(loading["missing_keys"]) == {"qa_outputs.weight", "qa_outputs.bias"}
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.config.vocab_size == len(tokenizer)
    for split in ("train", "validation"):
        records = generate(split, size=SOME)
        encoded = tokenizer([r["question"] for r in records], [r["context"] for r in records])["input_ids"]
        assert tokenizer.unk_token_id not in {token for row in encoded for token in row}
        assert max(map(len, encoded)) <= 128
