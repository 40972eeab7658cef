"""The verbs of the command line: where each one lives, and its line in ``bplightning --help``.

To add a verb, write a function with typed arguments and a docstring in a module of this package, and add its line
here: its options and their help follow from its signature. No verb is imported before it is named, and a module of a
verb imports what takes long (torch, transformers, Lightning) inside its function, so that help is quick.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser

from bplightning.io.parser_errors import OneLine


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        home: ``"module:function"``, imported when the verb is named.
        line: What the list of verbs says about it.
        parses: Whether the function takes the words that follow the verb, as a list, and parses them itself.
    """

    home: str
    line: str
    parses: bool = False

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.home.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


TRAINING_VERBS = {
    "fit": "Fine-tune and prune, then compact, evaluate and report. Without a model or data: a small example.",
    "validate": "Evaluate on the validation set, usually with --config and --ckpt_path of a run.",
    "test": "Evaluate on the test set.",
}
"""Lightning's verbs. They share one parser, and a configuration file may come before the verb."""

VERBS = {
    **{name: Verb("bplightning.cli.training:run_training", line, parses=True) for name, line in TRAINING_VERBS.items()},
    "prune": Verb(
        "bplightning.cli.prune:run_prune",
        "Prune a fine-tuned model without training, then compact, evaluate and report.",
        parses=True,
    ),
    "plan": Verb(
        "bplightning.cli.plan:run_plan",
        "Show what would be pruned with this task, model and strategy, without training.",
        parses=True,
    ),
    "compare": Verb(
        "bplightning.cli.compare:run_compare",
        "Compare finished runs, or make them first: score against latency and size.",
        parses=True,
    ),
    "compact": Verb("bplightning.cli.compact:write_compact", "Write the compact model of a run, and its report."),
    "predict": Verb("bplightning.cli.predict:answer", "Answer JSON lines or a table with a saved model."),
    "benchmark": Verb("bplightning.cli.benchmark:benchmark", "Time a model side by side with its dense model."),
    "latency-table": Verb(
        "bplightning.cli.latency_table:latency_table",
        "Measure what each head and unit of a dense model costs on this machine.",
    ),
    "export": Verb("bplightning.cli.export:export", "Write a saved model as ONNX, torch.export or GGUF."),
    "report": Verb("bplightning.cli.report:report", "Draw the report of a run as one HTML page."),
    "new": Verb("bplightning.cli.new:new", "Write a plugin package to begin from: a strategy or a task."),
    "completion": Verb(
        "bplightning.cli.shells_and_editors:completion", "Print the script with which a shell completes commands."
    ),
    "schema": Verb(
        "bplightning.cli.shells_and_editors:schema", "Print the JSON schema of configuration files, for editors."
    ),
}


class _Parser(OneLine, ArgumentParser):
    pass


def verb_parser(name: str) -> ArgumentParser:
    """The parser of a verb that is a plain function: its arguments, and the first paragraph of its docstring.

    Args:
        name: The verb.
    """
    function = VERBS[name].load()
    description = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
    options: dict[str, Any] = {"prog": f"bplightning {name}", "description": description, "allow_abbrev": False}
    parser = _Parser(**options)
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    return parser
