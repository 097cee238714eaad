"""metrics.csv grows and is repaired without losing or duplicating a row."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from logger.csv_file import MetricsFile
from logger.row import Row
from tests.logger.rows import media, read_rows, sidecar, steps

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
LONG = "step,a\r\n" + f"0,{'1' * 60}\r\n" * 20_000


def rows(*metrics: dict[str, object], start: int = 0) -> list[Row]:
    return [Row(tuple(row), list(row.values()), step, 100.0 + step) for step, row in enumerate(metrics, start=start)]


def metrics_file(tmp_path: Path, *, time_column: str | None = None) -> MetricsFile:
    return MetricsFile(tmp_path / "metrics.csv", time_column=time_column)


def text(tmp_path: Path) -> str:
    return (tmp_path / "metrics.csv").read_bytes().decode()


def test_rows_are_lightnings_csv(tmp_path: Path) -> None:
    """The file has a header, CRLF, empty cells, and quotes where the csv module sets them."""
    file = metrics_file(tmp_path, time_column="wall_time")
    file.append(rows({"a": 1.5, "b": None}, {"b": float("nan"), 'c,"': 'x,"y"\r\nz'}, {"a": 1e-320, "b": 2**60}))
    assert text(tmp_path) == (
        'step,wall_time,a,b,"c,"""\r\n'
        "0,100.000000,1.5,,\r\n"
        '1,101.000000,,nan,"x,""y""\r\nz"\r\n'
        f"2,102.000000,1e-320,{2**60},\r\n"
    )


@pytest.mark.parametrize(
    ("there", "kept", "count"),
    [
        ("step,a\r\n0,1\r\n1,", "step,a\r\n0,1\r\n", 1),
        ("step,a\r\n0,1\r\n", "step,a\r\n0,1\r\n", 1),
        ('step,a\r\n0,1\r\n1,"torn\r\ncell', "step,a\r\n0,1\r\n", 1),
        ('step,a\r\n0,"two\r\nlines"\r\n1', 'step,a\r\n0,"two\r\nlines"\r\n', 1),
        ("step,a\r\n0,1\r\n\0\0\0\0", "step,a\r\n0,1\r\n", 1),
        ("step,a\r\n", "step,a\r\n", 0),
        ("step,", "", 0),
        ("", "", 0),
        pytest.param('step,a\r\n0,5" pipe\r\n1,1\r\n2', 'step,a\r\n0,5" pipe\r\n1,1\r\n', 2, id="a stray quote"),
        pytest.param('step,a\r\n\r,"b\nc"\r\n', 'step,a\r\n\r,"b\nc"\r\n', 2, id="a stray carriage return"),
        pytest.param(f"{LONG}0,1", LONG, 20_000, id="several reads"),
        pytest.param(
            f'{LONG}\r\n1,"two\r\nlines"\r\n2,', f'{LONG}\r\n1,"two\r\nlines"\r\n', 20_001, id="then odd lines"
        ),
        pytest.param('\ufeff\r\n\r\n"step",a\r\n0,1\r\n', '\ufeff\r\n\r\n"step",a\r\n0,1\r\n', 1, id="blank before"),
        pytest.param("step,a\r\n\r\n0,1\r\n\n\n1,2\r\n", "step,a\r\n\r\n0,1\r\n\n\n1,2\r\n", 2, id="blank lines"),
        pytest.param("step,a\r\n0,step\r\n1,b\r\n", "step,a\r\n0,step\r\n1,b\r\n", 2, id="a text that says step"),
    ],
)
def test_a_torn_tail_is_cut_off(tmp_path: Path, there: str, kept: str, count: int) -> None:
    """A torn last row is cut off before the next append, and complete rows stay, whatever lines there are."""
    (tmp_path / "metrics.csv").write_bytes(there.encode())
    file = metrics_file(tmp_path)
    file.resume()
    assert (text(tmp_path), file.rows) == (kept, count)
    file.append(rows({"a": 7}, start=9))
    assert text(tmp_path) == (kept or "step,a\r\n") + "9,7\r\n"


@pytest.mark.parametrize(
    ("there", "metrics", "expected"),
    [
        pytest.param(
            'step,z,t\r\n0,1,"a""\r\nb"\r\n', {"a": 3}, 'step,z,t,a\r\n0,1,"a""\r\nb",\r\n9,,,3\r\n', id="right"
        ),
        pytest.param(
            "step,a\n0,1\n1,2\r\n", {"c": 3, "b": 4}, "step,a,c,b\r\n0,1,,\n1,2,,\r\n9,,3,4\r\n", id="line ends"
        ),
        pytest.param(
            'step,t\n0,"x""\n""y"\r\n1,5" z\n2,""""\n\n3,"q\r\n"\n4,"t"u"\n5,"v"\n6,"last\n',
            {"a": 7},
            'step,t,a\r\n0,"x""\n""y",\r\n1,5" z,\n2,"""",\n\n3,"q\r\n",\n4,"t"u",\n5,"v",\n9,,7\r\n',
            id="line ends in quoted cells",
        ),
        pytest.param(
            "step,a,b\r\n0,1,2\r\nb,step,c\r\n3,1,4\r\n",
            {"c": 5},
            "step,a,b\r\n0,1,2\r\nb,step,c\r\n3,1,4\r\n,9,5\r\n",
            id="the last header line",
        ),
        pytest.param(
            'step,a\r\n"step","b"\r\n3,1\r\n', {"b": 5}, 'step,a\r\n"step","b"\r\n3,1\r\n9,5\r\n', id="at once"
        ),
        pytest.param(
            "step,a\r\n0,1\r\nb,step\r\n3,1\r\n",
            {"c": 5},
            "step,a\r\n0,1\r\nb,step\r\n3,1\r\nb,step,c\r\n,9,5\r\n",
            id="several headers get one more for a new metric",
        ),
    ],
)
def test_rows_go_under_the_last_header_line(
    tmp_path: Path, there: str, metrics: dict[str, object], expected: str
) -> None:
    """New metrics become the last columns, every earlier row gets empty cells, and no byte else changes."""
    (tmp_path / "metrics.csv").write_bytes(there.encode())
    file = metrics_file(tmp_path)
    for _ in range(2):
        file.append(rows(metrics, start=9))
    assert text(tmp_path) == expected + expected.splitlines(keepends=True)[-1]


@pytest.mark.parametrize(
    ("before", "kept", "says"),
    [
        ('step,a\r\n0,1\r\n1,"pipe\r\n2,3\r\n3,', "step,a\r\n0,1\r\n", "cannot be read after row 1,"),
        ('step,"a\r\n0,1\r\n', "", "cannot be read after its header,"),
        ("a,b\r\n1,2\r\n", "", "has no column `step`;"),
    ],
)
def test_what_cannot_be_continued_is_kept_aside(tmp_path: Path, before: str, kept: str, says: str) -> None:
    """Text after an unclosed quote, or a file without steps, is kept beside the file, with a warning."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(before.encode())
    path.chmod(0o600)
    told: list[str] = []
    file = MetricsFile(path, time_column=None, warn=lambda _, sentence: told.append(sentence))
    file.append(rows({"a": 3}, start=9))
    assert text(tmp_path) == (kept or "step,a\r\n") + "9,3\r\n"
    aside = tmp_path / "metrics.csv.1"
    assert (aside.read_bytes().decode(), aside.stat().st_mode & 0o777) == (before.removeprefix(kept), 0o600)
    (sentence,) = told
    assert says in sentence
    assert "kept as metrics.csv.1" in sentence


def test_rows_go_to_a_replaced_file(tmp_path: Path) -> None:
    """Rows go to the present file after another process replaced or removed it."""
    file = metrics_file(tmp_path)
    file.append(rows({"a": 1}))
    (tmp_path / "other").write_bytes(b"b,step\r\n5,0\r\n6,1\r\n")
    (tmp_path / "other").replace(tmp_path / "metrics.csv")
    file.append(rows({"b": 7}, start=2))
    assert (text(tmp_path), file.rows) == ("b,step\r\n5,0\r\n6,1\r\n7,2\r\n", 3)
    (tmp_path / "metrics.csv").unlink()
    file.append(rows({"b": 8}, start=3))
    assert (text(tmp_path), file.rows) == ("step,b\r\n3,8\r\n", 1)


def test_a_stale_file_of_a_network_file_system_is_reopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server no longer knows the open file, since another machine replaced it, the present one is opened."""
    file = metrics_file(tmp_path)
    file.append(rows({"a": 1}))
    stale, look = file._descriptor, os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        if descriptor == stale:
            monkeypatch.undo()  # another open file may have this number next
            raise OSError(errno.ESTALE, "Stale file handle")
        return look(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)
    file.append(rows({"a": 2}, start=1))
    assert steps(tmp_path) == [0, 1]


def test_growth_keeps_mode_and_group(tmp_path: Path) -> None:
    """A file that is rewritten for a new column keeps mode and group, also behind a link, with nothing left beside."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "metrics.csv").symlink_to(tmp_path / "disk" / "rows.csv")
    file = metrics_file(tmp_path)
    file.append(rows({"a": 1}))
    path = tmp_path / "disk" / "rows.csv"
    path.chmod(0o664)
    if os.getuid() == 0:
        os.chown(path, -1, 4321)
    group = path.stat().st_gid
    file.append(rows({"b": 2}, start=1))
    file.append(rows({"b": 3}, start=2))
    assert (tmp_path / "metrics.csv").is_symlink()
    assert path.read_bytes() == b"step,a,b\r\n0,1,\r\n1,,2\r\n2,,3\r\n"
    assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o664, group)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "metrics.csv", "rows.csv"]


@pytest.mark.parametrize("grows", [False, True])
def test_a_full_disk_takes_all_of_a_write_or_nothing(
    tmp_path: Path, grows: bool, limit_files: Callable[[int | None], None]
) -> None:
    """Rows that the disk refuses stay with the caller, and a later write completes them."""
    file = metrics_file(tmp_path)
    file.append(rows(*({"a": float(n)} for n in range(200))))
    before = text(tmp_path)
    waiting = rows(*({"b" if grows else "a": float(n)} for n in range(200, 600)), start=200)
    limit_files(4000)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        file.append(waiting)
    assert (text(tmp_path), len(waiting)) == (before, 400)
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]
    limit_files(None)
    file.append(waiting)
    assert waiting == []
    assert steps(tmp_path) == list(range(600))


def test_a_refused_write_stops_no_other_thread(tmp_path: Path, limit_files: Callable[[int | None], None]) -> None:
    """While one thread keeps the error of a full disk, another one continues the file."""
    file = metrics_file(tmp_path)
    file.append(rows(*({"a": float(n)} for n in range(3000))))
    limit_files(20_000)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as kept:
        file.append(rows({"b": 1.0}))
    limit_files(None)
    thread = Thread(target=file.resume, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert (thread.is_alive(), file.rows, kept.value.errno) == (False, 3000, errno.EFBIG)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("grows", [False, True])
def test_ctrl_c_in_the_middle_of_a_write_costs_no_row_and_doubles_none(
    tmp_path: Path, grows: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's exception just before or after a write leaves each row once."""
    file = metrics_file(tmp_path)
    file.append(rows({"a": 1}))
    waiting = rows({"b" if grows else "a": 2}, start=1)
    name = "replace" if grows else "write"
    real = getattr(os, name)

    def interrupted(*args: object) -> object:
        if moment == "after":
            real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.append(waiting)
    waiting += rows({"a": 3}, start=2)
    file.append(waiting)
    assert steps(tmp_path) == [0, 1, 2]
    assert (waiting, file.rows) == ([], 3)


def test_no_row_is_lost_whenever_the_process_is_killed(tmp_path: Path) -> None:
    """After SIGKILLs at random instants every saved row is there once, in order."""
    random = Random(2026)
    told = -1
    for _ in range(6):
        command = [sys.executable, "-m", "tests.logger.killed_program", str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(random.randrange(1, 120)):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split(b"\n")[:-1]  # the last may be torn
            told = int(rest[-1]) if rest else told
    found = read_rows(tmp_path)
    whole = [row for row in found if "number" in row]
    assert [int(row["number"]) for row in whole] == list(range(len(whole)))
    assert len(whole) > told
    assert all(row[f"metric_{number // 7}"] == repr(number / 3) for number, row in enumerate(whole))
    assert all(("text" in row) == (number % 3 == 0) for number, row in enumerate(whole))
    files = [tmp_path / event["path"] for event in media(tmp_path)]
    assert len(files) == len(set(files))
    assert all(file.read_bytes() == b"\x89PNG" for file in files)
    assert len(sidecar(tmp_path)["sessions"]) == 6
    assert len(list(tmp_path.glob(".*.tmp"))) <= 3  # each start removes what the last kill left
