"""Copies of a run's files hold none of its secrets, wherever in them these stand."""

from __future__ import annotations

import json

import pytest
import yaml

from bridge.cursor import ContentOptions
from bridge.exporters.mlflow.redact import masked_json, masked_yaml
from bridge.redaction import Redaction

REDACTION = Redaction(ContentOptions().redact)


def test_hparams_yaml_keeps_every_byte_but_the_secret() -> None:
    """Comments, order and tags stay as they are."""
    text = b"# mine\nlr: 0.1   # rate\ndb:\n  Password: hunter2\n  user: ada\nt: !!python/tuple [1, 2]\n"
    expected = b"# mine\nlr: 0.1   # rate\ndb:\n  Password: '***'\n  user: ada\nt: !!python/tuple [1, 2]\n"
    assert masked_yaml(text, REDACTION) == expected


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
    masked = masked_yaml(text.encode(), REDACTION)
    tree = yaml.safe_load(masked)
    assert tree["lr"] == 1
    assert b"***" in masked
    for secret in (b"line one", b": a", b": s,", b"folded", b"key: b"):
        assert secret not in masked


def test_a_yaml_without_secrets_is_left_alone() -> None:
    """The very same bytes."""
    text = b"lr: 0.1\r\nname: 'secretly'\r\n"
    assert masked_yaml(text, REDACTION) is text


def test_what_cannot_be_read_is_not_sent() -> None:
    """Nobody can tell what is in it."""
    assert (masked_yaml(b"a: [1", REDACTION), masked_json(b"{", REDACTION), masked_json(b"[]", REDACTION)) == (
        b"",
        b"",
        b"",
    )


def test_a_yaml_is_masked_wherever_a_secret_stands() -> None:
    """Below a list or a mapping as a key, in JSON within a text, behind an option in a list; the rest is as it was."""
    text = """? [a, b]
: {password: S1, lr: 0.5}
cb: '[{"api_key": "S2", "it''s": "gr\u00f6\u00dfe"}]'
block: |
  {"secret": "S3"}
args: [--api-key, S4, --lr, '1', "x-api-key=S5"]
odd: "[{'api_key': 'S6', 'lr': nan}]"
api-key: S7
lr: 0.1   # rate
"""
    expected = """? [a, b]
: {password: '***', lr: 0.5}
cb: '[{"api_key": "***", "it''s": "gr\\u00f6\\u00dfe"}]'
block: '{"secret": "***"}'
args: [--api-key, '***', --lr, '1', 'x-api-key=***']
odd: '***'
api-key: '***'
lr: 0.1   # rate
"""
    assert masked_yaml(text.encode(), REDACTION).decode() == expected


def test_a_sidecar_is_masked_in_every_field() -> None:
    """Also in those that nobody knows: the environment, a list of words, a text with an address. What it is about stays."""
    sidecar = {
        "run_id": "secret-project",
        "notes": "the password: none",
        "summary": {"secret_loss": 0.5},
        "hparams": {"model.api_key": "s1", "nested": [{"password": "s2"}], "cb": '[{"api-key": "s3"}]', "lr": 0.1},
        "tags": ["passwd:s4", "project:x", {"secret": "s5"}],
        "password": "s6",
        "env": {"WANDB_API_KEY": "s7", "HOME": "/root", "URL": "https://ada:s8@host/"},
        "argv": ["t.py", "--api-key", "s9", "--lr", "1"],
        "sessions": [
            {"command": "t.py --auth_token 's 10' --lr 1", "host": "n", "env": {"API_KEY": "s11"}},
            {"slurm": {"job_id": "7", "token_secret": "s12"}},
            "odd --password=s13",
        ],
    }
    assert json.loads(masked_json(json.dumps(sidecar).encode(), REDACTION)) == {
        "run_id": "secret-project",
        "notes": "the password: none",
        "summary": {"secret_loss": 0.5},
        "hparams": {"model.api_key": "***", "nested": [{"password": "***"}], "cb": '[{"api-key": "***"}]', "lr": 0.1},
        "tags": ["passwd:***", "project:x", {"secret": "***"}],
        "password": "***",
        "env": {"WANDB_API_KEY": "***", "HOME": "/root", "URL": "https://***@host/"},
        "argv": ["t.py", "--api-key", "***", "--lr", "1"],
        "sessions": [
            {"command": "t.py --auth_token *** --lr 1", "host": "n", "env": {"API_KEY": "***"}},
            {"slurm": {"job_id": "7", "token_secret": "***"}},
            "odd --password=***",
        ],
    }


def test_a_sidecar_without_secrets_is_left_alone() -> None:
    """The very same bytes."""
    data = b'{"hparams": {"lr":0.10}, "summary": {"secret_loss": 1}}'
    assert masked_json(data, REDACTION) is data
