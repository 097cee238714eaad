"""docs/explanation/promises.md: each promise names tests that exist and that every full run carries out."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "promises.md"
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
LEFT_OUT = ("skip", "skipif", "xfail", "slow", "compat")
"""Marks with which `make check` would not carry a test out, or not mind its failing."""


def promises() -> list[tuple[str, list[tuple[str, str]]]]:
    """The rows of the page's tables: the promise, and its tests as (file, name)."""
    rows = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("|") and len(cells) == 2 and cells[0] not in ("promise", "---"):
            rows.append((cells[0], TEST_ID.findall(cells[1])))
    return rows


def named_tests() -> list[tuple[str, str]]:
    """Every test that the page names, once."""
    return sorted({test for _, tests in promises() for test in tests})


@functools.cache
def _functions(file: str) -> dict[str, list[str]]:
    """The tests of a file by name (`test_x`, `TestY::test_x`), each with the names of all marks on it, its class and file."""
    path = ROOT / file
    if not path.exists():
        return {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    file_marks = [
        mark
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
        for mark in _marks(node.value)
    ]
    found: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = file_marks + [mark for each in node.decorator_list for mark in _marks(each)]
        elif isinstance(node, ast.ClassDef):
            found |= _methods(node, file_marks)
        elif isinstance(node, ast.Assign):
            # A stateful machine of Hypothesis becomes a test by assignment: `TestSync = Machine.TestCase`.
            found |= {
                f"{t.id}::runTest": file_marks
                for t in node.targets
                if isinstance(t, ast.Name) and t.id.startswith("Test")
            }
    return found


def _methods(node: ast.ClassDef, file_marks: list[str]) -> dict[str, list[str]]:
    marks = file_marks + [mark for each in node.decorator_list for mark in _marks(each)]
    return {
        f"{node.name}::{method.name}": marks + [mark for each in method.decorator_list for mark in _marks(each)]
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    }


def _marks(node: ast.AST) -> list[str]:
    """The last names in an expression of marks: `skipif` of `pytest.mark.skipif(...)`; not those of single parameters."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "param":
        return []
    own = [node.attr] if isinstance(node, ast.Attribute) else []
    return own + [mark for child in ast.iter_child_nodes(node) for mark in _marks(child)]


@pytest.mark.parametrize(
    ("promise", "tests"), promises(), ids=lambda value: value[:60] if isinstance(value, str) else ""
)
def test_each_promise_names_a_test(promise: str, tests: list[tuple[str, str]]) -> None:
    """No promise stands without a test."""
    assert tests, promise


@pytest.mark.parametrize(("file", "name"), [pytest.param(*test, id="::".join(test)) for test in named_tests()])
def test_named_tests_exist_and_are_carried_out(file: str, name: str) -> None:
    """A test that a promise names exists under that id, and no mark keeps it out of `make check`.

    What a test skips for want of a program is a failure where BRIDGE_REQUIRE_ALL=1 (tests/no_skips.py).
    """
    functions = _functions(file)
    assert name in functions, f"{file} has no test {name}"
    assert [mark for mark in functions[name] if mark in LEFT_OUT] == []


def test_the_page_is_a_table_of_promises() -> None:
    """The page is read as its readers see it: were its tables written otherwise, this file would test nothing."""
    text = PAGE.read_text(encoding="utf-8")
    rows = sum(line.startswith("| ") and not line.startswith(("| promise |", "| --- |")) for line in text.splitlines())
    assert len(promises()) == rows
    assert rows >= 2
    assert set(re.findall(r"`(tests/[^`]*)`", text)) == {f"{file}::{name}" for file, name in named_tests()}
