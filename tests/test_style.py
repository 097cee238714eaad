"""House style that a linter does not know: one meaning per class name, and docstrings that begin with a verb."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent

VERB_LIST = """
Add Advance Answer Append Apply Ask Assert Back-date Beat Become Begin Bring Build Call Cancel Carry Change Check
Choose Clear Close Collect Combine Compare Compose Compute Construct Continue Convert Copy Count Create Cut Decide
Decode Delete Describe Do Download Draw Drop Encode End Enter Estimate Execute Explain Export Fetch Fill Find
Finish Flatten Flush Follow Forget Format Give Go Group Grow Handle Hide Hold Ignore Import Insert Iterate Join Keep
Kill Launch Leave Let Limit Link List Load Lock Log Look Make Map Mark Mask Match Measure Merge Move Name Nest Note
Offer Open Order Pack Parse Pass Place Plan Prepare Print Put Query Raise Rank Read Rebuild Receive Record Refuse
Register Release Remember Remove Rename Render Repeat Replace Report Reset Resolve Restore Resume Retry Return
Rewrite Round Run Sample Save Say Scan Select Send Serve Set Shorten Show Skip Sleep Sort Split Start Stop Store
Strip Submit Suggest Sum Sync Take Tell Time Touch Train Translate Treat Truncate Try Turn Undo Update Upload Use
Validate Verify Wait Walk Warn Wrap Write Yield
"""
VERBS = frozenset(VERB_LIST.split())
"""The verbs that a function's docstring may begin with.

A new one is added here on purpose, or the sentence is turned.
"""


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the Python files below `folders` with their syntax trees."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_a_class_name_is_defined_once() -> None:
    """No two classes of bridge and logger share a name."""
    names = Counter(
        node.name
        for _, tree in sources("bridge", "logger")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_a_docstring_begins_with_a_verb() -> None:
    """The docstring of a function, property or helper of tests begins with an imperative verb."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {doc.splitlines()[0][:60]}"
        for path, tree in sources("bridge", "logger", "tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("test_")
        if (doc := ast.get_docstring(node)) and doc.split()[0].strip("`,.:") not in VERBS
    ]
    assert wrong == []
