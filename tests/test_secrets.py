"""Secrets are masked by their keys in every form that a run has, and in addresses."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import secrets
from bridge.options import ContentOptions
from bridge.secrets import Redaction, hide, hide_uri

if TYPE_CHECKING:
    from collections.abc import Callable

REDACTION = Redaction(ContentOptions().redact)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see postgresql://ada:x@host/d", "see postgresql://***@host/d"),
        ("http://token@host/a http://host/b@c", "http://***@host/a http://host/b@c"),
        ("'http://ada:p@ss/w0rd@host'", "'http://***@host'"),
        ("http://host/x,postgresql://ada:x@h/d", "http://host/x,postgresql://***@h/d"),
        ("http://host/?a=1&api_key=x&b=2", "http://host/?a=1&api_key=***&b=2"),
        ("mail ada@host", "mail ada@host"),
    ],
)
def test_credentials_in_addresses_are_masked(text: str, shown: str) -> None:
    """User, password and secrets in the query are masked, and the rest stays."""
    assert hide(text) == shown


@pytest.mark.parametrize("uri", ["postgresql://ada:it's my \"word@host/d", "ada:word@host/d", "://ada:word@host/d"])
def test_a_single_address_with_any_content_is_masked(uri: str) -> None:
    """Blanks, quotes and a missing scheme do not reveal a password."""
    assert hide_uri(uri).endswith("***@host/d")
    assert "word" not in hide_uri(uri)


@pytest.mark.parametrize(
    ("redaction", "key", "is_secret"),
    [
        *((REDACTION, key, True) for key in ("password", "DB_PASSWORD", "api-key", "x-Api_Key", "model.apikey")),
        *((REDACTION, key, True) for key in ("credentials.user", "auth-token")),
        (Redaction(("pin",)), "door.pin", True),
        (Redaction(("pin",)), "door.pin.old", True),
        (Redaction(("pin",)), "spinning", False),
        (Redaction(("my-key",)), "MY_key", True),
        (Redaction(("key[a-c]",)), "keyb", True),
        (Redaction(("key[a-c]",)), "key_", False),
        (Redaction(("*token",)), "a.token.b", True),
        (Redaction(("db.key",)), "db.key", True),
        (Redaction(("*",)), "", False),
    ],
)
def test_a_glob_matches_the_whole_key_or_a_part(redaction: Redaction, key: str, is_secret: bool) -> None:
    """A glob matches a whole key or a part in any case and with any dash, and character ranges work."""
    assert redaction.matches(key) == is_secret


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ('[{"api_key": "X", "lr": 1}]', '[{"api_key": "***", "lr": 1}]'),
        (' {"a": {"b": [{"db-password": ["X"]}]}}', '{"a": {"b": [{"db-password": "***"}]}}'),
        ('{"inner": "{\\"secret\\": \\"X\\"}"}', '{"inner": "{\\"secret\\": \\"***\\"}"}'),
        ('["--password", "X", "--lr", "1"]', '["--password", "***", "--lr", "1"]'),
        ('["--password=X", "api_key:X", "lr=1"]', '["--password=***", "api_key:***", "lr=1"]'),
        ("[{'api_key': 'X', 'lr': nan}]", "***"),
        ("Namespace(lr=1, api_key='X')", "***"),
        ("({'password': 'X'},)", "***"),
        ("[1, 2, 3]", "[1, 2, 3]"),
        ("{'lr': nan}", "{'lr': nan}"),
        ("a plain text about passwords", "a plain text about passwords"),
        ("[" * 100 + "]" * 100, "***"),
    ],
)
def test_secrets_inside_a_value_are_masked(value: str, masked: str) -> None:
    """Only secrets within JSON are masked; a value in another notation, or too deep, is masked whole."""
    assert REDACTION.value("opts", value) == masked


@pytest.mark.parametrize("value", [None, True, 1, 0.5, "X", ""])
def test_a_secret_of_any_type_is_masked(value: str | float | None) -> None:
    """Numbers, None and empty texts are masked too, and the value of another key is unchanged."""
    assert REDACTION.value("x.secret", value) == "***"
    assert REDACTION.value("lr", value) is value


@pytest.mark.parametrize(
    ("tag", "masked"),
    [
        ("password:X", "password:***"),
        ("my API-Key : X:Y", "my API-Key :***"),
        ("secret=X", "secret=***"),
        ('opts:{"secret": "X"}', 'opts:{"secret": "***"}'),
        ('{"secret": "X"}', '{"secret": "***"}'),
        ("project:secret", "project:secret"),
        ("secret", "secret"),
    ],
)
def test_a_tag_is_masked_behind_its_key(tag: str, masked: str) -> None:
    """`key:secret` is masked, and a bare word and other keys stay."""
    assert REDACTION.tag(tag) == masked


@pytest.mark.parametrize(
    ("command", "masked"),
    [
        ("t.py --password x --lr 1", "t.py --password *** --lr 1"),
        ("t.py --password=x", "t.py --password=***"),
        ("t.py --api-key x --x-api-key=y", "t.py --api-key *** --x-api-key=***"),
        ("t.py model.secret='a b' lr=1", "t.py model.secret=*** lr=1"),
        ("t.py +db.password=x ++a.secret=y", "t.py +db.password=*** ++a.secret=***"),
        ("t.py --secret -x --lr 1", "t.py --secret *** --lr 1"),
        ("t.py --use-secret --password x", "t.py --use-secret *** ***"),
        ("API_KEY=x python t.py", "API_KEY=*** python t.py"),
        ("t.py --password 'it'\"'\"'s x' --lr 1", "t.py --password *** --lr 1"),
        ("t.py --password it\\ is\\ x --lr 1", "t.py --password *** --lr 1"),
        ('t.py --password "a \\" x" --lr 1', "t.py --password *** --lr 1"),
        ("t.py --password 'not closed x", "***"),
        ("t.py it's not closed", "t.py it's not closed"),
        ("t.py --password x " + "y" * 10_000, "***"),
        ('t.py --cfg=\'{"api_key": "x", "lr": 1}\'', 't.py \'--cfg={"api_key": "***", "lr": 1}\''),
        ("t.py -H 'X-Api-Key: x'", "t.py -H X-Api-Key:***"),
        ("t.py --password: x password= y lr= 1", "t.py --password:*** *** password=*** *** lr= 1"),
        ("t.py --url 'https://h/?a=1&api_key=x'", "t.py --url 'https://h/?a=1&api_key=***'"),
        ("t.py --db postgresql://u:x@host/d", "t.py --db postgresql://***@host/d"),
        ("t.py password notes  'two  blanks'", "t.py password notes  'two  blanks'"),
    ],
)
def test_a_command_line_is_masked_by_its_options(command: str, masked: str) -> None:
    """A secret option's value is masked in any quoting, and a line without one stays."""
    assert REDACTION.command(command) == masked


@given(words=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_quoting_lets_a_secret_through(words: list[str]) -> None:
    """A password of any characters is masked as one word of a shell."""
    secret = "SECRET".join(words) + "SECRET"
    for options in (["--password", secret], [f"--password={secret}"], [f"db.password={secret}"]):
        assert "SECRET" not in REDACTION.command(shlex.join(["t.py", *options]))


def test_a_secret_anywhere_in_a_yaml_copy_is_masked() -> None:
    """Secrets are masked in lists, mappings, JSON texts, option lists and aliases."""
    text = """# mine
? [a, b]
: {password: S1, lr: 0.5}
cb: '[{"api_key": "S2", "it''s": "gr\u00f6\u00dfe"}]'
block: |
  {"secret": "S3"}
args: [--api-key, S4, --lr, '1', "x-api-key=S5"]
odd: "[{'api_key': 'S6', 'lr': nan}]"
words: ['password:', S11, 'api_key=', S12]
api-key: S7
credentials:
  user: S8
a.b.password: >-
  folded
  S9
base: &base {secret: S10, n: 1e-3}
other: {<<: *base, t: !!python/tuple [1, 2]}
"""
    copy = REDACTION.yaml_file(text.encode()).decode()
    assert "S" not in copy
    assert "!!python/tuple" in copy
    assert "n: 1e-3" in copy
    tree = yaml.load(copy.replace("!!python/tuple", "").replace("? [a, b]\n:", "ab:"), Loader=yaml.SafeLoader)
    assert tree == {
        "ab": {"password": "***", "lr": 0.5},
        "cb": '[{"api_key": "***", "it\'s": "größe"}]',
        "block": '{"secret": "***"}',
        "args": ["--api-key", "***", "--lr", "1", "x-api-key=***"],
        "odd": "***",
        "words": ["password:***", "***", "api_key=***", "***"],
        "api-key": "***",
        "credentials": "***",
        "a.b.password": "***",
        "base": {"secret": "***", "n": "1e-3"},
        "other": {"secret": "***", "n": "1e-3", "t": [1, 2]},
    }


def test_secrets_in_odd_places_are_masked() -> None:
    """A key of a YAML mapping may be a mapping or a list; a sidecar that somebody wrote may hold one tag as a text."""
    copy = REDACTION.yaml_file(b"? {password: S1}\n: x\n? [--api-key, S2]\n: y\n")
    assert b"S1" not in copy
    assert b"S2" not in copy
    tree = json.loads(REDACTION.json_file(b'{"tags": "password:S1", "hparams": "secret=S2"}'))
    assert tree == {"tags": "password:***", "hparams": "secret=***"}


def test_a_json_copy_is_masked_in_every_field() -> None:
    """Secrets are masked in unknown fields too; names of metrics and people's texts stay."""
    sidecar = {
        "run_id": "secret-project",
        "notes": "the password: none",
        "summary": {"secret_loss": 0.5},
        "hparams": {"model.api_key": "s1", "nested": [{"password": "s2"}], "cb": '[{"api-key": "s3"}]', "lr": 0.1},
        "tags": ["passwd:s4", "project:x", {"secret": "s5"}],
        "password": "s6",
        "env": {"WANDB_API_KEY": "s7", "HOME": "/root", "URL": "https://ada:s8@host/"},
        "argv": ["t.py", "--api-key", "s9", "--lr", "1", "password:", "s14"],
        "sessions": [
            {"command": "t.py --auth_token 's 10' --lr 1", "host": "n", "env": {"API_KEY": "s11"}},
            {"slurm": {"job_id": "7", "token_secret": "s12"}},
            "odd --password=s13",
        ],
    }
    assert json.loads(REDACTION.json_file(json.dumps(sidecar).encode())) == {
        "run_id": "secret-project",
        "notes": "the password: none",
        "summary": {"secret_loss": 0.5},
        "hparams": {"model.api_key": "***", "nested": [{"password": "***"}], "cb": '[{"api-key": "***"}]', "lr": 0.1},
        "tags": ["passwd:***", "project:x", {"secret": "***"}],
        "password": "***",
        "env": {"WANDB_API_KEY": "***", "HOME": "/root", "URL": "https://***@host/"},
        "argv": ["t.py", "--api-key", "***", "--lr", "1", "password:***", "***"],
        "sessions": [
            {"command": "t.py --auth_token *** --lr 1", "host": "n", "env": {"API_KEY": "***"}},
            {"slurm": {"job_id": "7", "token_secret": "***"}},
            "odd --password=***",
        ],
    }


def test_a_file_without_secrets_is_copied_byte_for_byte() -> None:
    """A file without secrets keeps comments and formatting."""
    text, data = b"lr: 0.1\r\nname: 'secretly'  # mine\r\n", b'{"hparams": {"lr":0.10}, "summary": {"secret_loss": 1}}'
    assert REDACTION.yaml_file(text) is text
    assert REDACTION.json_file(data) is data


@pytest.mark.parametrize("data", [b"a: [1", b"a: &a [*a]", b"[" * 10_000, b"{", b'"\xff'])
def test_a_file_that_cannot_be_looked_through_is_not_copied(data: bytes) -> None:
    """A file that cannot be parsed is not copied."""
    assert REDACTION.yaml_file(data) == b""
    assert REDACTION.json_file(data) == b""


def test_aliases_cannot_multiply_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A YAML file that stands for a billion values is given up after as much as the limit allows."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    monkeypatch.setattr(secrets, "_MOST_LETTERS", secrets._MOST_LETTERS // 32)
    before = time.process_time()
    assert REDACTION.yaml_file("\n".join(lines).encode()) == b""
    assert time.process_time() - before < 5


def cost(text: str) -> float:
    """Return the processor seconds of masking `text` in every way: the least of three tries."""
    seconds = []
    for _ in range(3):
        before = time.process_time()
        for mask in (REDACTION.command, REDACTION.tag, lambda text: REDACTION.value("a", text), hide):
            mask(text)
        seconds.append(time.process_time() - before)
    return min(seconds)


@pytest.mark.parametrize(
    "text",
    [
        lambda size: "a" * size,
        lambda size: "-" * size,
        lambda size: "a " * (size // 2),
        lambda size: "a" + " " * size + "b",
        lambda size: "'" * (size + 1),
        lambda size: "\\" * (size + 1),
        lambda size: '"' + "\\" * size,
        lambda size: "a.b." * (size // 4) + "=1",
        lambda size: "[" + "a' " * (size // 3),
        lambda size: "=" * size,
        lambda size: "(" * size,
        lambda size: "a://b/" * (size // 6),
        lambda size: "a://b:" * (size // 6),
    ],
    ids=lambda text: repr(text(6)),
)
def test_any_text_takes_time_by_its_length(text: Callable[[int], str]) -> None:
    """Hostile text is masked in linear time: four times as much takes about four times as long, not sixteen times."""
    assert cost(text(80_000)) < 8 * cost(text(20_000)) + 0.05
