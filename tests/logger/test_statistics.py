"""Running statistics cover all sessions, ignore NaN, and are complete after a kill."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bridge.rundir import read_run, read_summary
from logger import RegistryLoggerWarning
from tests.logger.rows import read_rows, sidecar, start, steps, summary, without_time

if TYPE_CHECKING:
    from pathlib import Path


def test_statistics_of_a_metric(tmp_path: Path) -> None:
    """The summary holds last, min, max, count, their first steps, the number of NaN and the first NaN, as strict JSON.

    It has the last step and the epoch too, and the sidecar has the last values.
    """
    columns: dict[str, tuple[list[object], tuple[object, ...] | None]] = {
        "falls": ([2.0, 1.0, 3.0], (3.0, 1.0, 3.0, 3, 5, 6, 0, None)),
        "some nan": ([math.nan, 1.0, math.nan], ("NaN", 1.0, 1.0, 3, 5, 5, 2, 4)),
        "nan": ([math.nan], ("NaN", None, None, 1, None, None, 1, 4)),
        "infinite": ([1, math.inf, -math.inf], ("-Infinity", "-Infinity", "Infinity", 3, 6, 5, 0, None)),
        "equal": ([5, 5], (5, 5, 5, 2, 4, 4, 0, None)),
        "flag": ([True], (1, 1, 1, 1, 4, 4, 0, None)),
        "epoch": ([0, 1], (1, 0, 1, 2, 4, 5, 0, None)),
        "note": (["text"], None),
    }
    writer = start(tmp_path)
    for at in range(3):
        writer.log_metrics({name: values[at] for name, (values, _) in columns.items() if at < len(values)}, 4 + at)
    writer.finalize("completed")
    found = summary(tmp_path)
    assert (found["step"], found["epoch"], found["rows"], found["run_id"]) == (6, 1, 3, "r")
    names = ("last", "min", "max", "count", "min_step", "max_step", "nan_count", "first_nan_step")
    expected = {name: dict(zip(names, stats, strict=True)) for name, (_, stats) in columns.items() if stats}
    assert found["metrics"] == expected
    assert sidecar(tmp_path)["summary"] == {name: stats["last"] for name, stats in expected.items()}
    assert without_time(read_rows(tmp_path))[0] == {
        **{"step": "4", "falls": "2.0", "some nan": "nan", "nan": "nan", "infinite": "1", "equal": "5", "flag": "1"},
        **{"epoch": "0", "note": "text"},
    }


@pytest.mark.parametrize("state", ["as it was", "behind the rows", "of another writer", "gone", "torn"])
def test_statistics_cover_all_sessions(tmp_path: Path, state: str) -> None:
    """Whatever a kill left of summary.json, the next session counts every row on disk once."""
    writer = start(tmp_path)
    for step, value in enumerate([4.0, math.nan, 2.0]):
        writer.log_metrics({"loss": value, "epoch": 0}, step)
        if step == 0:
            writer.set_checkpoint("last.ckpt")
            early = (tmp_path / "summary.json").read_text()
    writer.release()
    path = tmp_path / "summary.json"
    whole = json.loads(path.read_text())
    match state:
        case "behind the rows":
            path.write_text(early)
        case "of another writer":
            del whole["rows"]
            whole["metrics"]["loss"] = {"last": 9, "min": 9, "max": 9, "count": 1}
            path.write_text(json.dumps(whole))
        case "gone":
            path.unlink()
        case "torn":
            path.write_text('{"metrics": {"lo')
    writer = start(tmp_path)
    writer.log_metrics({"loss": 3.0}, None)
    writer.finalize("completed")
    found = summary(tmp_path)
    assert (found["step"], found["epoch"], found["rows"]) == (3, 0, 4)
    assert found["metrics"]["loss"] == {
        "last": 3.0,
        "min": 2.0,
        "max": 4.0,
        "count": 4,
        "min_step": 2,
        "max_step": 0,
        "nan_count": 1,
        "first_nan_step": 1,
    }
    assert found["metrics"]["epoch"]["count"] == 3


@pytest.mark.parametrize(
    ("given", "written", "warned"),
    [
        ([None, None, 10, None], [0, 1, 10, 11], False),
        ([4.0], [4], False),
        ([2.5], [2], True),
        (["4"], [0], True),
        ([math.nan], [0], True),
        ([2**63], [0], True),
        ([-(2**63) - 1], [0], True),
        ([1e30], [0], True),
        pytest.param([10**5000], [0], True, id="a number that cannot even be printed"),
        pytest.param([2**63 - 1, None], [2**63 - 1] * 2, False, id="steps end where readers end"),
    ],
)
def test_every_row_gets_a_step(tmp_path: Path, given: list[object], written: list[int], warned: bool) -> None:
    """A row without a step gets the last one + 1, also after a resume.

    A fraction is cut off, and an invalid step becomes the next one, each with a warning.
    """
    writer = start(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in given:
            writer.log_metrics({"a": 1.0}, step)
            writer.save()
    assert [warning.category for warning in told] == [RegistryLoggerWarning] * warned
    resumed = start(tmp_path)
    resumed.log_metrics({"a": 1.0})
    resumed.release()
    assert steps(tmp_path) == [*written, min(written[-1] + 1, 2**63 - 1)]


def test_what_is_no_number_goes_to_the_csv_only(tmp_path: Path) -> None:
    """Text, arrays as they are now, and unprintable objects become cells without statistics, and never raise.

    Text that readers parse as a number counts, also after a resume.
    """

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    writer = start(tmp_path)
    array = np.array([1.0, 2.0])
    row = {"text": "a,b", "list": [1, 2], "array": array, "broken": Broken(), "nothing": None, 5: 1.0, "step": 99}
    writer.log_metrics(row | {"a": "1.5", "b": "True", "c": "", "d": "9" * 400}, 1)  # type: ignore[arg-type]
    array[:] = 9.0
    writer.finalize("completed")
    cells = {"text": "a,b", "list": "[1, 2]", "array": "[1. 2.]", "broken": f"<{Broken.__qualname__}>", "5": "1.0"}
    cells |= {"a": "1.5", "b": "True", "d": "9" * 400}
    assert without_time(read_rows(tmp_path)) == [{"step": "1"} | cells]
    last = {"5": 1.0, "a": 1.5, "b": 1, "d": math.inf}
    assert {name: float(of["last"]) for name, of in summary(tmp_path)["metrics"].items()} == last
    (tmp_path / "summary.json").unlink()
    assert {name: of["last"] for name, of in read_summary(read_run(tmp_path)).items()} == last
    assert {name: of.last for name, of in start(tmp_path).stats.items()} == last


def test_a_metric_called_like_the_time_column_gets_another_name(tmp_path: Path) -> None:
    """A metric `wall_time` is stored as `wall_time_`, with one warning."""
    writer = start(tmp_path)
    writer.log_metrics({"a": 1.0}, 0)
    writer.save()
    with pytest.warns(RegistryLoggerWarning, match="'wall_time_'"):
        writer.log_metrics({"wall_time": 5.0}, 1)
    writer.log_metrics({"wall_time": 6.0}, 2)  # a second warning would be an error
    writer.finalize("completed")
    found = read_rows(tmp_path)
    assert [row.get("wall_time_") for row in found] == [None, "5.0", "6.0"]
    assert all(float(row["wall_time"]) > 1e9 for row in found)
    assert sidecar(tmp_path)["time_column"] == "wall_time"
    assert summary(tmp_path)["metrics"]["wall_time_"]["count"] == 2


@pytest.mark.parametrize("time_column", [None, "wall_time"])
def test_without_times_their_column_is_an_ordinary_metric(tmp_path: Path, time_column: str | None) -> None:
    """Without a time column, or in another writer's file where it is a metric, rows have no times."""
    (tmp_path / "metrics.csv").write_bytes(b"step,wall_time\r\n0,5.0\r\n")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        writer = start(tmp_path, time_column=time_column)
    assert ["no times of rows" in str(warning.message) for warning in told] == [True] * (time_column is not None)
    writer.log_metrics({"a": 1.0, "wall_time": 6.0}, 1)
    writer.finalize("completed")
    assert read_rows(tmp_path) == [{"step": "0", "wall_time": "5.0"}, {"step": "1", "wall_time": "6.0", "a": "1.0"}]
    assert "time_column" not in sidecar(tmp_path)
    assert summary(tmp_path)["metrics"]["wall_time"]["count"] == 2
