"""Statistics come from metrics.csv unless summary.json covers all its rows, and are computed once."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from bridge import rundir
from bridge.options import SelectionOptions
from bridge.registry import open_registry
from bridge.rundir import read_run
from bridge.sync.select import Selection, describe_left_out, select
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"step": 0, "acc": "nan"}, {"step": 1, "acc": 0.9}, {"step": 2, "acc": 0.5}]
FALSE = {"acc": {"last": 0.5, "max": "NaN", "min": 0.5, "count": 1}}
"""Statistics as the original logger leaves them: a first NaN spoils the maximum, and a requeue forgets the start."""


def write_summary(run: Path, *, newer: bool = True, **fields: object) -> None:
    (run / "summary.json").write_text(json.dumps({"metrics": FALSE} | fields))
    time = (run / "metrics.csv").stat().st_mtime + (10 if newer else -10)
    os.utime(run / "summary.json", (time, time))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the runs whose statistics are computed."""
    names: list[str] = []
    read = rundir.read_summary

    def counted(run: object) -> object:
        names.append(run.path.name)  # type: ignore[attr-defined]
        return read(run)  # type: ignore[arg-type]

    monkeypatch.setattr(rundir, "read_summary", counted)
    return names


@pytest.mark.parametrize(
    ("rows", "newer", "status", "expected"),
    [
        (None, True, "completed", 0.9),
        (3, True, "completed", 0.7),
        (3, False, "completed", 0.7),
        (2, False, "completed", 0.9),
        (1, True, "killed", 0.9),
        (1, False, "running", 0.7),
    ],
    ids=["original", "written last", "older, all rows", "older, not all rows", "copied without times", "running"],
)
def test_a_summary_is_believed_if_it_covers_all_rows(
    tmp_path: Path, computed: list[str], rows: int | None, newer: bool, status: str, expected: float
) -> None:
    """Values come from metrics.csv if summary.json may cover one session only, as the original's, or lacks rows.

    A copy without times may make a killed run's old summary look newer than its rows, so these are counted. That of a
    running run is a few seconds old.
    """
    word, age = ("completed", None) if status == "completed" else ("running", 7200.0 if status == "killed" else None)
    run = make_run(
        tmp_path / "runs" / "a", ROWS, status=word, heartbeat_age=age, hparams={"lr": 1}, summary={"acc": 0.5}
    )
    write_summary(run, newer=newer, **({} if rows is None else {"rows": rows, "metrics": {"acc": {"max": 0.7}}}))
    assert open_registry(tmp_path / "runs")["a"].metric("acc", "max") == expected
    assert computed == (["a"] if expected == 0.9 else [])


def test_they_are_computed_once(tmp_path: Path, computed: list[str]) -> None:
    """A second look costs no second computation, until the file grows."""
    make_run(tmp_path / "runs" / "a", ROWS)
    for _ in range(2):
        assert open_registry(tmp_path / "runs")["a"].metric("acc", "max") == 0.9
    assert computed == ["a"]
    with (tmp_path / "runs" / "a" / "metrics.csv").open("a") as file:
        file.write("1.5,3,\r\n")
    assert open_registry(tmp_path / "runs")["a"].metric("acc", "max") == 1.5
    assert computed == ["a", "a"]


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\x00" + b"x" * 200])
def test_a_cache_that_cannot_be_used_is_done_without(tmp_path: Path, cache: Path, content: bytes) -> None:
    """Without a usable cache the statistics are the same."""
    make_run(tmp_path / "runs" / "a", ROWS)
    cache.mkdir()
    (cache / "statistics.sqlite").write_bytes(content)
    assert open_registry(tmp_path / "runs")["a"].metric("acc", "max") == 0.9


def test_a_file_that_cannot_be_read_costs_its_own_run_only(tmp_path: Path) -> None:
    """A run whose metrics.csv is unreadable keeps what summary.json says."""
    run = make_run(tmp_path / "runs" / "a", ROWS, hparams={"lr": 1}, summary={"acc": 0.5})
    write_summary(run)
    (run / "metrics.csv").unlink()
    (run / "metrics.csv").symlink_to("/etc/hostname")
    make_run(tmp_path / "runs" / "b", ROWS)
    registry = open_registry(tmp_path / "runs")
    assert (registry["a"].metric("acc", "min"), registry["b"].metric("acc", "max")) == (0.5, 0.9)


def test_ranking_and_conditions_use_them(tmp_path: Path) -> None:
    """--top and --where compute what they need, in an export as in a list."""
    for name, value in (("a", 0.9), ("b", 0.7)):
        run = make_run(tmp_path / name, [{"step": 0, "acc": value}, {"step": 1, "acc": 0.1}], summary={"acc": 0.1})
        write_summary(run)
    runs = [read_run(tmp_path / name) for name in ("b", "a")]
    assert [run.run_id for run in select(runs, Selection.of(SelectionOptions(top=(1, "acc:max"))))] == ["a"]
    assert [run.run_id for run in select(runs, Selection.of(SelectionOptions(where="acc.max < 0.8")))] == ["b"]


def test_a_run_of_unknown_status_is_ranked(tmp_path: Path) -> None:
    """A run of unknown status is ranked; a killed one is left out with a notice, unless its status is asked for."""
    for name in ("a", "b"):
        run = make_run(tmp_path / name, ROWS, status="running", heartbeat_age=9000)
        os.utime(run / "metrics.csv", (1775822400, 1775822400))
    (tmp_path / "b" / "sidecar.json").unlink()
    (tmp_path / "b" / "heartbeat").unlink()
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    assert [str(run.status) for run in runs] == ["killed", "unknown"]
    top = Selection.of(SelectionOptions(top=(5, "acc:max")))
    assert select(runs, top) == runs[1:]
    assert describe_left_out(runs, top).startswith("1 run was left out because of the status (1 killed)")
    named = Selection.of(SelectionOptions(top=(5, "acc:max"), statuses=["killed", "unknown"]))
    assert describe_left_out(runs, named) == ""
