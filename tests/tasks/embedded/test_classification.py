"""The made-up notes: the same everywhere, in words that the embedded model knows, and not to be told by one place."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from programs import said_by
from transformers import AutoTokenizer

from bplightning.tasks.embedded.classification import JUDGEMENTS, LABELS, generate
from bplightning.tasks.embedded.names import ENDINGS, POOLS, name_pool
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL

SOME = 600
NAME = "The [A-Z][a-z]+ [A-Z][a-z]+|[A-Z][a-z]+"


def subject(text: str) -> str:
    return re.match(r"Notes on (?:the )?(.+?)\. ", text).group(1)  # type: ignore[union-attr]


def judged(text: str) -> list[tuple[str, str]]:
    """What a text says of whom, in its order: name and meaning."""
    found = []
    for kinds in JUDGEMENTS.values():
        for meaning, phrases in kinds.items():
            for phrase in phrases:
                before, after = map(re.escape, phrase.removesuffix("?").split("{s}"))
                matches = re.finditer(f"(?i:{before})({NAME}){after}", text)
                found += [(match.start(), match.group(1), meaning) for match in matches]
    return [(name, meaning) for _, name, meaning in sorted(found)]


def test_it_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = "from bplightning.tasks.embedded.classification import generate; print(generate('train', size=20))"
    assert said_by(code, cwd=tmp_path).strip() == str(generate("train", size=20))
    assert generate("train", size=20, seed=1) != generate("train", size=20)
    assert len(generate("train")) == 6000
    assert len(generate("validation")) == 500


def test_labels_are_balanced_and_no_name_is_in_both_splits() -> None:
    subjects = {}
    for split in ("train", "validation"):
        records = generate(split, size=SOME)
        assert Counter(record["label"] for record in records) == dict.fromkeys(LABELS, SOME // 2)
        subjects[split] = {subject(record["text"]) for record in records}
    assert not subjects["train"] & subjects["validation"]


def test_the_last_judgement_of_the_subject_is_the_label() -> None:
    for record in generate("train", size=SOME):
        own = [meaning for name, meaning in judged(record["text"]) if name == subject(record["text"])]
        assert own[-1] == record["label"], record


def test_neither_the_first_nor_the_last_judgement_gives_it_away() -> None:
    records = generate("validation", size=SOME)
    for place in (0, -1):
        right = sum(judged(record["text"])[place][1] == record["label"] for record in records)
        assert right < 0.85 * SOME


def test_the_embedded_model_knows_every_word() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    names = {name.lower() for kind in ENDINGS for pool in POOLS for name in name_pool(kind, pool)}  # two pieces each
    words = {word.lower() for record in generate("train", size=SOME) for word in re.findall(r"\w+", record["text"])}
    assert {word for word in words - names if len(tokenizer.tokenize(word)) > 1} == set()
    assert max(len(tokenizer(record["text"])["input_ids"]) for record in generate("train", size=SOME)) <= 64


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split is 'test', but the generated set has"):
        generate("test")
