"""When and with which versions a file was made."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import import_module, metadata


def own_version() -> str:
    """The version of the code that runs; what pip recorded can be older, in an editable installation."""
    return str(import_module("bplightning").__version__)


def versions() -> dict[str, str]:
    """Versions of what repeats a run: python, torch, transformers, lightning, bplightning."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "lightning"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout on the path that was never installed
            found[package] = "not installed"
    return {**found, "bplightning": own_version()}


def now() -> str:
    """The time in UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
