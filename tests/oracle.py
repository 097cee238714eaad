"""A second reader of metrics.csv and media.jsonl, as naive as docs/reference/run-directory.md, to prove the real one.

It shares no code with `bridge.rundir`: metrics.csv goes through the standard library's csv module, and every rule is
written here again in plain Python. Random files must read the same in both (`tests/rundir/test_reader_agrees.py`).
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

YEAR_10000 = 253402300800.0

csv.field_size_limit(sys.maxsize)


@dataclass(frozen=True)
class OraclePoint:
    """One point; `time` is NaN where the file does not say it and an export has to estimate."""

    row: int
    step: int
    time: float
    value: float


@dataclass(frozen=True)
class OracleMedia:
    """One media event that counts, with the format that its file's first bytes show and the sha256 of the file."""

    line: int
    tag: str
    step: int
    path: str
    format: str
    caption: str | None
    digest: str


@dataclass
class OracleRun:
    """Points and media of a run: `series` by metric and step, with only the points that count; `rows` counts all."""

    series: dict[str, list[OraclePoint]] = field(default_factory=dict)
    rows: int = 0
    media: list[OracleMedia] = field(default_factory=list)
    media_lines: int = 0


def read(run_dir: Path, *, rows: int | None = None) -> OracleRun:
    """Read `run_dir`, of metrics.csv the first `rows` rows (None: all)."""
    found = OracleRun()
    sidecar = _json(run_dir)
    read_metrics(run_dir, sidecar, found, rows)
    read_media(run_dir, found)
    return found


def own_file(run_dir: Path, name: str) -> Path | None:
    """Return the real path of a regular file of `run_dir`, or None for a missing one and one outside."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    try:
        real = run_dir.resolve()
        path = (real / relative).resolve()
        return path if path.is_relative_to(real) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


# metrics.csv


def read_metrics(run_dir: Path, sidecar: Mapping[str, Any], found: OracleRun, rows: int | None) -> None:
    """Add the points that count, and the number of rows."""
    path = own_file(run_dir, "metrics.csv")
    records = [] if path is None else list(complete_records(path.read_bytes()))
    if not records or not records[0]:
        return
    names = records[0]
    time_column = text_of(sidecar.get("time_column"))
    has_times = time_column in names
    now, said = start_of(sidecar), False
    points: dict[str, list[OraclePoint]] = {}
    for cells in records[1:]:
        if cells == []:
            continue  # a blank line
        if cells is not None and is_header(cells, names):
            names = cells
            continue
        if found.rows == rows:
            break
        row = found.rows
        found.rows += 1
        good = cells if cells is not None and len(cells) == len(names) else None
        step = step_of(good, names, row)
        stepless = good is not None and "step" in names and good[position(names, "step")] == ""
        if has_times:
            # A row that no clock gives a time has the time of the row before it, the first one that of the start.
            is_row = good is not None and (step is not None or stepless)
            cell = good[position(names, time_column)] if good and is_row and time_column in names else ""
            time = number(cell)
            if time is not None and 0 <= time < YEAR_10000:
                now, said = time, True
            elif not said and (time is None or math.isnan(time)):
                now = math.nan
        if step is None or good is None:
            continue
        for name, value in values_of(good, names, {"step", time_column if has_times else "step"}).items():
            points.setdefault(name, []).append(OraclePoint(row, step, now if has_times else math.nan, value))
    found.series = {name: counting(series) for name, series in points.items()}


def complete_records(data: bytes) -> Iterator[list[str] | None]:
    """Yield the cells of each record whose newline is there, None for one that is no CSV."""
    lines = [line + b"\n" for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")[:-1]]
    torn = False

    def feed() -> Iterator[str]:
        nonlocal torn
        for line in lines:
            yield line.decode("utf-8", errors="replace")
        torn = True

    reader = csv.reader(feed())
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None
            continue
        if torn:
            return  # the reader asked for a line that is not there yet
        yield cells


def is_header(cells: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether a record is a header line again.

    All cells filled, with a `step` that is no number in its place.
    """
    if "step" not in names:
        return list(cells) == list(names)
    place = position(names, "step")
    return "step" in cells and all(cells) and (place >= len(cells) or integer(cells[place]) is None)


def position(names: Sequence[str], name: str) -> int:
    """Return the place of the last column `name`."""
    return len(names) - 1 - list(names)[::-1].index(name)


def step_of(cells: Sequence[str] | None, names: Sequence[str], row: int) -> int | None:
    """Return the step of a row; without a column of steps it is the row's number."""
    if cells is None:
        return None
    return integer(cells[position(names, "step")]) if "step" in names else row


def values_of(cells: Sequence[str], names: Sequence[str], without: set[str]) -> dict[str, float]:
    """Return the numbers in a row by metric. Of two columns of one name the last cell that is not empty counts."""
    last = {name: cell for name, cell in zip(names, cells, strict=True) if name not in without and cell}
    values = {name: number(cell) for name, cell in last.items()}
    return {name: value for name, value in values.items() if value is not None}


def counting(points: Sequence[OraclePoint]) -> list[OraclePoint]:
    """Return one point per step: of the last unbroken sequence of equal values at that step the first."""
    kept: dict[int, OraclePoint] = {}
    for point in points:
        before = kept.get(point.step)
        if before is None or not equal(before.value, point.value):
            kept[point.step] = point
    return [kept[step] for step in sorted(kept)]


def equal(one: float, other: float) -> bool:
    """Return whether two values are equal, as NaN and NaN are."""
    return one == other or (math.isnan(one) and math.isnan(other))


def integer(cell: str) -> int | None:
    """Return a cell's int64, None if it is none."""
    with suppress(ValueError):
        value = int(cell)
        return value if -(2**63) <= value < 2**63 else None
    return None


def number(cell: str) -> float | None:
    """Return a cell's number, NaN for an empty one, None for text."""
    if not cell:
        return math.nan
    if cell in ("True", "False"):
        return float(cell == "True")
    with suppress(ValueError):
        return float(cell)
    return None


def start_of(sidecar: Mapping[str, Any]) -> float:
    """Return the time in `created_at`, NaN without one."""
    value = sidecar.get("created_at")
    if isinstance(value, str):
        with suppress(ValueError):
            return datetime.fromisoformat(value).timestamp()
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


# media.jsonl


def read_media(run_dir: Path, found: OracleRun) -> None:
    """Add the events that count: per tag and step those of the last session, or of the last line of each path."""
    path = own_file(run_dir, "media.jsonl")
    lines = [] if path is None else path.read_bytes().split(b"\n")[:-1]
    found.media_lines = len(lines)
    groups: dict[tuple[str, int], list[tuple[int, dict[str, Any]]]] = {}
    for line, data in enumerate(map(event_of, lines)):
        if data is not None:
            groups.setdefault((text_of(data["tag"]), data["step"]), []).append((line, data))
    for (tag, step), group in groups.items():
        session = session_of(group[-1][1])
        last = [(line, data) for line, data in group if session_of(data) == session]
        if session is None:
            last = list({text_of(data["path"]): (line, data) for line, data in last}.values())
        for line, data in last:
            file = own_file(run_dir, data["path"])
            form = None if file is None else format_of(file.read_bytes())
            if file is not None and form is not None:
                caption = data.get("caption")
                caption = text_of(caption) if isinstance(caption, str) else None
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                found.media.append(OracleMedia(line, tag, step, text_of(data["path"]), form, caption, digest))
    found.media.sort(key=lambda event: event.line)


def event_of(line: bytes) -> dict[str, Any] | None:
    """Return the event in a line; a torn line swallows the start of the next event, which is taken if it is whole."""
    start = 0
    while start >= 0:
        with suppress(ValueError):
            data = json.loads(line[start:])
            return data if is_event(data) else None
        start = line.find(b'{"', start + 1)
    return None


def is_event(data: Any) -> bool:
    """Return whether a JSON value is a media event."""
    if not isinstance(data, dict) or data.get("type") not in ("image", "video"):
        return False
    step = data.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not -(2**63) <= step < 2**63:
        return False
    return isinstance(data.get("tag"), str) and isinstance(data.get("path"), str)


def session_of(data: Mapping[str, Any]) -> int | None:
    """Return an event's session, None if it says none."""
    session = data.get("session")
    return session if isinstance(session, int) and not isinstance(session, bool) else None


def format_of(data: bytes) -> str | None:
    """Return the format of a file, as far as random files here have one."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return "mp4" if data[4:8] == b"ftyp" else None


# sidecar.json


def text_of(value: object) -> str:
    """Return a text, or a number as one, with a replacement character for each lone surrogate."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in str(value))


def _json(run_dir: Path) -> dict[str, Any]:
    path = own_file(run_dir, "sidecar.json")
    data = {} if path is None else json.loads(path.read_bytes())
    return data if isinstance(data, dict) else {}
