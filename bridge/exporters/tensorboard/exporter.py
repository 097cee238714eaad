"""The TensorBoard exporter: one folder of event files per run below a log directory, named by the run.

A folder stays its run's: its marker and state say whose it is, so a folder that a person renames is found again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from bridge.errors import NewerFormatError, TargetRefusedError
from bridge.exporters.contract import Capabilities, Exporter, Interface, TargetState
from bridge.exporters.tensorboard import media
from bridge.exporters.tensorboard.events import require_tensorboard
from bridge.exporters.tensorboard.facts import STATUSES, sent_digests, shown_facts
from bridge.exporters.tensorboard.state import (
    STATE_NAME,
    find_damage,
    folder_owner,
    leftover_files,
    os_errors,
    parse_event_file_name,
    read_state,
)
from bridge.exporters.tensorboard.target import TensorBoardTarget
from bridge.files import TARGET_MARK, fingerprint
from bridge.locks import file_lock
from bridge.model import digest
from bridge.view import page_address
from logger.files import VIDEO_FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bridge.live import LiveRuns
    from bridge.model import Cursor, Run
    from bridge.options import ContentOptions

SAMPLES = "images=9999,text=9999,audio=9999,scalars=100000"
"""For --samples_per_plugin. By default TensorBoard shows ten images and a thousand scalars per tag."""

_LEFTOVERS = "left-over files"
_MAX_PART_BYTES = 200
_MAX_FOLDERS = 2_000
"""Folders searched for copies of targets if every run was found in its own folder."""


class TensorBoardExporter(Exporter):
    """Exports runs into event files below `logdir`.

    `lock_wait` is how long to wait for another export of the same run, in seconds.
    """

    name = "tensorboard"
    default_port = 6006
    can_edit = False

    def __init__(self, logdir: Path, *, lock_wait: float = 30.0) -> None:
        self._logdir = Path(logdir).absolute()
        self._lock_wait = lock_wait
        self._folders: dict[str, RunFolder] = {}

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        """Return what event files can hold: series with increasing steps, values of 32 bits."""
        return Capabilities(
            ordered_steps=True,
            reads_event_files=True,
            value_bits=32,
            time_step=1e-6,
            statuses=STATUSES,
            media_kept=media.KEPT_FORMATS,
            media_converted=VIDEO_FORMATS if media.can_convert() else frozenset(),
        )

    def prepare(self, runs: Sequence[Run], content: ContentOptions) -> None:
        """Find or choose the folder of each run.

        Raise MissingExtraError if tensorboard is not installed, TargetRefusedError if `logdir` is a file.
        """
        require_tensorboard()
        if self._logdir.exists() and not self._logdir.is_dir():
            raise TargetRefusedError(f"{self._logdir} is not a folder.", hint="Choose another --logdir.")
        self._find_folders(runs)

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """Return what the state files say, if the event files agree with them."""
        if any(run.identity not in self._folders for run in runs):
            self._find_folders(runs)
        return {run.identity: self._target_state(run.identity, self._folders[run.identity]) for run in runs}

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """Return which facts differ from those last sent, and whether a killed export left files."""
        digests = sent_digests(shown_facts(run, content), group=self._folder_of(run))
        changed = [key for key, text in digests.items() if cursor.sent.get(key) != text]
        return [*changed, _LEFTOVERS] if _LEFTOVERS in cursor.sent else changed

    def fingerprint(self, where: str) -> str | None:
        """Return sizes and times of the files in the run folder `where`."""
        try:
            names = sorted(os.listdir(where))  # noqa: PTH208 - asked for thousands of folders
        except OSError:
            return None
        found = fingerprint([where, *(f"{where}{os.sep}{name}" for name in names)])
        return None if found is None else f"{' '.join(names)} {found}"

    def open(self, run: Run, content: ContentOptions) -> TensorBoardTarget:
        """Return the target of `run`, whose folder need not exist."""
        return TensorBoardTarget(str(self._logdir), self._folder_of(run), run, content, lock_wait=self._lock_wait)

    @property
    def place(self) -> tuple[str, str]:
        """Return --logdir and its value, as a path from the working directory."""
        return "--logdir", os.path.relpath(self._logdir)

    def interface(self, port: int) -> Interface:
        """Return how to start TensorBoard on the log directory. Raise MissingExtraError if it is not installed."""
        require_tensorboard("To show runs in TensorBoard")
        address = f"http://127.0.0.1:{port}/"
        options = {"--logdir": str(self._logdir), "--host": "127.0.0.1", "--port": str(port)}
        options["--samples_per_plugin"] = SAMPLES
        return Interface(
            address=address,
            probe=f"{address}data/environment",
            argv=(sys.executable, "-m", "tensorboard.main", *(word for pair in options.items() for word in pair)),
        )

    @contextlib.contextmanager
    def serve_live(self, live: LiveRuns, *, host: str, port: int) -> Iterator[str]:
        """Serve TensorBoard on run directories while the block runs. Yield its address."""
        require_tensorboard("To show runs in TensorBoard")
        from bridge.exporters.tensorboard.live import serve

        with serve(live, host=host, port=port):
            yield page_address(host, port)

    def close(self) -> None:
        """Forget which folder is whose."""
        self._folders.clear()

    def _find_folders(self, runs: Sequence[Run]) -> None:
        with os_errors(str(self._logdir)):
            self._folders.update(assign_folders(self._logdir, runs))

    def _folder_of(self, run: Run) -> str:
        """Return the folder of `run` below the log directory."""
        if run.identity not in self._folders:
            self._find_folders([run])
        return self._folders[run.identity].path

    def _target_state(self, identity: str, folder: RunFolder) -> TargetState:
        path = f"{self._logdir}/{folder.path}"
        found = _look_at(path, identity)
        marker = f"{path}/{TARGET_MARK}"
        if found.exists and found.cursor is None and found.error is None and os.path.exists(marker):  # noqa: PTH110
            # Another export may be writing it: files come before their state.
            with contextlib.suppress(OSError), file_lock(marker, wait=self._lock_wait):
                found = _look_at(path, identity)
        return replace(found, extras=tuple(f"{self._logdir}/{copy}" for copy in folder.copies))


def _look_at(folder: str, identity: str) -> TargetState:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - called for thousands of folders
    except (FileNotFoundError, NotADirectoryError):
        return TargetState()
    try:
        state = read_state(folder)
    except NewerFormatError as error:
        return TargetState(exists=True, error=error)
    if state is None:
        return TargetState(exists=TARGET_MARK in names and any(map(parse_event_file_name, names)))
    if state.identity != identity:  # a run of the same name took the folder meanwhile
        return TargetState()
    cursor = state.cursor
    if cursor is None or find_damage(folder, state, names):
        return TargetState(exists=True)
    if leftover_files(folder, state, names):
        # This makes the run stale, so the next export cleans up even if nothing else is new.
        cursor = cursor.with_(sent={**cursor.sent, _LEFTOVERS: ""})
    return TargetState(cursor=cursor, exists=True)


class RunFolder(msgspec.Struct, frozen=True):
    """A run's folder, relative to the log directory, with `/`; `copies` are other folders that name the same run."""

    path: str
    copies: tuple[str, ...] = ()


def assign_folders(logdir: Path, runs: Sequence[Run]) -> Mapping[str, RunFolder]:
    """Return the folder of each run by identity, without creating any.

    A run without a folder gets one with the run's name. If that is taken, also by a name that differs only in
    case, it gets a suffix made from the run's identity.
    """
    wanted = {run.identity: clean_folder(run.name) for run in runs}
    own = {identity: path for identity, path in wanted.items() if folder_owner(f"{logdir}/{path}") == identity}
    found = {identity: [path] for identity, path in own.items()}
    known = set(own.values())
    for path in _find_marked(logdir, limit=_MAX_FOLDERS if len(own) == len(wanted) else None):
        if path not in known and (owner := folder_owner(f"{logdir}/{path}")) is not None:
            found.setdefault(owner, []).append(path)
    folders = {
        identity: RunFolder(paths[0], tuple(paths[1:])) for identity, paths in found.items() if identity in wanted
    }
    taken = {fold_case(path) for paths in found.values() for path in paths}
    # The order must depend as little as possible on which runs are exported together.
    for run in sorted(runs, key=lambda run: (run.start, run.run_id, run.identity)):
        if run.identity not in folders:
            for path in candidate_names(wanted[run.identity], run.identity):
                if fold_case(path) not in taken and not _is_foreign(f"{logdir}/{path}"):
                    break
            folders[run.identity] = RunFolder(path)  # if none is free, the longest
            taken.add(fold_case(path))
    return folders


def clean_folder(name: str) -> str:
    """Return a run's `name` as a relative path that can neither leave the log directory nor be hidden in it."""
    parts = [_clean_part(part) for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts) or "run"


def _clean_part(part: str) -> str:
    text = part
    if not (part.isascii() and part.isprintable()):
        text = "".join("_" if unicodedata.category(char) in ("Cc", "Cs") else char for char in part)
        text = unicodedata.normalize("NFC", text)
    if text.startswith(".") or text == STATE_NAME or "tfevents" in text:
        text = "_" + text.lstrip(".").replace("tfevents", "tf_events")
    if len(text.encode()) > _MAX_PART_BYTES:
        text = f"{text.encode()[: _MAX_PART_BYTES - 9].decode(errors='ignore')}-{digest(text, 8)}"
    return text


def candidate_names(path: str, identity: str) -> Iterator[str]:
    """Yield `path`, then `path` with longer and longer suffixes made from the run's identity."""
    yield path
    for length in (6, 12, 24, 64):
        yield f"{path}-{digest(identity, length)}"


def fold_case(path: str) -> str:
    """Return what is equal for paths that some file systems do not tell apart."""
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path.casefold())


def _is_foreign(folder: str) -> bool:
    """Return whether `folder` is a file, a run directory, or holds other people's event files."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - only names are needed
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True
    return any(
        name in ("sidecar.json", "metrics.csv") or ("tfevents" in name and parse_event_file_name(name) is None)
        for name in names
    )


def _find_marked(logdir: Path, *, limit: int | None) -> Iterator[str]:
    """Yield the folders below `logdir` with a marker or a state, sorted; look at no more than `limit` folders."""
    waiting = [""]
    seen = 0
    while waiting and (limit is None or seen < limit):
        path = waiting.pop()
        seen += 1
        below = []
        marked = False
        try:
            with os.scandir(f"{logdir}/{path}") as entries:
                for entry in entries:
                    if entry.name in (TARGET_MARK, STATE_NAME):
                        marked = True
                    elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        below.append(f"{path}/{entry.name}" if path else entry.name)
        except OSError:
            continue
        waiting += sorted(below, reverse=True)
        if marked:
            yield path
