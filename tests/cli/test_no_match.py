"""Names that match nothing are no success: each command names them, suggests the nearest, and exits with 1."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.calling import call, spawn
from tests.run_dirs import make_run

COMMANDS = {
    "ls": ["ls"],
    "best": ["best", "val/acc"],
    "export": ["export", "--to", "tensorboard", "--workers", "1"],
    "verify": ["verify", "--to", "tensorboard"],
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Path:
    """Make three runs, one of them archived, in a working directory with its own cache."""
    for name, more in (("a", {}), ("b", {}), ("old", {"archived": True})):
        rows = [{"step": step, "val/acc": step / 3} for step in range(3)]
        make_run(
            tmp_path / "runs" / name, rows, summary={"val/acc": 2 / 3}, hparams={"lr": 0.1}, tags=["sweep:1"], **more
        )
    return tmp_path


def ask(command: str, *more: str) -> tuple[int, str, str]:
    return call(*COMMANDS[command], "runs", *more)


UNKNOWN = [
    (["--where", "val/accuracy > 0.5"], "no run has val/accuracy; did you mean val/acc?"),
    (["--where", "hparams.lrr < 1"], "no run has hparams.lrr; did you mean hparams.lr?"),
    (["--where", "duratoin > 5"], "no run has duratoin; did you mean duration?"),
    (["--tag", "sweep:2"], "no run has the tag 'sweep:2'; did you mean sweep:1?"),
    (["--run-id", "zz"], "no run has the run id 'zz'."),
]


@pytest.mark.parametrize(("words", "said"), UNKNOWN, ids=lambda value: value[1] if isinstance(value, list) else "")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_no_run_has(command: str, words: list[str], said: str) -> None:
    """An unknown metric, hyperparameter, tag or run id is reported on stderr, even with -q, and exits with 1."""
    code, out, err = ask(command, *words, "-q")
    assert (code, out) == (1, "")
    assert err.startswith("0 of 2 runs match ")
    assert err.endswith(f"; {said}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unreadable_run_does_not_hide_that_nothing_matches(command: str, here: Path) -> None:
    """Beside a run that cannot be read, a name that no run has is named all the same, and exits with 1."""
    (here / "runs" / "bad").mkdir()
    (here / "runs" / "bad" / "sidecar.json").write_text("{")
    code, _, err = ask(command, "--where", "val/accuracy > 0.5")
    assert code == 1
    assert "0 of 2 runs match --where 'val/accuracy > 0.5'" in err
    assert "; no run has val/accuracy; did you mean val/acc?" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--where", "val/acc > 2"], "0 of 2 runs match --where 'val/acc > 2'.\n"),
        (["--status", "failed"], "0 of 2 runs match --status failed.\n"),
        (["--since", "1s"], "0 of 2 runs match --since.\n"),
    ],
    ids=["where", "status", "since"],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_runs_that_do_not_match_now(command: str, words: list[str], said: str) -> None:
    """Runs that exist but do not match now are no failure: one line, which -q silences, and exit code 0."""
    for path in Path("runs").rglob("*"):
        os.utime(path, (1775826000, 1775826000))
    if command == "best":
        said = said.removesuffix(".\n")
    code, out, err = ask(command, *words)
    assert (code, out, err.startswith(said)) == (0, "", True)
    assert ask(command, *words, "-q") == (0, "", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_runs(command: str, here: Path) -> None:
    """The message for a folder without runs explains what a run is."""
    (here / "tb").mkdir()
    (here / "tb" / "notes.txt").touch()
    code, out, err = call(*COMMANDS[command], "tb")
    assert (code, out) == (1, "")
    assert err.startswith(
        "No runs in tb: a run is a folder with sidecar.json, a metrics.csv that has a step column, or event files"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_archived_runs_are_left_out(command: str) -> None:
    """Archived runs are left out without --archived, which is no failure even if no others exist."""
    if command == "verify":
        ask("export", "--archived")
    for more, count in (([], 2), (["--archived"], 3)):
        assert len(json.loads(ask(command, "--json", *more)[1])["runs"]) == count
    code, _, err = call(*COMMANDS[command], "runs/old")
    assert (code, err) == (0, "The only run is archived; --archived includes archived runs.\n")


def test_metrics_of_options_that_no_run_has_are_named() -> None:
    """An unknown metric in --metrics, --best or --rename is a warning; globs and known metrics are not."""
    words = ["--metrics", "val/ac", "--metrics", "v*", "--exclude-metrics", "val/acc", "--rename", "los=loss"]
    code, _, err = ask("export", *words)
    assert (code, err) == (0, "No run has val/ac; did you mean val/acc?\nNo run has los.\n")


def test_the_metric_of_best_comes_first() -> None:
    """Swapped arguments of `best` are wrong usage, and the error shows the right order."""
    code, _, err = call("best", "runs", "val/acc")
    assert (code, "The metric comes first: bridge best val/acc runs" in err) == (2, True)


def test_a_view_of_nothing_starts_no_server(here: Path) -> None:
    """`bridge view` exits like an export if nothing matches."""
    for words, code, said in (
        (["--tag", "sweep:2"], 1, "did you mean sweep:1?"),
        (["--where", "val/acc > 2"], 0, "0 of 2"),
    ):
        done = spawn("view", "runs", "--no-open", "--to", "tensorboard", *words, cwd=here, code=code)
        assert (done.stdout, said in done.stderr) == ("", True), done.stderr


def test_two_runs_of_one_name_are_shown_with_their_paths(here: Path) -> None:
    """A report names a run, and adds the path where two runs share the name."""
    for folder in ("x", "y"):
        make_run(here / folder / "one", [{"step": 0, "loss": 1.0}], run_id=f"{folder}/one", uid=folder)
    make_run(here / "x" / "two", [{"step": 0, "loss": 1.0}], run_id="2026/two")
    words = ["export", "x", "y", "--to", "tensorboard", "--workers", "1"]
    lines = call(*words)[1].splitlines()
    assert sorted(lines[:3]) == ["+ one (x/one): new, 1 point", "+ one (y/one): new, 1 point", "+ two: new, 1 point"]
