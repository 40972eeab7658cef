"""Settings whose secrets were masked when a configuration was written: they are asked for again as it is read."""

from __future__ import annotations

import os
import re
from typing import Any

from jsonargparse import Namespace

from bplightning.errors import UserError
from bplightning.io.private import MASKED


def ask_again(settings: Namespace) -> None:
    """Put secrets from the environment in the place of masked ones.

    Args:
        settings: What was parsed, typed options included; changed in place.

    Raises:
        UserError: A secret is masked, and its variable is not set.
    """
    for name in list(vars(settings)):
        settings[name] = _known(settings[name], name, whole=name)


def variable_of(option: str) -> str:
    """The variable of the environment that stands for a masked option.

    >>> variable_of("trainer.logger.init_args.api_key")
    'BPLIGHTNING_API_KEY'
    """
    last = re.sub(r"\W", "_", option.rpartition(".")[2])
    return f"BPLIGHTNING_{re.sub(r'(?<=[a-z])(?=[A-Z])', '_', last).upper()}"


def _known(value: Any, name: str, *, whole: str) -> Any:
    if isinstance(value, Namespace):
        for key in list(vars(value)):
            value[key] = _known(value[key], key, whole=f"{whole}.{key}")
        return value
    if isinstance(value, dict):
        return {key: _known(each, str(key), whole=f"{whole}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_known(each, name, whole=whole) for each in value]
    if not isinstance(value, str) or MASKED not in value:
        return value
    variable = variable_of(name)
    if variable not in os.environ:
        option = whole.replace(".init_args.", ".")
        raise UserError(
            f"--{option} was masked when the configuration was written: type it again, as --{option} VALUE, or set the "
            f"variable {variable} of the environment."
        )
    return os.environ[variable]
