"""Each promise on docs/explanation/promises.md names tests that exist and that every full run executes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "promises.md"
PROMISE = re.compile(r"^- \*\*(P\d+)\*\* ", re.MULTILINE)
PROOF = re.compile(r"^\| (P\d+) \| (.+) \|$", re.MULTILINE)
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LEFT_OUT = re.compile(r"pytest\.mark\.(skip|skipif|xfail|slow|compat)\b")
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
        found = ast.parse((ROOT / file).read_text(encoding="utf-8")).body if (ROOT / file).exists() else []
        tests = {node.name: node.decorator_list for node in found if isinstance(node, ast.FunctionDef)}
        of_file = [node.value for node in found if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
        marks = [ast.unparse(mark) for mark in (*tests.get(name, ()), *of_file)]
        marks = [mark for mark in marks if not mark.startswith("pytest.mark.parametrize")]  # of some cases only
        if name not in tests or LEFT_OUT.search(" ".join(marks)):
            wrong.append(f"{file}::{name}")
    assert wrong == []
