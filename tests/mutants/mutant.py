"""A named fault, and the result of trying it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

COPIED = ("bridge", "logger", "tests", "docs", "pyproject.toml", "README.md")
"""What a mutant's copy of the project holds."""

PATIENCE = 600.0
"""Seconds after which the tests of a mutant count as hanging, which is no way to notice a fault."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """In `file`, `old` (which occurs exactly once) becomes `new`.

    One of `tests` (ids of pytest) must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class Fate(StrEnum):
    """The result for a mutant; KILLED is the only good one."""

    KILLED = "killed"
    SURVIVED = "SURVIVED: its tests stay green"
    STALE = "STALE: the text to change is not there exactly once"
    BROKEN = "BROKEN: its tests could not run"
    RED_ANYWAY = "RED ANYWAY: the test fails without the fault too"
    HUNG = "HUNG: its tests did not end"


def try_out(mutant: Mutant, *, root: Path = ROOT) -> tuple[Fate, str]:
    """Put the fault into a temporary copy of the project, run its tests, and return the fate and pytest's output."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            _copy(root / name, copy / name)
        path = copy / mutant.file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text.count(mutant.old) != 1:
            return Fate.STALE, f"{mutant.file} holds it {text.count(mutant.old)} times: {mutant.old!r}"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        fate, told = _run_tests(mutant.tests, copy)
        if fate is not Fate.KILLED:
            return fate, told
        path.write_text(text, encoding="utf-8")
        # Only the test that failed is carried out again: pytest remembers it in the copy's cache.
        without, told = _run_tests(("--last-failed", *mutant.tests), copy)
        return (Fate.KILLED, "") if without is Fate.SURVIVED else (Fate.RED_ANYWAY, told)


def _run_tests(tests: tuple[str, ...], copy: Path) -> tuple[Fate, str]:
    # The copy comes before the installed project on the path, also in processes that the tests start.
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-m", "not slow and not compat", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Fate.HUNG, ""
    # pytest: 0 all passed, 1 some failed, else it could not run (an import error, no such test).
    fate = {0: Fate.SURVIVED, 1: Fate.KILLED}.get(done.returncode, Fate.BROKEN)
    return fate, done.stdout[-3000:] + done.stderr[-1000:]


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    elif source.exists():
        shutil.copy(source, target)
