"""The words of the bridge as frozen types: run, series, media event, delta, notice (`bridge.cursor` has the cursor).

Everything that crosses from the source to an exporter is one of these. All of them can be pickled, so that a
delta read by one process can be applied by another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from bridge.cursor import Cursor
    from logger.sidecar import SessionEntry

Scalar: TypeAlias = bool | int | float | str | None
"""What a hyperparameter can be after flattening."""


class Status(StrEnum):
    """What is shown of a run; how a target words it is the exporter's table."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    KILLED = "killed"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether the run is over as far as anyone can tell (`killed` and `interrupted` may be requeued)."""
        return self is not Status.RUNNING


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


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the target cannot hold as it is.

    `what` names the thing (a metric, a param, `metrics.csv:17`), `detail` says what happened to it and where
    it is kept in full. `count` is how many things this one entry stands for.
    """

    kind: NoticeKind
    what: str
    detail: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class RunFile:
    """A regular file whose real path lies in the run directory.

    `path` is that real path, `size` bytes, `mtime_ns` nanoseconds since the epoch, both as last looked at.
    """

    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Run:
    """The facts of a run directory, checked and typed. Times are seconds since the epoch.

    `path` is the real absolute path. `identity` is the sidecar's `uid`, else its `run_id`, else the path.
    `status` is the status that is shown, liveness included; `status_word` is the sidecar's.
    `start` is created_at, else an estimate from names and file times, else the last sign of life. `end` is None while
    the run is running, else ended_at or the last sign of life, never before `start`. A time is *estimated* unless a
    writer stated it.
    `files` are the run directory's own files by name, as far as they exist and are safe to read.
    `time_column` names the column of metrics.csv that holds times; without one, times of rows are estimated.
    `notices` are those found while the sidecar and the hyperparameters were read.
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
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    notes: str = ""
    archived: bool = False
    sessions: tuple[SessionEntry, ...] = ()
    checkpoint: str | None = None
    summary: Mapping[str, float] = field(default_factory=dict)
    summary_stats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summary_rows: int | None = None
    time_column: str | None = None
    files: Mapping[str, RunFile] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    start_estimated: bool = False
    end_estimated: bool = False

    @property
    def running(self) -> bool:
        """Return if the run is shown as running."""
        return self.status is Status.RUNNING


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The points of one metric as columns of one length n, in row order unless said otherwise.

    `step` int64; `time` float64, seconds since the epoch; `value` float64.
    """

    name: str
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    value: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive rows as columns: n rows, k metrics.

    `row` int64 (n,), the row's number in metrics.csv from 0, in a sorted block not monotone;
    `step` int64 (n,); `time` float64 (n,), seconds since the epoch;
    `values` float64 (k, n), C order, one metric a line; `present` bool (k, n): where a value counts as a point.
    What is not present holds anything; no row and no metric is without a point. `names` are sorted. The overlap rule has been applied.
    """

    names: tuple[str, ...]
    row: NDArray[np.int64]
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]

    @property
    def points(self) -> int:
        """How many points the block holds."""
        return int(self.present.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Points of many metrics as columns of one length n: `name` indexes `names` (int32), the rest as in Series."""

    names: tuple[str, ...]
    name: NDArray[np.int32]
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.name)


class MediaType(StrEnum):
    """The `type` of a media event."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class MediaEvent:
    """One line of `media.jsonl` with its file.

    `line` counts from 0. `index` is its place among the events that count of the same tag and step, from 0.
    `file` is safe to read (a regular file inside the run directory, opened and recognised); events whose file
    is not are notices and never get here. `format` is the file's true format in lower case, as its bytes say
    (`png`, `jpeg`, `gif`, `webp`, `mp4`, `webm`, ...). `time` is seconds since the epoch.
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


class DeltaKind(StrEnum):
    """How a run directory stands to a cursor."""

    NEW = "new"
    """There is no cursor: everything is new."""
    SAME = "same"
    """No new rows or media lines (the run's own facts may have changed all the same)."""
    APPEND = "append"
    """New rows or media lines that follow what the cursor covers."""
    REWIND = "rewind"
    """New rows or media lines that overlap what the cursor covers."""
    CHANGED = "changed"
    """What the cursor covers is no longer what the run directory holds, or the options differ."""


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What the run directory holds past a cursor, up to a limit.

    `after` is the cursor once this delta is in the target; exporters add their own `sent` and `extra`.
    `blocks` are the points to add, `media` likewise; `removed` are points that the target holds and that
    no longer count (only for a target that can remove points, only with `kind` REWIND), `removed_media` likewise.
    `bests` are all points that count up to `after`, in row order, of those metrics of the option `best` that lose some.
    `replace_from`, in a REWIND for a target that replaces points: the target deletes all its points at or after this step
    and inserts `blocks`, which then hold every point at or after this step that counts up to `after`. With `more` they hold
    only those of the lowest steps, and `after.replacing` is the step from which the next delta goes on.
    `reason` says, for a person, why the kind is REWIND or CHANGED (with file and line where known).
    `more` is true where a limit cut the delta short: the next one starts at `after`.
    `metrics` are the names of all metrics seen up to `after`, in the order of their first appearance (row, then name).
    `remember`, where it is given, must be in the target before any point of this delta (estimated times).
    `lowers` counts points that come at or before the last step of their series.
    `passed` says how many bytes of the run's files lie behind this delta, about, where `after` cannot (for progress).
    """

    run: Run
    kind: DeltaKind
    after: Cursor
    before: Cursor | None = None
    blocks: tuple[Block, ...] = ()
    media: tuple[MediaEvent, ...] = ()
    removed: Points | None = None
    replace_from: int | None = None
    bests: tuple[Block, ...] = ()
    removed_media: tuple[MediaEvent, ...] = ()
    reason: str = ""
    more: bool = False
    metrics: tuple[str, ...] = ()
    remember: Cursor | None = None
    lowers: int = 0
    notices: tuple[Notice, ...] = ()
    passed: int = 0

    @property
    def points(self) -> int:
        """How many points are to be added."""
        return sum(block.points for block in self.blocks)
