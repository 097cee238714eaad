"""Complete words with Tab, through the protocol of the shells and in real shells."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from bridge.cli import bridge
from tests.require import require
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


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


def test_tab_in_a_real_shell(runs: Path) -> None:
    """Tab in bash completes commands, run ids and metrics to words that the shell passes on."""
    require(shutil.which("bash") is not None, "bash")
    Path("completion").write_text(script("bash"))
    typed = {"bridge best val/ac": "val/acc", "bridge show lr": "lr/0.1", "bridge sho": "show"}
    with terminal(["bash", "--norc", "--noprofile", "-i"]) as answer:
        answer("source ./completion; said() { printf '<%s>' \"$@\"; echo '|'; }; said ready\n")
        os.chdir(runs)
        said = {line: answer(f"{line}\t\x01said \n")[-1] for line in typed}
    assert said == typed


def script(shell: str) -> str:
    """Return the line for the user's start-up file."""
    return CliRunner().invoke(bridge, ["completion", shell]).stdout


def environment() -> Mapping[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "TERM": "dumb", "LC_ALL": "C.UTF-8"}


@contextlib.contextmanager
def terminal(command: Sequence[str]) -> Iterator[Callable[[str], list[str]]]:
    """Yield a function that types a text into a terminal with that shell and returns the words of `said`."""
    mine, its = pty.openpty()
    shown = ""

    def answer(typed: str) -> list[str]:
        nonlocal shown
        os.write(mine, typed.encode())
        deadline = time.monotonic() + 60
        while not (said := re.search(r"^\r*((?:<[^<>]*>)+)\|", shown, flags=re.M)):
            assert select.select([mine], [], [], max(0, deadline - time.monotonic()))[0], shown
            shown += os.read(mine, 65536).decode(errors="replace")
        shown = shown[said.end() :]
        return re.findall("<([^<>]*)>", said[1])

    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=environment(), start_new_session=True, close_fds=True
    )
    os.close(its)
    try:
        yield answer
    finally:
        process.kill()
        process.wait()
        os.close(mine)
