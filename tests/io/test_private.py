"""Secrets are masked in whatever is written, and paths in what is published."""

from __future__ import annotations

import json

import pytest
import yaml

from bplightning.io.private import MASKED, is_secret, masked_text, shown_command, without_paths, without_secrets


@pytest.mark.parametrize(
    "name",
    [
        *(
            "key",
            "token",
            "api_key",
            "apiKey",
            "api-key",
            "APIKEY",
            "hub_token",
            "HF_TOKEN",
            "use_auth_token",
            "password",
        ),
        *("db_password", "client_secret", "aws_secret_access_key", "credentials", "trainer.logger.init_args.api_key"),
        *("access_tokens", "api_keys", "passphrase", "AWS_SECRET_ACCESS_KEY", "authorization", "private_key"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)
    assert without_secrets({name: "canary"}) == {name: MASKED}
    assert without_secrets({name: ["canary"]}) == {name: [MASKED]}
    assert without_secrets({name: {"of": "canary"}}) == {name: {"of": MASKED}}
    for words in (
        [f"--{name}=canary"],
        [f"--{name}", "canary"],
        [f"--x={{{name}: canary}}"],
        ["--x", f"[{{{name}: c anary}}]"],
    ):
        assert "anary" not in shown_command(words), words


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer", "new_tokens", "tokens", "pad_token", "eos_token_id", "keyword", "monitor", "author", "patience"),
        *("max_length", "key_padding", "columns.tokens", "secretary", "task.model", "path"),
    ],
)
def test_names_of_anything_else(name: str) -> None:
    assert not is_secret(name)
    assert without_secrets({name: "x"}) == {name: "x"}
    assert shown_command([f"--{name}=x", f"--{name}", "x"]) == f"--{name}=x --{name} x"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:canary@db:5432/runs",
        "https://canary@github.com/x",
        "https://me:can%40ary@a@host/x",
        "https://host/x?api_key=canary&b=1",
        "https://host/x?b=1&token=canary",
        "WANDB_API_KEY=canary",
        "Authorization: Bearer canarycanary",
        "hf_canarycanarycanarycanary",
        "ghp_canarycanarycanarycanary",
        "sk-canarycanarycanarycanary",
    ],
)
def test_forms_of_secrets(text: str) -> None:
    for masked in (
        masked_text(text),
        without_secrets([text])[0],
        shown_command([text]),
        shown_command([f"--x={text}"]),
    ):
        assert "canary" not in masked
        assert MASKED in masked


def test_what_holds_no_secret_stays_as_it_is() -> None:
    texts = ["a: b", "https://arxiv.org/abs/2109.04838", "me@example.org", "a=b", "{a: [1, 2]}", "{broken", "x[0]", ""]
    assert [masked_text(text) for text in texts] == texts
    assert without_secrets(texts) == texts
    words = [
        "fit",
        "--strategy",
        "hybrid",
        "--strategy.target={density: 0.25}",
        "--refill.max_epochs=2",
        "--x",
        "{a: 1",
    ]
    assert yaml.safe_load(json.dumps(shown_command(words))) == " ".join(
        ["fit --strategy hybrid '--strategy.target={density: 0.25}' --refill.max_epochs=2 --x '{a: 1'"]
    )
    values = {"token": None, "key": True, "seed": 3, "eos_token": 2, "token_id": 5, "key_": ""}
    assert without_secrets(values) == values


def test_a_number_is_a_secret_where_only_secrets_have_the_name() -> None:
    assert without_secrets({"password": 1234, "key": 7}) == {"password": MASKED, "key": 7}


def test_a_value_that_is_no_yaml_is_masked_too() -> None:
    assert "canary" not in shown_command(["--trainer.logger", "{class_path: X, init_args: {api_key: canary"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/data/train.json", "train.json"),
        ("--task.train_file=/home/me/train.json --x /root/", "--task.train_file=train.json --x root"),
        ("'/home/me/my run'", "'my run'"),
        ("{train_file: /home/me/a.json, b: 1}", "{train_file: a.json, b: 1}"),
        ("~/data/a.json C:\\Users\\me\\b.json file:///home/me/c", "a.json b.json c"),
        ("teacher /mnt/x/teacher; 3/4 of a/b, and/or 1 / 2", "teacher teacher; 3/4 of a/b, and/or 1 / 2"),
        (
            "https://arxiv.org/abs/2109.04838 ./runs/a ../b org/name",
            "https://arxiv.org/abs/2109.04838 ./runs/a ../b org/name",
        ),
    ],
)
def test_of_an_absolute_path_the_last_part_is_published(text: str, shown: str) -> None:
    assert without_paths(text) == shown
