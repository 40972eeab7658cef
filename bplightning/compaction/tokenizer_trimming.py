"""Trimming a tokenizer so that it still reads a corpus exactly as the full one: finding and writing its tokens.

Fewer tokens can give the same pieces. The reason depends on the kind of model in ``tokenizer.json``:

- WordPiece takes the longest match each time. Where the full vocabulary's longest match is kept, it stays the longest.
  A word that becomes unknown must fail at the same place, so the pieces before that place are kept too.
- BPE applies the earliest merge that is possible. Where every merge that the corpus needs is kept, in the same
  order, no other merge can come before it.
- Unigram takes the best path. Where the pieces of that path are kept, any other path was worse already. The cost of an
  unknown character follows from the lowest score of all pieces, so that piece is kept too.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from bplightning.errors import UserError

BATCH = 256
"""Texts read at a time."""

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
"""Pieces of byte fallback, one for each byte of a character that has no piece."""


def read_document(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The contents of ``tokenizer.json``.

    Args:
        tokenizer: The full tokenizer.

    Raises:
        UserError: It is of a kind that cannot be trimmed; the message names it.
    """
    if not tokenizer.is_fast:
        raise _kind_error(f"{type(tokenizer).__name__} without a tokenizer.json")
    document: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = document["model"]
    if model["type"] not in _PATHS:
        raise _kind_error(model["type"])
    if model["type"] == "BPE":
        for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(name):
                raise _kind_error(f"BPE with {name} {model[name]!r}")
    return document


def make_encoder(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend that neither truncates nor pads; the tokenizer keeps its own settings."""
    backend = tokenizer.backend_tokenizer
    encoder = Tokenizer.from_str(backend.to_str())
    encoder.encode_special_tokens = backend.encode_special_tokens  # not part of the string
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def needed_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> set[int]:
    """Ids of all tokens a trimmed tokenizer must keep to read `texts` as `tokenizer` does.

    These are the tokens of the texts, the tokens that lead to them, and all special and added tokens. So that other
    text becomes smaller pieces rather than unknown, they also include the single characters in the texts' tokens (all
    of them where a character stands for a byte) and the byte-fallback pieces.

    Args:
        tokenizer: The full tokenizer.
        texts: The corpus.

    Raises:
        UserError: The tokenizer is of a kind that cannot be trimmed, or there is no text.
    """
    document, encoder = read_document(tokenizer), make_encoder(tokenizer)
    model = document["model"]
    vocabulary: dict[str, int] = encoder.get_vocab(with_added_tokens=True)
    tokens = {id_: token for token, id_ in vocabulary.items()}
    unknown_words: set[str] = set()
    used: set[int] = set()
    unknown = vocabulary.get(model.get("unk_token") or "")
    for batch in _batches(texts, "reading the corpus"):
        for text, encoding in zip(batch, encoder.encode_batch(batch, add_special_tokens=False), strict=True):
            used.update(encoding.ids)
            if model["type"] == "WordPiece" and unknown in encoding.ids:
                unknown_words.update(_unknown_words(encoder, text, encoding, unknown))
    if not used:
        raise UserError("the corpus holds no token: give a file with text that the model will read.")

    needed = used | {int(id_) for id_ in tokenizer.added_tokens_decoder} | set(tokenizer.all_special_ids)
    needed.update(id_ for name in _processor_tokens(document["post_processor"]) if (id_ := vocabulary.get(name)))
    needed.update(() if unknown is None else (unknown,))
    pieces = [tokens[id_] for id_ in used]
    needed.update(vocabulary[piece] for piece in _PATHS[model["type"]](model, pieces, unknown_words))
    characters = set("".join(pieces))
    if "ByteLevel" in json.dumps([document["pre_tokenizer"], document["normalizer"]]):
        characters.update(ByteLevel.alphabet())
    prefix = model.get("continuing_subword_prefix") or ""
    for token, id_ in vocabulary.items():
        if token.removeprefix(prefix) in characters or (model.get("byte_fallback") and BYTE_PIECE.fullmatch(token)):
            needed.add(id_)
    return needed


def trimmed_tokenizer(
    tokenizer: PreTrainedTokenizerBase, new_ids: Mapping[int, int], config: PreTrainedConfig
) -> PreTrainedTokenizerBase:
    """The tokenizer with only the tokens in `new_ids`, loaded as transformers loads a saved folder.

    Args:
        tokenizer: The full tokenizer, which stays unchanged.
        new_ids: Id in the full tokenizer to id in the trimmed one, in the same order.
        config: The configuration saved along with it, from which `AutoTokenizer` may choose the class.
    """
    document = _trimmed_document(read_document(tokenizer), new_ids)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        config.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def require_same_tokens(
    full: PreTrainedTokenizerBase, trimmed: PreTrainedTokenizerBase, new_ids: Mapping[int, int], texts: Iterable[str]
) -> int:
    """Refuse a trimmed tokenizer that reads a text differently from the full one, special tokens included.

    Args:
        full: The full tokenizer.
        trimmed: The trimmed one.
        new_ids: Id in the full tokenizer to id in the trimmed one.
        texts: The corpus.

    Returns:
        How many texts were compared.

    Raises:
        UserError: A token has another id than planned, or a text becomes different tokens; the message shows which.
    """
    expected = {token: new_ids[id_] for token, id_ in full.get_vocab().items() if id_ in new_ids}
    odd = dict(expected.items() ^ trimmed.get_vocab().items())
    if odd:
        raise _difference(f"gives the tokens {sorted(odd)[:8]} other ids than planned")
    full_encoder, trimmed_encoder = make_encoder(full), make_encoder(trimmed)
    compared = 0
    for batch in _batches(texts, "comparing the tokenizers"):
        inputs: list[str | tuple[str, str]] = [*batch, (batch[0], batch[-1])]
        encodings = zip(full_encoder.encode_batch(inputs), trimmed_encoder.encode_batch(inputs), strict=True)
        for text, (before, after) in zip(inputs, encodings, strict=True):
            if [new_ids.get(id_) for id_ in before.ids] != after.ids or before.type_ids != after.type_ids:
                raise _difference(
                    f"reads {str(text)[:80]!r} as {after.tokens[:12]}, the full one as {before.tokens[:12]}"
                )
        compared += len(batch)
    return compared


# -- tokens that lead to others ----------------------------------------------------------------------------------------


def _wordpiece_path(model: dict[str, Any], pieces: Sequence[str], unknown_words: Iterable[str]) -> set[str]:
    """The pieces before the place where a word becomes unknown; other pieces need only themselves."""
    vocabulary, prefix = model["vocab"], model["continuing_subword_prefix"]
    path = set()
    for word in unknown_words:
        start = 0
        while start < len(word):
            ends = range(len(word), start, -1)
            candidates = (((prefix if start else "") + word[start:end], end) for end in ends)
            found = next(((piece, end) for piece, end in candidates if piece in vocabulary), None)
            if found is None:
                break
            piece, start = found
            path.add(piece)
    return path


def _bpe_path(model: dict[str, Any], pieces: Iterable[str], unknown_words: Iterable[str]) -> set[str]:
    """Every part on the way from single characters to `pieces`.

    Within a piece no merge depends on its surroundings: if a merge across its border came first, the piece would not
    exist. So each piece is merged alone.
    """
    ranks = {_pair(merge): rank for rank, merge in enumerate(model["merges"])}
    path: set[str] = set()
    for piece in pieces:
        parts, seen = list(piece), set(piece)
        while len(parts) > 1:
            rank, i = min((ranks.get((parts[i], parts[i + 1]), len(ranks)), i) for i in range(len(parts) - 1))
            if rank == len(ranks):
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            seen.add(parts[i])
        if len(parts) == 1:  # not so for added tokens, bytes of a fallback and words taken whole
            path |= seen
    return path & model["vocab"].keys()


def _unigram_path(model: dict[str, Any], pieces: Iterable[str], unknown_words: Iterable[str]) -> set[str]:
    """The piece that sets the cost of an unknown character, and the piece for one."""
    if model["unk_id"] is None:  # then an unknown character is an error, not a token
        return set()
    lowest = min(model["vocab"], key=lambda entry: entry[1])
    return {lowest[0], model["vocab"][model["unk_id"]][0]}


_PATHS: dict[str, Callable[[dict[str, Any], Sequence[str], Iterable[str]], set[str]]] = {
    "WordPiece": _wordpiece_path,
    "BPE": _bpe_path,
    "Unigram": _unigram_path,
}


def _unknown_words(encoder: Tokenizer, text: str, encoding: Encoding, unknown: int | None) -> Iterator[str]:
    for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if id_ == unknown:
            word = text[start:end]
            yield encoder.normalizer.normalize_str(word) if encoder.normalizer else word


# -- the document ------------------------------------------------------------------------------------------------------


def _trimmed_document(document: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    model = document["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for id_, entry in enumerate(model["vocab"]) if id_ in new_ids]
        model["unk_id"] = None if model["unk_id"] is None else new_ids[model["unk_id"]]
    else:
        model["vocab"] = {token: new_ids[id_] for token, id_ in model["vocab"].items() if id_ in new_ids}
    if model["type"] == "BPE":
        kept = model["vocab"]
        pairs = [(merge, *_pair(merge)) for merge in model["merges"]]
        model["merges"] = [merge for merge, a, b in pairs if a in kept and b in kept and a + b in kept]
    for token in document["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if document["padding"]:
        document["padding"]["pad_id"] = new_ids[document["padding"]["pad_id"]]
    for processor in _processors(document["post_processor"]):
        for name in ("cls", "sep"):  # BertProcessing, RobertaProcessing
            if name in processor:
                processor[name][1] = new_ids[processor[name][1]]
        for special in processor.get("special_tokens", {}).values():  # TemplateProcessing
            special["ids"] = [new_ids[id_] for id_ in special["ids"]]
    return document


def _processors(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if processor is not None:
        yield processor
        for part in processor.get("processors", ()):
            yield from _processors(part)


def _processor_tokens(processor: dict[str, Any] | None) -> Iterator[str]:
    """The tokens that a post-processor puts around a text; they need not be among the added ones."""
    for part in _processors(processor):
        yield from (part[name][0] for name in ("cls", "sep") if name in part)
        for special in part.get("special_tokens", {}).values():
            yield from special["tokens"]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _batches(texts: Iterable[str], description: str) -> Iterator[list[str]]:
    remaining = iter(texts)
    batches = iter(lambda: list(islice(remaining, BATCH)), [])
    yield from track(batches, description=description, console=Console(stderr=True), transient=True)


def _kind_error(kind: str) -> UserError:
    return UserError(
        f"the tokenizer's kind is {kind}: only WordPiece, BPE without prefix, suffix and dropout, and Unigram can be "
        "trimmed. Leave --vocabulary out."
    )


def _difference(what: str) -> UserError:
    return UserError(f"the trimmed tokenizer {what}, so it is not used: leave --vocabulary out, and report this.")
