"""metrics.csv grows and is repaired without losing or duplicating a row."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from logger.csv_file import MetricsFile
from logger.row import Row
from tests.logger.rows import media, read_rows, sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


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


def test_new_columns_go_behind_the_old_ones(tmp_path: Path) -> None:
    """A new metric becomes the last column, and every earlier row gets an empty cell."""
    file = metrics_file(tmp_path)
    file.append(rows({"z": 1, "t": 'a"\r\nb'}, {"z": 2}))
    file.append(rows({"a": 3}, start=2))
    file.append(rows({"z": 4, "m": 5, "b": 6}, start=3))
    assert text(tmp_path) == ('step,z,t,a,m,b\r\n0,1,"a""\r\nb",,,\r\n1,2,,,,\r\n2,,,3,,\r\n3,4,,,5,6\r\n')
    assert file.rows == 4


def test_other_line_ends_and_large_files_grow_as_well(tmp_path: Path) -> None:
    """A large file with LF line ends keeps each row when its header grows."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(
        b"step,a\n" + b"".join(b'%d,"%d"\r\n' % (n, n) if n % 2 else b"%d,%d\n" % (n, n) for n in range(150_000))
    )
    file = metrics_file(tmp_path)
    file.resume()
    file.append(rows({"b": 1}, start=150_000))
    assert file.rows == 150_001
    lines = path.read_bytes().splitlines()
    assert lines[:3] == [b"step,a,b", b"0,0,", b'1,"1",']
    assert (lines[-2], lines[-1], len(lines)) == (b'149999,"149999",', b"150000,,1", 150_002)
    assert all(line.count(b",") == 2 for line in lines)


@pytest.mark.parametrize(
    ("torn", "kept", "count"),
    [
        ("step,a\r\n0,1\r\n1,", "step,a\r\n0,1\r\n", 1),
        ("step,a\r\n0,1\r\n", "step,a\r\n0,1\r\n", 1),
        ('step,a\r\n0,1\r\n1,"torn\r\ncell', "step,a\r\n0,1\r\n", 1),
        ('step,a\r\n0,"two\r\nlines"\r\n1', 'step,a\r\n0,"two\r\nlines"\r\n', 1),
        ("step,a\r\n0,1\r\n\0\0\0\0", "step,a\r\n0,1\r\n", 1),
        ("step,a\r\n", "step,a\r\n", 0),
        ("step,", "", 0),
        ("", "", 0),
    ],
)
def test_a_torn_tail_is_cut_off(tmp_path: Path, torn: str, kept: str, count: int) -> None:
    """A torn last row is cut off before the next append, and complete rows stay."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(torn.encode())
    file = metrics_file(tmp_path)
    file.resume()
    assert (text(tmp_path), file.rows) == (kept, count)
    file.append(rows({"a": 7}, start=9))
    assert text(tmp_path) == (kept or "step,a\r\n") + "9,7\r\n"


@pytest.mark.parametrize("count", [3, 1000, 20_000])
def test_a_stray_quote_costs_no_rows(tmp_path: Path, count: int) -> None:
    """A quote in the middle of a cell opens no quoted cell, and the rows after it count."""
    path = tmp_path / "metrics.csv"
    body = 'step,lo"ss\r\n0,5" pipe\r\n' + "".join(f"{n},1\r\n" for n in range(1, count))
    path.write_bytes((body + "torn").encode())
    file = metrics_file(tmp_path)
    file.resume()
    assert file.rows == count
    assert text(tmp_path) == body


@pytest.mark.parametrize(
    ("before", "kept", "where"),
    [
        ('step,a\r\n0,1\r\n1,"pipe\r\n2,3\r\n3,', "step,a\r\n0,1\r\n", "after row 1,"),
        ('step,"a\r\n0,1\r\n', "", "after its header,"),
    ],
)
def test_a_quote_that_nobody_closes_wipes_nothing(tmp_path: Path, before: str, kept: str, where: str) -> None:
    """Text after an unclosed quote is cut off and kept beside the file, with a warning."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(before.encode())
    told: list[str] = []
    file = MetricsFile(path, time_column=None, warn=lambda _, sentence: told.append(sentence))
    file.resume()
    assert text(tmp_path) == kept
    assert (tmp_path / "metrics.csv.1").read_bytes().decode() == before.removeprefix(kept)
    (sentence,) = told
    assert where in sentence
    assert "kept as metrics.csv.1" in sentence


def test_blank_lines_before_the_header_wipe_nothing(tmp_path: Path) -> None:
    """The header is the first line that is not blank, also after a byte order mark."""
    body = '\ufeff\r\n\r\n"step",a\r\n0,1\r\n'.encode()
    (tmp_path / "metrics.csv").write_bytes(body)
    file = metrics_file(tmp_path)
    file.resume()
    assert (file.columns, file.rows, (tmp_path / "metrics.csv").read_bytes()) == (["step", "a"], 1, body)


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    """Blank lines are not counted, and stay."""
    body = b"step,a\r\n\r\n0,1\r\n\n\n1,2\r\n"
    (tmp_path / "metrics.csv").write_bytes(body)
    file = metrics_file(tmp_path)
    file.resume()
    assert file.rows == 2
    file.append(rows({"a": 3}, start=2))
    assert (tmp_path / "metrics.csv").read_bytes() == body + b"2,3\r\n"


def test_line_ends_in_quoted_cells_end_no_row(tmp_path: Path) -> None:
    """Only a line end outside of quoted cells ends a row, and each row keeps its bytes when the header grows."""
    before = [b'0,"x""\n""y"\r\n', b'1,5" z\n', b'2,""""\n', b"\n", b'3,"q\r\n"\n', b'4,"t"u"\n', b'5,"v"\n']
    (tmp_path / "metrics.csv").write_bytes(b"step,t\n" + b"".join(before) + b'6,"last\n')
    file = metrics_file(tmp_path)
    file.resume()
    assert file.rows == 6
    file.append(rows({"a": 7}, start=6))
    padded = [line.removesuffix(end) + b"," + end if line != b"\n" else line for line in before for end in [ends(line)]]
    assert (tmp_path / "metrics.csv").read_bytes() == b"step,t,a\r\n" + b"".join(padded) + b"6,,7\r\n"


def ends(line: bytes) -> bytes:
    return b"\r\n" if line.endswith(b"\r\n") else b"\n"


def test_rows_go_under_the_last_header_line(tmp_path: Path) -> None:
    """In concatenated files new rows follow the columns of the last header."""
    before = b"step,a,b\r\n0,1,2\r\nb,step,c\r\n3,1,4\r\n"
    (tmp_path / "metrics.csv").write_bytes(before)
    file = metrics_file(tmp_path)
    file.resume()
    assert (file.columns, file.rows) == (["b", "step", "c"], 2)
    file.append(rows({"c": 5}, start=2))
    assert text(tmp_path) == before.decode() + ",2,5\r\n"
    assert file.rows == 3


@pytest.mark.parametrize("headers", [b"step,a\r\n0,1\r\nb,step\r\n3,1\r\n", b"step,b\r\n0,1\r\nstep,b\r\n1,3\r\n"])
def test_such_a_file_gets_a_header_line_for_new_columns(tmp_path: Path, headers: bytes) -> None:
    """A file with several headers gets one more header line for a new metric."""
    (tmp_path / "metrics.csv").write_bytes(headers)
    file = metrics_file(tmp_path, time_column="wall_time")
    file.append(rows({"c": 5}, start=2))
    file.append(rows({"b": 6}, start=3))
    columns = file.columns
    assert set(columns) == {"step", "b", "c", "wall_time"}
    lines = text(tmp_path).removeprefix(headers.decode()).splitlines()
    assert lines[0] == ",".join(columns)
    cells = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    assert [(row["step"], row["b"], row["c"]) for row in cells] == [("2", "", "5"), ("3", "6", "")]
    assert file.rows == 4


def test_a_header_again_right_below_the_header_is_found(tmp_path: Path) -> None:
    """A second header directly below the first is found, also with quoted names."""
    (tmp_path / "metrics.csv").write_bytes(b'step,a\r\n"step","b"\r\n3,1\r\n')
    file = metrics_file(tmp_path)
    file.resume()
    assert (file.columns, file.rows) == (["step", "b"], 1)


def test_a_text_that_says_step_is_no_header(tmp_path: Path) -> None:
    """A text cell `step` does not make its row a header."""
    before = b"step,interval\r\n0,step\r\n1,epoch\r\n"
    (tmp_path / "metrics.csv").write_bytes(before)
    metrics_file(tmp_path).resume()
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_file_without_a_step_column_gets_one(tmp_path: Path) -> None:
    """A file without steps gets a step column that numbers its rows, as readers do.

    Lines that are no rows stay none.
    """
    (tmp_path / "metrics.csv").write_bytes(b"a,b\r\n1,\r\n2,3,4\r\na,b\r\n5,6\r\n")
    file = metrics_file(tmp_path)
    file.append(rows({"a": 2}, start=5))
    assert text(tmp_path) == "a,b,step\r\n1,,0\r\n2,3,4,1\r\n5,6,2\r\n2,,5\r\n"


def test_a_file_that_others_replaced_is_gone_on_with(tmp_path: Path) -> None:
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


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """If metrics.csv is a link, its target grows, and nothing is left beside either."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "metrics.csv").symlink_to(tmp_path / "disk" / "rows.csv")
    file = metrics_file(tmp_path)
    file.append(rows({"a": 1}))
    file.append(rows({"b": 2}, start=1))
    file.append(rows({"b": 3}, start=2))
    assert (tmp_path / "metrics.csv").is_symlink()
    assert (tmp_path / "disk" / "rows.csv").read_bytes() == b"step,a,b\r\n0,1,\r\n1,,2\r\n2,,3\r\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "metrics.csv", "rows.csv"]


def test_growth_keeps_mode_and_group(tmp_path: Path) -> None:
    """A rewritten file keeps the mode and group of the old one."""
    file = metrics_file(tmp_path)
    file.append(rows({"a": 1}))
    path = tmp_path / "metrics.csv"
    path.chmod(0o664)
    if os.getuid() == 0:
        os.chown(path, -1, 4321)
    group = path.stat().st_gid
    file.append(rows({"b": 1}, start=1))
    assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o664, group)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Limit files to 4,000 bytes, so that the disk refuses in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("grows", [False, True])
def test_a_full_disk_takes_all_of_a_write_or_nothing(
    tmp_path: Path, grows: bool, request: pytest.FixtureRequest
) -> None:
    """Rows that the disk refuses stay with the caller, and a later write completes them."""
    file = metrics_file(tmp_path)
    file.append(rows(*({"a": float(n)} for n in range(200))))
    before = text(tmp_path)
    waiting = rows(*({"b" if grows else "a": float(n)} for n in range(200, 600)), start=200)
    request.getfixturevalue("small_disk")
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        file.append(waiting)
    assert (text(tmp_path), len(waiting)) == (before, 400)
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    file.append(waiting)
    assert waiting == []
    found = [row["step"] for row in read_rows(tmp_path)]
    assert found == [str(n) for n in range(600)]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("grows", [False, True])
def test_ctrl_c_in_the_middle_of_a_write_costs_no_row_and_doubles_none(
    tmp_path: Path, grows: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's exception just before or after a write leaves each row once."""
    file = metrics_file(tmp_path)
    file.append(rows({"a": 1}))
    waiting = rows({"b" if grows else "a": 2}, start=1)
    owner, name = (Path, "replace") if grows else (os, "write")
    real = getattr(owner, name)

    def interrupted(*args: object) -> object:
        if moment == "after":
            real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.append(waiting)
    waiting += rows({"a": 3}, start=2)
    file.append(waiting)
    assert [row["step"] for row in read_rows(tmp_path)] == ["0", "1", "2"]
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
