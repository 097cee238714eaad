"""The words of the bridge as frozen types: run, block, series, media event, cursor, delta, notice.

What crosses from a run directory to an exporter is one of these. All of them can be pickled.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from itertools import compress
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import msgspec
from msgspec.structs import force_setattr, replace

from bridge.errors import NewerFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from logger.sidecar import SessionEntry

Scalar: TypeAlias = bool | int | float | str | None
"""The value of a flat hyperparameter."""


class Status(StrEnum):
    """The status that is shown for a run. Each exporter has a table of its target's words for it."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    KILLED = "killed"
    UNKNOWN = "unknown"


class NoticeKind(StrEnum):
    """The kinds of notice, as they stand in reports."""

    BAD_ROW = "bad row"
    NO_STEP = "row without a step"
    BAD_TIME = "bad time"
    TEXT_CELL = "text cell"
    RENAMED = "renamed"
    CUT = "cut"
    CLIPPED = "clipped"
    REDACTED = "redacted"
    MISSING_FILE = "missing file"
    UNREADABLE_MEDIA = "unreadable media"
    NOT_SHOWABLE = "not showable"
    REFUSED_PATH = "refused path"
    SHARED_FILE = "shared file"
    BAD_LINE = "bad line"
    TOO_LARGE = "too large"
    LEFT_OUT = "left out"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


class Notice(msgspec.Struct, frozen=True):
    """Something that the target cannot hold as it is.

    `what` names the thing (a metric, a param, `metrics.csv:17`), `detail` says what happened to it and where
    it is kept in full. `count` is how many things this one entry stands for.
    """

    kind: NoticeKind
    what: str
    detail: str = ""
    count: int = 1


class SkippedFolder(msgspec.Struct, frozen=True):
    """A folder that is passed over although it looks like a run directory, with the reason."""

    path: str
    reason: str


class RunFile(msgspec.Struct, frozen=True):
    """A regular file whose real path lies in the run directory, or a part of one.

    `path` is that real path, `size` bytes, `mtime_ns` nanoseconds since the epoch, both as last looked at. A part is
    the `size` bytes from byte `offset` on; its `mtime_ns` is the time at which it was written.
    `bridge.files.open_file` opens both.
    """

    path: Path
    size: int
    mtime_ns: int
    offset: int | None = None


class Run(msgspec.Struct, frozen=True):
    """The facts of a run directory, checked and typed. Times are seconds since the epoch.

    `path` is the real absolute path. `identity` is the sidecar's `uid`, else its `run_id`, else the path. `status` is
    the status that is shown, liveness included; `status_word` is the sidecar's. `start` is created_at, else an estimate
    from names and file times, else the last sign of life. `end` is None while the run is running, else ended_at or the
    last sign of life, never before `start`. A time is *estimated* unless a writer stated it. `files` are the run
    directory's own files by name, as far as they exist and are safe to read. `run_dir` is where the sidecar says the
    run was written. `time_column` names the column of metrics.csv that holds times; without one, times of rows are
    estimated. `kind` says who wrote the directory: RegistryLogger, CSVLogger or TensorBoardLogger. `event_files` are
    the event files of the last kind, in their order. `notices` are those found while the sidecar and the
    hyperparameters were read.
    """

    path: Path
    identity: str
    run_id: str
    status: Status
    status_word: str | None
    start: float
    end: float | None
    last_alive: float
    name: str
    parent: str
    params: Mapping[str, Scalar] = {}
    tags: tuple[str, ...] = ()
    notes: str = ""
    archived: bool = False
    sessions: tuple[SessionEntry, ...] = ()
    checkpoint: str | None = None
    summary: Mapping[str, float] = {}
    summary_stats: Mapping[str, Mapping[str, Any]] = {}
    summary_rows: int | None = None
    time_column: str | None = None
    files: Mapping[str, RunFile] = {}
    notices: tuple[Notice, ...] = ()
    start_estimated: bool = False
    end_estimated: bool = False
    run_dir: str | None = None
    kind: str = ""
    event_files: tuple[RunFile, ...] = ()

    @property
    def running(self) -> bool:
        """Return whether the run is shown as running."""
        return self.status is Status.RUNNING

    @property
    def row_files(self) -> tuple[RunFile, ...]:
        """Return the files that hold the run's rows: its event files, or its metrics.csv."""
        return self.event_files or tuple(file for name, file in self.files.items() if name == "metrics.csv")


class Series(msgspec.Struct, frozen=True, eq=False):
    """The points of one metric as columns of one length n, in row order unless said otherwise.

    `step` int64; `time` float64, seconds since the epoch; `value` float64.
    """

    name: str
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    value: NDArray[np.float64]


class Block(msgspec.Struct, frozen=True, eq=False):
    """Rows as columns: n rows, k metrics.

    `row` int64 (n,) is the number of each row in metrics.csv, from 0; it does not rise if the block is sorted by step.
    `step` int64 (n,); `time` float64 (n,), seconds since the epoch; `values` float64 (k, n), C order: `values[i]` are
    those of the metric `names[i]`; `present` bool (k, n): which values are points. The other values can be anything.
    `names` are sorted. In a delta the overlap rule has been applied, and each row and each metric has a point.
    """

    names: tuple[str, ...]
    row: NDArray[np.int64]
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]

    @property
    def points(self) -> int:
        """Return the number of points."""
        return int(self.present.sum())

    @property
    def nbytes(self) -> int:
        """Return the bytes of memory that the columns take."""
        return len(self.row) * (24 + 9 * len(self.names))

    def rows(self, chosen: slice | NDArray[Any]) -> Block:
        """Return the rows that a slice, a mask or places choose."""
        return Block(
            self.names,
            self.row[chosen],
            self.step[chosen],
            self.time[chosen],
            self.values[:, chosen],
            self.present[:, chosen],
        )

    def series(self) -> Iterator[Series]:
        """Yield the points of each metric, in the order of the rows."""
        is_full = self.present.all()
        for name, present, values in zip(self.names, self.present, self.values, strict=True):
            chosen = slice(None) if is_full else present
            yield Series(name, self.step[chosen], self.time[chosen], values[chosen])

    def where(self, present: NDArray[np.bool_]) -> Block | None:
        """Return a block with these points only; None if there are none."""
        return Block(self.names, self.row, self.step, self.time, self.values, present).filled()

    def filled(self) -> Block | None:
        """Return the block without rows and metrics that have no point; None if nothing is left."""
        names, values, present = self.names, self.values, self.present
        used = cast("NDArray[np.bool_]", present.any(axis=1))
        if not used.all():
            names = tuple(compress(names, used))
            values, present = values[used], present[used]
        if not names:
            return None
        block = Block(names, self.row, self.step, self.time, values, present)
        rows = cast("NDArray[np.bool_]", present.any(axis=0))
        return block if rows.all() else block.rows(rows)


class MediaType(StrEnum):
    """The `type` of a media event."""

    IMAGE = "image"
    VIDEO = "video"


class MediaEvent(msgspec.Struct, frozen=True):
    """One line of `media.jsonl` with its file, or a picture in an event file.

    `line` counts from 0; `path` is the file, or an event file and the byte at which the picture begins. `index` is its
    place among the events that count of the same tag and step, from 0. `file` is safe to read (a regular file inside
    the run directory, opened and recognised); events whose file is not are notices and never get here. `format` is the
    file's true format in lower case, as its bytes say (`png`, `jpeg`, `gif`, `webp`, `mp4`, `webm`, ...). `time` is
    seconds since the epoch; if the line says none, it is the file's mtime, and `is_time_known` is false.
    """

    line: int
    tag: str
    step: int
    index: int
    type: MediaType
    path: str
    file: RunFile
    format: str
    time: float
    caption: str | None = None
    fps: float | None = None
    session: int | None = None
    is_time_known: bool = True

    @property
    def where(self) -> str:
        """Return the place of the event, for a person."""
        return f"media.jsonl:{self.line + 1}" if self.file.offset is None else self.path


CURSOR_FORMAT = 1
"""The format number of a cursor; a newer one stops its run, an older one is read or leads to a rebuild."""

CURSOR_LIMIT = 4000
"""The greatest length of a cursor's JSON text, in characters (an MLflow tag holds 5000 to 8000)."""

MOST_IN_CURSOR = 1000
"""The most characters of JSON that a path or an identity takes in a cursor."""


class Cursor(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a target has acknowledged of its run directory. Its JSON text stays under 4,000 characters.

    Of metrics.csv it covers `rows` complete rows (bad ones count, header lines do not), which end at byte `offset`.
    `header` and `window` are digests of the first line and of the bytes (at most 64 KiB) before `offset`. `digest` is
    that of the rows' content, the same for any order of columns. The header line in force is at byte `columns_at`.
    `last_step` is the greatest step of any row, `last_time` the time of the last row. `last_points` holds for each of
    the `seen` metrics its greatest step and the value that counts there; it is None if that would not fit. `anchors`
    are (row, time) from which times are estimated, empty for a run with a time column. For event files, `files` says
    where the cursor ends (`EventTable.marks`).

    Of media.jsonl it covers `media_lines` lines, which end at byte `media_offset`; `media_digest` is that of their
    bytes. `stat` holds four numbers: size and mtime in nanoseconds of metrics.csv (or of the event files together),
    then of media.jsonl; 0 for a file that is absent or not read.

    `content` are the options that the target was made with (`ContentOptions.differences()`). `sent` holds, by a key of
    the exporter's, what was last sent of names, notes, tags ..., usually as a digest. The entries of `sent_facts`
    (status, start, end) are in every cursor as plain text, since verify compares with them. `extra` holds whatever else
    an exporter keeps (JSON values).

    `replacing` is the step from which on the target lacks some or all of its points, because a rewind is not finished.
    `complete` is false for a half-filled target that cannot be continued, only rebuilt.
    """

    identity: str
    path: str
    rows: int = 0
    offset: int = 0
    header: str = ""
    window: str = ""
    digest: str = ""
    last_step: int | None = None
    last_points: dict[str, tuple[int, float]] | None = None
    seen: int = 0
    last_time: float | None = None
    columns_at: int = 0
    files: dict[str, tuple[int, str]] = {}
    stat: tuple[int, int, int, int] | None = None
    media_lines: int = 0
    media_offset: int = 0
    media_digest: str = ""
    anchors: tuple[tuple[int, float], ...] = ()
    content: dict[str, Any] = {}
    sent: dict[str, str] = {}
    extra: dict[str, Any] = {}
    replacing: int | None = None
    complete: bool = True

    def __post_init__(self) -> None:
        """Keep no more of a long path than fits."""
        force_setattr(self, "path", fitting(self.path))

    def with_(self, **changes: Any) -> Self:
        """Return a copy with `changes`."""
        return replace(self, **changes)

    def with_media_of(self, other: Cursor) -> Self:
        """Return a copy that covers the media of `other`."""
        return replace(
            self, media_lines=other.media_lines, media_offset=other.media_offset, media_digest=other.media_digest
        )

    def to_json(self) -> str:
        """Return strict JSON of under CURSOR_LIMIT characters: without the last points if they do not fit."""
        text = json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False)
        return text if len(text) < CURSOR_LIMIT or self.last_points is None else self.with_(last_points=None).to_json()

    def to_dict(self) -> dict[str, Any]:
        """Return the cursor as a JSON object, whatever its size."""
        kept = {"format": CURSOR_FORMAT, **msgspec.to_builtins(self.with_(last_points=None))}
        if self.last_points is not None:
            # float.hex keeps every bit and holds NaN and infinities, which strict JSON does not.
            kept["last_points"] = {name: [step, float(value).hex()] for name, (step, value) in self.last_points.items()}
        return kept

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Self | None:
        """Return the cursor in `text`; None where it is no cursor of a format that can be read.

        Raises NewerFormatError, which names `where`, for a format number that is newer than this version's.
        """
        try:
            return cls.from_dict(json.loads(text), where=where)
        except ValueError:
            return None

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, where: str) -> Self | None:
        """Return the cursor in a JSON object, as `from_json` does."""
        try:
            version = int(data.pop("format"))
            if version > CURSOR_FORMAT:
                raise NewerFormatError(
                    f"{where} was made by a newer bridge (cursor format {version}, this one knows {CURSOR_FORMAT}).",
                    hint="pip install --upgrade registry-bridge",
                )
            points = data.pop("last_points", None)
            if points is not None:
                data["last_points"] = {name: (step, float.fromhex(value)) for name, (step, value) in points.items()}
            return msgspec.convert(data, cls)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def sent_facts(run: Run) -> dict[str, str]:
    """Return what every exporter adds to `Cursor.sent`: status, start and end of `run`, in plain words.

    Verify compares the target's status and times with these, because the run may have changed since the last export.
    """
    end = "" if run.end is None else repr(float(run.end))
    return {"status": run.status.value, "start": repr(float(run.start)), "end": end}


def as_sent(run: Run, cursor: Cursor | None) -> Run:
    """Return `run` with its estimates as they were last sent, so that a new estimate does not count as a change.

    This concerns an estimated start. If the files of rows have not grown since, it also concerns an estimated end, and
    the status of a run that states none: copying such a directory makes its files look new, and only new rows show that
    it runs again. The start of event files stays when the first of them is deleted.
    """
    if cursor is None or "start" not in cursor.sent:
        return run
    start, end, status = run.start, run.end, run.status
    if run.start_estimated:
        start = float(cursor.sent["start"])
    elif run.event_files:  # people delete old ones to save space, and the target keeps their points
        start = min(start, float(cursor.sent["start"]))
    has_grown = cursor.stat is not None and sum(file.size for file in run.row_files) != cursor.stat[0]
    if cursor.sent.get("end") and not has_grown:
        if run.status_word is None and status is Status.RUNNING and cursor.sent["status"] == Status.UNKNOWN:
            status, end = Status.UNKNOWN, float(cursor.sent["end"])
        elif run.end_estimated:
            end = float(cursor.sent["end"])
    return replace(run, status=status, start=start, end=None if end is None else max(end, start))


def fitting(text: str) -> str:
    """Return `text` as a cursor holds it: one that takes more than MOST_IN_CURSOR is cut and ends in a digest."""
    if 12 * len(text) <= MOST_IN_CURSOR or len(json.dumps(text)) <= MOST_IN_CURSOR:
        return text
    return f"{text[: MOST_IN_CURSOR // 20]}-{digest(text, 32)}"


def digest(text: str, digits: int = 12) -> str:
    """Return the first hexadecimal digits of the sha256 of `text`, which may hold lone surrogates."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


class DeltaKind(StrEnum):
    """The relation of a run directory to a cursor."""

    NEW = "new"
    """There is no cursor: everything is new."""
    SAME = "same"
    """No new rows or media lines (the run's own facts may have changed all the same)."""
    APPEND = "append"
    """New rows or media lines that follow what the cursor covers."""
    REWIND = "rewind"
    """New rows at or before the last step of their metric, so that points of the target must be replaced."""
    CHANGED = "changed"
    """The run directory no longer holds what the cursor covers, or media in the target no longer count."""


class Delta(msgspec.Struct, frozen=True, eq=False):
    """New content of a run directory past a cursor, up to a limit.

    `before` is the cursor that the delta follows; None if there was none, and in all deltas that `read_whole` yields.
    `blocks` and `media` are the points and pictures to add. `after` is the cursor once they are in the target;
    exporters add their own `sent` and `extra`. `more`: a limit cut the delta short, and the next one goes on at
    `after`. `replace_from` is for a rewind in a target that replaces points: the target deletes its points at this step
    and later, and inserts `blocks`, which are all points of these steps. With `more` they are those of the lowest steps
    only, and the next delta goes on at `after.replacing`. `reason` says, for a person, why the kind is REWIND or
    CHANGED, with file and line if known. `metrics` are the names of all metrics up to `after`, in the order in which
    they first appeared (by row, then by name). `remember` is given if times are estimated: it must be in the target
    before any point of this delta.
    """

    run: Run
    kind: DeltaKind
    after: Cursor
    before: Cursor | None = None
    blocks: tuple[Block, ...] = ()
    media: tuple[MediaEvent, ...] = ()
    replace_from: int | None = None
    reason: str = ""
    more: bool = False
    metrics: tuple[str, ...] = ()
    remember: Cursor | None = None
    notices: tuple[Notice, ...] = ()

    def with_(self, **changes: Any) -> Self:
        """Return a copy with `changes`."""
        return replace(self, **changes)

    @property
    def points(self) -> int:
        """Return the number of points to add."""
        return sum(block.points for block in self.blocks)
