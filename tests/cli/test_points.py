"""`bridge points` and `bridge.read_points` give the points of one run as every target shows them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import bridge
from tests.cli.calling import call
from tests.run_dirs import make_run, write_metrics

T0 = 1775822400.0


@pytest.fixture
def run(place: Path) -> Path:
    """Make a run that logged steps 1 and 2 twice after a requeue, with a gap and a NaN."""
    path = make_run(Path("runs/a"), [])
    rows = [["1.0", "0", "", T0], ["2.0", "1", "", T0 + 1], ["3.0", "2", "", T0 + 2]]
    rows += [["2.5", "1", "0.5", T0 + 10], ["nan", "2", "", T0 + 11]]
    write_metrics(path, ("loss", "step", "acc", "wall_time"), rows)
    return path


def test_points_are_those_that_count(run: Path) -> None:
    """Each point is one line, in order of steps and in UTC, without superseded values."""
    code, out, err = call("points", "a", "runs")
    assert (code, err) == (0, "")
    assert list(csv.reader(out.splitlines())) == [
        ["metric", "step", "time", "value"],
        ["loss", "0", "2026-04-10 12:00:00.000000Z", "1"],
        ["acc", "1", "2026-04-10 12:00:10.000000Z", "0.5"],
        ["loss", "1", "2026-04-10 12:00:10.000000Z", "2.5"],
        ["loss", "2", "2026-04-10 12:00:11.000000Z", "nan"],
    ]


def test_points_go_to_files(run: Path) -> None:
    """--csv and --parquet write files, --metrics selects, and --json is strict JSON."""
    from pyarrow import parquet

    code, out, err = call("points", "a", "runs", "--metrics", "l*", "--csv", "p.csv", "--parquet", "p.parquet")
    assert (code, out, err) == (0, "", "3 points written to p.csv.\n3 points written to p.parquet.\n")
    assert Path("p.csv").read_text().splitlines()[1] == '"loss",0,2026-04-10 12:00:00.000000Z,1'
    assert parquet.read_table("p.parquet")["step"].to_pylist() == [0, 1, 2]
    assert json.loads(call("points", "a", "runs", "--json")[1])["points"]["value"] == [1.0, 0.5, 2.5, "nan"]


def test_a_metric_that_is_not_there(run: Path) -> None:
    """A name that no metric has exits with 1."""
    assert call("points", "a", "runs", "--metrics", "nothing")[0] == 1


def test_read_points_for_a_notebook(run: Path) -> None:
    """`read_points` returns a pandas or pyarrow table for a path or a record."""
    frame = bridge.read_points(run, "loss")
    assert list(frame.columns) == ["metric", "step", "time", "value"]
    assert frame.set_index("step")["value"].to_dict()[1] == 2.5
    assert str(frame["time"].dt.tz) == "UTC"
    record = bridge.open_registry("runs")["a"]
    assert bridge.read_points(record, ["acc"], arrow=True)["value"].to_pylist() == [0.5]


def test_a_notebook_shows_one_line(run: Path, tmp_path: Path) -> None:
    """Registries and reports print one line with the number of runs."""
    make_run(Path("runs/b"), [{"step": 0, "loss": 1.0}], status="completed")
    report = bridge.export("runs", to="tensorboard", target={"logdir": tmp_path / "tb"})
    assert repr(report) == "<Report tensorboard: 2 runs (2 new)>"
    assert repr(bridge.open_registry("runs")).endswith("runs: 2 runs (2 completed)>")
