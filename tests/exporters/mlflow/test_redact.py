"""Secrets in copies of files and in command lines."""

from __future__ import annotations

import json

import pytest
import yaml

from bridge.cursor import Shape
from bridge.exporters.mlflow.redact import Redaction

REDACTION = Redaction(Shape().redact)


def test_hparams_yaml_keeps_every_byte_but_the_secret() -> None:
    """Comments, order and tags stay as they are."""
    text = b"# mine\nlr: 0.1   # rate\ndb:\n  Password: hunter2\n  user: ada\nt: !!python/tuple [1, 2]\n"
    expected = b"# mine\nlr: 0.1   # rate\ndb:\n  Password: '***'\n  user: ada\nt: !!python/tuple [1, 2]\n"
    assert REDACTION.yaml(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "credentials:\n  user: a\n  key: b\nlr: 1\n",
        "api_key: |\n  line one\n  line two\nlr: 1\n",
        "list:\n- secret: a\n- secret: b\nlr: 1\n",
        "x: {secret_a: s, b: 2}\nlr: 1\n",
        "a.b.password: >-\n  folded\n  text\nlr: 1\n",
    ],
)
def test_a_masked_yaml_is_yaml_and_holds_no_secret(text: str) -> None:
    """Whatever form the secret has: a mapping, a block, a list, a flow."""
    masked = REDACTION.yaml(text.encode())
    tree = yaml.safe_load(masked)
    assert tree["lr"] == 1
    assert b"***" in masked
    for secret in (b"line one", b": a", b": s,", b"folded", b"key: b"):
        assert secret not in masked


def test_a_yaml_without_secrets_is_left_alone() -> None:
    """The very same bytes."""
    text = b"lr: 0.1\r\nname: 'secretly'\r\n"
    assert REDACTION.yaml(text) is text


def test_what_cannot_be_read_is_not_sent() -> None:
    """Nobody can tell what is in it."""
    assert (REDACTION.yaml(b"a: [1"), REDACTION.json(b"{"), REDACTION.json(b"[]")) == (b"", b"", b"")


def test_a_sidecar_is_masked_in_hparams_tags_and_commands_only() -> None:
    """Other fields are not looked at, whatever they are called."""
    sidecar = {
        "run_id": "secret-project",
        "hparams": {"model.api_key": "s1", "nested": [{"password": "s2"}], "lr": 0.1},
        "tags": ["passwd:s3", "project:x"],
        "sessions": [{"command": "t.py --auth_token 's 4'", "host": "n"}, "odd"],
    }
    assert json.loads(REDACTION.json(json.dumps(sidecar).encode())) == {
        "run_id": "secret-project",
        "hparams": {"model.api_key": "***", "nested": [{"password": "***"}], "lr": 0.1},
        "tags": ["passwd:***", "project:x"],
        "sessions": [{"command": "t.py --auth_token ***", "host": "n"}, "odd"],
    }


@pytest.mark.parametrize(
    ("command", "masked"),
    [
        ("t.py --password x --lr 1", "t.py --password *** --lr 1"),
        ("t.py --password=x", "t.py --password=***"),
        ("t.py model.secret='a b' lr=1", "t.py model.secret=*** lr=1"),
        ("t.py --api_key --lr 1", "t.py --api_key --lr 1"),
        ("t.py password notes", "t.py password notes"),
    ],
)
def test_a_command_line_is_masked_by_its_options(command: str, masked: str) -> None:
    """An option's value goes, a word that only looks like one stays."""
    assert REDACTION.command(command) == masked
