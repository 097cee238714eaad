"""Opening a run directory for writing: what is there is read once and gone on with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logger.csv_scan import Scan, header
from logger.csv_writer import MetricsFile
from logger.hparams import HPARAMS_NAME, Hparams
from logger.media import MediaFile
from logger.resume import Restored, add_session, other_process, restore
from logger.sidecar import SidecarError, make_sidecar
from logger.state import SidecarFile, first_change, load_summary, remove_leftovers, set_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from logger.settings import Settings

__all__ = ["METRICS_NAME", "Opened", "free_name", "open_directory"]

METRICS_NAME = "metrics.csv"


@dataclass(frozen=True, slots=True)
class Opened:
    """A run directory, open for writing.

    `session` is the number of this start, `new` whether it was entered just now, `resumed` whether the run was there before it.
    `other` names a process that seems to be writing the directory at this moment.
    """

    sidecar: SidecarFile
    metrics: MetricsFile
    media: MediaFile
    hparams: Hparams
    summary: dict[str, Any]
    restored: Restored
    session: int
    new: bool
    resumed: bool
    other: str | None


def open_directory(settings: Settings, *, complain: Callable[[str, str], None]) -> Opened:
    """Make `settings.run_dir`, or read what it holds: torn tails are cut off, what cannot be read is set aside.

    The new session is entered into the sidecar's data, which the caller writes. Raises OSError where the directory cannot be
    written. `complain` is told, by a key and a sentence, what a person should know.
    """
    run_dir = settings.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    sidecar = SidecarFile(run_dir)
    resumed = _load(sidecar, settings, complain)
    data = sidecar.data
    path = run_dir / METRICS_NAME
    named = data.get("time_column_before")
    before = named if isinstance(named, str) and named else None
    metrics = MetricsFile(
        path, time_column=_time_column(data, header(path), settings.time_column), formerly=before, complain=complain
    )
    found = metrics.resume() if path.exists() else Scan()
    media = MediaFile(run_dir)
    media.resume()
    hparams = Hparams(run_dir / HPARAMS_NAME)
    if not hparams.resume(data.get("hparams")):
        complain("hparams", f"{hparams.path} cannot be read; it is kept as {set_aside(hparams.path).name}.")
    summary = load_summary(run_dir)
    restored = restore(path, found, summary, time_column=metrics.time_column)
    other = other_process(run_dir, data)
    # Where another process may be at work a young file may be one that it is just writing.
    remove_leftovers(run_dir, older_than=600 if other else 0)
    session, new = add_session(data, token=settings.token, rows=found.rows, tags=settings.tags, notes=settings.notes)
    return Opened(sidecar, metrics, media, hparams, summary, restored, session, new, resumed or found.rows > 0, other)


def _load(sidecar: SidecarFile, settings: Settings, complain: Callable[[str, str], None]) -> bool:
    """Fill `sidecar` from the disk, with what it lacks, or make a new one; whether there was one."""
    existed = False
    try:
        existed = sidecar.load()
    except SidecarError as error:
        complain("sidecar", f"{error} It is kept beside the new one.")
    fresh = make_sidecar(settings.run_dir, settings.run_id)
    if existed:
        del fresh["uid"]  # without one the run is known by its run_id, and stays so
        held = sidecar.data.get("run_id")
        if held and held != settings.run_id:
            complain("run_id", f"{settings.run_dir} holds the run {held!r}; it goes on under that id.")
    elif (settings.run_dir / METRICS_NAME).exists():
        fresh["created_at"] = first_change(settings.run_dir)
    sidecar.data = {**fresh, **sidecar.data}
    return existed


def _time_column(data: Mapping[str, Any], columns: Collection[str], wanted: str | None) -> str | None:
    """The column that holds times already, else a name that no metric has; None where times are switched off."""
    held = data.get("time_column")
    if isinstance(held, str) and held:
        return held
    return None if wanted is None else free_name(wanted, {*columns, "step"})


def free_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or the first of wanted_2, wanted_3, ... that is not taken."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name
