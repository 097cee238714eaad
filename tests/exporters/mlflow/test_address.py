"""SQLite addresses mean the file that SQLAlchemy opens for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from bridge.exporters.mlflow.address import Address, sqlite_uri
from tests.exporters.mlflow.by_hand import run_of
from tests.exporters.mlflow.conftest import Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["plain.db", "x y.db", "50%.db", "a%20b.db", "a?b#c.db", "ü.db"])
def test_any_file_has_a_uri(name: str, tmp_path: Path) -> None:
    """What is made of a file leads back to it."""
    file = tmp_path / name
    uri = sqlite_uri(file)
    assert make_url(uri).database == str(file)
    assert Address.of(uri).sqlite_file == file


def test_a_relative_path_may_be_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken from the working directory, whatever signs that has in its name; the query stays."""
    here = tmp_path / "100%25 here"
    here.mkdir()
    monkeypatch.chdir(here)
    address = Address.of("sqlite:///x y%20z.db?timeout=5")
    assert address.sqlite_file == here / "x y z.db"
    assert make_url(address.uri).database == str(here / "x y z.db")
    assert address.uri.endswith("?timeout=5")


def test_an_encoded_path_is_the_file_that_is_made(tmp_path: Path) -> None:
    """`%20` is a space: the file is made under that name, with its artifacts beside it, and nothing is left over."""
    store = Store(f"sqlite:///{tmp_path}/x y%20z.db")
    store.export(run_of(), [{"step": 0, "loss": 1.0}])
    assert store.points("loss") == [(0, 1.0, 1775822400000)]
    assert [path.name for path in tmp_path.iterdir() if path.name != "mlartifacts"] == ["x y z.db"]
