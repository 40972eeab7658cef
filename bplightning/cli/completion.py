"""The command line told to shells and editors: completion scripts, and a JSON schema of configuration files."""

from __future__ import annotations

import copy
import json
import shlex
from argparse import SUPPRESS, Action
from argparse import ArgumentParser as Parser
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import shtab
from jsonargparse import ArgumentParser

from bplightning.cli.compare import compare_parser
from bplightning.cli.plan import plan_parser
from bplightning.cli.prune import prune_parser
from bplightning.cli.training import whole_parser
from bplightning.cli.verbs import TRAINING_VERBS, VERBS, verb_parser
from bplightning.plugins import available, load, summary
from bplightning.runs.parser import PluginParser, class_parser

DIALECT = "https://json-schema.org/draft/2020-12/schema"
OPEN = {"type": "string", "pattern": r"\."}
"""A class path, of which nothing more is known."""


def training_parsers() -> dict[str, PluginParser]:
    """The parser of each verb that takes a task and a strategy."""
    return {**whole_parser(list(TRAINING_VERBS)).sections, "plan": plan_parser(), "prune": prune_parser()}


# -- shells ------------------------------------------------------------------------------------------------------------


def completion_script(shell: str) -> str:
    """What a shell must read to complete verbs, options, names of plugins and values that are one of a few.

    Args:
        shell: A name of `shtab.SUPPORTED_SHELLS`.
    """
    whole = Parser(prog="bplightning")
    verbs = whole.add_subparsers()
    parsers: dict[str, Parser] = {**training_parsers(), "compare": compare_parser()}
    for name, verb in VERBS.items():
        parser = parsers.get(name) or verb_parser(name)
        mirror = verbs.add_parser(name, help=verb.line, add_help=False)
        for action in parser._actions:
            _mirror(action, mirror, parser)
        for option, line in _options_of_plugins(parser).items():
            mirror.add_argument(option, help=line)
    script = str(shtab.complete(whole, shell))
    return f"{script}\n{_of_the_chosen(parsers)}" if shell == "bash" else script


OF_THE_CHOSEN = """
# Of the options of plugins, those of the one that is chosen on the line, or that its verb takes by default.
_bplightning_options_of() {{
  case "$1" in
{options}
  esac
}}
_bplightning_default_of() {{
  case "$1" in
{defaults}
  esac
}}
_bplightning() {{
  _shtab_bplightning "$@"
  local key chosen own word previous kept=()
  for key in {keys}; do
    chosen=$(_bplightning_default_of "${{COMP_WORDS[1]}} $key") previous=
    for word in "${{COMP_WORDS[@]:2:COMP_CWORD-2}}"; do
      case "$word" in
        =) continue ;;
        -c|--config|--config=*) [[ -z $previous ]] && chosen= ;;
        --$key=*) chosen=${{word#*=}} previous=$key ;;
        *) [[ $previous == "--$key" ]] && chosen=$word previous=$key ;;
      esac
      [[ $word == "--$key" ]] && previous=$word
    done
    own=$(_bplightning_options_of "$key $chosen")
    if [[ -n $own ]]; then
      kept=()
      for word in "${{COMPREPLY[@]}}"; do
        [[ $word != --$key.* || " $own --$key.help " == *" $word "* ]] && kept+=("$word")
      done
      COMPREPLY=("${{kept[@]}}")
    fi
  done
}}
complete -o bashdefault -F _bplightning bplightning
"""


def _of_the_chosen(parsers: Mapping[str, Parser]) -> str:
    """What makes bash offer the options of the chosen strategy and task, and no other's."""
    options: dict[str, str] = {}
    defaults: dict[str, str] = {}
    keys: dict[str, None] = {}
    for verb, parser in parsers.items():
        for key, plugin in parser.plugins.items() if isinstance(parser, PluginParser) else ():
            keys[key] = None
            defaults[f"{verb} {key}"] = plugin.default
            for name in available(plugin.group):
                if f"{key} {name}" not in options:
                    options[f"{key} {name}"] = " ".join(_options_of(plugin.group, name, key))

    def cases(values: Mapping[str, str]) -> str:
        return "\n".join(f"    {shlex.quote(name)}) echo {shlex.quote(value)} ;;" for name, value in values.items())

    return OF_THE_CHOSEN.format(options=cases(options), defaults=cases(defaults), keys=" ".join(keys))


def _mirror(action: Action, mirror: Parser, parser: Parser) -> None:
    """Give a plain parser an option of ours: of jsonargparse's own, shtab knows neither types nor plugins."""
    options: dict[str, Any] = {"help": None if action.help in (None, SUPPRESS) else _first(str(action.help))}
    if action.nargs == 0:
        options["action"] = "store_true"
    elif isinstance(parser, PluginParser) and action.dest in parser.plugins:
        options["choices"] = list(available(parser.plugins[action.dest].group))
    else:
        options["choices"] = choices_of(getattr(action, "_typehint", None)) or None
    added = mirror.add_argument(*(action.option_strings or [action.dest]), **options)
    if action.nargs != 0 and not options["choices"]:
        added.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's way


def _first(text: str) -> str:
    """Its first sentence; ``%`` means something to argparse."""
    return text.partition(". ")[0].replace("%(default)s", "").replace("%", "%%")


def choices_of(hint: Any) -> list[str]:
    """The values of a type that has few.

    >>> choices_of(Literal["int8"] | None), choices_of(bool), choices_of(int)
    (['int8'], ['true', 'false'], [])
    """
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return [str(each) for each in get_args(hint)]
    if get_origin(hint) in (Union, UnionType):
        return [value for each in get_args(hint) for value in choices_of(each)]
    return []


def _options_of_plugins(parser: Parser) -> dict[str, str]:
    """``--strategy.OPTION`` of every strategy, and so on, each with its line of help."""
    found: dict[str, str] = {}
    for key, plugin in parser.plugins.items() if isinstance(parser, PluginParser) else ():
        for name in available(plugin.group):
            for option, line in _options_of(plugin.group, name, key).items():
                found.setdefault(option, line)
    return found


def _options_of(group: str, name: str, key: str) -> dict[str, str]:
    """``--strategy.OPTION`` of one strategy, each with its line of help."""
    return {
        f"--{action.dest}": _first(action.help or "")
        for action in class_parser(load(group, name), key)._actions
        if action.option_strings and action.dest.startswith(f"{key}.")
    }


# -- editors -----------------------------------------------------------------------------------------------------------


def config_schema() -> dict[str, Any]:
    """JSON schema of what ``fit --config FILE`` takes, in the dialect `DIALECT`.

    Options of tasks and strategies that are installed are known by name, so that a misspelled one is marked; of a class
    path nothing is. Of Lightning's trainer names and meanings are known, and no types.
    """
    fit = training_parsers()["fit"]
    own = copy.copy(fit)
    apart = ("trainer", *fit.plugins)
    own._actions = [action for action in fit._actions if action.dest.partition(".")[0] not in (*apart, SUPPRESS)]
    schema = _schema_of(own)
    properties, definitions = schema["properties"], schema.setdefault("$defs", {})
    for key, plugin in fit.plugins.items():
        lines = summary(plugin.group)
        kinds: list[dict[str, Any]] = [{"enum": list(lines)}, OPEN]
        for name, line in lines.items():
            options = _schema_of(class_parser(load(plugin.group, name)))
            definitions |= options.pop("$defs", {})
            definitions[f"{key} {name}"] = options
            kinds.append(_choice({"enum": [name, plugin.class_path(name)]}, {"$ref": f"#/$defs/{key} {name}"}, line))
        kinds.append(_choice(OPEN, {"type": "object"}, "A class of your own."))
        properties[key] = {"anyOf": kinds}
    properties["trainer"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            action.dest.partition(".")[2]: {"description": _first(action.help or "")}
            for action in fit._actions
            if action.dest.startswith("trainer.") and action.option_strings and action.nargs != 0
        },
    }
    return {"$schema": DIALECT, "title": "A configuration of bplightning fit", **schema}


def _choice(class_path: dict[str, Any], init_args: dict[str, Any], line: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": line,
        "additionalProperties": False,
        "required": ["class_path"],
        "properties": {"class_path": class_path, "init_args": init_args},
    }


def _schema_of(parser: ArgumentParser) -> dict[str, Any]:
    """A parser's schema in which nothing is required: the rest may stand in another file, or on the command line."""
    schema: dict[str, Any] = json.loads(parser.get_completion_script("jsonschema"))
    del schema["$schema"]

    def relaxed(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: relaxed(each) for key, each in part.items() if key != "required"}
        return [relaxed(each) for each in part] if isinstance(part, list) else part

    return dict(relaxed(schema))
