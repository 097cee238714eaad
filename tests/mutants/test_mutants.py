"""The table of mutants is not stale, and the tool distinguishes a noticed fault from an unnoticed one."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.mutants.mutant import ROOT, Fate, Mutant, try_out
from tests.mutants.table import MUTANTS

if TYPE_CHECKING:
    from pathlib import Path

CODE = "def total(values):\n    return sum(values)\n"
TESTS = """
from bridge.adding import total
def test_total(): assert total([1, 2]) == 3
def test_empty(): assert total([]) == 0
def test_wrong(): assert total([1, 2]) == 4
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project of one function and two tests, which need none of pytest's plug-ins: these take a second."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for folder in ("bridge", "tests"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "bridge" / "adding.py").write_text(CODE)
    (tmp_path / "tests" / "test_adding.py").write_text(TESTS)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "test", "fate"),
    [
        ("sum(values)", "sum(values[1:])", "test_total", Fate.KILLED),
        ("sum(values)", "sum(values[1:])", "test_empty", Fate.SURVIVED),
        ("sum(numbers)", "0", "test_total", Fate.STALE),
        ("sum(values)", "sum(values[1:])", "test_wrong", Fate.RED_ANYWAY),
        ("sum(values)", "sum(values)", "test_of_nothing", Fate.BROKEN),
        ("def total", "class def total", "test_total", Fate.BROKEN),
    ],
)
def test_fates(project: Path, old: str, new: str, test: str, fate: Fate) -> None:
    """Only a test that ran and failed kills a mutant, and the project stays unchanged."""
    mutant = Mutant("a fault", "bridge/adding.py", old, new, (f"tests/test_adding.py::{test}",))
    assert try_out(mutant, root=project)[0] is fate
    assert (project / "bridge" / "adding.py").read_text() == CODE


def test_names_are_unique() -> None:
    """Each mutant has a unique name."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_table_is_not_stale(mutant: Mutant) -> None:
    """Each mutant changes text that occurs once, leaves valid Python, and names existing tests."""
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    ast.parse(text.replace(mutant.old, mutant.new))
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).exists()
        assert all(f" {part.partition('[')[0]}" in (ROOT / file).read_text() for part in name.split("::") if part)
