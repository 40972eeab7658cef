"""How summaries are generated: the user's word, the model's, and ours."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig, T5Config

from bplightning.errors import UserError
from bplightning.tasks.shared.generation import Generation, generation_config, recorded

BY_TASK = {"num_beams": 4, "max_length": 200, "min_length": 30, "early_stopping": True, "prefix": "summarize: "}


def settled(chosen: Generation | None = None, *, by_task: dict[str, Any] | None = None, **own: Any) -> dict[str, Any]:
    """What is recorded of the settings, where the model's own are `own`, and `by_task` for summarization."""
    model = T5Config(task_specific_params={"summarization": by_task or {}})
    found = generation_config(chosen or Generation(), GenerationConfig(**own), model, task="summarization", length=60)
    found.validate(strict=True)  # or it could not be saved
    return recorded(found)


def test_the_user_goes_before_the_model_and_that_before_what_it_says_by_task() -> None:
    assert settled(by_task=BY_TASK) == {"num_beams": 4, "max_length": 200, "min_length": 30, "early_stopping": True}
    assert settled(by_task=BY_TASK, num_beams=2)["num_beams"] == 2
    assert settled(by_task=BY_TASK, max_length=90)["max_length"] == 90
    found = settled(Generation(num_beams=3, max_length=90), by_task=BY_TASK, num_beams=2, no_repeat_ngram_size=3)
    assert found == {
        "num_beams": 3,
        "max_length": 90,
        "min_length": 30,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
    }


def test_where_nobody_says_how_long_it_is_not_twenty_tokens() -> None:
    assert settled() == {"num_beams": 1, "max_new_tokens": 60}
    assert settled(max_length=80) == {"num_beams": 1, "max_length": 80}
    assert settled(max_new_tokens=7, by_task={"max_length": 200}) == {"num_beams": 1, "max_new_tokens": 7}


def test_a_length_said_in_one_way_takes_the_place_of_that_in_the_other() -> None:
    found = settled(Generation(max_length=30, min_length=5), max_new_tokens=100, min_new_tokens=50)
    assert found == {"num_beams": 1, "max_length": 30, "min_length": 5}


def test_what_is_about_beams_is_dropped_where_there_are_none() -> None:
    own = {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "max_length": 142}
    assert settled(**own) == own
    assert settled(Generation(num_beams=1), **own) == {"num_beams": 1, "max_length": 142}


def test_the_model_keeps_its_own_settings() -> None:
    own = GenerationConfig(num_beams=4)
    generation_config(Generation(num_beams=2), own, T5Config(), task="summarization", length=60)
    assert own.num_beams == 4


def test_it_counts_as_said_where_it_was_made_of_a_models_configuration() -> None:
    model = T5Config(eos_token_id=7)
    own = GenerationConfig.from_model_config(model)
    assert own._from_model_config
    found = generation_config(Generation(), own, model, task="summarization", length=60)
    assert not found._from_model_config
    assert found.eos_token_id == 7


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match=r"at least 56 tokens .* at most 40: give generation\.min_length"):
        settled(Generation(max_length=40), min_length=56)
    with pytest.raises(UserError, match=r"generation_config\.json cannot be used: .*temperature.* Correct that file"):
        settled(temperature=0.5)


@pytest.mark.parametrize(
    ("setting", "least"), [("num_beams", 1), ("max_length", 2), ("min_length", 0), ("no_repeat_ngram_size", 0)]
)
def test_numbers_out_of_range_are_refused(setting: str, least: int) -> None:
    Generation(**{setting: least})
    with pytest.raises(UserError, match=rf"generation\.{setting} is {least - 1}; it must be at least {least}"):
        Generation(**{setting: least - 1})


@pytest.mark.parametrize("setting", [{"max_length": 10**9}, {"max_new_tokens": 10**9}, {"num_beams": 10**6}])
def test_a_folder_cannot_ask_for_endless_generation(setting: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"is 10+ \(generation\..*or the model's own\), and it must be \d+ at most"):
        generation_config(Generation(), GenerationConfig(**setting), T5Config(), task="summarization", length=9)
