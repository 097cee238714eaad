"""Queries over records, and records as tables."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bridge
from bridge.errors import BridgeError, UsageError
from bridge.model import Status
from bridge.registry import Registry
from bridge.registry.query import columns, csv_table, parquet_table
from tests.registry.records import START, record

A = record("a", tags=("x", "y"), hparams={"lr": 0.1, "opt": "adam"}, summary={"acc": 0.5}, stats={"acc": {"max": 0.9}})
STATS = {"acc": {"max": 0.8}}
B = record("b", tags=("x",), hparams={"lr": 0.01}, summary={"acc": 0.7, "loss": 1}, stats=STATS, start=START + 1)
C = record("c", hparams={"lr": "auto"}, summary={"acc": math.nan}, status=Status.RUNNING, start=START + 2)
REGISTRY = Registry([A, B, C], root=Path("/runs"))


def ids(**how: object) -> str:
    return "".join(run.run_id for run in REGISTRY.query(**how))  # type: ignore[arg-type]


def test_a_registry_is_a_collection() -> None:
    """len, iteration, [], get and `in` work as of a mapping from run ids, also after close(); the repr counts."""
    REGISTRY.close()
    assert (len(REGISTRY), [run.run_id for run in REGISTRY]) == (3, ["a", "b", "c"])
    assert (REGISTRY["b"], REGISTRY.get("c"), REGISTRY.get("gone")) == (B, C, None)
    assert ("a" in REGISTRY, "gone" in REGISTRY) == (True, False)
    with pytest.raises(KeyError):
        REGISTRY["nobody"]
    assert repr(REGISTRY) == "<Registry /runs: 3 runs (1 running, 2 completed)>"
    assert repr(Registry([], root=Path("/runs"))) == "<Registry /runs: 0 runs (none)>"


def test_of_two_runs_with_one_id_the_later_start_is_meant() -> None:
    """Of two runs with one id the one with the later start is found."""
    later = record("a", run_dir="/runs/later", start=START + 9)
    assert Registry([A, later], root=Path("/runs"))["a"] is later


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "abc"),
        ({"tag": "x"}, "ab"),
        ({"tag": ["x", "y"]}, "a"),
        ({"status": "Running"}, "c"),
        ({"status": ["running", "completed"]}, "abc"),
        ({"alive": True}, "c"),
        ({"alive": False}, "ab"),
        ({"hparams": {"lr": 0.1}}, "a"),
        ({"hparams": {"lr": None}}, ""),
        ({"where": "acc > 0.6"}, "b"),
        ({"where": "acc > 0.4", "tag": "y"}, "a"),
        ({"limit": 2}, "ab"),
        ({"limit": 0}, ""),
        ({"descending": True}, "cba"),
        ({"sort_by": "summary.acc", "limit": 2}, "ba"),
    ],
)
def test_what_is_asked_for_must_all_hold(asked: dict[str, object], found: str) -> None:
    """Tags narrow, statuses widen, hyperparameters must be equal, `where` must hold; the order is by start."""
    assert ids(**asked) == found


@pytest.mark.parametrize(
    ("sort_by", "rising", "falling"),
    [
        ("summary.acc", "abc", "bac"),
        ("max.acc", "bac", "abc"),
        ("hparams.lr", "bac", "cab"),
        ("hparams.opt", "abc", "abc"),
        ("start", "abc", "cba"),
        ("run_id", "abc", "cba"),
        ("tags", "cba", "abc"),
        ("alive", "abc", "cab"),
        ("acc.max", "bac", "abc"),
    ],
)
def test_sorting(sort_by: str, rising: str, falling: str) -> None:
    """Any field, hyperparameter or metric sorts.

    A missing value and NaN come last in both directions, and ties keep their order.
    """
    assert (ids(sort_by=sort_by, descending=False), ids(sort_by=sort_by)) == (rising, falling)


@given(st.text(min_size=1))
def test_names_of_any_signs_sort_and_filter(name: str) -> None:
    """Dots, slashes and quotes in a name are never part of a query's text."""
    both = [record(run_id, summary={name: 1.0 * at}, hparams={name: at}) for at, run_id in ((1, "low"), (2, "high"))]
    registry = Registry(both, root=Path("/runs"))
    for key in (f"summary.{name}", f"hparams.{name}"):
        assert [run.run_id for run in registry.query(sort_by=key, descending=True)] == ["high", "low"]
    assert [run.run_id for run in registry.query(hparams={name: 2})] == ["high"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sort_by": "statuss"}, "sort_by: no run has statuss; did you mean status?"),
        ({"sort_by": "hparams.opts"}, "sort_by: no run has hparams.opts; did you mean hparams.opt?"),
        ({"status": "complete"}, "there is no status 'complete' (did you mean completed?)"),
        ({"limit": -1}, "limit must not be negative, but is -1."),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, object], said: str) -> None:
    """A sort key or a status that is none is an error with the nearest name, and so is a negative limit."""
    with pytest.raises(UsageError) as caught:
        ids(**asked)
    assert str(caught.value) == said


def test_a_table_has_all_columns() -> None:
    """A table has the fields of the JSON in its order, hyperparameters, last, greatest and smallest values.

    Missing values are None.
    """
    table = columns([A, B])
    fields = [name for name in A.to_dict() if name not in ("hparams", "summary", "metrics")]
    assert "status_word" in fields
    assert list(table) == [
        *fields, "hparams.lr", "hparams.opt", "summary.acc", "summary.loss", "max.acc", "max.loss", "min.acc",
        "min.loss",
    ]  # fmt: skip
    assert (table["tags"], table["hparams.opt"], table["max.acc"]) == (["x, y", "x"], ["adam", None], [0.9, 0.8])


def test_csv() -> None:
    """The CSV has one header line and one line per run, with empty cells for missing values."""
    text = csv_table([A, record("q", notes='say "x",\nend')]).decode()
    first, second = csv.DictReader(io.StringIO(text, newline=""))
    assert (first["summary.acc"], first["status"], second["summary.acc"], second["notes"]) == (
        "0.5", "completed", "", 'say "x",\nend',
    )  # fmt: skip


def test_parquet() -> None:
    """Parquet columns keep their type; mixed types and integers beyond 64 bits become text."""
    from pyarrow import BufferReader, parquet

    many = record("m", hparams={"lr": 2**70, "opt": "\ud800"}, sessions=3)
    table = parquet.read_table(BufferReader(parquet_table([A, B, C, many])))
    assert table["hparams.lr"].to_pylist() == ["0.1", "0.01", "auto", str(2**70)]
    assert table["hparams.opt"].to_pylist() == ["adam", None, None, "\\ud800"]
    assert (str(table.schema.field("sessions").type), str(table.schema.field("max.acc").type)) == ("int64", "double")


def test_json_is_strict() -> None:
    """A record as JSON holds no NaN or infinity, and only JSON's types."""
    run = record("j", hparams={"a": math.inf}, summary={"x": math.nan}, stats={"x": {"max": -math.inf}}, tags=("t",))
    told = run.to_dict()
    shown = (told["hparams"], told["summary"], told["metrics"])
    assert shown == ({"a": "Infinity"}, {"x": "NaN"}, {"x": {"max": "-Infinity"}})
    assert (told["status"], told["tags"], told["created_at"]) == ("completed", ["t"], "2026-04-10T12:00:00+00:00")


def test_dataframe() -> None:
    """A pandas table has a row for each run and times with a zone."""
    import pandas

    frame = REGISTRY.to_dataframe()
    assert frame["run_id"].tolist() == ["a", "b", "c"]
    assert frame["created_at"][0] == pandas.Timestamp("2026-04-10T12:00:00Z")
    assert math.isnan(frame["summary.loss"][0])
    assert REGISTRY.to_dataframe([B])["max.acc"].tolist() == [0.8]
    assert REGISTRY.to_dataframe(tag="x", sort_by="summary.acc")["run_id"].tolist() == ["b", "a"]


def test_dataframe_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pandas the error has the pip line."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BridgeError, match="to_dataframe needs pandas") as caught:
        REGISTRY.to_dataframe()
    assert caught.value.hint == "pip install pandas"


def test_the_public_names_can_be_used_twice() -> None:
    """A lazily loaded name is the same object at the second access."""
    assert bridge.open_registry is bridge.open_registry
    assert (bridge.Registry, bridge.RunRecord.__name__) == (Registry, "RunRecord")
    assert {"Registry", "RegistryLogger", "RunRecord", "open_registry"} <= set(dir(bridge))
    with pytest.raises(AttributeError, match="module 'bridge' has no attribute 'nothing'"):
        bridge.nothing  # noqa: B018


def test_messages_go_to_the_log(tmp_path: Path, cache: Path) -> None:
    """Without `say`, messages about the cache are warnings in the log."""
    cache.touch()
    program = (
        "import logging, sys; logging.basicConfig(format='%(name)s %(levelname)s')\n"
        "import bridge; bridge.open_registry(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == "bridge.registry WARNING\n"
