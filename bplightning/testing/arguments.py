"""Checking that a constructor's docstring describes each argument, since it becomes the command line's help."""

from __future__ import annotations

import inspect

from jsonargparse import ArgumentParser


def unexplained(cls: type) -> list[str]:
    """The arguments of a class that its docstring says nothing of, or that the command line cannot take.

    Args:
        cls: A strategy or a task.
    """
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "plugin")
    helps = {action.dest.removeprefix("plugin."): action.help for action in parser._actions if "." in action.dest}
    return [name for name in {**inspect.signature(cls).parameters, **helps} if not helps.get(name)]
