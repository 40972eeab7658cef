"""A folder of sentence-transformers may come from anywhere: what it cannot say is one line of error."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_folders import MODELS

from bplightning.errors import UserError
from bplightning.tasks.embedding.folder import (
    MODULES,
    SETTINGS,
    TOKENS,
    dimensions,
    read_activation,
    read_length,
    read_pooling,
)

STEPS: list[dict[str, Any]] = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
]
POOLED = "1_Pooling/config.json"
FORGED = [
    (MODULES, {"a": 1}, "holds a dict, and must hold a list"),
    (MODULES, ["a", "b"], "is made of "),
    *((MODULES, [STEPS[0], STEPS[1] | {"path": path}], "must name a folder") for path in ("/etc", "../x", "..", "", 3)),
    (SETTINGS, ["x"], "holds a list, and must hold a dict"),
    (SETTINGS, {"prompts": ["x"]}, "must have prompts by name"),
    (SETTINGS, {"prompts": {"query": 3}}, "must have prompts by name"),
    (SETTINGS, {"prompts": {"a": "b"}, "default_prompt_name": ["a"]}, "must have prompts by name"),
    (POOLED, ["x"], "holds a list, and must hold a dict"),
    (POOLED, {"pooling_mode": [{"a": 1}]}, "pools by"),
    (TOKENS, ["x"], "holds a list, and must hold a dict"),
]


def folder_of(path: Path) -> Path:
    (path / "1_Pooling").mkdir()
    for file, content in ((MODULES, STEPS), (SETTINGS, {}), (TOKENS, {}), (POOLED, {"pooling_mode_cls_token": True})):
        (path / file).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("file", "content", "message"), FORGED)
def test_forged_files_are_refused(file: str, content: Any, message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    pooling = read_pooling(str(folder))
    assert pooling is not None
    assert pooling.mode == "cls"
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_length(str(folder)) if file == TOKENS else read_pooling(str(folder))


@pytest.mark.parametrize("length", [-1, 0, True, "8"])
def test_a_length_that_is_none_is_left_out(length: Any, tmp_path: Path) -> None:
    (folder_of(tmp_path) / TOKENS).write_text(json.dumps({"max_seq_length": length}))
    assert read_length(str(tmp_path)) is None


def test_a_deep_file_is_refused(tmp_path: Path) -> None:
    (folder_of(tmp_path) / SETTINGS).write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not valid JSON"):
        read_pooling(str(tmp_path))


@pytest.mark.parametrize("read", [read_activation, dimensions])
def test_code_of_its_own_is_not_asked_about(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    MODELS["code of its own"](tmp_path)
    with pytest.raises(UserError, match=r"asks for code of its own \(auto_map"):
        read(str(tmp_path))
    assert sys.stdin.read(1) == "y"


@pytest.mark.parametrize("said", [{"activation_fn": 3}, {"activation_fn": "hostile_code.Anything"}])
def test_other_activations_are_refused(said: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "sentence_transformers": said}))
    with pytest.raises(UserError, match="makes its scores with"):
        read_activation(str(tmp_path))
