"""The argument parser: Lightning's, and it knows plugins by their short names.

jsonargparse resolves full class paths only. Here a name is turned into its class path before jsonargparse sees it, at
the two doors through which values come in: the argument list (`parse_args`) and YAML (`parse_string`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, get_loader
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import StrategyRegistry

from bplightning.errors import UserError
from bplightning.io.bounds import UnboundedYamlError, read_yaml
from bplightning.io.parser_errors import OneLine
from bplightning.plugins import GROUPS, STRATEGIES, available, load, summary
from bplightning.runs.class_paths import (
    CONFIG_OPTIONS,
    TRUST,
    TRUST_HELP,
    allow,
    only_trusted,
    typed_class_paths,
    without_trust,
)
from bplightning.runs.masked_settings import ask_again
from bplightning.runs.older_configuration import with_class_paths
from bplightning.runs.plugin_options import chosen_in, class_path_of, options_of, typed_options, with_nulls

PLUGIN = "NAME_OR_CLASS_PATH"


class _HelpFormatter(DefaultHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        """Plugins are listed by name: jsonargparse would add classes that happen to be imported, internal ones too."""
        return action.help or "" if action.metavar == PLUGIN else super()._get_help_string(action)


@dataclass(frozen=True)
class PluginArgument:
    """An argument whose value is a plugin.

    Attributes:
        base: The contract a plugin's class derives from.
        group: Entry-point group of the short names.
        default: Short name or class path used when nothing is given.
        check: Called with the plugin's name or class path, its options by name, and with ``typed``, whether they are
            from the command line; refuses what the parser's own message would not explain.
    """

    base: type
    group: str
    default: str
    check: Callable[..., None] | None = None

    def class_path(self, name_or_class_path: str, *, typed: bool = False) -> str:
        """The full class path of a plugin given by short name or class path.

        Args:
            name_or_class_path: What was given.
            typed: Whether it was typed, and not read from a file.

        Raises:
            UserError: If there is no such plugin, it is of another kind, or a file may not name it.
        """
        if self.group == STRATEGIES and name_or_class_path in {"auto", *StrategyRegistry} - {*available(self.group)}:
            raise UserError(
                f"--strategy is {name_or_class_path!r}, which is a strategy of Lightning for devices, but --strategy "
                f"says how to prune: give --trainer.strategy {name_or_class_path}, and --strategy a name such as "
                f"{self.default}."
            )
        cls = load(self.group, name_or_class_path, typed=typed)
        if not issubclass(cls, self.base):
            raise UserError(
                f"{GROUPS[self.group]} {name_or_class_path!r} must derive from "
                f"{self.base.__module__}.{self.base.__qualname__}, and {cls.__qualname__} does not"
            )
        found = f"{cls.__module__}.{cls.__qualname__}"
        allow(found)
        return found

    def resolve(self, value: Any, *, typed: bool = False) -> Any:
        """A value as YAML gives it, with the plugin's name, if it names one, as a full class path.

        Args:
            value: The value.
            typed: Whether it was typed, and not read from a file.
        """
        if isinstance(value, str):
            return self.class_path(value, typed=typed)
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            return {**value, "class_path": self.class_path(value["class_path"], typed=typed)}
        return value


class _Trust(argparse.Action):
    """Only the help's: the option is taken out of the arguments before they are parsed, and no file can give it."""

    def __call__(self, *_: Any) -> None:
        raise NotImplementedError


class PluginParser(OneLine, LightningArgumentParser):
    """Lightning's parser with plugin arguments (`add_plugin_arguments`).

    What is typed wins over configuration files wherever it stands in the line, and ``--strategy X`` may follow
    ``--strategy.option value``: files are read first, then the choice of plugins, then everything else in its order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _HelpFormatter, **kwargs})
        self.plugins: dict[str, PluginArgument] = {}
        self.sections: dict[str, PluginParser] = {}
        self.refused = {TRUST.removeprefix("--"): f"a file cannot trust itself: give {TRUST} on the command line"}
        self._chosen: dict[str, str] = {}

    def add_trust_option(self) -> None:
        """Add the option by which a user trusts classes that configurations name."""
        self.add_argument(
            TRUST,
            action=_Trust,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            metavar="CLASS_PATHS",
            help=TRUST_HELP,
        )

    def add_plugin_arguments(self, key: str, plugin: PluginArgument) -> None:
        """Add ``--key NAME_OR_CLASS_PATH`` and ``--key.option value``.

        Args:
            key: Name of the option, and of the section in YAML.
            plugin: What the option accepts.
        """
        kind = GROUPS[plugin.group]
        names = ", ".join(available(plugin.group)) or "none installed"
        self.plugins[key] = plugin
        self.add_argument_group(kind).add_argument(
            f"--{key}",
            type=plugin.base,
            required=True,
            metavar=PLUGIN,
            help=f"The {kind}: one of {names}; or a class path such as my_file.My{kind.title()}. "
            f"Default: {plugin.default}. Set its options with --{key}.OPTION VALUE; --{key}.help NAME lists them.",
        )

    # -- the two doors -------------------------------------------------------------------------------------------------

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None, *rest: Any, **kwargs: Any
    ) -> Namespace:
        """`jsonargparse.ArgumentParser.parse_args`, with plugins by name; files may name trusted classes only."""
        args, trusted = without_trust(args or [])
        with only_trusted([*trusted, *typed_class_paths(args)]):
            return self._parsed(args, namespace, *rest, **kwargs)

    def _parsed(self, args: list[str], namespace: Namespace | None, *rest: Any, **kwargs: Any) -> Namespace:
        if self.plugins:
            # Defaults are given first of all, as choices: were they the parser's defaults, then the default plugin's
            # options would be taken for the user's and carried over to the plugin that the user chose.
            unset = [key for key in self.plugins if namespace is None or namespace.get(key) is None]
            defaults = [f"--{key}={self._choose(key, self.plugins[key].default)}" for key in unset]
            args = defaults + self._arrange(args)
        parsed = super().parse_args(args, namespace, *rest, **kwargs)
        ask_again(parsed)
        _require_sections(self, parsed)
        _require_values(self, parsed)
        for key, plugin in self.plugins.items():
            if parsed.get(key) is None:
                raise UserError(f"--{key} must not be null: give a name such as {plugin.default}.")
            options = class_parser(load(plugin.group, parsed[key].class_path), key)
            _require_values(options, Namespace({key: parsed[key].get("init_args", Namespace())}))
        return parsed

    def parse_string(self, content: str, *rest: Any, **kwargs: Any) -> Namespace:
        """`jsonargparse.ArgumentParser.parse_string`, with plugins by name; configuration files come through here."""
        if self.plugins or self.sections:
            try:
                config = read_yaml(content, get_loader("yaml"))
            except UnboundedYamlError as error:
                raise UserError(f"the configuration cannot be read: {error}.") from error
            except yaml.YAMLError:
                config = None  # jsonargparse reports it, with the file's name
            if isinstance(config, dict):
                content = yaml.safe_dump(self.resolve(config), sort_keys=False)
        return super().parse_string(content, *rest, **kwargs)

    def resolve(self, config: dict[str, Any]) -> dict[str, Any]:
        """A configuration as YAML gives it, with all plugins' names, sections included, as full class paths.

        Class paths of earlier versions become those of this one. Checkpoints run no code because a file says so.

        Raises:
            UserError: There is no such plugin, or the configuration has a key that is `refused`, with the reason there.
        """
        for key in self.refused.keys() & config.keys():
            raise UserError(f"the configuration has {key!r}: {self.refused[key]}")
        config = with_class_paths(config)
        resolved = {key: value for key, value in config.items() if key != "weights_only" or value in (True, None)}
        if resolved.keys() != config.keys():
            sys.stderr.write("bplightning: a file's `weights_only: false` has no effect: give --weights_only false.\n")
        for key in self.plugins.keys() & config.keys():
            resolved[key] = self.plugins[key].resolve(config[key])
            self._check(key, class_path_of(resolved[key]), options_of(resolved[key]), typed=False)
        for name in self.sections.keys() & config.keys():
            if isinstance(config[name], dict):
                resolved[name] = self.sections[name].resolve(config[name])
        return resolved

    def _arrange(self, args: list[str]) -> list[str]:
        files: list[str] = []
        choices: list[str] = []
        others: list[str] = []
        chosen: dict[str, str] = {}
        remaining = list(reversed(args))
        while remaining:
            item = remaining.pop()
            option, equals, value = item.partition("=")
            key, _, detail = option.removeprefix("--").partition(".")
            is_file = option in CONFIG_OPTIONS
            is_choice = option.startswith("--") and key in self.plugins and detail in ("", "class_path", "help")
            if not (is_file or is_choice) or not (equals or remaining) or (not equals and remaining[-1][:1] == "-"):
                others.append(item)
                continue
            if not equals:
                value = remaining.pop()
            if is_file:
                files.append(f"--config={value}")
            elif detail == "help":
                others.append(f"{option}={self.plugins[key].class_path(value, typed=True)}")
            else:
                choices.append(f"--{key}={self._choose(key, value)}")
                chosen[key] = self._chosen[key]
        for key in self.plugins:
            self._check(key, chosen.get(key) or chosen_in(files, key), typed_options(others, key), typed=True)
            others = with_nulls(others, key)
        return files + choices + others

    def _check(self, key: str, class_path: str | None, options: Mapping[str, Any], *, typed: bool) -> None:
        plugin = self.plugins[key]
        if plugin.check is not None and options:
            plugin.check(class_path or plugin.default, options, typed=typed)

    def _choose(self, key: str, value: str) -> str:
        plugin = self.plugins[key]
        try:
            chosen = plugin.resolve(get_loader("yaml")(value), typed=True)
        except yaml.YAMLError as error:
            raise UserError(
                f"--{key} is {value!r}, which is neither a name nor YAML ({error}): give a name such as "
                f"{plugin.default}, a class path, or {{class_path: {plugin.default}}}."
            ) from error
        if isinstance(chosen, dict):
            self._chosen[key] = chosen.get("class_path", self.plugins[key].default)
            return json.dumps(chosen)
        self._chosen[key] = chosen
        return str(chosen)

    def known_options(self) -> list[str]:
        """All options that this parser takes, those of the chosen plugins among them."""
        known = super().known_options()
        for key, plugin in self.plugins.items():
            options = class_parser(load(plugin.group, self._chosen.get(key, plugin.default)), key)
            known += [action.dest for action in options._actions if action.option_strings]
        return known

    # -- what the user reads -------------------------------------------------------------------------------------------

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The usual help, then for each plugin argument what there is and the options of the chosen one."""
        parts = [super().format_help(formatter)]
        for key, plugin in self.plugins.items():
            lines = summary(plugin.group)
            width = max(map(len, lines), default=0)
            parts.append(f"names for --{key} (--{key}.help NAME lists the options of one):")
            parts += [f"  {name:{width}}  {line}" for name, line in lines.items()]
            parts.append("")
            parts.append(self._options_help(key, self._chosen.get(key, plugin.default)))
        return "\n".join(parts)

    def _options_help(self, key: str, name_or_class_path: str) -> str:
        try:
            cls = load(self.plugins[key].group, name_or_class_path)
        except UserError:
            return ""  # the listing above has said why
        title = f"options of --{key} {name_or_class_path}"
        return class_parser(cls, key, title=title).format_help().strip() + "\n"


def class_parser(cls: type, key: str | None = None, *, title: str | None = None) -> LightningArgumentParser:
    """A parser of a plugin's own options.

    Args:
        cls: The plugin's class.
        key: What stands before an option's name, and a dot.
        title: Heading of the options in the help.
    """
    parser = LightningArgumentParser(usage=argparse.SUPPRESS, description="", add_help=False)
    group = parser.add_argument_group(title)
    group.add_class_arguments(cls, key, as_group=False, fail_untyped=False)
    return parser


def _require_sections(parser: ArgumentParser, parsed: Namespace) -> None:
    """Refuse a value where options have options of their own; jsonargparse would fail as it builds what they say.

    Raises:
        UserError: There is one.
    """
    typed = {action.dest for action in parser._actions if hasattr(action, "_typehint")}  # such as `plan --measure`
    for option in (action.dest for action in parser._actions if "." in action.dest):
        section = option.partition(".")[0]
        value = parsed.get(section)
        if section not in typed and value is not None and not isinstance(value, Namespace):
            raise UserError(f"--{section} is {value!r}, and has options of its own: give those, such as --{option}.")


def _require_values(parser: ArgumentParser, parsed: Namespace) -> None:
    """Refuse `None` for an option that cannot be it; jsonargparse takes it for one that is not given.

    Raises:
        UserError: There is one.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", action.type)
        if action.default is None or parsed.get(action.dest, ...) is not None or hint is None or takes_none(hint):
            continue
        kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise UserError(
            f"--{action.dest} must not be null: give a value of type {kind}, or leave it out for its "
            f"default, {action.default}."
        )


def takes_none(hint: Any) -> bool:
    """Whether `None` is a value of a type.

    >>> takes_none(float | None), takes_none(Any), takes_none(float), takes_none(list[float | None])
    (True, True, False, False)
    """
    parts = get_args(hint) if get_origin(hint) in (Annotated, Literal, Union, UnionType) else ()
    return hint in (None, NoneType, Any, object) or any(map(takes_none, parts))
