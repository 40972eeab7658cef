"""The base of tasks whose model is an encoder with pooling, as folders of sentence-transformers hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from bplightning.errors import UserError
from bplightning.tasks.embedding.examples import require_text
from bplightning.tasks.embedding.folder import dimensions, read_length, read_pooling, write_folder
from bplightning.tasks.embedding.pooling import Mode, Pooling
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL
from bplightning.tasks.shared.text_task import Columns, TextTask
from bplightning.tasks.shared.tokenized_task import TextData


class EncoderData(TextData, total=False):
    """All arguments of `EncoderTask` but the model."""

    pooling: Mode | None
    normalize: bool | None


class EncoderTask(TextTask):
    """A task whose model gives a vector of each text; a subclass says how that is learned and measured.

    Args:
        pooling: How tokens become one vector: mean, cls (the first token) or last. Default: as the model's folder says,
            else mean.
        normalize: Whether vectors have length 1. Default: as the model's folder says, else true.

    Raises:
        UserError: The model's folder says otherwise than `pooling` or `normalize`, or as `TextTask`.
    """

    auto: ClassVar[Any] = AutoModel
    head: ClassVar[str] = "encoder"
    label_names: ClassVar[Sequence[str]] = ()
    embedded_model: ClassVar[Path] = EMBEDDED_MODEL
    inputs: ClassVar[Mapping[str, bool]] = {"text": False}

    def __init__(
        self,
        model: str | None = None,
        *,
        pooling: Mode | None = None,
        normalize: bool | None = None,
        **data: Unpack[TextData],
    ) -> None:
        super().__init__(model, **data)
        self.chosen_pooling, self.chosen_normalize = pooling, normalize
        self._texts: list[str] = []

    @classmethod
    def supports(cls, config: PreTrainedConfig) -> bool:
        """Not encoder-decoders, whose last hidden states are of the decoder, nor models of images."""
        text = hasattr(config.get_text_config(), "vocab_size")  # AutoModel reads images too
        return super().supports(config) and text and not config.is_encoder_decoder

    # -- model ---------------------------------------------------------------------------------------------------------

    @cached_property
    def pooling(self) -> Pooling:
        """What follows the encoder."""
        found = read_pooling(self.model)
        given = {"mode": self.chosen_pooling, "normalized": self.chosen_normalize}
        given = {name: value for name, value in given.items() if value is not None}
        if found is None:
            return Pooling(**given)  # type: ignore[arg-type]
        for name, option in (("mode", "pooling"), ("normalized", "normalize")):
            if name in given and given[name] != getattr(found, name):
                raise UserError(
                    f"{option} is {given[name]!r}, but the model {self.model!r} was made for {getattr(found, name)!r}, "
                    f"as its folder says: leave --task.{option} out."
                )
        return found

    @cached_property
    def length(self) -> int:
        """Tokens of a text."""
        own = read_length(self.model)
        if own is None and self.pooling.from_folder:  # newer folders have it with the tokenizer
            own = self.tokenizer.model_max_length
        return self.pretrained.length(self.max_length or (own and min(own, self.pretrained.positions or own)))

    @cached_property
    def dimensions(self) -> int:
        """Numbers of a vector."""
        return dimensions(self.model)

    def build_model(self) -> PreTrainedModel:
        """The encoder, in float32."""
        if self.pretrained.config.is_encoder_decoder:
            raise UserError(f"The model {self.model!r} is an encoder-decoder: choose an encoder, such as BERT.")
        self.pooling  # noqa: B018  options that do not fit the folder are refused here
        return _without_pooler(super().build_model())

    def load_model(self, folder: str | Path) -> PreTrainedModel:
        """The encoder of a saved folder, in the precision it was saved in."""
        return _without_pooler(super().load_model(folder))

    def write_files(self, folder: Path) -> None:
        """What makes it a folder of sentence-transformers."""
        there = (folder / "config.json").is_file()
        size = dimensions(str(folder)) if there else self.dimensions
        write_folder(folder, self.pooling, length=self.length, dimensions=size)

    def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """The vectors of all texts, ``(B, D)``."""
        return self.pooling(outputs.last_hidden_state.float(), batch["attention_mask"])

    # -- prediction ----------------------------------------------------------------------------------------------------

    def sample_records(self, count: int) -> list[dict[str, Any]]:
        """None: nobody reads vectors in a report."""
        return []

    def encode_inputs(self, examples: Columns) -> Columns:
        """Tokens of each text with the model's prompt."""
        return self.encode({"text": [self.pooling.prompt + text for text in examples["text"]]})

    def read_inputs(self, records: Sequence[dict[str, Any]], places: Sequence[str]) -> None:
        """Take records with a text."""
        super().read_inputs(records, places)
        self._texts = [self.wanted.own_record(record)["text"] for record in records]

    def check_input(self, name: str, value: Any, *, place: str) -> None:
        """A text that is not empty."""
        super().check_input(name, value, place=place)
        require_text(name, value, place=place)

    def predict_batch(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The texts' numbers and vectors."""
        return {"index": batch["index"], "vectors": self.logits(model(**self.model_inputs(batch)), batch)}

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """``text`` and its ``embedding``, which another model can learn from."""
        pairs = zip(batch["index"].tolist(), batch["vectors"].tolist(), strict=True)
        return [{"text": self._texts[index], "embedding": vector} for index, vector in pairs]


def _without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, in which BERT's last layer, from which no vector comes, neither learns nor has to be there."""
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad_(False)
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' mark of weights it read
    return model
