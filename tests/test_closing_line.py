"""The last line of a test run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TESTS = """
import pytest
from tests.require import require

def test_a(): pass
def test_b(): require(False, "a frobnicator")
def test_c(): require(False, "a frobnicator")
"""

SKIPPED_FILE = """
import pytest
pytest.importorskip("frobnicator")
"""


def _run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(TESTS)
    plugins = ["-p", "tests.closing_line", "-p", "tests.no_skips"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "-c", os.devnull, str(folder)]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "BRIDGE_"))}
    # Pytest's other plug-ins take a second and are not looked at.
    env |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=env)


def test_last_line_names_what_was_skipped(tmp_path: Path) -> None:
    """The last line names what a machine lacks and how many tests it cost; BRIDGE_REQUIRE_ALL=1 makes it a failure."""
    done = _run(tmp_path)
    last = done.stdout.splitlines()[-1]
    assert (done.returncode, last) == (0, "1 passed, 0 failed, 2 skipped: a frobnicator is missing (2)")
    done = _run(tmp_path, BRIDGE_REQUIRE_ALL="1")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 passed, 2 failed")


def test_where_everything_is_required_no_file_is_skipped(tmp_path: Path) -> None:
    """With BRIDGE_REQUIRE_ALL=1 a file that skips itself is a failure."""
    (tmp_path / "test_other.py").write_text(SKIPPED_FILE)
    assert _run(tmp_path).returncode == 0
    done = _run(tmp_path, BRIDGE_REQUIRE_ALL="1")
    assert done.returncode == 2
    assert "could not import 'frobnicator'" in done.stdout
