"""The small file beside the event files: whose folder it is, the cursor, and how long each event file is.

It is written after the data it speaks of are on the disk. So whatever lies past the lengths in it was never
acknowledged, and is cut off before anything is added.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bridge.cursor import Cursor
from bridge.errors import NewerFormatError
from bridge.exporters.tensorboard.files import Draft, Kept, generation_of, looked_at

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "MARKER",
    "STATE_NAME",
    "State",
    "checked",
    "left_over",
    "owner",
    "read_state",
    "write_marker",
    "write_state",
]

STATE_NAME = "bridge-state.json"
MARKER = ".bridge-target"
"""Its presence keeps every walk for run directories out of the folder."""

STATE_FORMAT = 2
_TAILS_FORMAT = 1
"""States of this format hold no digest of their own, and of each file that of its last bytes."""


@dataclass(frozen=True, slots=True)
class State:
    """What a run's folder says of itself.

    `files` are the event files by kind; `generations` the highest generation of each kind ever used. `names` are the
    metrics whose tag is not their own name, by tag. `steps` are the last steps in the media file, by tag.
    `lacks` is as in `TargetContent`. `session` is false where the run's steps are beyond what HPARAMS can take.
    """

    identity: str
    cursor: Cursor | None = None
    files: Mapping[str, Kept] = field(default_factory=dict)
    generations: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    unsupported: frozenset[str] = frozenset()
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
        if version > _TAILS_FORMAT and data.pop("digest") != _digest(data):
            return None
        cursor = data["cursor"]
        return State(
            identity=str(data["identity"]),
            cursor=None if cursor is None else Cursor.from_json(json.dumps(cursor), where=str(path)),
            files={kind: _kept(kept, version) for kind, kept in data["files"].items()},
            generations={kind: int(number) for kind, number in data["generations"].items()},
            names=data["names"],
            steps=data["steps"],
            unsupported=frozenset(data["unsupported"]),
            session=bool(data["session"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _kept(data: Mapping[str, Any], version: int) -> Kept:
    name, length = str(data["name"]), int(data["length"])
    if version == _TAILS_FORMAT:
        return Kept(name, length, tail=str(data["tail"]))
    return Kept(name, length, int(data["checksum"]), int(data["mtime"]))


def _digest(data: Mapping[str, Any]) -> str:
    """The digest of what a state says, whatever its layout."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def write_state(folder: Path, state: State) -> None:
    """Put `state` on the disk in the place of the old one."""
    data = {
        "format": STATE_FORMAT,
        "identity": state.identity,
        "cursor": None if state.cursor is None else json.loads(state.cursor.to_json()),
        "files": {
            kind: {"name": kept.name, "length": kept.length, "checksum": kept.checksum, "mtime": kept.mtime}
            for kind, kept in state.files.items()
        },
        "generations": dict(state.generations),
        "names": dict(state.names),
        "steps": dict(state.steps),
        "unsupported": sorted(state.unsupported),
        "session": state.session,
    }
    data["digest"] = _digest(data)
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


def checked(folder: Path, state: State | None, names: Collection[str]) -> tuple[State | None, str]:
    """`state` with the event files' times as they are by now, and why what lies in `folder` is not what it says.

    `names` are the files in `folder`. The reason is in words for a person, empty where all is as the state says; where
    nothing is to be remembered anew, the very `state` comes back.
    """
    if state is None:
        return None, "its state file is missing or damaged"
    if state.cursor is None:
        return state, "its first export was never completed"
    files: dict[str, Kept] = {}
    for kind, kept in state.files.items():
        try:
            found = looked_at(folder, kept)
            if found is None:
                short = os.stat(f"{folder}/{kept.name}").st_size < kept.length  # noqa: PTH116
                return state, f"{kept.name} was {'cut short' if short else 'edited'}"
            files[kind] = found
        except OSError:
            return state, f"{kept.name} is missing or cannot be read"
    for name in sorted(names):
        # It may be all that there is of this kind: only where a complete one stands may it go as a left-over.
        found_kind = generation_of(name)
        if found_kind is not None and found_kind[0] not in files:
            return state, f"its state file does not name {name}"
    same = all(files[kind] is kept for kind, kept in state.files.items())
    return (state if same else state.with_(files=files)), ""


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
