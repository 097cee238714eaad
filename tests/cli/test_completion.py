"""Complete words with Tab, through the protocol of the shells."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli import bridge
from tests.run_dirs import make_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of two runs below the working directory, with a cache of their own."""
    summary = {"summary": {"val/acc": 0.8, "val/loss": 0.2, "grad norm (l2)": 1.0}}
    make_run(tmp_path / "there" / "runs" / "good", run_id="lr/0.1", tags=["sweep:lr-1", "team:a b"], **summary)
    make_run(tmp_path / "there" / "runs" / "poor", run_id="poor", tags=["sweep:lr-1"], **summary)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "there" / "runs"


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


@pytest.mark.parametrize("line", ["bridge ls runs --tag s", "bridge show s"])
def test_words_come_from_the_runs_that_are_named(runs: Path, line: str) -> None:
    """Words come from RUNS on the line, or else from those of bridge.yaml."""
    make_run(runs.parent / "other" / "run", run_id="some-run", tags=["sign"], summary={"speed": 1.0})
    Path("bridge.yaml").write_text("runs: [other]\n")
    words = {"--tag": ["sweep:lr-1"], "show": ["some-run"]}
    assert offered(line) == next(expected for word, expected in words.items() if word in line)


def test_a_wrong_bridge_yaml_ends_in_silence(runs: Path) -> None:
    """With a broken bridge.yaml Tab offers nothing and prints nothing."""
    Path("bridge.yaml").write_text("runz: [runs]\n")
    assert offered("bridge ls runs --tag s") == ["sweep:lr-1"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    """`bridge completion` prints the function that click writes for the shell."""
    assert "_BRIDGE_COMPLETE" in CliRunner().invoke(bridge, ["completion", shell]).stdout
