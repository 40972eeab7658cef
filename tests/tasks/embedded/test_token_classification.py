from __future__ import annotations

from bplightning.tasks.embedded.names import VALUES
from bplightning.tasks.embedded.passages import generate_passages
from bplightning.tasks.embedded.token_classification import generate
from bplightning.tasks.shared.tag_spans import entities_of


def names(split: str) -> list[set[tuple[str, str]]]:
    """Of each record its entities, by type and words."""
    return [
        {(one["type"], one["text"]) for one in entities_of(row["tags"], [1.0] * len(row["tags"]), words=row["tokens"])}
        for row in generate(split, size=150)
    ]


def test_the_names_that_facts_tell_of_are_tagged_and_all_else_are_speakers() -> None:
    for passage, found in zip(generate_passages("train", size=150), names("train"), strict=True):
        told = {(passage.domain, fact.subject) for fact in passage.facts}
        told |= {(fact.relation.answer, fact.answer) for fact in passage.facts if fact.relation.answer not in VALUES}
        assert told <= found
        assert all(kind == "person" and f"{name}:" in passage.text for kind, name in found - told)


def test_a_tag_at_each_word_and_no_name_in_both_splits() -> None:
    assert all(len(row["tokens"]) == len(row["tags"]) for row in generate("validation", size=50))
    assert not set().union(*names("train")) & set().union(*names("validation"))
    assert {kind for found in names("train") for kind, _ in found} == {
        "person", "town", "company", "book", "goods", "river", "country"
    }  # fmt: skip
