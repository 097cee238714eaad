"""The contract of exporters: each test is a rule that every exporter in `subjects.py` keeps."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bridge import model as cursor_module
from bridge.errors import NewerFormatError, TargetError
from bridge.model import CURSOR_FORMAT, DeltaKind, NoticeKind, Status, sent_facts
from bridge.options import ContentOptions
from bridge.rundir import read_run
from bridge.sync.export import export_runs
from tests.contract.bench import Bench, points_of
from tests.deltas import notices_of
from tests.run_dirs import CREATED_S, make_run, write_metrics, write_sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.contract import TargetContent

ROWS = [
    {"step": 0, "loss": 0.5, "acc": 0.25},
    {"step": 1, "loss": 0.25},
    {"step": 2, "loss": 0.125, "acc": 0.5},
    {"step": 3, "loss": 0.0625, "acc": 0.75},
]
LOSS = [(0, 0.5), (1, 0.25), (2, 0.125), (3, 0.0625)]
ACC = [(0, 0.25), (2, 0.5), (3, 0.75)]
HEADER = ["acc", "loss", "step", "wall_time"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the usual run."""
    return make_run(tmp_path / "runs" / "a", ROWS)


def grow(path: Path, *rows: tuple[object, ...]) -> None:
    """Append rows of HEADER; their times follow from their number."""
    count = len((path / "metrics.csv").read_text().splitlines()) - 1
    timed = [(*row, CREATED_S + count + number) for number, row in enumerate(rows)]
    write_metrics(path, HEADER, timed, append=True)


def comparable(held: TargetContent) -> dict[str, Any]:
    """Return everything that two targets of one run must share."""
    return {
        "series": {
            name: [list(map(str, column[by_step].tolist())) for column in (series.step, series.value, series.time)]
            for name, series in sorted(held.series.items())
            if len(by_step := np.argsort(series.step, kind="stable"))
        },
        "params": held.params,
        "tags": held.tags,
        "notes": held.notes,
        "name": held.name,
        "status": held.status,
        "times": (held.start, held.end),
        "media": sorted((item.tag, item.step, item.index, item.digest, item.caption) for item in held.media),
    }


def assert_as_clean(bench: Bench, path: Path) -> None:
    """Assert that the target equals one clean export, and that verify agrees."""
    clean = bench.fresh()
    with clean.exporter:
        clean.export(path)
        assert comparable(bench.read(path)) == comparable(clean.read(path))
    bench.assert_verified(path)


def test_nothing_is_made_by_looking(bench: Bench, tmp_path: Path) -> None:
    """Asking for cursors, preparing, reading and opening create no target."""
    run = read_run(make_run(tmp_path / "runs" / "a", ROWS))
    bench.open(run)
    bench.whole(run)
    known = bench.known(run)
    assert (known.cursor, known.exists, known.deleted, known.error) == (None, False, False, None)
    assert (tuple(known.edited), tuple(known.extras)) == ((), ())


def test_capabilities_are_complete(bench: Bench) -> None:
    """An exporter declares all statuses or none, and sensible limits."""
    capabilities = bench.exporter.capabilities
    assert set(capabilities.statuses) in (set(), set(Status))
    assert capabilities.points_a_delta > 0
    assert capabilities.value_bits in (32, 64)


def test_read_gives_back_what_was_applied(bench: Bench, path: Path) -> None:
    """A target gives back points and times under the names that the run logged, and those it is asked for."""
    bench.export(path)
    held = bench.read(path)
    assert {name for name, series in held.series.items() if len(series.step)} == {"loss", "acc"}
    assert points_of(held, "loss") == LOSS
    assert points_of(held, "acc") == ACC
    order = held.series["acc"].step.argsort()
    times = held.series["acc"].time[order].tolist()
    assert times == pytest.approx([CREATED_S, CREATED_S + 2, CREATED_S + 3], abs=bench.exporter.capabilities.time_step)
    assert points_of(bench.open(read_run(path)).read(only=["acc"]), "acc") == ACC
    bench.assert_verified(path)


def test_facts_are_read_back(bench: Bench, tmp_path: Path) -> None:
    """A target holds params, tags, notes, name, status, start and end as far as it declares."""
    path = make_run(
        tmp_path / "runs" / "a",
        ROWS,
        status="failed",
        hparams={"lr": 0.1, "depth": 3, "name": "big", "flag": True},
        tags=["sweep:7", "baseline"],
        notes="two\nlines",
    )
    bench.export(path)
    held = bench.read(path)
    if held.params is not None:
        assert {key: str(value).removesuffix(".0") for key, value in held.params.items()} == {
            "lr": "0.1",
            "depth": "3",
            "name": "big",
            "flag": "True",
        }
    assert held.tags in (None, ("sweep:7", "baseline"))
    assert held.notes in (None, "two\nlines")
    assert held.name in (None, "a")
    if bench.exporter.capabilities.statuses:
        assert held.status == bench.exporter.capabilities.statuses[Status.FAILED]
    assert held.start in (None, CREATED_S)
    assert held.end in (None, CREATED_S + 3600)
    bench.assert_verified(path)


def test_the_cursor_is_what_was_applied(bench: Bench, path: Path) -> None:
    """The cursor after an export covers all rows and records content options, status and times."""
    bench.content = ContentOptions(exclude_metrics=("acc",))
    bench.export(path)
    run = read_run(path)
    cursor = bench.cursor(run)
    assert (cursor.rows, cursor.media_lines, cursor.identity, cursor.path) == (4, 0, "uid-a", str(path))
    assert dict(cursor.content) == {"exclude_metrics": ["acc"]}
    assert cursor.complete
    assert sent_facts(run).items() <= dict(cursor.sent).items()
    held = bench.read(path)
    assert held.cursor == cursor
    assert points_of(held, "acc") == []


def test_twice_is_the_same_as_once(bench: Bench, tmp_path: Path) -> None:
    """Applying the same deltas twice changes nothing, also those that another process has read."""
    path = make_run(tmp_path / "runs" / "a", ROWS, notes="n", tags=["t"])
    run = read_run(path)
    for _ in range(2):
        target = bench.open(run)
        for delta in pickle.loads(pickle.dumps(bench.whole(run))):
            target.apply(delta)
    assert points_of(bench.read(path), "loss") == LOSS
    assert_as_clean(bench, path)


def test_a_second_export_does_nothing(bench: Bench, path: Path) -> None:
    """With nothing new no fact is stale and the delta is SAME."""
    bench.export(path)
    run = read_run(path)
    assert tuple(bench.exporter.stale(run, bench.cursor(run), bench.content)) == ()
    assert bench.delta(run, bench.cursor(run)).kind is DeltaKind.SAME
    assert str(bench.export(path).action) == "unchanged"


HISTORIES: dict[str, tuple[list[dict[str, float]], tuple[int, ...], dict[str, list[tuple[int, float]]]]] = {
    "growth": ([*ROWS, {"step": 4, "loss": 9.0}], (2, 4), {"loss": [*LOSS, (4, 9.0)], "acc": ACC}),
    "a metric comes later": (
        [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25, "acc": 0.5}],
        (1,),
        {"loss": [(0, 0.5), (1, 0.25)], "acc": [(1, 0.5)]},
    ),
    "a requeue": (
        [*ROWS, {"step": 2, "loss": 8.0}, {"step": 3, "loss": 9.0, "acc": 0.875}, {"step": 4, "loss": 10.0}],
        (4,),
        {
            "loss": [(0, 0.5), (1, 0.25), (2, 8.0), (3, 9.0), (4, 10.0)],
            "acc": [(0, 0.25), (2, 0.5), (3, 0.875)],
        },
    ),
    "a new point at a lower step": (
        [{"step": 0, "loss": 1.0}, {"step": 4, "loss": 2.0}, {"step": 2, "loss": 3.0}],
        (2,),
        {"loss": [(0, 1.0), (2, 3.0), (4, 2.0)]},
    ),
}
"""Rows, how many of them there are at each export but the last, and the points that count."""


@pytest.mark.parametrize("kind", HISTORIES)
def test_pieces_are_the_same_as_the_whole(bench: Bench, tmp_path: Path, kind: str) -> None:
    """A run exported while it grows or is requeued ends like a run exported once."""
    rows, cuts, points = HISTORIES[kind]
    for end in (*cuts, len(rows)):
        path = make_run(tmp_path / "runs" / "a", rows[:end], status="completed" if end == len(rows) else "running")
        bench.export(path)
    assert {name: points_of(bench.read(path), name) for name in points} == points
    assert_as_clean(bench, path)


@pytest.mark.parametrize("exported", [0, 2])
def test_a_break_in_a_delta(bench: Bench, tmp_path: Path, exported: int) -> None:
    """A delta that breaks leaves the old cursor, or none that covers a row, and the next export repairs the target."""
    path = tmp_path / "runs" / "a"
    if exported:
        bench.export(make_run(path, ROWS[:exported]))
    run = read_run(make_run(path, ROWS))
    before = bench.known(run).cursor
    delta = bench.whole(run)[0] if before is None else bench.delta(run, before)
    with pytest.raises(TargetError):
        bench.open(run).apply(bench.interrupted(delta))
    after = bench.known(run).cursor
    assert after == before or (after is not None and before is None and after.rows == 0)
    bench.export(path)
    assert points_of(bench.read(path), "loss") == LOSS
    assert_as_clean(bench, path)


def test_a_rebuild_is_as_a_clean_export(bench: Bench, tmp_path: Path) -> None:
    """A rebuild replaces the whole target by what the run holds."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 5, "old": 1.0}])
    bench.export(path)
    make_run(path, ROWS)
    bench.export(path, rebuild=True)
    held = bench.read(path)
    assert points_of(held, "old") == []
    assert points_of(held, "loss") == LOSS
    assert_as_clean(bench, path)


def test_the_old_target_stays_until_the_new_one_is_complete(bench: Bench, path: Path) -> None:
    """A rebuild that breaks keeps the old target and its cursor, and the next one is clean."""
    bench.export(path)
    before = bench.cursor(read_run(path))
    make_run(path, [{"step": step, "loss": 1.0} for step in range(6)])
    run = read_run(path)
    deltas = bench.whole(run)
    with pytest.raises(TargetError):
        bench.open(run).rebuild([*deltas[:-1], bench.interrupted(deltas[-1])])
    assert points_of(bench.read(path), "loss") == LOSS
    assert bench.cursor(run) == before
    bench.export(path)
    assert points_of(bench.read(path), "loss") == [(step, 1.0) for step in range(6)]
    assert_as_clean(bench, path)


def test_the_same_delta_carries_facts(bench: Bench, tmp_path: Path) -> None:
    """Changed facts reach the target without new rows, and no point moves."""
    path = make_run(tmp_path / "runs" / "a", ROWS, status="running", notes="old", tags=["one"])
    bench.export(path)
    write_sidecar(path, status="completed", notes="new", tags=["one", "two"], display_name="better")
    run = read_run(path)
    assert "notes" in set(bench.exporter.stale(run, bench.cursor(run), bench.content))
    bench.export(path)
    held = bench.read(path)
    assert held.notes in (None, "new")
    assert held.name in (None, "better", "a")
    assert held.tags in (None, ("one", "two"))
    assert held.end in (None, CREATED_S + 3600)
    assert points_of(held, "loss") == LOSS
    assert_as_clean(bench, path)


def test_a_run_that_goes_on_after_its_end(bench: Bench, tmp_path: Path) -> None:
    """A requeued run is running again until it ends again."""
    path = make_run(tmp_path / "runs" / "a", ROWS[:2], status="failed")
    bench.export(path)
    write_sidecar(path, status="running")
    grow(path, (0.5, 0.125, 2))
    bench.export(path)
    if bench.exporter.capabilities.statuses:
        assert bench.read(path).status == bench.exporter.capabilities.statuses[Status.RUNNING]
    bench.assert_verified(path)
    write_sidecar(path, status="completed", ended_at="2026-04-10T15:00:00+00:00")
    bench.export(path)
    assert bench.read(path).end in (None, CREATED_S + 3 * 3600)
    bench.assert_verified(path)


def test_a_cursor_of_a_newer_bridge_stops_its_run(
    bench: Bench, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target written by a newer bridge is refused and left unchanged."""
    monkeypatch.setattr(cursor_module, "CURSOR_FORMAT", 99)
    bench.export(path)
    run = read_run(path)
    before = bench.cursor(run), comparable(bench.read(path))
    with monkeypatch.context() as older:
        older.setattr(cursor_module, "CURSOR_FORMAT", CURSOR_FORMAT)
        grow(path, (0.5, 0.125, 4))
        with bench.make(tmp_path / "target") as later:
            assert isinstance(later.cursors([run])[run.identity].error, NewerFormatError)
            assert [line.failed for line in export_runs([path], later).runs] == [True]
    assert (bench.cursor(run), comparable(bench.read(path))) == before


def test_an_exporter_is_used_again(bench: Bench, path: Path) -> None:
    """An exporter can be pickled before and after use, and closed. Its targets have addresses for people."""
    bench.exporter = pickle.loads(pickle.dumps(bench.exporter))
    bench.export(path)
    with bench.exporter:
        bench.exporter.close()
    assert points_of(bench.read(path), "loss") == LOSS
    bench.exporter = pickle.loads(pickle.dumps(bench.exporter))
    with bench.exporter:
        assert points_of(bench.read(path), "loss") == LOSS
        where = bench.open(read_run(path)).where()
    assert where
    assert where.isprintable()


def test_what_a_target_cannot_hold_is_reported_once(bench: Bench, tmp_path: Path) -> None:
    """Each masked, clipped, renamed or truncated item is a notice of the one export that sent it."""
    path = make_run(
        tmp_path / "runs" / "a",
        [
            {"step": 0, "loss": math.inf, "weird = name [%]": 1.0, "phase": "warm-up"},
            {"step": 1, "loss": 2.0, "weird = name [%]": 2.0},
        ],
        hparams={"api_key": "s3cret", "lr": 0.1, "long": "x" * 10_000},
        notes="n" * 10_000,
    )
    notices = Counter((notice.kind, notice.what) for notice in notices_of(bench.export(path)))
    assert NoticeKind.REDACTED in {kind for kind, _ in notices}
    assert set(notices.values()) == {1}
    assert bench.export(path).notices == ()
    bench.assert_verified(path)


def test_times_that_no_clock_gives(bench: Bench, tmp_path: Path) -> None:
    """An impossible time is replaced by that of the row before, and verify expects that."""
    odd = [1e300, CREATED_S + 1, -0.5, "inf", CREATED_S + 2, 2e14]
    path = make_run(tmp_path / "runs" / "a", [{"step": step, "x": 1.0, "wall_time": at} for step, at in enumerate(odd)])
    report = bench.export(path)
    named = [(notice.kind, notice.count) for notice in report.notices]
    assert named == [(NoticeKind.BAD_TIME, 4)]
    series = bench.read(path).series["x"]
    times = sorted(zip(series.step.tolist(), series.time.tolist(), strict=True))
    assert [time - CREATED_S for _, time in times] == [0, 1, 1, 1, 2, 2]
    bench.assert_verified(path)


def test_secrets_stay_here(bench: Bench, tmp_path: Path) -> None:
    """A target never holds the value of a key that names a secret, and verify expects the mask."""
    nested = json.dumps([{"api_key": "s3cret-value", "n": 1}])
    path = make_run(
        tmp_path / "runs" / "a",
        ROWS,
        hparams={"db_password": "s3cret-value", "api-key": "s3cret-value", "nested": nested, "lr": 0.1},
        tags=["password:s3cret-value", "project:x", f"opts:{nested}"],
        env={"WANDB_API_KEY": "s3cret-value"},
        sessions=[
            {"command": "t.py --api-key s3cret-value --x-secret=s3cret-value", "slurm": {"secret": "s3cret-value"}}
        ],
    )
    (path / "hparams.yaml").write_text(f"api-key: s3cret-value\nnested: '{nested}'\nlr: 0.1\n")
    bench.export(path)
    held = bench.read(path)
    assert "s3cret-value" not in repr(held)
    assert held.tags == ("password:***", "project:x", 'opts:[{"api_key": "***", "n": 1}]')
    files = [file for file in bench.folder.joinpath("target").rglob("*") if file.is_file()]
    assert [file for file in files if b"s3cret-value" in file.read_bytes()] == []
    bench.assert_verified(path)


NAMES = (
    *("val/acc", "grad norm (l2)", "größe", "精度", "a//b", "x" * 300, "a.b-c_d:e", "100%", "😀", "/lead", "../up"),
    *("acc@5", "acc#5", "acc_5"),
)


def test_names_of_metrics_come_back(bench: Bench, tmp_path: Path) -> None:
    """A target may rename metrics, but gives each back under the logged name, also if cleaned names collide."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0} | {name: number for number, name in enumerate(NAMES)}])
    bench.export(path)
    held = bench.read(path)
    assert {name: points_of(held, name) for name in NAMES} == {name: [(0, place)] for place, name in enumerate(NAMES)}
    bench.assert_verified(path)


def test_numbers_of_every_kind(bench: Bench, tmp_path: Path) -> None:
    """A target holds NaN, infinities, tiny, huge and negative numbers as declared, at steps of any size."""
    values = ["nan", "inf", "-inf", "1e-320", "-0.0", "0.1", "1e300", str(2**53 + 1)]
    steps = [-5, 0, 1, 2, 1000, 2**31, 2**40, 2**62]
    path = make_run(
        tmp_path / "runs" / "a", [{"step": step, "v": value} for step, value in zip(steps, values, strict=True)]
    )
    bench.export(path)
    assert [step for step, _ in points_of(bench.read(path), "v")] == steps
    assert points_of(bench.read(path), "v")[0] == (-5, None)
    bench.assert_verified(path)


def test_times_once_sent_never_move(bench: Bench, tmp_path: Path) -> None:
    """Estimated times of sent points stay when the run grows."""
    path = tmp_path / "runs" / "a"
    write_sidecar(path, status="running", time_column=None)
    write_metrics(path, ["loss", "step"], [(1.0, 0), (2.0, 1), (3.0, 2)])
    (path / "heartbeat").touch()

    def times() -> dict[int, float]:
        bench.export(path)
        series = bench.read(path).series["loss"]
        return dict(zip(series.step.tolist(), series.time.tolist(), strict=True))

    before = times()
    write_metrics(path, ["loss", "step"], [(4.0, 3), (5.0, 4)], append=True)
    write_sidecar(path, status="completed", time_column=None)
    after = times()
    assert {step: after[step] for step in before} == before
    assert sorted(after) == [0, 1, 2, 3, 4]
    bench.assert_verified(path)


def test_several_runs_in_one_call(bench: Bench, tmp_path: Path) -> None:
    """One call returns the cursors of many runs. Runs that share a name and a run id stay apart by identity."""
    paths = [
        make_run(tmp_path / group / "a", [{"step": 0, "loss": number}], run_id="a", uid=f"uid-{group}")
        for number, group in enumerate(("one", "two", "three"))
    ]
    for path in paths[:2]:
        bench.export(path)
    known = bench.exporter.cursors([read_run(path) for path in paths])
    assert {identity: one.cursor is not None for identity, one in known.items()} == {
        "uid-one": True,
        "uid-two": True,
        "uid-three": False,
    }
    assert [points_of(bench.read(path), "loss") for path in paths[:2]] == [[(0, 0.0)], [(0, 1.0)]]


def test_a_moved_run_keeps_its_target(bench: Bench, tmp_path: Path) -> None:
    """The same identity and rows at another path continue the same target."""
    path = make_run(tmp_path / "runs" / "a", ROWS[:2], run_id="a", uid="uid-a")
    bench.export(path)
    moved = path.rename(tmp_path / "runs" / "b")
    grow(moved, (0.5, 0.125, 2), (0.75, 0.0625, 3))
    bench.export(moved)
    assert points_of(bench.read(moved), "loss") == LOSS
    assert_as_clean(bench, moved)


def test_other_options_lead_to_a_rebuild(bench: Bench, path: Path) -> None:
    """A target made with other options is replaced, and the reason names them."""
    bench.export(path)
    bench.content = ContentOptions(metrics=("acc",))
    report = bench.export(path)
    assert (str(report.action), "metrics" in report.reason) == ("rebuild", True)
    held = bench.read(path)
    assert (points_of(held, "loss"), points_of(held, "acc")) == ([], ACC)
    assert_as_clean(bench, path)


def test_two_exports_at_once_end_with_one_run(bench: Bench, tmp_path: Path, path: Path) -> None:
    """Two exporters that both found no target end, after one more export, with one clean target."""
    run = read_run(path)
    with bench.make(tmp_path / "target") as other:
        other.prepare([run], bench.content)
        mine, theirs = bench.open(run), other.open(run, bench.content)
        assert other.cursors([run])[run.identity].cursor is None
        for delta in bench.whole(run):
            mine.apply(delta)
        for delta in bench.whole(run):
            theirs.apply(delta)
    bench.export(path)
    assert points_of(bench.read(path), "loss") == LOSS
    assert_as_clean(bench, path)


def test_a_stale_delta_undoes_nothing(bench: Bench, tmp_path: Path) -> None:
    """A delta read before another export advanced leaves no hole and no duplicate."""
    path = make_run(tmp_path / "runs" / "a", ROWS[:2])
    stale = bench.whole(read_run(path))
    grow(path, (0.5, 0.125, 2), (0.75, 0.0625, 3))
    bench.export(path)
    target = bench.open(read_run(path))
    for delta in stale:
        target.apply(delta.with_(run=read_run(path)))
    bench.export(path)
    assert points_of(bench.read(path), "loss") == LOSS
    assert_as_clean(bench, path)


@pytest.mark.parametrize("has_table", [True, False])
def test_a_run_without_rows(bench: Bench, tmp_path: Path, has_table: bool) -> None:
    """A run that crashed before its first row, or before metrics.csv was made, is new once, then unchanged."""
    path = make_run(tmp_path / "runs" / "a", (), status="failed", hparams={"lr": 0.1}, notes="soon")
    if not has_table:
        (path / "metrics.csv").unlink()
    assert str(bench.export(path).action) == "new"
    assert bench.read(path).notes in (None, "soon")
    assert_as_clean(bench, path)
    (path / "metrics.csv").unlink(missing_ok=True)
    assert str(bench.export(path).action) == "unchanged"
    bench.assert_verified(path)


def test_a_copy_without_times_is_no_change(bench: Bench, tmp_path: Path) -> None:
    """Copying a directory back without its times (`cp -r`) changes nothing, whatever its files' mtimes say."""
    path = make_run(tmp_path / "runs" / "a", ROWS, status="failed", hparams={"lr": 0.1}, heartbeat_age=4000.0)
    bench.export(path)
    for file in path.iterdir():
        os.utime(file)
    assert str(bench.export(path).action) == "unchanged"
    bench.assert_verified(path)
