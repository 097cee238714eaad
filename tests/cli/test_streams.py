"""Closed or full output, names that are not UTF-8, and two signals at once never cause a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.cli.output import wrapped
from tests.cli.calling import call
from tests.run_dirs import make_run

PROGRAM = f"{sys.executable} -m bridge"


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Path:
    """Make two runs in a working directory with its own cache."""
    for name in "ab":
        make_run(tmp_path / "runs" / name, [{"step": step, "loss": step / 3} for step in range(20)])
    return tmp_path


def shell(line: str) -> tuple[int, str]:
    """Return exit code, stdout and stderr of a line of bash, as far as the line leaves them open."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, None),
        (">&- 2>&-", 0, ""),
        ("2>/dev/full", 0, None),
        (">/dev/full", 1, "Error: The results could not be printed: No space left on device.\n"),
        ("| head -0; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_an_export_ends_without_its_output(streams: str, code: int, said: str | None) -> None:
    """The runs reach the target, and the exit code is the export's unless its results are lost."""
    assert shell(f"{PROGRAM} export runs --to tensorboard --workers 1 {streams}") == (code, said) or said is None
    code, printed, _ = call("verify", "runs", "--to", "tensorboard", "--strict")
    assert (code, "2 = same" in printed) == (0, True)


def test_a_closed_stdout_is_no_files_place(here: Path) -> None:
    """With stdout closed, no file that is opened takes its descriptor and receives prints."""
    assert shell(f"{PROGRAM} ls runs --csv t.csv >&- 2>&-")[0] == 0
    assert (here / "t.csv").read_text().startswith("run_id,")


@pytest.mark.parametrize("words", ["ls runs --csv t", "ls runs --parquet t", "points a runs --csv t"])
def test_a_table_that_finds_no_room_is_reported(here: Path, words: str) -> None:
    """A table that cannot be written is an error that names the file and does not delete it."""
    said = "Error: t cannot be written: File too large.\n"
    assert shell(f"ulimit -f 0; BRIDGE_CACHE_DIR=/dev/null/x {PROGRAM} {words} -q 2>&1 | tail -1") == (0, said)
    assert (here / "t").exists()


def test_names_that_are_no_utf8(here: Path) -> None:
    """A folder whose name is not UTF-8 is listed and exported, with undecodable bytes escaped."""
    folder = os.fsencode(here / "odd") + b"/\xff"
    make_run(Path(os.fsdecode(folder)), [{"step": 0, "loss": 1.0}], run_id="odd", run_dir="x")
    assert shell(f"{PROGRAM} ls odd --columns path -q") == (0, f"run_dir\n{here}/odd/\\udcff\n")
    assert shell(f"{PROGRAM} export odd --to tensorboard --workers 1")[0] == 0


def test_two_signals_at_once(here: Path) -> None:
    """A second SIGTERM right after the first changes nothing: exit code 130, one word, and the next export resumes."""
    command = [sys.executable, "-m", "bridge", "export", "runs", "--to", "tensorboard", "--follow", "--interval", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "\nInterrupted.\n")
    assert call("export", "runs", "--to", "tensorboard", "-q") == (0, "", "")
    assert call("verify", "runs", "--to", "tensorboard", "--strict")[0] == 0


def test_messages_on_a_terminal_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets no line that is wider than itself; a file gets each message as one line."""
    text = "No runs in tb_logs: a run is a folder.\n  hint"
    assert wrapped(text) == text
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("COLUMNS", "20")
    assert wrapped(text) == "No runs in tb_logs:\na run is a folder.\n  hint"
    assert wrapped("* line: rebuilt, 32 points", indent="    ") == "* line: rebuilt, 32\n    points"
