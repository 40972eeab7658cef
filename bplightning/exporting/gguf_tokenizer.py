"""The tokenizer of a model in a GGUF file: tokens, merges, special tokens, and how text is split before merging."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bplightning.compaction.saved_models import read_part
from bplightning.errors import UserError

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SPLITS: dict[tuple[Any, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LLAMA3, "ByteLevel"): "llama-bpe",
    (QWEN2, "ByteLevel"): "qwen2",
}
"""How text is split before it is merged, as tokenizer.json has it, to llama.cpp's name for that."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens in GGUF."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        tokens: Each token's text, one for each row of the embeddings.
        kinds: Each token's kind.
        merges: Pairs of tokens in the order in which they are merged, separated by a space.
        split: llama.cpp's name for how text is split.
        special: Name in GGUF (``bos``, ``eos``, ``pad``, ``unk``) to the id.
        starts: Whether a text begins with the token for that.
        chat_template: The template, or `None`.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    split: str
    special: dict[str, int] = field(default_factory=dict)
    starts: bool = False
    chat_template: str | None = None


def vocabulary_of(folder: Path, rows: int) -> Vocabulary | None:
    """The tokens of a model's folder; `None` where it has no tokenizer.

    Args:
        folder: The folder.
        rows: Rows of the model's embeddings; tokens that are missing are unused ones.

    Raises:
        UserError: llama.cpp has another kind of tokenizer under that name, or none.
    """
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = read_part(AutoTokenizer, folder, what="the tokenizer")
    split = require_known(tokenizer, repr(str(folder)))
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer of {str(folder)!r} has {len(tokenizer)} tokens, and the model embeddings for {rows}: "
            "resize the model's embeddings (resize_token_embeddings), or take the tokenizer that it was trained with."
        )
    tokens, kinds = [f"[PAD{index}]" for index in range(rows)], [UNUSED] * rows
    for token, index in document["model"]["vocab"].items():
        tokens[index], kinds[index] = token, NORMAL
    for added in document["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [each if isinstance(each, str) else " ".join(each) for each in document["model"]["merges"]]
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    special = {name: index for name, index in special.items() if index is not None}
    starts = "bos" in special and tokenizer("a")["input_ids"][:1] == [special["bos"]]
    return Vocabulary(tokens, kinds, merges, split, special, starts, getattr(tokenizer, "chat_template", None))


def require_known(tokenizer: Any, owner: str) -> str:
    """llama.cpp's name for how a tokenizer splits text.

    Args:
        tokenizer: The tokenizer.
        owner: Whose it is, for the message.

    Raises:
        UserError: llama.cpp has another kind of tokenizer under that name, or none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    document: dict[str, Any] = {"model": {}} if backend is None else json.loads(backend.to_str())
    before: dict[str, Any] = document.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    found = tuple(step.get("pattern", {}).get("Regex") or step.get("type") for step in steps)
    spaced = any(step.get("type") == "ByteLevel" and step.get("add_prefix_space") for step in steps)
    named = document["model"].get("type") == "BPE" and not document["model"].get("byte_fallback") and found in SPLITS
    if not named or spaced:
        raise UserError(
            f"the tokenizer of {owner} splits text by {[str(each)[:40] for each in found]}"
            f"{' and puts a space first (add_prefix_space)' if spaced else ''}, for which no name of llama.cpp is "
            f"known here: byte-level BPE as of {', '.join(SPLITS.values())} fits. Convert a portable checkpoint "
            "(compact --portable) with llama.cpp's own script."
        )
    return SPLITS[found]


def add_vocabulary(writer: Any, vocabulary: Vocabulary | None) -> None:
    """Write the tokens.

    Args:
        writer: A `gguf.GGUFWriter`.
        vocabulary: The tokens, or `None`.
    """
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    for name, index in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.starts)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
