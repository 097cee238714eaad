"""From paths to runs: discover, read, tell apart, choose."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec.structs import replace as with_fields

from bridge.errors import BridgeError, RunDirectoryError, UsageError
from bridge.rundir import discover, read_run
from bridge.secrets import hide_all, hide_in
from bridge.sync.report import Action, RunReport
from bridge.sync.select import select

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bridge.model import Run
    from bridge.sync.select import Selection

__all__ = ["Gathered", "gather"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The runs found below some paths: `runs` are chosen and can be worked on, `failed` says why others cannot.

    `found` counts the run directories before anything was chosen.
    """

    runs: tuple[Run, ...]
    failed: tuple[RunReport, ...]
    found: int


def gather(
    roots: Sequence[Path],
    *,
    selection: Selection | None = None,
    new_identity: str | None = None,
    read: Callable[[Path], Run] = read_run,
) -> Gathered:
    """Read the runs at and below `roots` and choose from them by `selection`.

    `read` reads one run directory and raises RunDirectoryError where it cannot be read.
    `new_identity` (`--as`) replaces the identity of the one run there is; with several runs it is a UsageError. Two
    directories with one identity are both refused, chosen or not, and each names the other.
    """
    runs: list[Run] = []
    failed: list[RunReport] = []
    found = 0
    for path in discover(roots):
        found += 1
        try:
            runs.append(read(path))
        except RunDirectoryError as error:
            failed.append(_refused(path, path.name, error, Action.UNREADABLE))
        except Exception as error:  # one failure of any kind is this run's report line; the others go on
            log.debug("run %s cannot be read", path, exc_info=hide_in(error))
            unforeseen = RunDirectoryError(hide_all(f"{path}: {type(error).__name__}: {error}"))
            failed.append(_refused(path, path.name, unforeseen, Action.UNREADABLE))
    unique, twins = _tell_apart(runs)
    chosen = list(unique) if selection is None else list(select(unique, selection))
    if new_identity is not None:
        if len(chosen) != 1:
            raise UsageError(f"--as names one run, but {len(chosen)} were chosen.", hint="Give the one run directory.")
        chosen = [replace(chosen[0], identity=new_identity)]
    return Gathered(runs=tuple(chosen), failed=(*failed, *twins), found=found)


def _tell_apart(runs: Sequence[Run]) -> tuple[list[Run], list[RunReport]]:
    """The runs whose identity is theirs alone, and report lines for those that share one."""
    by_identity: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_identity[run.identity].append(run)
    unique = [same[0] for same in by_identity.values() if len(same) == 1]
    twins = []
    for same in by_identity.values():
        if len(same) == 1:
            continue
        for run in same:
            others = ", ".join(str(other.path) for other in same if other is not run)
            error = RunDirectoryError(
                f"{run.path} and {others} have one identity ({run.identity}), so none of them is exported.",
                hint="Remove the copy, or give one of them an identity of its own: bridge export RUN_DIR --as NEW_ID",
            )
            twins.append(with_fields(_refused(run.path, run.run_id, error, Action.FAILED), identity=run.identity))
    return unique, twins


def _refused(path: Path, run_id: str, error: BridgeError, action: Action) -> RunReport:
    return RunReport(path=str(path), run_id=run_id, action=action, reason=error.message, hint=error.hint or "")
