"""The folder of a run: its files by name, the model that it stands for, and its configuration as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bplightning.errors import UserError


def find_model(model: str | Path) -> Path:
    """The folder or the checkpoint file that `model` stands for.

    Args:
        model: A model's folder, dense or compact; a run's folder, which stands for its ``compact/``, or else for its
            newest checkpoint; or a checkpoint file in a run's folder.

    Returns:
        A model's folder, a run's folder without a compact model, or a checkpoint file.

    Raises:
        UserError: It is none of these.
    """
    path = Path(model)
    if (path / "config.json").is_file() or (path.is_file() and (run_of(path) / "config.yaml").is_file()):
        return path
    if (path / "compact" / "config.json").is_file():
        return path / "compact"
    if (path / "config.yaml").is_file():
        return path
    found = "is there, but is none of these" if path.exists() else "is not there"
    raise UserError(
        f"the model {str(path)!r} {found}: give a model's folder (with config.json), a run's folder such as "
        "runs/qa-hybrid/version_0, or a file in its checkpoints/."
    )


def run_of(checkpoint: Path) -> Path:
    """Folder of the run that a checkpoint file belongs to."""
    return checkpoint.absolute().parent.parent


@contextmanager
def settings_of(run: Path) -> Iterator[dict[str, Any]]:
    """What a run's ``config.yaml`` says, to be read in a ``with``: what has no place in it there is the user's to mend.

    Args:
        run: The run's folder, with ``config.yaml``.

    Raises:
        UserError: The folder has no configuration, or it is damaged, or of another version.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"{str(run)!r} has no config.yaml: give the folder of a run, such as runs/qa-hybrid/version_0.")
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise unreadable(config, error) from error
    try:
        yield content
    except (AttributeError, LookupError, TypeError) as error:
        raise unreadable(config, error) from error


def unreadable(config: Path, error: Exception) -> UserError:
    """The error of a configuration that cannot be read."""
    return UserError(
        f"{str(config)!r} cannot be read ({' '.join(str(error).split())}): it is damaged, or of a version that knows "
        "other options; rename or remove those."
    )


def baseline_of(run: Path) -> Path | None:
    """Folder of the dense model that a run compares with, where there is one."""
    with settings_of(run) as settings:
        named = Path(settings.get("baseline") or "none")
    for folder in (run / "baseline" / "model", named):
        if (folder / "config.json").is_file():
            return folder
    return None
