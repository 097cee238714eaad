"""The short reader of ended runs returns the same record as `read_run`."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.registry.record import RunRecord, read_ended
from bridge.rundir import read_run
from tests.run_dirs import CREATED_S, make_run

ORDINARY: dict[str, Any] = {
    "created_at": CREATED_S,
    "ended_at": CREATED_S + 3600,
    "updated_at": CREATED_S + 3600.5,
    "tags": ["a", "b", "a"],
    "notes": "first",
    "hparams": {"lr": 0.1, "name": "x", "deep": True, "none": None, "n": 3},
    "summary": {"acc": 0.5, "epoch": 9},
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
    """Return the record of the short reader, if it applies, and that of `read_run`."""
    stats = [os.lstat(run / name) if os.path.lexists(run / name) else None for name in ("sidecar.json", "summary.json")]
    assert stats[0] is not None
    return read_ended(str(run), stats[0], stats[1]), RunRecord.of(read_run(run))


@given(st.dictionaries(FIELDS, ANY, max_size=3), st.one_of(st.none(), ANY))
@settings(deadline=None, max_examples=120)
def test_both_ways_agree_on_any_sidecar(changes: dict[str, Any], metrics: Any) -> None:
    """For any sidecar the short reader returns the record of `read_run`, or declines."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder).resolve() / "sweep" / "run", **(ORDINARY | changes))
        if metrics is not None:
            (run / "summary.json").write_text(json.dumps({"metrics": metrics}))
        short, long = both(run)
    if short is not None:
        assert short == long


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted"])
def test_ended_runs_are_read_the_short_way(tmp_path: Path, status: str) -> None:
    """The short reader reads what a logger leaves."""
    run = make_run(tmp_path / "a", **ORDINARY, status=status)
    (run / "summary.json").write_text(json.dumps({"metrics": {"acc": {"last": 0.5, "max": 0.9, "count": 3}}}))
    short, long = both(run)
    assert short == long
    assert long.metric("acc", "max") == 0.9


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metrics": 3}', '{"metrics": {"a": {"max": 1}}', "\ufeff{}"])
def test_a_broken_summary_is_no_statistics(tmp_path: Path, content: str) -> None:
    """An unreadable summary.json costs the statistics, not the run."""
    run = make_run(tmp_path / "a", **ORDINARY)
    (run / "summary.json").write_text(content)
    short, long = both(run)
    assert short is None
    assert long.stats == {}
