"""A pretrained model with a task's head: its tokenizer, its weights, what it takes and how much."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bplightning.compaction.saved_models import load_saved, read_part, unread_weights
from bplightning.distillation.load_finetuned import require_embedded
from bplightning.errors import UserError

EMBEDDED_MODEL = Path(__file__).parents[1] / "embedded" / "embedded_start"
"""An encoder that was pretrained on generated passages, and its tokenizer, for embedded data sets."""

OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Families whose first positions no token has: those up to the padding token's number."""

FEWEST = 10
"""How many times as many tokens as its tokenizer a model may have."""


class Pretrained:
    """A pretrained model with the head of a task; each part is read when it is first asked for.

    Args:
        name: Folder or Hugging Face hub name.
        auto: The Auto class that puts the head on, for example `AutoModelForQuestionAnswering`.
        head: What the head is called in messages, for example ``"question-answering head"``.
        labels: What the model's `forward` takes in addition to what the tokenizer makes.
        default_length: Tokens of an example where no length is given.
        right_padding: Whether to pad on the right whatever the tokenizer does, for a head that counts positions.
        seed: Of the weights, where the folder holds none; `None` refuses such a folder.
    """

    def __init__(
        self,
        name: str,
        auto: Any,
        *,
        head: str,
        labels: Sequence[str] = ("labels",),
        default_length: int,
        right_padding: bool = False,
        seed: int | None = None,
    ) -> None:
        self.name = name
        self.auto = auto
        self.head = head
        self.labels = tuple(labels)
        self.default_length = default_length
        self.right_padding = right_padding
        self.seed = seed

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; one without a padding token, as of a language model, pads with its last token."""
        side = {"padding_side": "right"} if self.right_padding else {}
        tokenizer = read_part(AutoTokenizer, self.name, what="the model", **side)
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer of {self.name!r} ({type(tokenizer).__name__}) is not a fast one, and only those "
                "tell which characters a token covers: choose a model with a tokenizer.json."
            )
        self._require_own(tokenizer)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise UserError(
                    f"The tokenizer of {self.name!r} has neither a token to pad with nor one that ends a text: set "
                    "pad_token in its tokenizer_config.json."
                )
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def _require_own(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer that is not the model's: transformers makes an empty one where a folder holds none.

        One that has tokens without embeddings is refused by `require_embedded`, when the embeddings are there.
        """
        names, longest = tokenizer.model_input_names, tokenizer.model_max_length
        if "input_ids" not in names or not isinstance(longest, int | float):
            raise UserError(
                f"The tokenizer of {self.name!r} makes {str(names)[:80]} of at most {str(longest)[:80]!r} tokens, and "
                "must make input_ids, and a number of them: correct model_input_names and model_max_length in its "
                "tokenizer_config.json."
            )
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        remedy = "save the tokenizer that the model was trained with into that folder"
        words = set(tokenizer.get_vocab().values()) - special
        if len(words) < 2:  # an empty T5 tokenizer has one, the blank
            raise UserError(
                f"The tokenizer of {self.name!r} has special tokens only, so that each text would be unknown to the "
                f"model (the folder may hold no tokenizer): {remedy}."
            )
        rows = getattr(self.config.get_text_config(), "vocab_size", None)
        if rows is not None and len(tokenizer) * FEWEST < rows:
            raise UserError(
                f"The tokenizer of {self.name!r} has {len(tokenizer)} tokens, and the model {rows}: it is another "
                f"model's, and most of this one would not be used; {remedy}."
            )

    def build(self, *, new_head: bool = False, **config: Any) -> PreTrainedModel:
        """The model, fresh, in float32.

        Args:
            new_head: Whether a head of other shapes is replaced by a new one.
            **config: Fields of its configuration to set, for example ``num_labels``.

        Raises:
            UserError: There is no such model, it has no such head, or its weights are damaged.
        """
        self.input_names  # noqa: B018  a model without such a head is refused here, with a remedy
        model = build(self.name, self.auto, seed=self.seed, new_head=new_head, **config)
        require_embedded(model, self.tokenizer, name=self.name)
        return self.padded_alike(model)

    def padded_alike(self, model: PreTrainedModel) -> PreTrainedModel:
        """The same model, told what the tokenizer pads with: language models' classifiers look for the last token."""
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        return model

    @property
    def pad_to_multiple_of(self) -> int | None:
        """Eight tokens, which accelerators like, or `None` where that would go past the model's positions."""
        return 8 if self.positions is None or self.positions % 8 == 0 else None

    @cached_property
    def input_names(self) -> list[str]:
        """What the model's `forward` takes of what the tokenizer makes, and of the labels."""
        kind, mapping = type(self.config), self.auto._model_mapping
        if kind not in mapping:
            raise UserError(
                f"The model {self.name!r} is a {self.config.model_type}, for which transformers has no {self.head}: "
                "choose another."
            )
        model_class = mapping[kind]
        if isinstance(model_class, tuple):  # as in `AutoModel` of a few architectures
            model_class = model_class[0]
        return accepted_inputs(model_class.forward, [*self.tokenizer.model_input_names, *self.labels])

    @cached_property
    def positions(self) -> int | None:
        """How many tokens the model can take, or `None` for any number."""
        positions = getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "n_positions", None)
        if getattr(self.config, "relative_attention_num_buckets", None) and self.config.model_type != "mpnet":
            positions = None  # T5 counts distances; its n_positions is a note on how it was trained
        if positions is not None and self.config.model_type in OFFSET_POSITIONS:
            positions -= self.config.pad_token_id + 1
        return positions

    def length(self, wanted: int | None, *, name: str = "max_length") -> int:
        """Tokens of an example: as many as wanted, or the default as far as the model has positions.

        Args:
            wanted: Tokens, or `None` for the default.
            name: What the setting is called in messages.

        Raises:
            UserError: If the model has not so many positions.
        """
        positions = self.positions
        length = wanted or min(self.default_length, positions or self.default_length)
        if positions is not None and length > positions:
            raise UserError(
                f"{name}={length} tokens, but the model {self.name!r} has {positions} positions: lower "
                f"{name} (and stride, if need be)."
            )
        return length

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return read_part(AutoConfig, self.name, what="the model")


def build(name: str, auto: Any, *, seed: int | None, new_head: bool, **config: Any) -> PreTrainedModel:
    """A pretrained model with a head, fresh, in float32.

    Args:
        name: Folder or Hugging Face hub name.
        auto: The Auto class that puts the head on.
        seed: Of the weights, where the folder holds none; `None` refuses such a folder.
        new_head: Whether a head of other shapes is replaced by a new one.
        **config: Fields of its configuration to set.

    Raises:
        UserError: There is no such model, or its weights are damaged.
    """
    if seed is not None and not _has_weights(Path(name)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return auto.from_config(read_part(AutoConfig, name, what="the model", **config), dtype=torch.float32)
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": new_head}
    read = partial(auto.from_pretrained, trust_remote_code=False, **options, **config)
    model, found = load_saved(read, name, what="the model", new_head=True)
    body = f"{model.base_model_prefix}."
    damaged = sorted(key for key, *_ in found["mismatched_keys"] if key.startswith(body))
    if damaged:
        raise UserError(
            f"the model {name!r} cannot be loaded: {damaged[0]!r} and {len(damaged) - 1} more of its weights are of "
            "other shapes than its config.json says: give a folder that holds both as `save_pretrained` writes them."
        )
    # The pooler of an encoder without a head is no head: nothing comes from it.
    if new := [name for name in unread_weights(model) if not name.startswith("pooler.")]:
        more = f" and {len(new) - 1} more" if new[1:] else ""
        rank_zero_info(f"The model {name!r} has no head for this task: a new one is trained ({new[0]}{more}).")
    return model


def accepted_inputs(forward: Any, names: list[str]) -> list[str]:
    """Those of `names` that a model's `forward` takes (DistilBERT takes no ``token_type_ids``, for example).

    >>> accepted_inputs(lambda input_ids, attention_mask: None, ["input_ids", "token_type_ids"])
    ['input_ids']
    """
    parameters = inspect.signature(forward).parameters
    return [name for name in names if name in parameters]


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
