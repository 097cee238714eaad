"""An odd run loses only what cannot be read of it, and never costs another run or causes a traceback."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.cli.calling import call
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

HUGE = 10**400
"""A whole number that JSON holds and no float."""


@pytest.fixture(autouse=True)
def runs(place: Path) -> None:
    """Make two runs, one with numbers that no float holds, in a working directory with a cache."""
    for name, value in (("plain", 0.5), ("huge", HUGE)):
        run = make_run(place / "runs" / name, [{"step": 0, "acc": 0.5}], hparams={"lr": value}, summary={"acc": 0.5})
        stats = {"acc": {"max": value, "min": value, "last": 0.5, "max_step": value}}
        (run / "summary.json").write_text(json.dumps({"rows": 1, "metrics": stats}))
    times = {"created_at": HUGE, "ended_at": -HUGE, "updated_at": HUGE}
    make_run(place / "runs" / "odd", summary={"acc": HUGE}, sessions=[{"rows": HUGE, "pid": HUGE}], **times)


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        ("best acc runs --json", ["plain"]),
        ("best acc runs --last --json", ["huge", "plain"]),
        ("ls runs --top 5 acc:min --json", ["plain"]),
        ("ls runs --json", ["huge", "odd", "plain"]),
        ("ls runs --sort acc.max --json", ["huge", "odd", "plain"]),
        ("ls runs --where 'acc.max > 0.1' --json", ["plain"]),
        ("ls runs --where 'hparams.lr > 0.1' --json", ["huge", "plain"]),
    ],
)
def test_numbers_that_no_float_holds_are_no_values(line: str, ids: list[str]) -> None:
    """A run with unreadable statistics is listed, and ranked by those that can be read."""
    code, out, _ = call(*shlex.split(line))
    assert (code, sorted(run["run_id"] for run in json.loads(out)["runs"])) == (0, ids)


@pytest.mark.parametrize("line", ["ls runs --run-id huge", "show huge runs", "best acc runs --run-id huge --last"])
def test_long_numbers_keep_all_their_digits_in_json(line: str) -> None:
    """A whole number of more than 64 bits is that number, also when the record comes from the cache."""
    for _ in range(2):
        told = json.loads(call(*line.split(), "--json")[1])
        (run,) = told.get("runs") or [told["run"]]
        assert run["hparams"] == {"lr": HUGE}


@pytest.mark.parametrize(
    "line",
    [
        "ls runs",
        "ls runs --csv o.csv --parquet o.parquet",
        "show huge runs",
        "show odd runs",
        "best acc runs --csv o.csv --parquet o.parquet",
        "scan runs --full",
        "export runs --to tensorboard --top 2 acc:max",
        "export runs --to tensorboard",
    ],
)
def test_every_command_does_the_other_runs(line: str) -> None:
    """No command fails for all runs because of one."""
    assert call(*line.split())[0] == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ls runs --heartbeat-timeout nan", "'nan' is not a number of seconds."),
        ("export runs --to tensorboard --follow --interval nan", "'nan' is not a number of seconds."),
    ],
)
def test_spans_of_time_that_are_none(line: str, said: str) -> None:
    """A duration of NaN is wrong usage, because it compares with nothing."""
    code, _, err = call(*line.split())
    assert (code, said in err) == (2, True)


def test_no_place_for_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home directory `config` shows no caches."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", "~nobody-here/x")
    assert json.loads(call("config", "--json")[1])["caches"] == []
