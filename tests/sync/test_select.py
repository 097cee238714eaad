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
from tests.run_dirs import make_run

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


def test_nothing_asked_selects_all() -> None:
    """An empty selection keeps all runs in order."""
    assert chosen() == "abcd"


def test_ids_and_globs() -> None:
    """--run-id takes ids and globs, and one of several must match."""
    assert (chosen(run_ids=["a"]), chosen(run_ids=["a", "[c-d]"]), chosen(run_ids=["*"])) == ("a", "acd", "abcd")


def test_an_id_with_the_signs_of_a_glob_is_found_by_itself() -> None:
    """An id is compared literally before it is tried as a glob."""
    odd = record("run[1]")
    assert select([odd, A], Selection(run_ids=("run[1]",))) == [odd]


def test_several_tags_must_all_be_there() -> None:
    """Each --tag narrows the selection, and globs work."""
    assert (chosen(tags=["x"]), chosen(tags=["x", "sweep:1"]), chosen(tags=["sweep:*"])) == ("ab", "a", "a")


def test_several_statuses_widen() -> None:
    """Each --status widens the selection."""
    assert (chosen(statuses=["KILLED"]), chosen(statuses=["killed", "running"])) == ("c", "cd")


def test_since_is_about_the_last_sign_of_life() -> None:
    """--since compares with the last sign of life, not the start."""
    assert chosen(since="2026-04-11T00:00:00Z") == "c"


def test_where_and_the_others_all_hold() -> None:
    """All conditions must hold."""
    assert (chosen(where="acc > 0.1"), chosen(where="acc > 0.1", tags=["x"], run_ids=["b", "c"])) == ("abc", "b")


def test_top_ranks_completed_runs_by_the_best_value_ever() -> None:
    """--top ranks completed runs by their best value ever."""
    assert (chosen(top=(5, "acc:max")), chosen(top=(1, "acc:min"))) == ("ab", "a")


def test_top_by_the_last_value() -> None:
    """--last ranks by the last value."""
    assert (chosen(top=(5, "acc:max"), last=True), chosen(top=(1, "acc:min"), last=True)) == ("ba", "a")


def test_top_takes_other_statuses_where_they_are_asked_for() -> None:
    """With --status --top ranks among those; runs without a value or with NaN are left out."""
    assert chosen(top=(5, "acc:max"), statuses=["killed", "running", "completed"]) == "cab"


def test_of_equal_values_the_earlier_start_wins() -> None:
    """Ties go to the earlier start, then to the path."""
    runs = [
        record(name, start=START - early, stats={"acc": {"max": 1}}) for name, early in [("p", 0), ("q", 9), ("o", 0)]
    ]
    assert [run.run_id for run in select(runs, Selection(top=Top(3, "acc")))] == ["q", "o", "p"]


def test_top_comes_after_the_rest() -> None:
    """--top ranks the runs that the other conditions leave."""
    assert chosen(top=(1, "acc:max"), where="acc.max < 0.85") == "b"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"top": (3, "acc")}, "--top: 'acc' does not say which end is best."),
        ({"top": (3, ":max")}, "--top: ':max' does not say which end is best."),
        ({"last": True}, "--last says how to rank, so it needs --top."),
        ({"since": "yesterday"}, "--since: 'yesterday' is neither an age nor a date."),
        ({"since": "-3d"}, "--since: '-3d' is in the future."),
        ({"statuses": ["done"]}, "There is no status 'done'."),
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
    """`select` takes and returns runs of the reader too."""
    paths = [make_run(tmp_path / name, [], hparams={"lr": lr}) for name, lr in [("a", 0.1), ("b", 0.01)]]
    runs = [read_run(path) for path in paths]
    assert select(runs, Selection.of(SelectionOptions(where="hparams.lr < 0.05"))) == [runs[1]]


def test_stock_runs_are_ranked_by_their_metrics_csv(tmp_path: Path) -> None:
    """A run without a sidecar is ranked by its metrics.csv."""
    for name, rows in (("a", "0.2,0\r\n0.9,1\r\n0.1,2\r\n"), ("b", "0.8,0\r\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hparams.yaml").write_text("{}\n")
        (tmp_path / name / "metrics.csv").write_text(f"acc,step\r\n{rows}", newline="")
    runs = [read_run(tmp_path / name) for name in ("b", "a")]
    everything = [str(status) for status in Status]
    assert select(runs, Selection.of(SelectionOptions(top=(2, "acc:max"), statuses=everything))) == [runs[1], runs[0]]
    assert select(runs, Selection.of(SelectionOptions(where="acc < 0.5"))) == [runs[1]]
