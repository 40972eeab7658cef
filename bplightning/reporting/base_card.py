"""What is known of the model that a run started from: its name on the Hub and its license, by its own card."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, try_to_load_from_cache

CARD_FILE = "README.md"
"""The card's file name, required by the Hub."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
LICENSE = re.compile(r"[\w.+-]+", re.ASCII)


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        name: Its name on the Hub; `None` where no card says it: the name of a local folder means nothing to others.
        license: As its card or its configuration says; `None` where neither does.
    """

    name: str | None = None
    license: str | None = None


def base_of(model: str) -> Base:
    """The base model, without the network: from its folder, or from what of the Hub is on this machine.

    Args:
        model: A folder, or a name on the Hub.
    """
    folder = Path(model)
    if folder.is_dir():
        card, config = _card(folder / CARD_FILE), _json(folder / "config.json")
        base = card.get("base_model")
        base = base[0] if isinstance(base, list) and base else base
        return Base(_fit(base, HUB_NAME), _fit(card.get("license") or config.get("license"), LICENSE))
    if not HUB_NAME.fullmatch(model):
        return Base()
    found = {name: try_to_load_from_cache(model, name) for name in (CARD_FILE, "config.json")}
    files = {name: Path(path) for name, path in found.items() if isinstance(path, str)}
    card = _card(files[CARD_FILE]) if CARD_FILE in files else {}
    config = _json(files["config.json"]) if "config.json" in files else {}
    return Base(model, _fit(card.get("license") or config.get("license"), LICENSE))


def _fit(value: object, form: re.Pattern[str]) -> str | None:
    """A value from a stranger's file, if it is what it should be."""
    return value if isinstance(value, str) and len(value) <= 100 and form.fullmatch(value) else None


def _card(file: Path) -> dict[str, object]:
    """The metadata of a card; empty where there is none that can be read."""
    try:
        return dict(ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict())
    except Exception:  # any error: a stranger's file, and the card can do without
        return {}


def _json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
