"""The small file beside the event files: whose folder it is, the cursor, and how long each event file is.

It is written after the data it speaks of are on the disk. So whatever lies past the lengths in it was never
acknowledged, and is cut off before anything is added.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bridge.cursor import Cursor
from bridge.errors import NewerFormatError
from bridge.exporters.tensorboard.files import Draft, Kept, generation_of, kept_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "MARKER",
    "STATE_NAME",
    "State",
    "distrust",
    "left_over",
    "owner",
    "read_state",
    "write_marker",
    "write_state",
]

STATE_NAME = "bridge-state.json"
MARKER = ".bridge-target"
"""Its presence keeps every walk for run directories out of the folder."""

STATE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class State:
    """What a run's folder says of itself.

    `files` are the event files by kind; `generations` the highest generation of each kind ever used. `names` are the
    metrics whose tag is not their own name, by tag. `steps` are the last steps in the media file, by tag.
    `lacks` is as in `Held`. `session` is false where the run's steps are beyond what HPARAMS can take.
    """

    identity: str
    cursor: Cursor | None = None
    files: Mapping[str, Kept] = field(default_factory=dict)
    generations: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    session: bool = True

    def with_(self, **changes: Any) -> State:
        """A copy with `changes`."""
        return replace(self, **changes)


def read_state(folder: Path) -> State | None:
    """The state in `folder`; None where there is none that can be read. Raises NewerFormatError."""
    path = folder / STATE_NAME
    try:
        data = json.loads(path.read_bytes())
        version = int(data["format"])
        if version > STATE_FORMAT:
            raise NewerFormatError(
                f"{path} was made by a newer bridge (state format {version}, this one knows {STATE_FORMAT}).",
                hint="pip install --upgrade registry-bridge",
            )
        cursor = data["cursor"]
        return State(
            identity=str(data["identity"]),
            cursor=None if cursor is None else Cursor.from_json(json.dumps(cursor), where=str(path)),
            files={kind: Kept(**kept) for kind, kept in data["files"].items()},
            generations={kind: int(number) for kind, number in data["generations"].items()},
            names=data["names"],
            steps=data["steps"],
            lacks=frozenset(data["lacks"]),
            session=bool(data["session"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_state(folder: Path, state: State) -> None:
    """Put `state` on the disk in the place of the old one."""
    data = {
        "format": STATE_FORMAT,
        "identity": state.identity,
        "cursor": None if state.cursor is None else json.loads(state.cursor.to_json()),
        "files": {
            kind: {"name": kept.name, "length": kept.length, "tail": kept.tail} for kind, kept in state.files.items()
        },
        "generations": dict(state.generations),
        "names": dict(state.names),
        "steps": dict(state.steps),
        "lacks": sorted(state.lacks),
        "session": state.session,
    }
    draft = Draft(folder, STATE_NAME)
    try:
        draft.write(json.dumps(data, sort_keys=True, allow_nan=False).encode())
        draft.finish()
    except BaseException:
        draft.abandon()
        raise


def write_marker(folder: Path, identity: str) -> None:
    """Leave in `folder` whose it is: the state says so too, but may be lost."""
    text = json.dumps({"made by": "bridge export --to tensorboard", "identity": identity})
    (folder / MARKER).write_text(text)


def owner(folder: Path) -> str | None:
    """The identity of the run that `folder` belongs to; None where it is nobody's.

    The marker says it, which is small; where that cannot be read the state does, of whatever format.
    """
    for name in (MARKER, STATE_NAME):
        try:
            with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123 - asked of thousands of folders
                return str(json.loads(file.read())["identity"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None


def distrust(folder: Path, state: State | None) -> str:
    """Why what lies in `folder` is not what `state` says, in words for a person; empty where it is."""
    if state is None:
        return "its state file is missing or damaged"
    if state.cursor is None:
        return "its first export was never completed"
    for kept in state.files.values():
        try:
            found = kept_of(folder, kept.name, length=kept.length)
            if found.length < kept.length:
                return f"{kept.name} was cut short"
            if found != kept:
                return f"{kept.name} was edited"
        except OSError:
            return f"{kept.name} is missing or cannot be read"
    return ""


def left_over(folder: Path, state: State, names: Sequence[str]) -> tuple[str, ...]:
    """Of `names`, the files in `folder`, those that an export made and was killed before it could acknowledge."""
    known = {kept.name: kept.length for kept in state.files.values()}
    drafts = [name for name in names if name.startswith(".bridge-") and name.endswith(".new")]
    events = [name for name in names if generation_of(name) is not None]
    longer = [
        name
        for name in events
        if name not in known or os.stat(f"{folder}/{name}").st_size > known[name]  # noqa: PTH116 - of thousands
    ]
    return tuple(sorted(drafts + longer))
