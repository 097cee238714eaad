"""Each promise on docs/explanation/promises.md names tests that exist and that every full run executes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "promises.md"
PROMISE = re.compile(r"^- \*\*(P\d+)\*\* ", re.MULTILINE)
PROOF = re.compile(r"^\| (P\d+) \| (.+) \|$", re.MULTILINE)
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
LEFT_OUT = {"skip", "skipif", "xfail", "slow", "compat"}
"""Marks with which `make check` would not carry a test out, or would not mind its failure."""


def test_each_promise_has_a_proof() -> None:
    """The list of promises and the table of proofs have the same entries, and each proof names a test."""
    page = PAGE.read_text(encoding="utf-8")
    promises = PROMISE.findall(page)
    proofs = dict(PROOF.findall(page))
    assert len(promises) > 20
    assert promises == [f"P{number}" for number in range(1, len(promises) + 1)]
    assert sorted(proofs) == sorted(promises)
    assert [promise for promise, tests in proofs.items() if not TEST_ID.search(tests)] == []


def test_proofs_exist_and_run() -> None:
    """Every test that the page names exists, and no mark keeps it out of `make check`."""
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"`(tests/[^`]*\.py::[^`]*)`", page)) == {"::".join(test) for test in TEST_ID.findall(page)}
    wrong = []
    for file, name in sorted(set(TEST_ID.findall(page))):
        tests = collect_tests(ROOT / file)
        if name not in tests or tests[name] & LEFT_OUT:
            wrong.append(f"{file}::{name}")
    assert wrong == []


def collect_tests(path: Path) -> dict[str, set[str]]:
    """Return the tests of a file by name, each with its marks, its class and its file."""
    found: dict[str, set[str]] = {}
    if not path.exists():
        return found
    tree = ast.parse(path.read_text(encoding="utf-8"))
    file_marks: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "pytestmark" in names:
                file_marks = marks(node.value)
            # A stateful machine of Hypothesis becomes a test by assignment: `TestSync = Machine.TestCase`.
            found |= {f"{name}::runTest": set(file_marks) for name in names if name.startswith("Test")}
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = file_marks.union(*map(marks, node.decorator_list))
        elif isinstance(node, ast.ClassDef):
            class_marks = file_marks.union(*map(marks, node.decorator_list))
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{node.name}::{method.name}"] = class_marks.union(*map(marks, method.decorator_list))
    return found


def marks(node: ast.AST) -> set[str]:
    """Return the last names in an expression of marks (`skipif` of `pytest.mark.skipif(...)`), without params."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "param":
        return set()
    own = {node.attr} if isinstance(node, ast.Attribute) else set()
    return own.union(*(marks(child) for child in ast.iter_child_nodes(node)))
