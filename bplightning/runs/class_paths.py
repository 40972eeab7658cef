"""Which classes a configuration may name: what came with a folder chooses no code, only what was typed does.

Without being typed, a configuration may name what is registered or part of a registered plugin's package, and classes
of this package, of Lightning, and of a few parts of torch. jsonargparse asks its list of allowed import paths before it
imports; the list is set for as long as a configuration is read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings  # which has no public way to restore settings

from bplightning.errors import UserError
from bplightning.plugins import UntrustedClassError, find_in_current_folder, registered_packages, trust

CONFIG_OPTIONS = ("-c", "--config")

TRUST = "--trust"
"""The option by which a user trusts classes that a configuration names."""

TRUST_HELP = (
    "Class paths, separated by commas, that configuration files may name, such as my_file.MyStrategy. Registered "
    "plugins, and classes of bplightning and Lightning, need none."
)

WITHOUT_ASKING = (
    *("bplightning", "lightning.pytorch", "lightning.fabric"),
    *("torch.distributed.fsdp", "torch.nn", "torch.optim", "torch.profiler"),
)
"""Packages whose classes any configuration may name."""

_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed, denied by")
_CLASS_PATH = re.compile(r"(?<![\w./\\-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?![\w./\\-])")


def without_trust(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments without the option `TRUST`, and the class paths that it gave, which are imported.

    Args:
        args: Arguments.

    Raises:
        UserError: It has no value, or a class cannot be imported.
    """
    others: list[str] = []
    trusted: list[str] = []
    remaining = list(reversed(args))
    while remaining:
        item = remaining.pop()
        option, equals, value = item.partition("=")
        if option != TRUST:
            others.append(item)
            continue
        if not equals and not remaining:
            raise UserError(f"{TRUST} has no value: give a class path, such as my_file.MyStrategy.")
        trusted += trust(value if equals else remaining.pop())
    return others, trusted


def typed_class_paths(args: Iterable[str]) -> set[str]:
    """What may be class paths among arguments; what files of configuration hold was not typed.

    Args:
        args: Arguments.

    >>> sorted(typed_class_paths(["--trainer.callbacks=[{class_path: mine.Stop}]", "a/b.jsonl", "--config", "c.yaml"]))
    ['mine.Stop']
    """
    found: set[str] = set()
    before = ""
    for word in args:
        if before not in CONFIG_OPTIONS and word.partition("=")[0] not in CONFIG_OPTIONS:
            found.update(path for path in _CLASS_PATH.findall(word) if not Path(path).exists())
        before = word
    return found


@contextmanager
def only_trusted(class_paths: Iterable[str] = ()) -> Iterator[None]:
    """Let what is parsed within name only trusted classes.

    Args:
        class_paths: Class paths to trust in addition, which somebody typed.

    Raises:
        UntrustedClassError: Another is named.
    """
    typed = set(class_paths)
    packages = {path.partition(".")[0] for path in typed} - sys.stdlib_module_names
    if any(Path(f"{package}.py").is_file() or Path(package).is_dir() for package in packages):
        find_in_current_folder()
    # A class may be defined elsewhere in the package than where it is named.
    allowed = {*WITHOUT_ASKING, *registered_packages(), *packages, *typed}
    try:
        # A verb's parser is called by the one above it, which looks at what it has parsed.
        with nullcontext() if _is_active() else _settings_restored():
            set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(allowed))
            yield
    except Exception as error:
        refused = _refused(error)
        if refused in (None, error):
            raise
        raise refused from error  # without the words of the parser around it


@contextmanager
def typed_alone() -> Iterator[None]:
    """Let objects be made of values that have a type, which is checked as they are parsed, and not of any others."""
    with _settings_restored():
        set_parsing_settings(instantiate_subclass_spec_in_any=False)
        yield


def allow(class_path: str) -> None:
    """Let what is parsed within `only_trusted` name a class.

    Args:
        class_path: Its class path, which `bplightning.plugins.load` has accepted.
    """
    if _is_active():
        set_parsing_settings(import_path_allowlist=[class_path])


def _refused(error: BaseException) -> UntrustedClassError | None:
    """The refusal of a class path that an error is of."""
    if isinstance(error, UntrustedClassError):
        return error
    if (denied := _DENIED.search(str(error))) is not None:
        return UntrustedClassError(denied[1])
    before = error.__cause__ or error.__context__
    return None if before is None else _refused(before)


def _is_active() -> bool:
    """Whether `only_trusted` holds."""
    return parsing_settings["import_path_verdicts"].get("*") is False


@contextmanager
def _settings_restored() -> Iterator[None]:
    before = dict(parsing_settings)
    try:
        yield
    finally:
        parsing_settings.clear()
        parsing_settings.update(before)
