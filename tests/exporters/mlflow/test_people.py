"""People's tags in MLflow: none is merged, cut or forgotten without a word, however many they are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.exporters.mlflow.people import LIST_TAGS, listed, people_tags, read_list
from bridge.model import NoticeKind
from logger.sidecar import SessionEntry
from tests.exporters.mlflow.by_hand import run_of

if TYPE_CHECKING:
    from tests.exporters.mlflow.conftest import Store

ROWS = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]

MANY = tuple(f"tag{number:04}:{'z' * 20}" for number in range(300))
"""Tags whose list takes more than one tag of MLflow's."""


def tags_of(store: Store) -> dict[str, str]:
    """The tags of the one run, but for the cursor."""
    return {key: value for key, value in store.run().data.tags.items() if key != "bridge.cursor"}


def test_no_two_tags_become_one(store: Store) -> None:
    """Of names that would get one key the first keeps it, a word beside a value of its name is left out, and all are named."""
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
    assert (json.loads(held["bridge.tags"]), store.read(run).tags) == (list(tags), tags)


def test_a_long_name_is_cut_and_that_is_said(store: Store) -> None:
    """250 characters, as MLflow's tables have it."""
    applied = store.export(run_of(name="n" * 300), ROWS)
    assert store.run().info.run_name == "n" * 250
    assert [(notice.kind, notice.what) for notice in applied.notices] == [(NoticeKind.CUT, "name")]


def test_two_of_slurms_names_do_not_become_one(store: Store) -> None:
    """As with all names: the first to appear keeps the clean one."""
    applied = store.export(run_of(sessions=(SessionEntry(slurm={"a+b": "1", "a*b": "2"}),)), ROWS)
    tags = store.run().data.tags
    assert (tags["bridge.slurm.a_b"], tags["bridge.slurm.a_b_2"]) == ("1", "2")
    assert [(notice.kind, notice.what) for notice in applied.notices] == [
        (NoticeKind.RENAMED, "tag bridge.slurm.a+b"),
        (NoticeKind.RENAMED, "tag bridge.slurm.a*b"),
    ]


def test_a_list_of_tags_goes_on_in_further_tags(store: Store) -> None:
    """Nothing of it is cut, and all of it comes back."""
    run = run_of(tags=MANY)
    applied = store.export(run, ROWS)
    held = store.run().data.tags
    pages = [held[key] for key in ("bridge.tags", "bridge.tags.2")]
    assert [len(page) for page in pages] == [5000, 4600]
    assert (json.loads("".join(pages)), "bridge.tags.3" in held) == (list(MANY), False)
    assert (applied.notices, store.read(run).tags, store.known(run).edited) == ((), MANY, ())


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_of_many_tags_those_that_changed_or_went_follow(
    request: pytest.FixtureRequest, store: Store, kind: str
) -> None:
    """Whichever they are, as in one clean export; what people set and took away stays theirs."""
    if kind == "server":
        uri = request.getfixturevalue("mlflow_server").uri
        store = replace(store, uri=uri, experiment="many tags")
    store.export(run_of(tags=MANY), ROWS)
    run_id = store.run().info.run_id
    store.client.set_tag(run_id, "tag0299", "theirs")
    store.client.delete_tag(run_id, "tag0298")
    changed = run_of(tags=("fresh:1", *MANY[:250], "tag0250:CHANGED", *MANY[290:]))
    store.export(changed)
    clean = replace(store, experiment=f"clean {kind}")
    clean.export(changed, ROWS)
    assert tags_of(store) == {key: value for key, value in tags_of(clean).items() if key != "tag0298"} | {
        "tag0299": "theirs"
    }
    assert sorted(store.known(changed).edited) == ["tags.tag0298", "tags.tag0299"]
    few = run_of(tags=MANY[:2])
    store.export(few)
    again = replace(store, experiment=f"few {kind}")
    again.export(few, ROWS)
    assert tags_of(store) == tags_of(again) | {"tag0299": "theirs"}


TEXTS = st.lists(st.one_of(st.text(max_size=20), st.text("ab:@#.", max_size=4)), max_size=30, unique=True)


@given(tags=TEXTS, length=st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_every_tag_has_a_key_of_its_own_or_shares_that_of_its_name(tags: list[str], length: int) -> None:
    """However names are cleaned, and a list of any length is read back from its pieces."""
    people = people_tags(tags)
    assert len(set(people.keys.values())) == len(people.keys)
    assert {people.key(tag) for tag in tags} == set(people.values)
    many = [f"{tag}{'é' * length}" for tag in tags for _ in range(8)]
    kept, pages = listed(many)
    assert (list(kept), read_list(pages)) == (many, many)
    assert read_list(pages | {LIST_TAGS[len(pages)]: "what a longer list left"}) == many


def test_a_list_that_is_too_long_keeps_its_first_tags(store: Store) -> None:
    """As many as fit into a hundred thousand characters; no other is sent, so none can be taken for people's own."""
    run = run_of(tags=tuple(f"k:{number}{'v' * 4000}" for number in range(40)))
    applied = store.export(run, ROWS)
    held = store.run().data.tags
    assert (len(read_list(held)), held["k"][:5], store.known(run).edited) == (24, "0vvvv", ())
    assert [(notice.kind, notice.what, notice.count) for notice in applied.notices] == [
        (NoticeKind.LEFT_OUT, "tags", 16),
        (NoticeKind.CUT, "tag k", 1),
    ]
    assert "tags" in store.read(run).unsupported
