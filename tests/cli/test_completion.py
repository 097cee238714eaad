"""Complete words with Tab, through the protocol of the shells."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli import bridge
from tests.cli.calling import call
from tests.run_dirs import make_run


@pytest.fixture
def runs(place: Path) -> Path:
    """Return a folder of two runs below the working directory."""
    summary = {"summary": {"val/acc": 0.8, "val/loss": 0.2, "grad norm (l2)": 1.0}}
    make_run(place / "runs" / "good", run_id="lr/0.1", tags=["sweep:lr-1", "team:a b"], **summary)
    make_run(place / "runs" / "poor", run_id="poor", tags=["sweep:lr-1"], **summary)
    return place / "runs"


def offered(line: str) -> list[str]:
    """Return what zsh receives: three lines for each word."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_BRIDGE_COMPLETE": "zsh_complete"}
    told = CliRunner(env=words).invoke(bridge, [], prog_name="bridge").stdout.splitlines()
    return told[1::3]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bridge show ", ["lr/0.1", "poor"]),
        ("bridge show l", ["lr/0.1"]),
        ("bridge ls --run-id p", ["poor"]),
        ("bridge ls --tag s", ["sweep:lr-1"]),
        ("bridge best v", ["val/acc", "val/loss"]),
        ("bridge ls --sort g", ["grad norm (l2)"]),
        ("bridge export --to tensorboard --metrics val/a", ["val/acc"]),
        ("bridge export --exclude-metrics val/l", ["val/loss"]),
        ("bridge ls --status comp", ["completed"]),
        ("bridge view --to ten", ["tensorboard"]),
        ("bridge sho", ["show"]),
    ],
)
def test_words_come_from_the_runs(runs: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: list[str]) -> None:
    """Tab completes run ids, tags and metrics of the runs in the working directory."""
    monkeypatch.chdir(runs)
    assert offered(line) == words


@pytest.mark.parametrize(
    ("config", "line", "words"),
    [
        ("runs: [other]", "bridge ls runs --tag s", ["sweep:lr-1"]),
        ("runs: [other]", "bridge show s", ["some-run"]),
        ("runz: [runs]", "bridge ls runs --tag s", ["sweep:lr-1"]),
    ],
)
def test_words_come_from_the_runs_that_are_named(runs: Path, config: str, line: str, words: list[str]) -> None:
    """Words come from RUNS on the line, or else from those of bridge.yaml; a broken one is no matter."""
    make_run(runs.parent / "other" / "run", run_id="some-run", tags=["sign"], summary={"speed": 1.0})
    Path("bridge.yaml").write_text(f"{config}\n")
    assert offered(line) == words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    """`bridge completion` prints the function that click writes for the shell."""
    assert "_BRIDGE_COMPLETE" in call("completion", shell)[1]
