"""The options of a run, as its ``config.yaml`` has them, by the names that one would type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bplightning.io.bounds import read_yaml
from bplightning.io.private import without_secrets
from bplightning.io.run_folder import CONFIG_FILE

OF_ONE_RUN = (
    *("seed_everything", "resume", "ckpt_path", "weights_only", "config"),
    *("trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
)
"""Options that may differ between runs of one configuration: they repeat it, or show it in another way."""


def read_options(run: Path) -> dict[str, str]:
    """The options of a run, its secrets masked; none where it has no configuration, or one that cannot be read.

    Args:
        run: The run's folder.
    """
    try:
        document = read_yaml((run / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return dict(_flat(without_secrets(document), "")) if isinstance(document, dict) else {}


def of_configuration(options: Mapping[str, str]) -> dict[str, str]:
    """The options without those of `OF_ONE_RUN`.

    Args:
        options: As `read_options` gives them.

    >>> of_configuration({"seed_everything": "1", "strategy": "hybrid"})
    {'strategy': 'hybrid'}
    """
    return {
        name: value
        for name, value in options.items()
        if not any(name == own or name.startswith(f"{own}.") for own in OF_ONE_RUN)
    }


def as_text(value: Any) -> str:
    """A value of an option, or of an answer, for a reader.

    >>> as_text({"label": "good", "score": 0.5}), as_text(None), as_text([1, 2])
    ('label: good; score: 0.5', 'none', '[1, 2]')
    """
    if isinstance(value, Mapping) and value:
        return "; ".join(f"{key}: {as_text(each)}" for key, each in value.items())
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Options as one would type them: no ``class_path`` and ``init_args`` in between."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            inner = key in ("class_path", "init_args")
            yield from _flat(each, name if inner and name else f"{name}.{key}".lstrip("."))
    else:
        yield name, as_text(value)
