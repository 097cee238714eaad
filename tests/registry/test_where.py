"""The `--where` language: the meaning of conditions, and errors that point at a character."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import UsageError
from bridge.model import Status
from bridge.registry.where import parse
from tests.registry.records import START, record

RUN = record(
    "20260410/120000/abc",
    name="base line",
    notes="first try",
    parent="sweeps",
    tags=("sweep:12", "good"),
    hparams={"lr": 0.1, "opt": "adam", "deep": True, "seed": 3, "none": None, "odd key": 1, "a.b": "x'y\"z"},
    summary={"val/acc": 0.75, "bad": math.nan, "lr-Adam": 1e-3, "acc@5": 0.9, "odd name": 2.0, "huge": math.inf},
    stats={"val/acc": {"max": 0.9, "min": 0.1, "max_step": 7, "nan_count": 0, "last": 0.75}, "loss": {"last": "NaN"}},
    sessions=2,
)

TRUE = [
    "val/acc > 0.7",
    "val/acc>=0.75",
    "val/acc == 0.75",
    "val/acc = 75e-2",
    "val/acc != 0.7",
    "0.7 < val/acc",
    "1 >= val/acc",
    "val/acc.max = 0.9",
    "val/acc.min < 0.2",
    "val/acc.max_step = 7",
    "val/acc.last = 0.75",
    "summary.val/acc = 0.75",
    "`val/acc`.max = 0.9",
    "`odd name` = 2",
    "lr-Adam < 0.01",
    "acc@5 > 0.8",
    "huge = inf",
    "huge > 1e300",
    "hparams.lr < 0.5",
    "hparams.lr <= .1",
    "hparams.opt = adam",
    "hparams.opt = 'adam'",
    "hparams.opt ~ 'ad*'",
    "hparams.opt != 5",
    "hparams.deep = true",
    "hparams.none = none",
    "hparams.`odd key` = 1",
    "hparams.a.b = 'x\\'y\"z'",
    "hparams.seed in (1, 2, 3)",
    "hparams.seed not in (1, 2)",
    "run_id = 20260410/120000/abc",
    "run_id ~ 20260410/*",
    "name = 'base line'",
    "name ~ '*LINE' or name ~ '*line'",
    "notes ~ '*try'",
    "parent = sweeps",
    "status = completed",
    "status in (failed, completed)",
    "status = Completed",
    "'COMPLETED' = status",
    "status not in (FAILED, Killed)",
    "status ~ 'Comp*'",
    "status != killed",
    "start = 2026-04-10T12:00:00+00:00",
    "created_at > '2026-04-10T11:59:59+00:00'",
    "end < 2026-04-10T13:00:01Z",
    f"start = {START}",
    "duration = 1h",
    "duration > 59m and duration < 3601",
    "sessions = 2",
    "tag = good",
    "tags = 'sweep:12'",
    "'sweep:12' in tags",
    "sweep:12 in tags",
    "bad not in tags",
    "tag ~ 'sweep:*'",
    "tags != x",
    "tag in (x, good)",
    "not archived",
    "alive = false",
    "val/acc > 1 or val/acc < 0.8 and status = completed",
    "not (val/acc > 1 or val/acc < 0.5)",
    "NOT val/acc > 1 AND val/acc > 0",
    "not not val/acc > 0",
    "not bad > 0",
    "not bad <= 0",
    "not bad = 0",
    "not bad != 0",
    "not missing != 0",
    "not hparams.missing != 0",
    "not hparams.opt < 5",
    "not loss > 0",
    "not missing.max > 0",
    "not hparams.none = 0",
]


@pytest.mark.parametrize("text", TRUE)
def test_conditions_that_hold(text: str) -> None:
    """Each form of condition holds as the guide says, and `not` turns it; a missing value or NaN compares false."""
    assert parse(text).holds(RUN)
    assert not parse(f"not ({text})").holds(RUN)


ERRORS = [
    ("val/acc >", 9, "expected a name or a value before the end"),
    ("val/acc > 0.5 0.7", 14, "expected 'and' or 'or' instead of '0.7'"),
    ("val/acc > > 3", 10, "expected a name or a value instead of '>'"),
    ("(a > 1", 6, "expected ')' before the end"),
    ("a > 1)", 5, "expected 'and' or 'or' instead of ')'"),
    ("a > 'x'", 4, "a is compared with a number (it is the name of a metric)"),
    ("a & b", 2, "unexpected character (write and)"),
    ("a ! b", 2, "unexpected character (write not, or != to compare)"),
    ("a > 1 and", 9, "expected a name or a value before the end"),
    ("``", 0, "this backtick is never closed, or holds nothing"),
    ("a = 'x", 4, "this quote is never closed"),
    ("a = nan", 4, "nothing compares with NaN; METRIC.nan_count > 0 finds runs that have one"),
    ("", 0, "expected a name or a value before the end"),
    ("val/acc", 7, "expected a comparison: = != < <= > >= ~ or in"),
    ("0.1 < a < 0.2", 8, "one comparison at a time: join two of them with 'and'"),
    ("tags < x", 5, "tags is compared by =, != and ~ only"),
    ("x in y", 5, "after 'in' comes tags, or values as (a, b)"),
    ("alive > true", 6, "alive is compared by = and != only"),
    ("`a`.foo > 1", 0, "after a name in backticks comes one of .last, .max, .min, .count"),
    ("start > x", 8, "start is compared with an ISO date or time, or seconds since the epoch"),
    ("3 > 2", 0, "one side must name a field, a metric, hparams.x or tag"),
    ("hparams.x = `y`", 12, "expected a value, not a second name (put text in quotes)"),
    ("val/acc ~ 3", 8, "~ matches a text with a glob: name ~ 'base*'"),
    ("val/`a b` > 3", 0, "put the whole name into backticks"),
    ("`a`max > 3", 0, "put the whole name into backticks"),
    ("(" * 200, 101, "more than 100 open parentheses"),
    ("status = kiled", 9, "there is no status 'kiled' (did you mean killed?)"),
    ("status ~ 'kiled*'", 9, "there is no status 'kiled*' (did you mean killed?)"),
    ("'Complete' != status", 0, "there is no status 'Complete' (did you mean completed?)"),
    ("status in (failed, 3)", 19, "there is no status '3' (one of running, completed, failed, interrupted,"),
]


@pytest.mark.parametrize(("text", "at", "problem"), ERRORS)
def test_errors_point_at_the_character(text: str, at: int, problem: str) -> None:
    """An error shows the condition with a caret below the wrong character."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    said, shown, caret = caught.value.message.split("\n")
    assert said.startswith(f"--where: {problem}")
    assert shown == f"  {text}"
    assert caret == " " * (2 + at) + "^"


def test_many_groups_and_nots() -> None:
    """Only parentheses within each other are limited: a script may join hundreds of conditions."""
    assert parse(" or ".join(f"(val/acc = {number})" for number in range(300)) + " or (archived)").holds(RUN) is False
    assert parse("not " * 3001 + "archived").holds(RUN) is True


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_a_usage_error(text: str) -> None:
    """Any text parses or raises UsageError."""
    with contextlib.suppress(UsageError):
        parse(text).holds(RUN)


@given(st.text(min_size=1, max_size=20), st.floats(allow_nan=False))
def test_any_name_can_be_asked_for_in_backticks(name: str, value: float) -> None:
    """Backticks quote any name, and a doubled backtick is one."""
    quoted = name.replace("`", "``")
    run = record(summary={name: value}, hparams={name: value})
    assert parse(f"`{quoted}` = {value!r} and hparams.`{quoted}` = {value!r}").holds(run)


def test_alive_is_a_condition() -> None:
    """`alive` alone holds for running runs."""
    assert parse("alive").holds(record(status=Status.RUNNING))
    assert not parse("alive").holds(record(status=Status.KILLED))
