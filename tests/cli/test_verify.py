"""`bridge verify` on the command line."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.calling import call
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"step": step, "loss": 0.5 * step} for step in range(20)]


@pytest.fixture(autouse=True)
def here(place: Path) -> Path:
    """Export two runs from the working directory."""
    for name in ("a", "b"):
        make_run(place / "runs" / name, ROWS)
    assert call("export", "runs", "--to", "tensorboard")[0] == 0
    return place


def verify(*words: object) -> tuple[int, str, str]:
    return call("verify", "runs", "--to", "tensorboard", *words)


def test_equal_runs() -> None:
    """Equal runs show =, the last line counts them, and the exit code is 0. -q lists only the totals."""
    code, out, _ = verify()
    *runs, totals = out.splitlines()
    assert (code, sorted(runs)) == (0, ["= a: 20 points", "= b: 20 points"])
    assert totals.startswith("2 runs: 2 = same; 2 metrics, 40 points; ")
    assert len(verify("-q")[1].splitlines()) == 1


@pytest.mark.parametrize("command", ["export", "verify"])
def test_runs_that_top_leaves_out_are_counted(here: Path, command: str) -> None:
    """Runs that --top does not rank because of their status are counted, on stderr and in --json."""
    make_run(here / "runs" / "broken", ROWS, status="failed")
    words = (command, "runs", "--to", "tensorboard", "--top", 1, "loss:max")
    said = "1 run was left out because of the status (1 failed); --status includes them."
    code, _, err = call(*words)
    assert (code, said in err) == (0, True)
    assert json.loads(call(*words, "--json")[1])["warnings"] == [said]


def test_a_missing_run(here: Path) -> None:
    """A run that the target does not hold shows + and a hint, and the exit code is 4."""
    shutil.rmtree(here / "tb_logs" / "b")
    code, out, _ = verify()
    assert code == 4
    assert "+ b: the target does not hold this run\n    hint: bridge export" in out
    assert "2 runs: 1 = same, 1 + not in the target; " in out


def test_differences_are_shown(here: Path) -> None:
    """A difference names file, metric, step and both values."""
    file = here / "runs" / "a" / "metrics.csv"
    file.write_text(file.read_text().replace("3.5,7,", "3.25,7,"), newline="")
    code, out, _ = verify("--run-id", "a")
    assert code == 4
    assert "* a: 20 points; 1 difference\n    * metrics.csv: loss at step 7: expected 3.25, found 3.5\n" in out


def test_behind(here: Path) -> None:
    """Rows logged since the export are reported, and are a difference only with --strict."""
    make_run(here / "runs" / "a", [*ROWS, {"step": 20, "loss": 1.0}])
    code, out, _ = verify()
    assert (code, "= a: 20 points; not exported yet: 1 row\n" in out) == (0, True)
    assert verify("--strict")[0] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "nowhere"), "There is no exporter 'nowhere'"),
        (("--to", "tensorbord"), "There is no exporter 'tensorbord'. Did you mean 'tensorboard'?"),
        ((), "Missing option '--to': mlflow or tensorboard."),
        (("--to", "tensorboard", "--experiment", "e"), "--experiment is not an option of tensorboard"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], message: str) -> None:
    """A missing target, or an option that it does not have, is wrong usage."""
    code, _, err = call("verify", "runs", *words)
    assert (code, message in err) == (2, True)
