"""Finding the models that a benchmark compares, checking them by their configurations, and loading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from bplightning.compaction.compact_config import CONFIG_FIELD
from bplightning.compaction.example_inputs import positions_of, takes_images
from bplightning.compaction.saved_models import class_saved, load_saved, read_part
from bplightning.errors import UserError
from bplightning.io.run_folder import RunFolder, baseline_of, find_model
from bplightning.measuring.measure import fitting, shape_name


@dataclass(frozen=True)
class Candidate:
    """A saved model whose configuration was read.

    Attributes:
        name: ``"compact"`` or ``"dense"``.
        path: Its folder, or its name on the hub.
        config: Its configuration.
        kind: The class that it was saved from.
    """

    name: str
    path: str
    config: Any
    kind: Any

    @property
    def head(self) -> str:
        """The head of its class, which follows the name of its family."""
        name: str = self.kind.__name__
        return "CausalLM" if "LMHead" in name else name.partition("For")[2] or "no task"

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens with an embedding; `None` where it reads images."""
        return getattr(self.config, "vocab_size", None)

    def load(self, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model in evaluation mode.

        Args:
            dtype: Precision to compute in; it may have been saved in another.
            device: The device to run on.

        Raises:
            UserError: Its weights are missing, damaged or of other shapes, or the device has no room for them.
        """
        what = f"the {self.name} model"
        read = partial(self.kind.from_pretrained, dtype=dtype, trust_remote_code=False)
        model = load_saved(read, self.path, what=what)
        try:
            model.to(device)
        except torch.OutOfMemoryError as error:
            raise UserError(f"{what} {self.path!r} does not fit into the memory of {device}: use another.") from error
        if model.can_generate():
            # Ignore saved settings such as beams or an end of the text: generation is greedy and of a fixed length.
            given = model.generation_config
            tokens = {name: getattr(given, name) for name in ("bos_token_id", "decoder_start_token_id")}
            model.generation_config = GenerationConfig(**tokens, pad_token_id=given.pad_token_id or 0)
        return model.eval()


def find_candidates(folder: str, against: str | None = None) -> list[Candidate]:
    """The models to compare, the dense one first if there is one, checked to be comparable.

    Args:
        folder: Folder of a model, or of a run, whose ``compact/`` is used.
        against: Folder of the dense model, or its name on the hub; by default the baseline of the run, if `folder` is a
            run with a baseline.

    Raises:
        UserError: There is no such model, or they have different tasks, labels, tokens or images.
    """
    path = find_model(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"{folder!r} has no compact model yet: write one with `compact`, and give its folder.")
    run = Path(folder)
    if against is None and path != run and RunFolder(run).config.is_file():
        baseline = baseline_of(run)
        against = None if baseline is None else str(baseline)
    config = _config(str(path), "the model")
    single = "compact" if getattr(config, CONFIG_FIELD, None) is not None or against is not None else "dense"
    model = Candidate(single, str(path), config, class_saved(config, str(path)))
    if against is None:
        return [model]
    dense = dense_candidate(against)
    _require_comparable(dense, model)
    return [dense, model]


def dense_candidate(path: str) -> Candidate:
    """A dense model.

    Args:
        path: Its folder, or its name on the hub.

    Raises:
        UserError: There is no such model.
    """
    config = _config(path, "the dense model")
    return Candidate("dense", path, config, class_saved(config, path))


def fitted(
    models: Sequence[PreTrainedModel], shapes: Sequence[tuple[int, int]], *, new_tokens: int
) -> tuple[list[tuple[int, int]], list[str]]:
    """The shapes that all models can take, each once.

    Args:
        models: The models to time.
        shapes: Rows and tokens asked for.
        new_tokens: Tokens to generate, where the models generate.

    Returns:
        The shapes, and a line for each that was changed.

    Raises:
        UserError: A model has no room for so many new tokens.
    """
    found = list(shapes)
    for model in models:
        found = fitting(model, found)
        room = positions_of(model)
        if model.can_generate() and room is not None:
            if new_tokens >= room:
                raise UserError(f"new_tokens is {new_tokens}, but the model has room for {room} tokens: give fewer.")
            if not model.config.is_encoder_decoder:  # the prompt and the new tokens are one text
                found = [(rows, min(length, room - new_tokens)) for rows, length in found]
    why = "an image has as many" if takes_images(models[0]) else "the model has room for no more"
    lines = [
        f"{shape_name(*asked)} became {shape_name(*used)}: {why}"
        for asked, used in zip(shapes, found, strict=True)
        if asked != used
    ]
    return list(dict.fromkeys(found)), lines


def _config(path: str, what: str) -> Any:
    return read_part(AutoConfig, path, what=what)


def _require_comparable(dense: Candidate, model: Candidate) -> None:
    def differ(what: str, first: object, second: object) -> UserError:
        return UserError(
            f"{model.path!r} and {dense.path!r} cannot be compared: {what}, {second} and {first}: "
            "give --against the model that was pruned."
        )

    if dense.head != model.head:
        raise differ("they are for different tasks", dense.kind.__name__, model.kind.__name__)
    if "Classification" in model.head and dense.config.num_labels != model.config.num_labels:
        raise differ("they have different numbers of labels", dense.config.num_labels, model.config.num_labels)
    sides = [getattr(each.config, "image_size", None) for each in (dense, model)]
    if sides[0] != sides[1]:
        raise differ("they read images of different sizes", *sides)
    if dense.vocabulary != model.vocabulary and not _is_trimmed(dense, model):
        raise differ("they have different vocabularies", f"{dense.vocabulary} tokens", f"{model.vocabulary} tokens")


def _is_trimmed(dense: Candidate, model: Candidate) -> bool:
    """Whether a model has only some tokens of the dense one, as after `compact --vocabulary`."""
    what = "the tokenizer"
    try:
        tokens, all_tokens = (
            set(read_part(AutoTokenizer, each.path, what=what).get_vocab()) for each in (model, dense)
        )
    except UserError:
        return False
    return tokens < all_tokens
