"""Folders of sentence-transformers: reading what follows the encoder, and writing it next to a saved model.

A folder of that library is a transformers folder with ``modules.json``, which lists what a text goes through: the
encoder, ``1_Pooling``, and possibly a normalization.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any, TypeVar

from transformers import AutoConfig
from transformers.utils import cached_file

from bplightning.compaction.saved_models import read_part
from bplightning.errors import UserError
from bplightning.tasks.embedding.pooling import MODES, Pooling

MODULES, SETTINGS, TOKENS = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
POOLING = "1_Pooling"
OWN_NAMES = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
"""Modes as the library's older folders call them (``pooling_mode_...``), to ours."""
NEW_NAMES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""Modes as its newer folders call them, to ours."""
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
"""What makes a score of a cross-encoder's output, as the library writes it."""
KINDS = ("Transformer", "Pooling", "Normalize")
"""Modules that are understood, by the last part of their class path."""
Content = TypeVar("Content", dict[str, Any], list[Any])


def read_pooling(name: str) -> Pooling | None:
    """What follows the encoder in a folder of sentence-transformers; `None` for another folder.

    Args:
        name: Folder or Hugging Face hub name.

    Raises:
        UserError: It has modules that are not understood, or pools in another way than one of `MODES`.
    """
    modules = _read(name, MODULES, list)
    if not modules:
        return None
    modules = [module if isinstance(module, dict) else {} for module in modules]
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds[:2] != list(KINDS[:2]) or set(kinds[2:]) - {KINDS[2]}:
        raise UserError(
            f"the model {name!r} is made of {', '.join(kinds)} by its {MODULES}, and what can be pruned is "
            f"{', '.join(KINDS[:2])} and possibly {KINDS[2]}: choose another model."
        )
    settings = _read(name, SETTINGS, dict)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in (default, *prompts.values())):
        raise UserError(f"{SETTINGS!r} of the model {name!r} must have prompts by name, texts: mend the file.")
    path = modules[1].get("path", POOLING)
    if not isinstance(path, str) or path in ("", "..") or PurePath(path).name != path:
        raise UserError(f"{MODULES!r} of the model {name!r} has path {path!r}, and must name a folder in its own.")
    pooling = _read(name, f"{path}/config.json", dict)
    if prompts and pooling.get("include_prompt") is False:
        raise UserError(f"the model {name!r} does not pool its prompts, which is not supported: choose another model.")
    return Pooling(
        mode=_mode(pooling, name),
        normalized=KINDS[2] in kinds,
        dot=settings.get("similarity_fn_name") in ("dot", "dot_score"),
        query_prompt=prompts.get("query") or "",
        passage_prompt=prompts.get("document") or prompts.get("passage") or "",
        prompt=(prompts.get(default) or "") if default else "",
        from_folder=True,
        recorded=settings,
    )


def read_length(name: str) -> int | None:
    """Tokens of a text at most, as a folder of sentence-transformers says it; `None` where it does not."""
    length = _read(name, TOKENS, dict).get("max_seq_length")
    return length if type(length) is int and length > 0 else None


def read_activation(name: str) -> str:
    """What a cross-encoder's scores are made with: `SIGMOID`, if nothing is said, or `IDENTITY`.

    Args:
        name: Folder or Hugging Face hub name.

    Raises:
        UserError: It is something else.
    """
    config = read_part(AutoConfig, name, what="the model")
    own = getattr(config, "sentence_transformers", None)
    older = getattr(config, "sbert_ce_default_activation_function", None)
    newer = own.get("activation_fn") if isinstance(own, dict) else None
    said = newer or _read(name, SETTINGS, dict).get("activation_fn") or older or SIGMOID
    found = {each.rpartition(".")[2]: each for each in (SIGMOID, IDENTITY)}.get(str(said).rpartition(".")[2])
    if found is None:
        raise UserError(
            f"the model {name!r} makes its scores with {said!r}, and what is supported is {SIGMOID} or {IDENTITY}: "
            "choose another model."
        )
    return found


def write_folder(folder: Path, pooling: Pooling, *, length: int, dimensions: int) -> None:
    """Make a folder of sentence-transformers of a saved encoder.

    Args:
        folder: The model's folder.
        pooling: What follows the encoder.
        length: Tokens of a text at most.
        dimensions: Numbers of a vector.
    """
    kinds = KINDS if pooling.normalized else KINDS[:2]
    paths = ("", POOLING, "2_Normalize")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    prompts = {"query": pooling.query_prompt, "document": pooling.passage_prompt}
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "dot" if pooling.dot else "cosine",
        **pooling.recorded,
    }
    modes = {f"pooling_mode_{theirs}": pooling.mode == own for theirs, own in OWN_NAMES.items()}
    _write(folder / MODULES, modules)
    _write(folder / SETTINGS, settings)
    _write(folder / TOKENS, {"max_seq_length": length, "do_lower_case": False})
    for number, kind in enumerate(kinds[1:], 1):
        (folder / f"{number}_{kind}").mkdir(exist_ok=True)
    _write(folder / POOLING / "config.json", {"word_embedding_dimension": dimensions, **modes})


def dimensions(name: str) -> int:
    """Numbers of a vector that a saved encoder gives.

    Args:
        name: Folder or Hugging Face hub name.
    """
    config = read_part(AutoConfig, name, what="the model")
    return int(config.get_text_config().hidden_size)


def _mode(config: dict[str, Any], name: str) -> str:
    """How a ``1_Pooling`` folder says that it pools."""
    new = config.get("pooling_mode")
    given = [new] if isinstance(new, str) else [str(each) for each in new] if isinstance(new, list) else []
    if not given:
        given = [
            key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
        ]
    found = [{**OWN_NAMES, **NEW_NAMES}.get(mode) for mode in given or ["mean_tokens"]]
    if len(found) != 1 or found[0] is None:
        raise UserError(
            f"the model {name!r} pools by {' and '.join(given)}, and what is supported is one of {', '.join(MODES)}: "
            "choose another model."
        )
    return found[0]


def _read(name: str, file: str, kind: type[Content]) -> Content:
    """A JSON file of a model, which holds a dictionary or a list; an empty one where it has none.

    Raises:
        UserError: It is damaged, or holds something else.
    """
    path = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return kind()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file!r} of the model {name!r} is not valid JSON ({error}): save the model again.") from error
    if not isinstance(content, kind):
        raise UserError(
            f"{file!r} of the model {name!r} holds a {type(content).__name__}, and must hold a {kind.__name__}: save "
            "the model again."
        )
    return content


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
