"""Any history of rows, cut anywhere into exports, ends as one clean read of the plain oracle."""

from __future__ import annotations

import csv
import io
import math
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.rundir import ReadOptions
from tests.run_dirs import CREATED_S, write_sidecar
from tests.rundir.targets import Row, Target, expected, rising

if TYPE_CHECKING:
    from collections.abc import Sequence

VALUES = (0.0, -0.0, 1.0, 2.5, math.nan, math.inf, -math.inf)
NAMES = ("a", "b", "c/d")

cells = st.dictionaries(st.sampled_from(NAMES), st.sampled_from((*VALUES, "text", "other")), max_size=3)
kinds = st.sampled_from(["row"] * 12 + ["bad", "stepless"])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Row], list[int], int]:
    """Draw rows, cuts between exports (numbers of rows), and a seed for irrelevant choices."""
    rows: list[Row] = []
    step = draw(st.integers(-2, 2))
    for number in range(draw(st.integers(0, 14))):
        step = max(-3, step + draw(st.sampled_from([0, 0, 1, 1, 1, 2, -1, -3])))
        kind = draw(kinds)
        rows.append(
            Row(
                step=None if kind == "stepless" else step,
                time=CREATED_S + number,
                cells=draw(cells),
                bad=kind == "bad",
            )
        )
    cuts = draw(st.lists(st.integers(0, len(rows)), max_size=4))
    return rows, [*sorted(cuts), len(rows)], draw(st.integers(0, 2**32))


def write(path: Path, rows: list[Row], columns: list[str], torn: str = "") -> None:
    """Write a whole metrics.csv with the header `columns`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        if row.bad:
            text.write(",".join(["x"] * (len(columns) + 1)) + "\r\n")
            continue
        known: dict[str, object] = {"step": "" if row.step is None else row.step, "wall_time": repr(row.time)}
        writer.writerow([known.get(name, row.cells.get(name, "")) for name in columns])
    (path / "metrics.csv").write_text(text.getvalue() + torn, newline="")


def columns_of(rows: list[Row], chance: random.Random, before: list[str]) -> list[str]:
    """Return a header for `rows`: the previous one if it still fits, sometimes with columns moved."""
    used = {name for row in rows for name in row.cells} | {"step", "wall_time"}
    if used <= set(before) and chance.random() < 0.8:
        return before
    columns = sorted(used | set(before))
    chance.shuffle(columns)
    return columns


def grow(path: Path, rows: list[Row], cuts: list[int], seed: int, *targets: Target) -> None:
    """Export to all `targets` at each cut; in between the file is torn or has another header."""
    chance = random.Random(seed)
    columns = ["step", "wall_time"]
    for cut in cuts:
        columns = columns_of(rows[:cut], chance, columns)
        write(path, rows[:cut], columns, torn=chance.choice(["", "", "1,", '"torn', "7"]))
        for target in targets:
            target.export(path)


KINDS = {
    "ordered": ReadOptions(ordered=True),
    "unordered": ReadOptions(),
    "replaces": ReadOptions(replaces=True),
}
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
REPETITION = {
    # `b` is only repeated in a delta in which another metric, which is new, has two values at one step.
    "history": ([Row(0, CREATED_S, {"b": 0.0}), Row(0, 1.0, {"a": 1.0}), Row(0, 2.0, {"a": 0.0, "b": 0.0})], [1, 3], 0),
    "limit": 1000,
    "keeps_last_points": True,
    "budget": 1,
}
any_history = given(
    history=histories(),
    limit=st.sampled_from([1, 2, 3, 1000]),
    keeps_last_points=st.booleans(),
    budget=st.sampled_from([1, 300, 1 << 20]),
)


def check(kinds: Sequence[str], history: tuple[list[Row], list[int], int], limit: int, **options: Any) -> None:
    """Let a run grow, exported to a target of each kind, and compare each with the rule and with one clean read."""
    rows, cuts, seed = history
    with tempfile.TemporaryDirectory() as folder:
        path = write_sidecar(Path(folder) / "run")
        targets = [Target(replace(KINDS[kind], limit=limit), **options) for kind in kinds]
        grow(path, rows, cuts, seed, *targets)
        for kind, target in zip(kinds, targets, strict=True):
            clean = Target(target.wanted, **options)
            clean.rebuild(path)
            assert clean.cursor is not None
            assert target.cursor is not None
            assert target.cursor.with_(stat=None).to_json() == clean.cursor.with_(stat=None).to_json()
            assert target.metrics == clean.metrics
            assert target.points == expected(rows)
            assert kind != "ordered" or rising(target.events)


@quick
@any_history
def test_an_ordered_target_ends_as_one_clean_read(**drawn: Any) -> None:
    """An ordered target's points and cursor do not depend on its history, and the steps of each metric rise."""
    check(["ordered"], **drawn)


@quick
@any_history
@example(**REPETITION)
def test_an_unordered_target_ends_as_one_clean_read(**drawn: Any) -> None:
    """An unordered target ends with the points and the cursor of one clean read, by rebuild or replacement."""
    check(["unordered", "replaces"], **drawn)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(quick, max_examples=2000)
@any_history
def test_thousands_of_histories(**drawn: Any) -> None:
    """Targets of all kinds that share a history all end as one clean read."""
    check(list(KINDS), **drawn)
