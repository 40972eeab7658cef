"""Language modelling, masked: predict some tokens from all the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.language_modeling import LanguageModeling
from bplightning.tasks.shared.language_blocks import IGNORED, mask_tokens, masked, surprise
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL
from bplightning.tasks.shared.text_task import Columns, Split, TextTask


class MaskedLanguageModeling(LanguageModeling):
    """Predict masked tokens.

    Masked language modelling: predict 15 % of the tokens from all the others, measured by their perplexity.

    Training masks other tokens each time, validation always the same ones, so that scores can be compared. Texts are
    joined and cut into blocks as for causal language modelling. With no argument it uses its embedded data set and
    model.
    """

    auto: ClassVar[Any] = AutoModelForMaskedLM
    head: ClassVar[str] = "masked language-modeling head"
    embedded_model: ClassVar[Path] = EMBEDDED_MODEL
    embedded_recipe: ClassVar[Path | None] = (
        Path(__file__).parent / "embedded" / "masked_language_modeling_default.yaml"
    )

    @classmethod
    def supports(cls, config: PreTrainedConfig) -> bool:
        """Not encoder-decoders, whose decoders would be given the answers."""
        return super().supports(config) and not config.is_encoder_decoder

    def build_model(self) -> PreTrainedModel:
        """The pretrained model, in float32."""
        if self.pretrained.config.is_encoder_decoder:
            raise UserError(
                f"The model {self.model!r} is an encoder-decoder, whose decoder would be given the masked tokens: "
                "choose an encoder, such as BERT."
            )
        return self.pretrained.build()

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The model of a saved folder, in the precision it was saved in."""
        return TextTask.load_model(self, folder)

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """A distribution for each masked token, ``(B, L, V)``, and for no other."""
        return outputs.logits.masked_fill(batch["labels"][..., None] == IGNORED, -torch.inf)

    def collator(self, split: Split | None) -> Callable[[list[dict[str, Any]]], Any]:
        """Masks where there is something to learn or to measure; texts to be completed have their masks."""
        if split is None:
            return super().collator(split)
        tokenizer = self.tokenizer
        mask = partial(mask_tokens, special=tokenizer.all_special_ids, mask_id=self._mask_id, vocabulary=len(tokenizer))
        return partial(masked, pad=tokenizer.pad_token_id, mask=mask, seeded=split == "validation")

    def example_values(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """For each block the total surprise of the model, and over how many masked tokens."""
        return surprise(outputs.logits, batch["labels"])

    # -- prediction ----------------------------------------------------------------------------------------------------

    def sample_records(self, count: int) -> list[dict[str, Any]]:
        """Beginnings of texts with a word in their middle masked, and which word that was."""
        records = []
        for record in super().sample_records(count):
            words = str(record["text"]).split()[: self.length // 8]  # a word may have several tokens
            if words:
                middle = len(words) // 2
                text = " ".join([*words[:middle], str(self.tokenizer.mask_token), *words[middle + 1 :]])
                records.append({"text": text, "masked": words[middle]})
        return records

    def check_input(self, name: str, value: Any, *, place: str) -> None:
        """A text with a mask."""
        TextTask.check_input(self, name, value, place=place)
        if self._mask_id not in self._cut([value])[0]:
            raise UserError(
                f"{place} has no {self.tokenizer.mask_token} among the first {self.length} tokens of its {name!r}: put "
                "one where a token is to be predicted."
            )

    def encode_inputs(self, examples: Columns) -> Columns:
        """Each text by itself, cut."""
        return {"input_ids": self._cut(examples["text"])}

    def predict_batch(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The texts' numbers, their tokens with the masks filled, and of each filled one the probability, else 0."""
        inputs = {name: value for name, value in self.model_inputs(batch).items() if name != "labels"}
        scores_BL, ids_BL = model(**inputs).logits.float().softmax(dim=-1).max(dim=-1)
        masked_BL = batch["input_ids"] == self._mask_id
        return {
            "index": batch["index"],
            "ids": ids_BL.where(masked_BL, batch["input_ids"]),
            "scores": scores_BL.where(masked_BL, 0),
        }

    def predictions(self, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each text ``text``, completed, and ``tokens`` and ``scores`` of its masks."""
        return TextTask.predictions(self, batches)

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers to one batch."""
        answers = []
        for ids, scores in zip(batch["ids"].tolist(), batch["scores"].tolist(), strict=True):
            filled = [place for place, score in enumerate(scores) if score]
            answers.append(
                {
                    "text": self.tokenizer.decode(ids, skip_special_tokens=True),
                    "tokens": self.tokenizer.convert_ids_to_tokens([ids[place] for place in filled]),
                    "scores": [scores[place] for place in filled],
                }
            )
        return answers

    @property
    def _mask_id(self) -> int:
        if self.tokenizer.mask_token_id is None:
            raise UserError(
                f"The tokenizer of {self.model!r} has no token that masks: choose a model that was pretrained with "
                "one, such as BERT, or the task language-modeling."
            )
        return int(self.tokenizer.mask_token_id)

    def _cut(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=self.length)["input_ids"]
