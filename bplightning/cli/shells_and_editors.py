"""The verbs `completion` and `schema`: what a shell and an editor read to complete commands and configurations."""

from __future__ import annotations

import json
import sys
from typing import Literal


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print the script with which a shell completes verbs, options and the names of tasks and strategies.

    Args:
        shell: Which shell. For bash, `bplightning completion bash >
            ~/.local/share/bash-completion/completions/bplightning`.
    """
    from bplightning.cli.completion import completion_script  # takes seconds to import

    sys.stdout.write(completion_script(shell) + "\n")


def schema() -> None:
    """Print the JSON schema of configuration files of `fit`, with which an editor completes and checks them."""
    from bplightning.cli.completion import config_schema  # takes seconds to import

    sys.stdout.write(json.dumps(config_schema(), indent=1) + "\n")
