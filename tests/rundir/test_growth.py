"""Looks at a growing run directory are right and cheap."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from bridge.errors import IdentityError
from bridge.model import Cursor, Delta, DeltaKind, NoticeKind
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_delta, read_run
from bridge.rundir import deltas as delta_module
from tests.run_dirs import CREATED_S, write_metrics, write_sidecar
from tests.rundir.targets import events_of, look

if TYPE_CHECKING:
    from pathlib import Path

HEADER = ("loss", "step", "wall_time")


def points(delta: Delta) -> list[tuple[int, float]]:
    """Return (step, value) of the metric `loss`."""
    return [
        (step, float.fromhex(value))
        for _, step, _, values in events_of([delta])
        for name, value in values
        if name == "loss"
    ]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Make a run with two rows."""
    path = write_sidecar(tmp_path / "run")
    write_metrics(path, HEADER, [[1.0, 0, CREATED_S], [2.0, 1, CREATED_S + 1]])
    return path


def test_every_byte(tmp_path: Path) -> None:
    """A file that grows byte by byte gives each row once, at its newline."""
    path = write_sidecar(tmp_path / "run")
    lines = [b"loss,note,step\r\n", b"1,,0\r\n", b',"a\r\nb",1\r\n', b"x,,2\r\n", b"3,,2,9\r\n", b"4,,\r\n"]
    lines += [b"note,step,loss\n", b",5,6\n", b"7,,4\n"]
    counts = [0, 1, 2, 3, 4, 5, 5, 6, 7]
    data = b"".join(lines)
    rows_at = {len(b"".join(lines[: place + 1])): count for place, count in enumerate(counts)}
    cursor = None
    values: list[tuple[int, float]] = []
    rows = texts = 0
    for size in range(len(data) + 1):
        (path / "metrics.csv").write_bytes(data[:size])
        delta = look(path, cursor)
        assert delta.kind is not DeltaKind.CHANGED
        cursor = delta.after
        values += points(delta)
        texts += sum(notice.count for notice in delta.notices if notice.kind is NoticeKind.TEXT_CELL)
        rows = rows_at.get(size, rows)
        assert cursor.rows == rows
    assert values == [(0, 1.0), (5, 6.0)]
    assert texts == 2


def test_nothing_is_opened_where_nothing_changed(run_dir: Path) -> None:
    """No file is opened if size and mtime equal the cursor's."""
    cursor = look(run_dir).after
    run = read_run(run_dir)
    opened: list[str] = []
    watching = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if watching and event == "open" and str(run_dir) in str(args[0]):
            opened.append(str(args[0]))

    sys.addaudithook(hook)
    delta = read_delta(run, cursor, ContentOptions(), ReadOptions())
    watching = False
    assert (delta.kind, delta.after, opened) == (DeltaKind.SAME, cursor, [])


def test_an_append_reads_only_the_new_bytes(tmp_path: Path) -> None:
    """After an append only the first line, the 64 KiB before the cursor and the new rows are read."""
    path = write_sidecar(tmp_path / "run")
    write_metrics(path, HEADER, [[step / 7, step, CREATED_S + step] for step in range(50_000)])
    cursor = look(path).after
    write_metrics(path, (), [[9.0, 50_000, CREATED_S + 50_000]], append=True)
    before = _read_so_far()
    delta = look(path, cursor)
    assert points(delta) == [(50_000, 9.0)]
    assert _read_so_far() - before < 200_000 < (path / "metrics.csv").stat().st_size / 6


def _read_so_far() -> int:
    """Return the bytes that this process has read by system calls (Linux), elsewhere 0."""
    try:
        with open("/proc/self/io") as file:  # noqa: PTH123 - no real file
            return int(file.readline().split()[1])
    except OSError:
        return 0


def test_a_grown_header_changes_nothing_but_the_columns(run_dir: Path) -> None:
    """A file rewritten with one more column is an append."""
    cursor = look(run_dir).after
    write_metrics(
        run_dir,
        ["acc", *HEADER],
        [[None, 1.0, 0, CREATED_S], [None, 2.0, 1, CREATED_S + 1], [0.5, 3.0, 2, CREATED_S + 2]],
    )
    delta = look(run_dir, cursor)
    assert (delta.kind, points(delta), delta.metrics) == (DeltaKind.APPEND, [(2, 3.0)], ("loss", "acc"))
    assert look(run_dir, delta.after).kind is DeltaKind.SAME


def test_a_copied_run_is_the_same_run(run_dir: Path, tmp_path: Path) -> None:
    """A copy with other mtimes, or a moved run, has the same rows, and nothing is sent again."""
    cursor = look(run_dir).after
    shutil.copytree(run_dir, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / "metrics.csv", (0, 0))
    delta = look(tmp_path / "elsewhere", cursor)
    assert (delta.kind, delta.after.path, delta.points) == (DeltaKind.SAME, str(tmp_path / "elsewhere"), 0)
    run_dir.rename(tmp_path / "moved")
    delta = look(tmp_path / "moved", cursor)
    assert (delta.kind, delta.after.path) == (DeltaKind.SAME, str(tmp_path / "moved"))


def test_another_run_with_the_same_identity_is_stopped(run_dir: Path, tmp_path: Path) -> None:
    """The same identity at another path with other rows is an error with a remedy."""
    cursor = look(run_dir).after
    other = write_sidecar(tmp_path / "other", uid="uid-run")
    write_metrics(other, HEADER, [[1.0, 0, CREATED_S], [2.5, 1, CREATED_S + 1]])
    with pytest.raises(IdentityError, match="but not its rows") as caught:
        look(other, cursor)
    assert caught.value.hint is not None
    assert "--as" in caught.value.hint
    write_metrics(other, HEADER, [])
    with pytest.raises(IdentityError):
        look(other, cursor)


HEAD = b"loss,step,wall_time\r\n"
WHOLE = HEAD + b"1.0,0,1775822400.0\r\n2.0,1,1775822401.0\r\n3.0,2,1775822402.0\r\n"


@pytest.mark.parametrize(
    ("contents", "kind", "reason"),
    [
        pytest.param(
            [WHOLE.replace(b"2.0,1", b"2.5,1")],
            DeltaKind.CHANGED,
            "metrics.csv: the content of the first 2 rows has changed",
            id="changed",
        ),
        pytest.param([None], DeltaKind.CHANGED, "metrics.csv is gone or empty", id="gone"),
        pytest.param([HEAD, WHOLE], DeltaKind.APPEND, "", id="shorter for a moment, in the middle of a rewrite"),
        pytest.param(
            [HEAD + b"9,9,9\r\n" * (number % 2) + b" " * number for number in range(9)],
            DeltaKind.SAME,
            "metrics.csv is being rewritten",
            id="changes at each look",
        ),
    ],
)
def test_a_change_is_believed_if_two_looks_agree(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, contents: list[bytes | None], kind: DeltaKind, reason: str
) -> None:
    """A metrics.csv that has not the rows of the cursor is looked at again, and is changed if it is still the same."""
    cursor = look(run_dir).after
    coming = iter(contents)

    def rewrite(_seconds: float = 0.0) -> None:
        for content in coming:
            (run_dir / "metrics.csv").unlink()
            if content is not None:
                (run_dir / "metrics.csv").write_bytes(content)
            return

    monkeypatch.setattr(delta_module.time, "sleep", rewrite)
    rewrite()
    delta = look(run_dir, cursor)
    assert (delta.kind, delta.reason) == (kind, reason)
    assert points(delta) == ([(2, 3.0)] if kind is DeltaKind.APPEND else [])
    assert kind is DeltaKind.APPEND or delta.after == cursor


def test_a_rewind_is_named_with_its_line(run_dir: Path) -> None:
    """For an ordered target a rewind names file, line, metric and steps, and leads to a rebuild."""
    cursor = look(run_dir).after
    write_metrics(run_dir, (), [[3.0, 2, CREATED_S + 2], [1.5, 0, CREATED_S + 3]], append=True)
    delta = look(run_dir, cursor, ordered=True)
    assert (delta.kind, delta.points, delta.after) == (DeltaKind.REWIND, 0, cursor)
    assert delta.reason == "metrics.csv:5: loss goes back from step 1 to step 0; 1 point no longer counts"


def test_a_repeated_stretch_is_no_rewind(run_dir: Path) -> None:
    """Rows logged again with the same values send nothing."""
    cursor = look(run_dir).after
    write_metrics(run_dir, (), [[1.0, 0, CREATED_S + 7], [2.0, 1, CREATED_S + 8], [3.0, 2, CREATED_S + 9]], append=True)
    for options in ({"ordered": True}, {}, {"replaces": True}):
        delta = look(run_dir, cursor, **options)
        assert (delta.kind, points(delta), delta.replace_from) == (DeltaKind.APPEND, [(2, 3.0)], None)


def test_a_rewind_replaces_all_points_from_the_lowest_changed_step(run_dir: Path) -> None:
    """A target that replaces points gets every point from the lowest changed step on."""
    write_metrics(run_dir, (), [[3.0, 2, CREATED_S + 2], [4.0, 3, CREATED_S + 3]], append=True)
    cursor = look(run_dir).after
    write_metrics(run_dir, (), [[2.0, 1, CREATED_S + 4], [3.5, 2, CREATED_S + 5]], append=True)
    delta = look(run_dir, cursor, replaces=True)
    assert (delta.kind, delta.replace_from, points(delta)) == (DeltaKind.REWIND, 2, [(2, 3.5), (3, 4.0)])
    assert (delta.after.rows, delta.after.replacing, delta.more) == (6, None, False)
    assert delta.reason == "metrics.csv:6: loss goes back from step 3 to step 1; 1 point no longer counts"


def test_a_rewind_reads_the_rows_before_it_once(tmp_path: Path) -> None:
    """The reading that finds a rewind gives its points. Besides, the lines before it are counted, for the reason."""
    path = write_sidecar(tmp_path / "run")
    write_metrics(path, HEADER, [[step / 7, step, CREATED_S + step] for step in range(50_000)])
    cursor = look(path).after
    write_metrics(path, (), [[9.0, 49_000, CREATED_S + 50_000]], append=True)
    before = _read_so_far()
    delta = look(path, cursor, replaces=True)
    assert (delta.kind, delta.replace_from, delta.points) == (DeltaKind.REWIND, 49_000, 1000)
    assert _read_so_far() - before < (path / "metrics.csv").stat().st_size * 2.5


def test_a_long_rewind_sends_each_point_once(run_dir: Path) -> None:
    """If a rewind is read in many deltas, the points after it that do not fit into memory are sent once, at the end."""
    write_metrics(run_dir, HEADER, [[1.0, step, CREATED_S + step] for step in range(200)])
    cursor = look(run_dir).after
    write_metrics(run_dir, (), [[2.0, step, CREATED_S + step] for step in range(100)], append=True)
    sent = []
    more = True
    while more:
        options = ReadOptions(replaces=True, limit=10)
        delta = read_delta(read_run(run_dir), cursor, ContentOptions(), options, budget=2000)
        sent += points(delta)
        cursor, more = delta.after, delta.more
    assert sent == [(step, 2.0 if step < 100 else 1.0) for step in range(200)]


def test_a_replacement_that_was_stopped_is_finished(run_dir: Path) -> None:
    """A cursor with a step of missing points makes the next delta replace them."""
    cursor = look(run_dir).after.with_(replacing=1)
    delta = look(run_dir, cursor, replaces=True)
    assert (delta.kind, delta.replace_from, points(delta)) == (DeltaKind.REWIND, 1, [(1, 2.0)])
    assert look(run_dir, delta.after, replaces=True).kind is DeltaKind.SAME
    assert look(run_dir, cursor).kind is DeltaKind.REWIND


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Make a run with more metrics than a cursor holds."""
    path = write_sidecar(tmp_path / "many")
    names = [f"metric/{number:03d}" for number in range(200)]
    write_metrics(path, [*names, "step", "wall_time"], [[*range(200), step, CREATED_S + step] for step in range(3)])
    return path


def test_last_points_that_do_not_fit_are_found_in_the_file(many: Path) -> None:
    """A second row of the last step is compared with earlier rows of the file if the cursor lacks them."""
    cursor = look(many).after
    assert Cursor.from_json(cursor.to_json(), where="here").last_points is None  # type: ignore[union-attr]
    again = [*range(199), 5]
    write_metrics(many, (), [[*again, 2, CREATED_S + 3]], append=True)
    delta = look(many, cursor, ordered=True)
    assert delta.kind is DeltaKind.REWIND
    assert delta.reason.startswith("metrics.csv:5: metric/199 goes back from step 2 to step 2")
    assert len(delta.metrics) == 200


def test_last_points_that_do_not_fit_are_not_needed_for_later_steps(many: Path) -> None:
    """Rows with later steps need no last points."""
    cursor = look(many).after
    write_metrics(many, (), [[*range(200), 3, CREATED_S + 3]], append=True)
    delta = look(many, cursor, ordered=True)
    assert (delta.kind, delta.points, delta.after.seen) == (DeltaKind.APPEND, 200, 200)
    assert delta.metrics == tuple(f"metric/{number:03d}" for number in range(200))
