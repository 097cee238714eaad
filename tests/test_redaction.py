"""Secrets by the keys they stand under, in every notation that a run may have them in."""

from __future__ import annotations

import json
import shlex
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.cursor import ContentOptions
from bridge.redaction import Redaction
from bridge.sync.truth_secrets import Secrets

REDACTION = Redaction(ContentOptions().redact)
SECRETS = Secrets(ContentOptions().redact)


@pytest.mark.parametrize(
    "key", ["password", "DB_PASSWORD", "api-key", "x-Api_Key", "model.apikey", "credentials.user", "auth-token"]
)
def test_a_key_matches_in_any_case_with_any_dash(key: str) -> None:
    """Anywhere in a dotted name."""
    assert REDACTION.matches(key)
    assert SECRETS.hides(key)


@pytest.mark.parametrize(
    ("glob", "key", "is_secret"),
    [
        ("pin", "door.pin", True),
        ("pin", "door.pin.old", True),
        ("pin", "spinning", False),
        ("my-key", "MY_key", True),
        ("key[a-c]", "keyb", True),
        ("key[a-c]", "key_", False),
        ("*token", "a.token.b", True),
        ("*", "", False),
    ],
)
def test_globs_of_ones_own(glob: str, key: str, is_secret: bool) -> None:
    """They are for the whole name or for a part of it, and a range of characters stays one."""
    assert Redaction((glob,)).matches(key) == is_secret
    assert Secrets((glob,)).hides(key) == is_secret


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
def test_what_a_value_says_within(value: str, masked: str) -> None:
    """JSON keeps all but its secrets; what is no JSON, or too deep to be looked through, is masked whole where it has any."""
    assert REDACTION.value("opts", value) == masked
    assert SECRETS.value("opts", value) == masked


@pytest.mark.parametrize("value", [None, True, 1, 0.5, "X", ""])
def test_a_secret_is_masked_whatever_it_is(value: str | float | None) -> None:
    """Numbers, nothing at all and empty texts too."""
    assert REDACTION.value("x.secret", value) == "***"
    assert SECRETS.value("x.secret", value) == "***"
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
    """A bare word and a value of another key stay."""
    assert REDACTION.tag(tag) == masked
    assert SECRETS.tag(tag) == masked


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
        ("t.py --password 'not closed x", "t.py --password ***"),
        ('t.py --cfg=\'{"api_key": "x", "lr": 1}\'', 't.py \'--cfg={"api_key": "***", "lr": 1}\''),
        ("t.py -H 'X-Api-Key: x'", "t.py -H X-Api-Key:***"),
        ("t.py --url 'https://h/?a=1&api_key=x'", "t.py --url 'https://h/?a=1&api_key='***"),
        ("t.py --db postgresql://u:x@host/d", "t.py --db postgresql://***@host/d"),
        ("t.py password notes  'two  blanks'", "t.py password notes  'two  blanks'"),
    ],
)
def test_a_command_line_is_masked_by_its_options(command: str, masked: str) -> None:
    """A secret option's value goes, whatever it looks like and however it is quoted; every other byte stays."""
    assert REDACTION.command(command) == masked


@given(words=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_quoting_lets_a_secret_through(words: list[str]) -> None:
    """Whatever a password is made of, as one word of a shell's it is gone."""
    secret = "SECRET".join(words) + "SECRET"
    for command in ([secret], ["--lr", "1"]):
        for options in (["--password", secret], [f"--password={secret}"], [f"db.password={secret}"]):
            assert "SECRET" not in REDACTION.command(shlex.join(["t.py", *options])), command


KEYS = st.sampled_from(["a", "api-key", "PASSWORD", "a.secret", "b:c", "token", "lr", ""])
LEAVES = st.one_of(
    st.none(),
    st.integers(0, 3),
    st.floats(),
    st.sampled_from(["x", "--password", "secret=", "secret:x", "a=b", "[", "{'password': 1}", "-x", "f(secret=1)"]),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=2)).map(json.dumps),
    ),
    max_leaves=10,
)


@given(tree=TREES, key=KEYS, text=st.text("pasword-_.:= '\"[]{}()<>,", max_size=30))
@example(tree="", key="", text="password :x")
@settings(max_examples=300, deadline=None)
def test_exporters_and_verify_agree(tree: object, key: str, text: str) -> None:
    """Two implementations of one rule: verify expects what an exporter masks, and masking twice is as once."""
    own = ContentOptions(redact=(*ContentOptions().redact, "lr", "*token", "p[a-z]s*"))
    for globs in (ContentOptions().redact, own.redact):
        one, other = Redaction(globs), Secrets(globs)
        for said in (json.dumps(tree), repr(tree), text):
            assert one.value(key, said) == other.value(key, said)
            assert one.tag(said) == other.tag(said)
            assert one.tag(one.tag(said)) == one.tag(said)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 500_000,
        "-" * 500_000,
        "a " * 250_000,
        "a" + " " * 500_000 + "b",
        "'" * 500_001,
        "\\" * 500_001,
        '"' + "\\" * 500_000,
        "a.b." * 125_000 + "=1",
        "[" + "a' " * 150_000,
        "=" * 250_000,
        "(" * 250_000,
    ],
    ids=lambda text: repr(text[:6]),
)
def test_any_text_takes_time_by_its_length(text: str) -> None:
    """Megabytes made to be looked at again and again are looked at once."""
    before = time.process_time()
    for mask in (REDACTION.command, REDACTION.tag, REDACTION.text, SECRETS.tag):
        mask(text)
    SECRETS.value("a", text)
    assert time.process_time() - before < 10
