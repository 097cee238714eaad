"""User tags in MLflow: none is merged, truncated or left out without a notice."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.exporters.mlflow.facts import UserTags, read_list_tag
from bridge.model import NoticeKind
from tests.exporters.mlflow.by_hand import run_of

if TYPE_CHECKING:
    from tests.exporters.mlflow.conftest import Store

ROWS = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]

MANY = tuple(f"tag{number:04}:{'z' * 60}" for number in range(60))
"""Tags whose list nearly fills one tag of MLflow's."""


def tags_of(store: Store) -> dict[str, str]:
    """Return the tags of the one run without the cursor."""
    return {key: value for key, value in store.run().data.tags.items() if key != "mlflow.bridge.cursor"}


def test_no_two_tags_become_one(store: Store) -> None:
    """The first of several names with one key keeps it; the others are renamed or left out with notices."""
    tags = ("a@b", "a#b", "mlflow.x:1", "tag.mlflow.x:2", "team", "team:a", "w" * 300)
    run = run_of(tags=tags)
    applied = store.export(run, ROWS)
    held = store.run().data.tags
    (long,) = (key for key in held if key.startswith("w" * 200))
    people = {key: value for key, value in held.items() if not key.startswith(("mlflow.", "bridge.")) and key != long}
    assert people == {
        "a_b": "true",
        "a_b_2": "true",
        "tag.mlflow.x": "1",
        "tag.mlflow.x_2": "2",
        "team": "a",
    }
    assert [(notice.kind, notice.what) for notice in applied.notices] == [
        (NoticeKind.RENAMED, "tag mlflow.x"),
        (NoticeKind.RENAMED, "tag tag.mlflow.x"),
        (NoticeKind.RENAMED, "tag a@b"),
        (NoticeKind.RENAMED, "tag a#b"),
        (NoticeKind.RENAMED, f"tag {'w' * 100}..."),
        (NoticeKind.LEFT_OUT, "tag team"),
    ]
    assert (json.loads(held["mlflow.bridge.tags"]), store.read(run).tags) == (list(tags), tags)


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_changed_and_removed_tags_follow_the_run(request: pytest.FixtureRequest, store: Store, kind: str) -> None:
    """Changed and removed tags follow the run, and tags that people set or removed stay theirs."""
    if kind == "server":
        uri = request.getfixturevalue("mlflow_server").uri
        store = replace(store, uri=uri, experiment="many tags")
    store.export(run_of(tags=MANY), ROWS)
    run_id = store.run().info.run_id
    store.client.set_tag(run_id, "tag0059", "theirs")
    store.client.delete_tag(run_id, "tag0058")
    changed = run_of(tags=("new:1", *MANY[:50], "tag0050:CHANGED", *MANY[57:]))
    store.export(changed)
    clean = replace(store, experiment=f"clean {kind}")
    clean.export(changed, ROWS)
    assert tags_of(store) == {key: value for key, value in tags_of(clean).items() if key != "tag0058"} | {
        "tag0059": "theirs"
    }
    assert sorted(store.known(changed).edited) == ["tags.tag0058", "tags.tag0059"]
    few = run_of(tags=MANY[:2])
    store.export(few)
    again = replace(store, experiment=f"few {kind}")
    again.export(few, ROWS)
    assert tags_of(store) == tags_of(again) | {"tag0059": "theirs"}


TEXTS = st.lists(st.one_of(st.text(max_size=20), st.text("ab:@#.", max_size=4)), max_size=30, unique=True)


@given(tags=TEXTS)
@settings(max_examples=100, deadline=None)
def test_each_tag_has_its_own_key_or_shares_that_of_its_name(tags: list[str]) -> None:
    """However names are cleaned, only tags of one name share a key."""
    made = UserTags.of(tags)
    assert len(set(made.keys.values())) == len(made.keys)
    assert {made.key(tag) for tag in tags} == set(made.values)


def test_tags_beyond_one_list_are_left_out_with_a_notice(store: Store) -> None:
    """Only tags that fit into the list of our own tags are sent, so none can be taken for a user's."""
    run = run_of(tags=tuple(f"k{number}:{'v' * 400}" for number in range(40)))
    applied = store.export(run, ROWS)
    held = store.run().data.tags
    kept = read_list_tag(held)
    assert kept == list(run.tags[: len(kept)])
    assert len(held["mlflow.bridge.tags"]) <= 5000
    assert [key in held for key in ("k0", "k11", "k12", "k39")] == [True, len(kept) > 11, len(kept) > 12, False]
    assert [(notice.kind, notice.what, notice.count) for notice in applied.notices] == [
        (NoticeKind.LEFT_OUT, "tags", 40 - len(kept)),
    ]
    assert (store.stale(run), store.known(run).edited) == ([], ())
    assert "tags" in store.read(run).unsupported
