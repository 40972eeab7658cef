"""A model with a smaller vocabulary: only the tokens that a corpus uses, and a tokenizer that matches.

Legend: `V` tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bplightning.compaction import configured_ids
from bplightning.compaction.equivalence import require_equal
from bplightning.compaction.tokenizer_trimming import make_encoder, needed_ids, require_same_tokens, trimmed_tokenizer
from bplightning.errors import UserError
from bplightning.io.bounds import require_bounded
from bplightning.io.records import DELIMITERS, Table, is_table, read_lines

SAMPLES = 4
"""Number of texts on which the two models are compared."""


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A model and a tokenizer that have only the tokens of a corpus.

    Attributes:
        model: The smaller model.
        tokenizer: The tokenizer that matches.
        kept: Ids that were kept, in the numbering of the full tokenizer, ascending; the new id is the index here.
        total: Number of tokens in the full model's embeddings.
        texts: Number of texts on which both tokenizers were compared.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kept: tuple[int, ...]
    total: int
    texts: int


@dataclass(frozen=True)
class Corpus:
    """The texts of a file, read again at each iteration, and never held in memory all together.

    These are lines of ``.txt``, the cells of ``.csv`` and ``.tsv`` as `Table` has them, and all strings, without keys,
    in each line of ``.jsonl``, in ``.json`` (which is read whole, and may hold JSON lines too), and in each row of
    ``.parquet``; in the encodings of `read_lines`.

    Attributes:
        path: The file.

    Raises:
        UserError: The file is missing, of another format, cannot be read or decoded, or has no text.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise UserError(f"corpus {str(self.path)!r} is no file (looked in {Path.cwd()}): give the path of a file.")
        formats = [".txt", ".jsonl", ".json", *DELIMITERS, ".parquet"]
        if self.path.suffix.lower() not in formats:
            raise UserError(f"corpus {str(self.path)!r} must be one of {', '.join(formats)}: convert or rename it.")
        require_bounded(self.path)

    def __iter__(self) -> Iterator[str]:
        empty, place = True, "its start"
        try:
            for place, value in self._values():  # noqa: B007 - used by the handler below
                for text in _strings(value):
                    text.encode()  # JSON can escape half a character, which no tokenizer takes
                    if text.strip():
                        empty = False
                        yield text
        except UserError:  # it says the line
            raise
        except (ValueError, OSError, RecursionError, datasets.exceptions.DatasetsError) as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise UserError(
                f"corpus {str(self.path)!r} cannot be read after {place} ({reason}): correct the file."
            ) from error
        if empty:
            raise UserError(f"corpus {str(self.path)!r} holds no text: give a file with text that the model will read.")

    def _values(self) -> Iterator[tuple[str, Any]]:
        """The place of each value, and the value: a string, or any JSON value."""
        ending = self.path.suffix.lower()
        if ending == ".parquet":
            rows = datasets.load_dataset("parquet", data_files=str(self.path), split="train", streaming=True)
            yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
        elif is_table(str(self.path)):
            yield from Table(str(self.path))
        elif ending == ".json" and (whole := self._whole()) is not None:
            yield "its end", whole
        else:
            for number, line in enumerate(read_lines(str(self.path)), 1):
                if line.strip():
                    is_text = ending == ".txt"
                    yield f"line {number}", line.rstrip("\r\n") if is_text else json.loads(line)

    def _whole(self) -> Any:
        """What a JSON file holds; `None` where it holds JSON lines."""
        text = "".join(read_lines(str(self.path)))
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
            return None


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> TrimmedVocabulary:
    """Keep only the tokens that a corpus uses, the special ones, and those that the tokenizer needs to reach them.

    On every text of the corpus the new tokenizer gives the same tokens, renumbered, and the new model the same result,
    since its embeddings and its language-modelling head are only sliced. Both are checked. On other text they use
    smaller pieces or the unknown token.

    Args:
        model: A model with token embeddings, dense or compact, which stays unchanged.
        tokenizer: Its tokenizer, which stays unchanged.
        texts: The corpus, iterated over more than once: a list or a `Corpus`.

    Raises:
        UserError: The tokenizer or model is of a kind that cannot be trimmed, the two do not belong together, there is
            no text, or the result differs.
    """
    if iter(texts) is texts:
        raise UserError("the corpus is an iterator, which ends after one pass: give a list of texts, or a Corpus.")
    config: Any = model.config
    total = getattr(config, "vocab_size", None)
    if total is None:
        raise UserError(f"a {config.model_type!r} model has no single vocabulary to trim: leave --vocabulary out.")
    needed = needed_ids(tokenizer, texts)
    if max(needed) >= total:
        raise UserError(
            f"the tokenizer has the id {max(needed)}, but the model has {total} embeddings: give the tokenizer that "
            "belongs to it, or call model.resize_token_embeddings(len(tokenizer)) first."
        )
    kept = tuple(sorted(needed | _model_ids(model)))
    new_ids = {old: new for new, old in enumerate(kept)}
    smaller = _sliced(model, kept, new_ids)
    trimmed = trimmed_tokenizer(tokenizer, new_ids, smaller.config)
    compared = require_same_tokens(tokenizer, trimmed, new_ids, texts)
    renumbered = _Renumbered(model, torch.tensor(kept, device=model.device))
    require_equal(renumbered, smaller, _sample(smaller, trimmed, texts), what="the model with the smaller vocabulary")
    return TrimmedVocabulary(smaller, trimmed, kept, total, compared)


# -- the model ---------------------------------------------------------------------------------------------------------


def _sliced(model: PreTrainedModel, kept: tuple[int, ...], new_ids: Mapping[int, int]) -> PreTrainedModel:
    """A copy of `model` with only the rows `kept` of every tensor with one row per token."""
    smaller = copy.deepcopy(model)
    total, padding = model.config.vocab_size, model.config.pad_token_id
    for config in _configs(smaller):
        for name, value in configured_ids.renumbered(vars(config), new_ids).items():
            setattr(config, name, value)
        if getattr(config, "vocab_size", None) == total:
            config.vocab_size = len(kept)
    rows = torch.tensor(kept, device=model.device)
    # Tied tensors stay tied; holding the old tensor keeps its id unique.
    sliced: dict[int, tuple[Tensor, Tensor]] = {}
    for name, dim in _vocabulary_dims(model, smaller.config).items():
        owner, _, attribute = name.rpartition(".")
        module = smaller.get_submodule(owner)
        tensor = getattr(module, attribute)
        if id(tensor) not in sliced:
            part = tensor.detach().index_select(dim, rows.to(tensor.device))
            is_parameter = isinstance(tensor, nn.Parameter)
            sliced[id(tensor)] = tensor, nn.Parameter(part, tensor.requires_grad) if is_parameter else part
        setattr(module, attribute, sliced[id(tensor)][1])
        if isinstance(module, nn.Embedding):
            module.num_embeddings = len(kept)
            if module.padding_idx is not None and module.padding_idx != padding:
                module.padding_idx = new_ids.get(module.padding_idx)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    for module in smaller.modules():  # modules copy these from the configuration
        if getattr(module, "vocab_size", None) == total:
            module.vocab_size = len(kept)  # type: ignore[assignment]
        if padding is not None and getattr(module, "padding_idx", None) == padding:
            module.padding_idx = new_ids[padding]  # type: ignore[assignment]
    return smaller


def _vocabulary_dims(model: PreTrainedModel, config: Any) -> dict[str, int]:
    """The parameters and buffers with a dimension `V`, and that dimension, found by building both sizes without memory.

    So neither names nor coincidences of sizes decide: it finds embeddings, heads, their biases, and anything else.
    """
    with torch.device("meta"):
        full, smaller = (_shapes(type(model)(copy.deepcopy(c))) for c in (model.config, config))
    dims = {name: [d for d, size in enumerate(full[name]) if smaller[name][d] != size] for name in full}
    return {name: found[0] for name, found in dims.items() if found}


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.shape for name, tensor in named}


def _model_ids(model: PreTrainedModel) -> set[int]:
    """Ids that the model itself needs: those in its configuration, and those that must not move."""
    total = model.config.vocab_size
    ids = {id_ for config in _configs(model) for id_ in configured_ids.needed_ids(vars(config))}
    padding = model.config.pad_token_id
    # RoBERTa and its relatives count positions from the padding's id, so it must stay.
    if any("position" in name and getattr(m, "padding_idx", None) is not None for name, m in model.named_modules()):
        ids.update(range(padding))
    return {id_ for id_ in ids if 0 <= id_ < total}


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every configuration object of a model, including that for generation, each once."""
    found = [getattr(module, name, None) for module in model.modules() for name in ("config", "generation_config")]
    return list({id(config): config for config in found if config is not None}.values())


class _Renumbered(nn.Module):
    """The full model with inputs and logits in the ids of the smaller vocabulary."""

    def __init__(self, model: PreTrainedModel, kept_V: Tensor) -> None:
        super().__init__()
        self.model, self.config, self.kept_V = model, model.config, kept_V
        self.training = model.training  # the mode that a comparison restores

    def forward(self, **inputs: Tensor) -> dict[str, Any]:
        outputs = self.model(**{k: self.kept_V[v] if k.endswith("input_ids") else v for k, v in inputs.items()})
        heads = [k for k in ("logits", "prediction_logits") if k in outputs]
        is_lm = {k for k in heads if outputs[k].shape[-1] == self.config.vocab_size}
        return {k: v[..., self.kept_V] if k in is_lm else v for k, v in outputs.items()}


def _sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, Tensor]:
    """A few short texts of the corpus as inputs of the smaller model."""
    config: Any = model.config
    encoder = make_encoder(tokenizer)
    encoder.enable_truncation(max(4, min(32, (getattr(config, "max_position_embeddings", None) or 64) // 2)))
    if tokenizer.pad_token_id is not None:
        encoder.enable_padding(pad_id=tokenizer.pad_token_id, direction=tokenizer.padding_side)
    batch = [e for e in encoder.encode_batch(list(islice(texts, SAMPLES))) if e.ids]
    batch = batch if tokenizer.pad_token_id is not None else batch[:1]
    inputs = {"input_ids": [e.ids for e in batch], "attention_mask": [e.attention_mask for e in batch]}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return {name: torch.tensor(rows, device=model.device) for name, rows in inputs.items()}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
