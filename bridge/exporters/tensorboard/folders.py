"""Which folder under the log directory belongs to which run.

A run's folder is named by its run id. The folder that a run got stays its own: whose it is stands in its state file
and in its marker, so a folder that a person renames is found again.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.exporters.tensorboard.files import generation_of
from bridge.exporters.tensorboard.state import MARKER, STATE_NAME, owner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bridge.model import Run

__all__ = ["Place", "clean_folder", "place_runs"]

_PART_BYTES = 200
_LOOKED_AT = 2_000
"""Folders that are looked at for copies of targets when every run was found where it belongs."""


@dataclass(frozen=True, slots=True)
class Place:
    """A run's folder, relative to the log directory, with `/`; `extras` are other folders that say they are its own."""

    folder: str
    extras: tuple[str, ...] = ()


def clean_folder(run_id: str) -> str:
    """The relative folder for `run_id`: its own path, but it can neither leave the log directory nor be hidden."""
    parts = [_clean_part(part) for part in run_id.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts) or "run"


def _clean_part(part: str) -> str:
    text = "".join("_" if unicodedata.category(char) in ("Cc", "Cs") else char for char in part)
    text = unicodedata.normalize("NFC", text)
    if text.startswith(".") or text in (STATE_NAME,) or "tfevents" in text:
        text = "_" + text.lstrip(".").replace("tfevents", "tf_events")
    if len(text.encode()) > _PART_BYTES:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        text = text.encode()[: _PART_BYTES - 9].decode(errors="ignore") + "-" + digest
    return text


def place_runs(logdir: Path, runs: Sequence[Run]) -> Mapping[str, Place]:
    """The folder of each run, by identity. Nothing is made.

    A run that has none yet gets the one that its run id names, or, where that is taken (also but for upper and lower
    case, which some file systems do not tell apart), that with a suffix made of its identity.
    """
    wanted = {run.identity: clean_folder(run.run_id) for run in runs}
    places = {identity: Place(folder) for identity, folder in wanted.items() if owner(logdir / folder) == identity}
    missing = [run for run in runs if run.identity not in places]
    found: dict[str, list[str]] = {}
    expected = {place.folder: identity for identity, place in places.items()}
    for folder in _walk(logdir, limit=None if missing else _LOOKED_AT):
        identity = expected.get(folder) or owner(logdir / folder)
        if identity is not None:
            found.setdefault(identity, []).append(folder)
    for identity in wanted:
        own = found.get(identity, [])
        if identity in places:
            extras = tuple(folder for folder in own if folder != places[identity].folder)
            places[identity] = Place(places[identity].folder, extras)
        elif own:
            places[identity] = Place(own[0], tuple(own[1:]))
    taken = {_folded(folder) for folders in found.values() for folder in folders}
    taken |= {_folded(place.folder) for place in places.values()}
    # The order must not depend on which runs are exported together, as far as that can be.
    for run in sorted(missing, key=lambda run: (run.start, run.run_id, run.identity)):
        if run.identity not in places:
            places[run.identity] = Place(_free(logdir, wanted[run.identity], run.identity, taken))
            taken.add(_folded(places[run.identity].folder))
    return places


def _free(logdir: Path, folder: str, identity: str, taken: set[str]) -> str:
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    for candidate in (folder, *(f"{folder}-{digest[:length]}" for length in (6, 12, 24))):
        if _folded(candidate) not in taken and not _is_foreign(logdir / candidate):
            return candidate
    return f"{folder}-{digest}"


def _folded(folder: str) -> str:
    return unicodedata.normalize("NFC", folder.casefold())


def _is_foreign(folder: Path) -> bool:
    """Whether something lies there that is not ours: a file, a run directory, other people's event files."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names are all that is needed
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True
    return any(
        name in ("sidecar.json", "metrics.csv") or ("tfevents" in name and generation_of(name) is None)
        for name in names
    )


def _walk(logdir: Path, *, limit: int | None) -> Iterator[str]:
    """Folders below `logdir` that say they are a run's, in the order of their names."""
    waiting = [""]
    seen = 0
    while waiting and (limit is None or seen < limit):
        relative = waiting.pop()
        seen += 1
        below = []
        marked = False
        try:
            with os.scandir(logdir / relative) as entries:
                for entry in entries:
                    if entry.name in (MARKER, STATE_NAME):
                        marked = True
                    elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        below.append(f"{relative}/{entry.name}" if relative else entry.name)
        except OSError:
            continue
        waiting += sorted(below, reverse=True)
        if marked:
            yield relative
