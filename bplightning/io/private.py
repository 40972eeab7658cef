"""What must not leave a machine with a run: secrets, in all that is written, and local paths, in what is published.

A secret is known by its name, as in ``api_key``, or by its form, as in ``https://user:password@host``. What is masked
here is asked for again where a configuration that was written so is read (`bplightning.runs.masked_settings`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import yaml

MASKED = "<masked>"
"""In place of a secret."""

SECRET = {
    *("password", "passwords", "passwd", "pwd", "passphrase", "secret", "secrets", "credential", "credentials"),
    *("apikey", "apikeys", "apitoken", "accesskey", "accesstoken", "authtoken", "authorization", "bearer"),
}
"""Words that make a name that of a secret, wherever they are in it."""

SECRET_AT_THE_END = {"key", "token", "auth", "pat", "cookie"}
SECRETS_AT_THE_END = {"keys", "tokens"}
"""The same in the plural, where a word of `OF_ACCESS` is before it: a text has tokens, too."""

OF_ACCESS = {"api", "access", "auth", "secret", "private", "ssh", "hub", "bearer", "refresh"}
OF_TEXT = {"pad", "eos", "bos", "sep", "cls", "mask", "unk", "start", "end", "special", "image", "decoder", "extra"}
"""What a token of a tokenizer is called."""

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]+(?=@)")
PAIR = re.compile(r"(?P<name>[\w.-]+)(?P<between>[\"']?\s*[:=]\s*[\"']?)(?P<value>[^\s\"',;&{}\[\]]+)")
IN_ADDRESS = re.compile(r"(?<=[?&;])(?P<name>[\w.-]+)(?P<between>=)(?P<value>[^\s&;#'\"]+)")
OF_A_FORM = re.compile(
    r"(?<=\bBearer )[\w.~+/=-]{8,}|\b(?:hf_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-(?:[a-z]+-)*)[\w-]{16,}|"
    r"\bAKIA[0-9A-Z]{16}\b"
)
"""Keys of well-known services, which have a form of their own."""

PATH = re.compile(r"(?<![\w.:/~\\-])(?:~|[A-Za-z]:(?=\\)|file://)?(?:[/\\][^\s/\\'\"`,;:|()\[\]{}<>&]+){1,}[/\\]?")
"""An absolute path; not the end of an address or of a relative one."""


def is_secret(name: str) -> bool:
    """Whether an option, a key or a variable of this name holds a secret.

    >>> [is_secret(name) for name in ("trainer.logger.init_args.api_key", "WANDB_API_KEY", "authToken", "hub_token")]
    [True, True, True, True]
    >>> [is_secret(name) for name in ("new_tokens", "pad_token", "eos_token_id", "tokenizer", "monitor")]
    [False, False, False, False, False]

    Args:
        name: Its name; of a dotted one the last part counts.
    """
    words = [word.lower() for word in WORD.findall(name.rpartition(".")[2])]
    if not words:
        return False
    before, last = words[-2] if len(words) > 1 else "", words[-1]
    return (
        not SECRET.isdisjoint(words)
        or (last in SECRET_AT_THE_END and before not in OF_TEXT)
        or (last in SECRETS_AT_THE_END and before in OF_ACCESS)
    )


def without_secrets(value: Any, name: str = "", *, by_name: bool = True) -> Any:
    """A value as YAML or JSON has it, with its secrets masked; other values are left as they are.

    >>> without_secrets({"save_dir": "logs", "api_key": "abc", "host": "https://me:abc@example.org", "seed": 3})
    {'save_dir': 'logs', 'api_key': '<masked>', 'host': 'https://<masked>@example.org', 'seed': 3}

    Args:
        value: Dictionaries, lists and plain values.
        name: What it is the value of.
        by_name: Whether names say what a secret is; else only its form does.
    """
    secret = by_name and is_secret(name)
    if isinstance(value, dict):
        return {
            key: without_secrets(each, name if secret else str(key), by_name=by_name) for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(each, name, by_name=by_name) for each in value)
    if isinstance(value, str):
        return MASKED if secret and value else masked_text(value)
    if secret and isinstance(value, int | float) and not isinstance(value, bool) and not _is_of_numbers(name):
        return MASKED
    return value


def masked_text(text: str) -> str:
    """A text with the secrets masked that are known by their form.

    Args:
        text: Any text.
    """
    text = OF_A_FORM.sub(MASKED, LOGIN.sub(MASKED, IN_ADDRESS.sub(_pair, text)))
    name, equals, value = text.partition("=")  # a variable of an environment
    return f"{name}={MASKED}" if equals and value and re.fullmatch(r"[A-Z_]+", name) and is_secret(name) else text


def shown_command(words: Sequence[str]) -> str:
    """A command as one would type it, with its secrets masked.

    >>> print(shown_command(["fit", "--trainer.logger.api_key", "abc", "--task.model=a b", "--x={token: abc}"]))
    fit --trainer.logger.api_key '<masked>' '--task.model=a b' '--x={"token": "<masked>"}'

    Args:
        words: Its words.
    """
    return shlex.join(_masked_words(words))


def without_paths(text: str) -> str:
    """A text in which of each absolute path only the last part is left.

    >>> without_paths("fit --task.train_file=/home/me/data/train.json --task.model org/name https://a.org/b")
    'fit --task.train_file=train.json --task.model org/name https://a.org/b'

    Args:
        text: Any text.
    """
    return PATH.sub(lambda found: PurePath(found[0].replace("\\", "/")).name, text)


def _masked_words(words: Sequence[str]) -> Iterator[str]:
    secret = False  # whether the word before was an option whose value is one
    for word in words:
        option, equals, value = word.partition("=")
        is_option = word.startswith("-")
        if secret and not is_option:
            yield MASKED
        elif is_option and equals:
            yield f"{option}={MASKED if is_secret(option.removesuffix('+')) and value else _masked_value(value)}"
        else:
            yield _masked_value(word)
        secret = is_option and not equals and is_secret(option.removesuffix("+"))


def _masked_value(text: str) -> str:
    """The value of an option, which may be YAML."""
    if not any(sign in text for sign in "{[:="):
        return masked_text(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, dict | list):
        masked = without_secrets(value)
        return text if masked == value else json.dumps(masked, default=str)
    return masked_text(PAIR.sub(_pair, text))


def _pair(found: re.Match[str]) -> str:
    """A name and its value in a text, the value masked if it is a secret."""
    return f"{found['name']}{found['between']}{MASKED}" if is_secret(found["name"]) else found[0]


def _is_of_numbers(name: str) -> bool:
    """Whether numbers of this name are no secrets: a token's, or a key's place."""
    return SECRET.isdisjoint(word.lower() for word in WORD.findall(name.rpartition(".")[2]))
