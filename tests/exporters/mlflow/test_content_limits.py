"""Content beyond the limits of MLflow, a database or an artifact store is kept elsewhere with a notice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bridge.model import NoticeKind
from tests.exporters.mlflow.by_hand import run_of
from tests.exporters.mlflow.conftest import Store

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"step": 0, "a@b": 1.0}]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_nul_characters_are_replaced(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """NUL characters are replaced for every database, because PostgreSQL has none, and verify knows."""
    uri = request.getfixturevalue("sqlite_uri" if kind == "sqlite" else "postgres_uri")
    store = Store(uri)
    store.client.create_experiment("trials", artifact_location=tmp_path.as_uri())
    run = run_of(params={"p": "a\0b"}, tags=("k:a\0b",), notes="a\0b", name="a\0b")
    applied = store.export(run, ROWS)
    assert (NoticeKind.CUT, "param p") in [(notice.kind, notice.what) for notice in applied.notices]
    held = store.run()
    assert (held.data.params["p"], held.data.tags["k"], held.info.run_name) == ("a\ufffdb", "a\ufffdb", "a\ufffdb")
    assert {"params.p", "notes", "name", "tags"} <= store.read(run).unsupported
    assert store.stale(run) == []


def test_renames_are_known_also_without_a_place_for_files(store: Store) -> None:
    """Without an artifact store a tag maps renamed keys back."""
    store.client.create_experiment("trials", artifact_location="mlflow-artifacts:/7")
    run = run_of(params={"f(x)": 1})
    store.export(run, ROWS)
    assert json.loads(store.run().data.tags["mlflow.bridge.names"])["metrics"] == {"a@b": "a_b"}
    held = store.read(run)
    assert (list(held.series), held.params) == (["a@b"], {"f(x)": "1"})


def test_long_names_and_keys_of_any_script_arrive(store: Store) -> None:
    """Names and keys in any script fit MLflow's limits, stay apart, and are read back whole."""
    names = ["größe/学習率", "x" * 300, "x" * 299 + "y", "🚀 rate", "a=b,c;d", "100%"]
    run = run_of(params={name: number for number, name in enumerate(names)}, name="n" * 400)
    applied = store.export(run, [{"step": 0, **{name: float(number) for number, name in enumerate(names)}}])
    assert (NoticeKind.CUT, "name") in [(notice.kind, notice.what) for notice in applied.notices]
    held = store.read(run)
    assert sorted(held.series) == sorted(names)
    assert held.params == {name: str(number) for number, name in enumerate(names)}
    assert (held.name, held.truncated) == ("n" * 250, {"name"})
