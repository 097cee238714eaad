"""`bridge verify` on the command line."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from bridge.cli import bridge
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

ROWS = [{"step": step, "loss": 0.5 * step} for step in range(20)]


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    """Export two runs."""
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, ROWS)
    result = call("export", tmp_path / "runs", "--to", "tensorboard", "--logdir", tmp_path / "tb")
    assert result.exit_code == 0, result.output
    return tmp_path / "tb"


def call(*words: object) -> Result:
    return CliRunner().invoke(bridge, [str(word) for word in words])


def test_equal_runs(logdir: Path, tmp_path: Path) -> None:
    """Equal runs show =, the last line counts them, and the exit code is 0."""
    result = call("verify", tmp_path / "runs", "--to", "tensorboard", "--logdir", logdir)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert sorted(lines[:2]) == ["= a: 20 points", "= b: 20 points"]
    assert lines[2].startswith("2 runs: 2 = same; 2 metrics, 40 points; ")


def test_quiet(logdir: Path, tmp_path: Path) -> None:
    """-q lists only the totals and the runs that differ."""
    result = call("verify", "-q", tmp_path / "runs", "--to", "tensorboard", "--logdir", logdir)
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("command", ["export", "verify"])
def test_runs_that_top_leaves_out_are_counted(logdir: Path, tmp_path: Path, command: str) -> None:
    """Runs that --top does not rank because of their status are counted, on stderr and in --json."""
    make_run(tmp_path / "runs" / "broken", ROWS, status="failed")
    words = (command, tmp_path / "runs", "--to", "tensorboard", "--logdir", logdir, "--top", 1, "loss:max")
    said = "1 run was left out because of the status (1 failed); --status includes them."
    result = call(*words)
    assert (result.exit_code, said in result.stderr) == (0, True)
    assert json.loads(call(*words, "--json").stdout)["warnings"] == [said]


def test_a_missing_run(logdir: Path, tmp_path: Path) -> None:
    """A run that the target does not hold shows + and a hint, and the exit code is 4."""
    shutil.rmtree(logdir / "b")
    result = call("verify", tmp_path / "runs", "--to", "tensorboard", "--logdir", logdir)
    assert result.exit_code == 4
    assert "+ b: the target does not hold this run\n    hint: bridge export" in result.stdout
    assert "2 runs: 1 = same, 1 + not in the target; " in result.stdout


def test_differences_are_shown(logdir: Path, tmp_path: Path) -> None:
    """A difference names file, metric, step and both values."""
    file = tmp_path / "runs" / "a" / "metrics.csv"
    file.write_text(file.read_text().replace("3.5,7,", "3.25,7,"), newline="")
    result = call("verify", tmp_path / "runs", "--to", "tensorboard", "--logdir", logdir, "--run-id", "a")
    assert result.exit_code == 4
    assert "* a: 20 points; 1 difference\n" in result.stdout
    assert "    * metrics.csv: loss at step 7: expected 3.25, found 3.5\n" in result.stdout


def test_behind(logdir: Path, tmp_path: Path) -> None:
    """Rows logged since the export are reported, and are a difference only with --strict."""
    make_run(tmp_path / "runs" / "a", [*ROWS, {"step": 20, "loss": 1.0}])
    words = ("verify", tmp_path / "runs", "--to", "tensorboard", "--logdir", logdir)
    result = call(*words)
    assert result.exit_code == 0
    assert "= a: 20 points; not exported yet: 1 row\n" in result.stdout
    assert call(*words, "--strict").exit_code == 4


def test_json(logdir: Path, tmp_path: Path) -> None:
    """The JSON has a version, the totals, and a line for each run."""
    result = call("verify", tmp_path / "runs", "--to", "tensorboard", "--logdir", logdir, "--json")
    data = json.loads(result.stdout)
    assert (data["version"], data["exit_code"], data["totals"]["same"]) == (1, 0, 2)
    assert [line["verdict"] for line in data["runs"]] == ["=", "="]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "nowhere"), "There is no exporter 'nowhere'"),
        (("--to", "tensorbord"), "There is no exporter 'tensorbord'. Did you mean 'tensorboard'?"),
        ((), "Missing option '--to': mlflow or tensorboard."),
        (("--to", "tensorboard", "--experiment", "e"), "--experiment is not an option of tensorboard"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    """A missing target, or an option that it does not have, is wrong usage."""
    result = call("verify", tmp_path, *words)
    assert result.exit_code == 2
    assert message in result.output
