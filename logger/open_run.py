"""Open a run directory for writing: make it, or continue what is there."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logger.csv_file import MetricsFile, read_records
from logger.files import free_beside, set_aside
from logger.hparams import HPARAMS_NAME, Hparams
from logger.media import MediaWriter
from logger.session import other_process, session_entry
from logger.sidecar import (
    SCHEMA_VERSION,
    SIDECAR_NAME,
    SUMMARY_NAME,
    MetricStats,
    SidecarError,
    SidecarFile,
    Summary,
    convert_document,
    parse_json,
    read_sidecar,
)
from logger.values import cell_number, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from logger.row import Warn
    from logger.sidecar import Sidecar

METRICS_NAME = "metrics.csv"
OnExisting = Literal["resume", "new", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a run. `token` names this start of the run, which may continue in other processes."""

    run_dir: Path
    run_id: str
    token: str
    tags: tuple[str, ...] = ()
    notes: str = ""
    display_name: str = ""
    flush_every: int = 50
    time_column: str | None = "wall_time"
    on_existing: OnExisting = "resume"

    @classmethod
    def make(
        cls,
        run_dir: str | os.PathLike[str],
        run_id: str,
        *,
        tags: Iterable[str] | str | None = None,
        on_existing: OnExisting = "resume",
        flush_every: int = 50,
        **options: Any,
    ) -> Settings:
        """Return the settings of a new start. A SLURM array job gets the tag `sweep:ID`.

        Raises ValueError for an invalid option.
        """
        if "://" in str(run_dir):
            raise ValueError(f"run_dir must be a directory in this machine's file system, not {run_dir}.")
        if on_existing not in ("resume", "new", "error"):
            raise ValueError(f'on_existing must be "resume", "new" or "error", not {on_existing!r}.')
        sweep = os.environ.get("SLURM_ARRAY_JOB_ID")
        return cls(
            run_dir=Path(os.path.abspath(Path(run_dir).expanduser())),  # noqa: PTH100 - resolve() would follow links
            run_id=str(run_id),
            token=uuid.uuid4().hex,
            tags=tuple(unique_tags([*unique_tags(tags), *([f"sweep:{sweep}"] if sweep else [])])),
            on_existing=on_existing,
            flush_every=max(1, flush_every),
            **options,
        )


def unique_tags(tags: Iterable[str] | str | None) -> list[str]:
    """Return each of `tags` once, as text; a text is one tag."""
    return list(dict.fromkeys([tags] if isinstance(tags, str) else map(str, tags or ())))


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run directory that is open for writing.

    `stats` and `step` are the statistics and the last step of the rows on disk. `session` numbers this start, `first`
    says that it is the first.
    """

    sidecar: SidecarFile
    metrics: MetricsFile
    media: MediaWriter
    hparams: Hparams
    summary: dict[str, Any]
    stats: dict[str, MetricStats]
    step: int | None
    session: int
    first: bool


def holds_run(run_dir: Path) -> bool:
    """Return whether `run_dir` holds a run already."""
    return any((run_dir / name).exists() for name in (SIDECAR_NAME, METRICS_NAME))


def refuse_existing(settings: Settings) -> None:
    """Raise FileExistsError if there is a run that `on_existing` refuses."""
    if settings.on_existing == "error" and holds_run(settings.run_dir):
        raise FileExistsError(
            f'{settings.run_dir} holds a run already. Give another run_dir, or on_existing="resume" or "new".'
        )


def open_directory(settings: Settings, *, warn: Warn, log_info: Callable[[str], None]) -> OpenedRun:
    """Create `settings.run_dir`, or read what it holds: cut off torn tails, and set aside files that cannot be read.

    The session is added to the sidecar's document, which the caller writes. Raises OSError if the directory cannot
    be written, and FileExistsError if it holds a run that this start must not touch.
    """
    run_dir = settings.run_dir
    if settings.on_existing != "resume" and holds_run(run_dir):
        _meet_existing(settings, log_info)
    run_dir.mkdir(parents=True, exist_ok=True)
    sidecar = SidecarFile(run_dir)
    existed = _load_sidecar(sidecar, settings, warn)
    document = sidecar.document
    metrics = MetricsFile(run_dir / METRICS_NAME, time_column=document.time_column, warn=warn)
    metrics.resume()
    if document.time_column is None and settings.time_column in metrics.columns:
        column = settings.time_column
        warn(
            "time column",
            f"{metrics.path} has a metric called {column!r}, so no times of rows are written to this run.",
        )
    elif document.time_column is None:
        metrics.time_column = document.time_column = settings.time_column
    hparams = Hparams(run_dir / HPARAMS_NAME)
    if not hparams.resume(document.hparams):
        warn("hparams", f"{hparams.path} cannot be read; it is kept as {set_aside(hparams.path).name}.")
    summary: dict[str, Any] = {}
    with contextlib.suppress(OSError, SidecarError):  # the rows can replace it
        summary = parse_json((run_dir / SUMMARY_NAME).read_bytes(), run_dir / SUMMARY_NAME)
    stats, step = _restore(metrics, summary)
    other = other_process(run_dir, document)
    if other is None:  # which may be writing one of these files
        _remove_leftovers(run_dir)
    session, new = _add_session(document, settings, rows=metrics.rows)
    if new and (existed or metrics.rows):
        last = "" if step is None else f", the last at step {step}"
        rows = "1 row" if metrics.rows == 1 else f"{metrics.rows:,} rows"
        log_info(f"{run_dir} is resumed: it holds {rows}{last}.")
        if other is not None:
            warn("another process", other)
    return OpenedRun(sidecar, metrics, MediaWriter(run_dir), hparams, summary, stats, step, session, first=not existed)


def _meet_existing(settings: Settings, log_info: Callable[[str], None]) -> None:
    """Rename the run in `settings.run_dir` aside or raise FileExistsError, as `on_existing` says.

    Do nothing if this start wrote the run.
    """
    run_dir = settings.run_dir
    held = read_sidecar(run_dir)
    if held is not None and any(session.id == settings.token for session in held.sessions):
        return
    refuse_existing(settings)
    aside = free_beside(run_dir, ".old-")
    run_dir.rename(aside)
    log_info(f"{run_dir} held a run, which is now {aside}.")


def _load_sidecar(sidecar: SidecarFile, settings: Settings, warn: Warn) -> bool:
    """Fill `sidecar` from the disk, or as that of a new run, and return whether there was one."""
    existed = False
    try:
        existed = sidecar.load()
    except SidecarError as error:
        warn("sidecar", f"{error} It is kept beside the new one.")
    document = sidecar.document
    document.schema_version = max(document.schema_version, SCHEMA_VERSION)
    if existed:
        _check_identity(document, settings, warn)
    else:
        document.uid = uuid.uuid4().hex  # an older run without one is known by its run_id, and stays so
    document.run_id = document.run_id or settings.run_id
    if document.created_at is None:
        rows_first = not existed and (settings.run_dir / METRICS_NAME).exists()
        document.created_at = _oldest_change(settings.run_dir) if rows_first else round(time.time(), 6)
    return existed


def _check_identity(document: Sidecar, settings: Settings, warn: Warn) -> None:
    """Give a copy of a run under another run_id its own identity; warn about a copy under the same one."""
    original = _original_of(document, settings.run_dir)
    if original is None:
        if document.run_id and document.run_id != settings.run_id:
            warn("run_id", f"{settings.run_dir} holds the run {document.run_id!r}; it continues under that id.")
    elif document.run_id == settings.run_id:
        warn(
            "copy",
            f"{settings.run_dir} and {original} hold the same run, {settings.run_id!r}, "
            "of which an export takes only one. Give the copy another run_id to make it a separate run.",
        )
    else:
        document.forked_from = document.uid or document.run_id
        document.uid = uuid.uuid4().hex
        document.run_id = settings.run_id


def _original_of(document: Sidecar, run_dir: Path) -> Path | None:
    """Return the directory that the sidecar in `run_dir` was copied from, if it still holds the same run; else None."""
    if not document.run_dir:
        return None
    original = Path(document.run_dir)
    held = read_sidecar(original)
    if held is None or original.samefile(run_dir):
        return None  # the run was moved
    same = held.uid == document.uid if document.uid else held.run_id == document.run_id
    return original if same else None


def _restore(metrics: MetricsFile, summary: dict[str, Any]) -> tuple[dict[str, MetricStats], int | None]:
    """Return the statistics of the rows on disk, and the last row's step (None without rows).

    `summary` may be some seconds behind the rows: it counts for the rows that it covers, and the others are read.
    One that does not say how many it covers is another writer's, or the disk refused rows: it does not count.
    """
    held, _ = convert_document(summary, Summary)
    covered = held.rows if held.rows is not None and 0 <= held.rows <= metrics.rows else 0
    stats, last = (held.metrics, held.step) if covered else ({}, None)
    if covered == metrics.rows:
        return stats, last
    rows = (record for record in read_records(metrics.path) if record.kind == "row")
    for record in islice(rows, covered, None):
        cells = record.values() or {}
        step = whole_number(cells.get("step", ""))
        if step is None:
            continue  # readers ignore the row
        last = step
        for name, cell in cells.items():
            value = None if name in ("step", metrics.time_column) else cell_number(cell)
            if value is not None:
                stats.setdefault(name, MetricStats()).add(value, step)
    return stats, last


def _add_session(document: Sidecar, settings: Settings, *, rows: int) -> tuple[int, bool]:
    """Enter this start into the sidecar; return its number, and whether it is a new one.

    A child process or an unpickled copy continues the entry that its token names. Tags, notes and the name that a start
    brings are added once: what people removed or rewrote since an earlier start brought it stays as they left it.
    """
    for number, session in enumerate(document.sessions):
        if session.id == settings.token:
            return number, False
    document.sessions = [*document.sessions, session_entry(settings.token, rows=rows)]
    given = document.given
    document.tags = unique_tags([*document.tags, *(tag for tag in settings.tags if tag not in given.tags)])
    given.tags = unique_tags([*given.tags, *settings.tags])
    for name in ("notes", "display_name"):
        new, held, earlier = getattr(settings, name), getattr(document, name), getattr(given, name)
        if new and new != earlier and (not held or held == earlier):
            setattr(document, name, new)
        setattr(given, name, new or earlier)
    return len(document.sessions) - 1, True


def _oldest_change(run_dir: Path) -> float:
    """Return the oldest mtime of the files that another writer left."""
    times = [path.stat().st_mtime for name in (HPARAMS_NAME, METRICS_NAME) if (path := run_dir / name).exists()]
    return round(min(times, default=time.time()), 6)


def _remove_leftovers(run_dir: Path) -> None:
    """Remove the temporary files that a killed process left, by the names that `replace_file` gives."""
    for path in run_dir.glob(f".*.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()
