"""Tests that share something costly run in one process."""

from __future__ import annotations

from tests.together import group_of


def test_groups() -> None:
    """The demo's tests share one process, each browser file its own, and other tests run anywhere."""
    assert [
        group_of(test)
        for test in (
            "tests/test_real_trainings.py::test_a[x]",
            "tests/cli/test_view.py::test_b",
            "tests/browser/test_mlflow.py::test_c",
            "tests/rundir/test_run.py::test_d",
        )
    ] == ["demo", "demo", "tests/browser/test_mlflow.py", "tests/rundir/test_run.py::test_d"]
