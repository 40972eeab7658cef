"""How summaries are generated: the user's settings, and the model's own for the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from bplightning.errors import UserError

NOT_RECORDED = ("_from_model_config", "transformers_version", "use_cache")

MOST = {"max_length": 1 << 14, "max_new_tokens": 1 << 14, "num_beams": 1 << 8}
"""What settings may be at most, the user's and those of a folder from elsewhere: more takes days, or all memory."""


@dataclass(frozen=True)
class Generation:
    """Settings of transformers' `generate`, which they are named after; `None` leaves the model's own.

    Args:
        num_beams: Beams of the search, 1 for greedy search.
        max_length: Tokens of the longest summary, its first and last special token counted.
        min_length: Tokens of the shortest one, counted in the same way.
        length_penalty: Exponent of the length that beams' scores are divided by: above 0 prefers longer summaries.
        no_repeat_ngram_size: Tokens of the runs that may occur but once in a summary; 0 for no such rule.

    Raises:
        UserError: If a number is out of range.
    """

    num_beams: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None

    def __post_init__(self) -> None:
        for name, least in {"num_beams": 1, "max_length": 2, "min_length": 0, "no_repeat_ngram_size": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"generation.{name} is {value}; it must be at least {least}.")


def generation_config(
    chosen: Generation, own: GenerationConfig, model: PreTrainedConfig, *, task: str, length: int
) -> GenerationConfig:
    """The settings that `generate` gets.

    Args:
        chosen: The user's settings.
        own: The model's own settings, for what the user does not set.
        model: The model's configuration, which may hold settings by task (T5, BART), for what neither sets.
        task: The name of the task there.
        length: New tokens at most, where no length is set: transformers' own 20 would cut most summaries.

    Returns:
        A new object.

    Raises:
        UserError: The lengths contradict each other, or a number is too large.
    """
    config = GenerationConfig.from_dict(own.to_dict())
    config._from_model_config = False  # with it, transformers may make it again
    by_task: dict[str, Any] = (getattr(model, "task_specific_params", None) or {}).get(task, {})
    given = {name: value for name, value in asdict(chosen).items() if value is not None}
    for name in ("max", "min"):
        if f"{name}_length" in given:
            setattr(config, f"{name}_new_tokens", None)
    for name, value in by_task.items():
        counted_otherwise = getattr(config, name.replace("_length", "_new_tokens"), None)
        if name in vars(config) and getattr(config, name) is None and counted_otherwise is None:
            setattr(config, name, value)
    for name, value in given.items():
        setattr(config, name, value)
    if config.max_length is None and config.max_new_tokens is None:
        config.max_new_tokens = length
    if (config.num_beams or 1) == 1:  # they are about beams, and transformers refuses to save them without
        config.early_stopping = config.length_penalty = None
    for name, most in MOST.items():
        if (getattr(config, name) or 0) > most:
            raise UserError(
                f"{name} is {getattr(config, name)} (generation.{name}, or the model's own), and it must be {most} at "
                "most."
            )
    longest = config.max_length or config.max_new_tokens + 1
    if (config.min_length or 0) > longest:
        raise UserError(
            f"summaries shall have at least {config.min_length} tokens (generation.min_length, or the model's own) and "
            f"at most {longest}: give generation.min_length and generation.max_length that fit each other."
        )
    try:
        config.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the model's generation_config.json cannot be used: {reason} Correct that file.") from error
    return config


def recorded(config: GenerationConfig) -> dict[str, Any]:
    """The settings that a score depends on, for the report: those that are set and do something, but for token ids.

    >>> recorded(GenerationConfig(max_new_tokens=60, min_length=0, eos_token_id=2))
    {'num_beams': 1, 'max_new_tokens': 60}
    """
    found = {name: value for name, value in config.to_diff_dict().items() if value and name not in NOT_RECORDED}
    return {"num_beams": 1} | {name: value for name, value in found.items() if not name.endswith("_token_id")}
