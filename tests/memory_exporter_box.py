"""What the reference exporter holds of one run, how deltas change it, and where a write can be made to fail."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from bridge.errors import TargetRefusedError, TargetUnavailableError
from bridge.exporters.contract import TargetMedia

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bridge.exporters.contract import Capabilities
    from bridge.model import Block, Cursor, Delta, MediaEvent

__all__ = ["Box", "Failure", "Picture", "add_block", "cut", "picture_of", "remove", "stored_time"]


Columns: TypeAlias = "tuple[NDArray[Any], ...]"
"""Row, step, time and value."""


@dataclass(slots=True)
class Failure:
    """Where one write fails: the `at`-th from now on, counted from 1, or the next that carries a `cursor`.

    The write does not happen, or with `after` it does and then things go wrong. `die` kills the process, else
    TargetUnavailableError is raised. It happens once.
    """

    at: int | Literal["cursor"]
    after: bool = False
    die: bool = False
    armed: bool = True

    def is_due(self, *, cursor: bool) -> bool:
        """Count a write; whether this is the one."""
        if not self.armed:
            return False
        if self.at == "cursor":
            self.armed = not cursor
            return cursor
        self.at -= 1
        self.armed = self.at > 0
        return not self.armed

    def happen(self) -> None:
        """Go wrong, now."""
        if self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        raise TargetUnavailableError("The target went away, as the test asked for.")


@dataclass(frozen=True, slots=True)
class Picture:
    """A media item as it is held; `line` is that of media.jsonl."""

    line: int
    held: TargetMedia


@dataclass(slots=True)
class Box:
    """Everything that the target of one run holds: one object, so that tests can look and tamper.

    `points` are columns by name: row, step, time, value. `cursor` is a cursor's JSON text.
    `edited` names the facts that people changed. `extras` are second targets of the same run directory.
    """

    identity: str
    generation: int = 1
    cursor: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    points: dict[str, Columns] = field(default_factory=dict)
    media: list[Picture] = field(default_factory=list)
    edited: set[str] = field(default_factory=set)
    extras: list[str] = field(default_factory=list)
    deleted: bool = False


def cut(box: Box, before: Cursor) -> None:
    """Drop what lies past the cursor that a delta starts from: the rest of an attempt that did not end."""
    for name, columns in list(box.points.items()):
        kept = columns[0] < before.rows
        box.points[name] = tuple(column[kept] for column in columns)
    box.media = [picture for picture in box.media if picture.line < before.media_lines]


def remove(box: Box, delta: Delta, capabilities: Capabilities) -> None:
    """Remove the points that a delta replaces. Raises TargetRefusedError if the target cannot do that."""
    if delta.replace_from is not None:
        if not capabilities.replaces_points:
            raise TargetRefusedError("A delta asks to replace points, which this target cannot do.")
        for name, columns in list(box.points.items()):
            kept = columns[1] < delta.replace_from
            box.points[name] = tuple(column[kept] for column in columns)


def add_block(box: Box, block: Block, capabilities: Capabilities) -> None:
    """Add the points of a block; TargetRefusedError for steps that do not increase where they must."""
    for number, name in enumerate(block.names):
        here = block.present[number]
        if not here.any():
            continue
        new = (
            block.row[here],
            block.step[here],
            stored_time(block.time[here], capabilities),
            _stored_value(block.values[number][here], capabilities),
        )
        old = _without(box.points.get(name), new[0], new[1])
        columns = new if old is None else tuple(np.concatenate(pair) for pair in zip(old, new, strict=True))
        if capabilities.ordered_steps and (columns[1][1:] <= columns[1][:-1]).any():
            raise TargetRefusedError(f"The steps of {name} do not increase, which this target needs.")
        box.points[name] = columns


def _without(old: Columns | None, row: NDArray[np.int64], step: NDArray[np.int64]) -> Columns | None:
    """`old` without the points that come again: the rest of a whole run is sent without saying what came before."""
    if old is None or not len(old[0]) or old[0].max() < row.min():
        return old
    again = set(zip(row.tolist(), step.tolist(), strict=True))
    kept = np.array([pair not in again for pair in zip(old[0].tolist(), old[1].tolist(), strict=True)])
    return tuple(column[kept] for column in old)


def _stored_value(value: NDArray[np.float64], capabilities: Capabilities) -> NDArray[np.float64]:
    if capabilities.value_bits == 32:
        with np.errstate(over="ignore"):
            value = value.astype(np.float32).astype(np.float64)
    if not capabilities.infinities:
        largest = np.finfo(np.float64).max
        value = np.clip(value, -largest, largest)
    return value.copy()


def stored_time(time: Any, capabilities: Capabilities) -> Any:
    """Return a time, or a column of them, at the resolution of the target."""
    if not capabilities.time_step:
        return np.array(time)
    return np.round(time / capabilities.time_step) * capabilities.time_step


def picture_of(event: MediaEvent) -> Picture | None:
    """Return what is held of a media event; None where its file has gone."""
    try:
        digest = hashlib.sha256(event.file.path.read_bytes()).hexdigest()
    except OSError:
        return None
    return Picture(event.line, TargetMedia(event.tag, event.step, event.index, digest, event.caption))
