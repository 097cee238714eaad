"""The short road reads what the long one does."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.registry.quick import read_quickly
from bridge.registry.record import RunRecord
from bridge.rundir import read_run
from tests.run_dirs import make_run

ORDINARY: dict[str, Any] = {
    "tags": ["a", "b", "a"],
    "notes": "first",
    "hparams": {"lr": 0.1, "name": "x", "deep": True, "none": None, "n": 3},
    "summary": {"acc": 0.5, "epoch": 9, "bad": "NaN", "huge": "-Infinity"},
    "sessions": [{"host": "n1"}, {}],
}

ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["running", "failed", "interrupted", "NaN", "2026-04-10T12:00:00", "1e400", "\ud800", "Ä", ""]),
    st.lists(st.one_of(st.text(max_size=4), st.integers()), max_size=3),
    st.dictionaries(
        st.text(max_size=4), st.one_of(st.none(), st.floats(), st.text(max_size=4), st.just({"a": 1})), max_size=3
    ),
)
FIELDS = st.sampled_from(
    ["run_id", "uid", "status", "created_at", "ended_at", "updated_at", "tags", "notes", "hparams", "summary",
     "checkpoint_path", "display_name", "archived", "sessions", "time_column"]
)  # fmt: skip


def both(run: Path) -> tuple[RunRecord | None, RunRecord]:
    """The record by the short road, if it takes it, and by the long one."""
    stats = [os.lstat(run / name) if os.path.lexists(run / name) else None for name in ("sidecar.json", "summary.json")]
    found = read_quickly(str(run), *stats)
    return found and found.record, RunRecord.of(read_run(run))


@given(st.dictionaries(FIELDS, ANY, max_size=3), st.one_of(st.none(), ANY))
@settings(deadline=None, max_examples=120)
def test_both_roads_agree_on_any_sidecar(changes: dict[str, Any], metrics: Any) -> None:
    """Whatever stands in a sidecar's fields, the short road reads the same as the long one, or leaves it alone."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder).resolve() / "sweep" / "run", **(ORDINARY | changes))
        if metrics is not None:
            (run / "summary.json").write_text(json.dumps({"metrics": metrics}))
        short, long = both(run)
    if short is not None:
        assert short == long


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted"])
def test_ended_runs_take_the_short_road(tmp_path: Path, status: str) -> None:
    """What a logger leaves behind is read by the short road."""
    run = make_run(tmp_path / "a", status=status, **ORDINARY)
    stats = {"acc": {"last": 0.5, "max": 0.7, "min": "NaN", "count": 10**400, "max_step": "x"}, "odd": 3}
    (run / "summary.json").write_text(json.dumps({"metrics": stats}))
    short, long = both(run)
    assert short is not None
    assert (short, short.metric("acc", "max")) == (long, 0.7)


@pytest.mark.parametrize(
    "fields",
    [
        {"run_id": "r" * 501},
        {"uid": "u" * 501},
        {"tags": [f"t{number}" for number in range(10_001)]},
        {"sessions": [{}] * 10_001},
        {"summary": {f"{number:x}": 1 for number in range(50_001)}},
        {"odd": [0] * 500_001},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_beyond_bounds_takes_the_long_road(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Where the long road cuts, or refuses, the short one leaves it to it."""
    run = make_run(tmp_path / "a", **(ORDINARY | fields))
    assert read_quickly(str(run), os.lstat(run / "sidecar.json"), None) is None


def test_both_roads_keep_as_many_statistics(tmp_path: Path) -> None:
    """Of more metrics than anybody has, both keep the first."""
    run = make_run(tmp_path / "a", **ORDINARY)
    (run / "summary.json").write_text(
        json.dumps({"metrics": {f"{n:x}": {} for n in range(50_001)}}, separators=(",", ":"))
    )
    short, long = both(run)
    assert short is not None
    assert (len(short.stats), short == long) == (50_000, True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metrics": 3}', '{"metrics": {"a": {"max": 1}}', "\ufeff{}"])
def test_a_broken_summary_is_no_statistics(tmp_path: Path, content: str) -> None:
    """A summary.json that cannot be read costs the statistics, not the run, on either road."""
    run = make_run(tmp_path / "a", **ORDINARY)
    (run / "summary.json").write_text(content)
    short, long = both(run)
    assert short is None or short == long
    assert long.stats == {}


def test_links_go_the_long_road(tmp_path: Path) -> None:
    """A sidecar that is a link is for the long road, which knows where links may lead."""
    run = make_run(tmp_path / "a", **ORDINARY)
    (run / "sidecar.json").rename(tmp_path / "elsewhere")
    (run / "sidecar.json").symlink_to(tmp_path / "elsewhere")
    assert read_quickly(str(run), os.lstat(run / "sidecar.json"), None) is None
