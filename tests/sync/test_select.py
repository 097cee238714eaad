"""Selection options choose the runs that they describe."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from bridge.errors import UsageError
from bridge.model import Status
from bridge.options import SelectionOptions
from bridge.rundir import read_run
from bridge.sync.select import Selection, Top, select, since_of
from tests.registry.records import START, record

if TYPE_CHECKING:
    from pathlib import Path

A = record("a", tags=("x", "sweep:1"), stats={"acc": {"max": 0.9, "min": 0.1}}, summary={"acc": 0.2})
B = record("b", tags=("x",), stats={"acc": {"max": 0.8, "min": 0.3}}, summary={"acc": 0.8})
C = record(
    "c", status=Status.KILLED, last_alive=START + 86400, stats={"acc": {"max": 1.0, "min": 1.0}}, summary={"acc": 1.0}
)
D = record("d", status=Status.RUNNING, stats={"acc": {"max": "NaN", "min": math.nan}}, summary={"acc": math.nan})
RUNS = [A, B, C, D]


def chosen(**words: object) -> str:
    return "".join(run.run_id for run in select(RUNS, Selection.of(SelectionOptions(**words))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param({}, "abcd", id="nothing asked"),
        pytest.param({"run_ids": ["a"]}, "a", id="an id"),
        pytest.param({"run_ids": ["a", "[c-d]"]}, "acd", id="ids and globs widen"),
        pytest.param({"run_ids": ["*"]}, "abcd", id="a glob"),
        pytest.param({"tags": ["x"]}, "ab", id="a tag"),
        pytest.param({"tags": ["x", "sweep:1"]}, "a", id="tags narrow"),
        pytest.param({"tags": ["sweep:*"]}, "a", id="a glob of tags"),
        pytest.param({"statuses": ["KILLED"]}, "c", id="a status"),
        pytest.param({"statuses": ["killed", "running"]}, "cd", id="statuses widen"),
        pytest.param({"since": "2026-04-11T00:00:00Z"}, "c", id="the last sign of life, not the start"),
        pytest.param({"where": "acc > 0.1"}, "abc", id="a condition"),
        pytest.param({"where": "acc > 0.1", "tags": ["x"], "run_ids": ["b", "c"]}, "b", id="all must hold"),
        pytest.param({"top": (5, "acc:max")}, "ab", id="completed runs by their best value ever"),
        pytest.param({"top": (1, "acc:min")}, "a", id="the least value"),
        pytest.param({"top": (5, "acc:max"), "last": True}, "ba", id="the last value"),
        pytest.param({"top": (1, "acc:min"), "last": True}, "a", id="the least last value"),
        pytest.param(
            {"top": (5, "acc:max"), "statuses": ["killed", "running", "completed"]}, "cab", id="NaN is not ranked"
        ),
        pytest.param({"top": (1, "acc:max"), "where": "acc.max < 0.85"}, "b", id="top comes after the rest"),
    ],
)
def test_each_option_selects(words: dict[str, object], expected: str) -> None:
    """Each option chooses the runs that its help describes."""
    assert chosen(**words) == expected


def test_an_id_with_the_signs_of_a_glob_is_found_by_itself() -> None:
    """An id is compared literally before it is tried as a glob."""
    odd = record("run[1]")
    assert select([odd, A], Selection(run_ids=("run[1]",))) == [odd]


def test_of_equal_values_the_earlier_start_wins() -> None:
    """Ties go to the earlier start, then to the path."""
    runs = [
        record(name, start=START - early, stats={"acc": {"max": 1}}) for name, early in [("p", 0), ("q", 9), ("o", 0)]
    ]
    assert [run.run_id for run in select(runs, Selection(top=Top(3, "acc")))] == ["q", "o", "p"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"top": (3, "acc")}, "--top: 'acc' does not say which end is best."),
        ({"top": (3, ":max")}, "--top: ':max' does not say which end is best."),
        ({"last": True}, "--last says how to rank, so it needs --top."),
        ({"since": "yesterday"}, "--since: 'yesterday' is neither an age nor a date."),
        ({"since": "-3d"}, "--since: '-3d' is in the future."),
    ],
)
def test_words_that_mean_nothing(words: dict[str, object], message: str) -> None:
    """An unknown word is a usage error that repeats it."""
    with pytest.raises(UsageError) as caught:
        chosen(**words)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43200), ("3d", 259200), ("2w", 1209600), ("1.5h", 5400)]
)
def test_ages(text: str, seconds: float) -> None:
    """An age counts back from now, in s, m, h, d or w."""
    assert since_of(text, now=1_000_000_000.0) == 1_000_000_000.0 - seconds


def test_dates_are_local() -> None:
    """A date without a zone is midnight on this machine."""
    assert since_of("2026-04-10") == datetime(2026, 4, 10).timestamp()


def test_runs_as_read_are_chosen_like_records(tmp_path: Path) -> None:
    """`select` takes and returns runs of the reader too; one without a sidecar is ranked by its metrics.csv."""
    for name, rows in (("a", "0.2,0\r\n0.9,1\r\n0.1,2\r\n"), ("b", "0.8,0\r\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hparams.yaml").write_text("{}\n")
        (tmp_path / name / "metrics.csv").write_text(f"acc,step\r\n{rows}", newline="")
    runs = [read_run(tmp_path / name) for name in ("b", "a")]
    everything = [str(status) for status in Status]
    assert select(runs, Selection.of(SelectionOptions(top=(2, "acc:max"), statuses=everything))) == [runs[1], runs[0]]
    assert select(runs, Selection.of(SelectionOptions(where="acc < 0.5"))) == [runs[1]]
