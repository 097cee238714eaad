"""Keep the files of a run's folder: event files, and the state file that says which of their bytes are acknowledged.

    events.out.tfevents.*.bridge.{facts,media,scalars}.gNNN   the event files, each with its generation
    bridge-state.json   identity, cursor, and of each event file its name, length, checksum and mtime
    .bridge-target      the identity alone, in case the state is lost; keeps searches for run directories out; locked by
                        the export that writes

The state is written after the data that it describes. So bytes past the lengths in the state were never
acknowledged, and a file that does not begin as the state says was changed by somebody else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import zlib
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from msgspec.structs import replace

from bridge.errors import NewerFormatError, TargetRefusedError, TargetUnavailableError
from bridge.files import TARGET_MARK
from bridge.model import Cursor, digest
from logger.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

EVENT_KINDS = ("facts", "media", "scalars")
"""The event files of a run, in the order in which TensorBoard reads them.

Its Python loader reads one file after the other and then follows only the last, which is the one that grows.
"""

STATE_NAME = "bridge-state.json"

STATE_FORMAT = 3

_EVENT_NAME = re.compile(r"events\.out\.tfevents\.\d{10}\.bridge\.(facts|media|scalars)\.g(\d{3,})")
_CHUNK_BYTES = 2**20
_BUFFER_BYTES = 2**20

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


class FileRecord(msgspec.Struct, frozen=True):
    """What the state remembers of an event file: its name, length in bytes, and the CRC-32 of all its bytes.

    The CRC-32 goes on where a file grows, so an append need not read the file. It is another checksum than that of
    the records, so an edit that mends theirs does not mend this one. `mtime` is in nanoseconds. It is no part of the
    file's content: a copy has another one.
    """

    name: str
    length: int
    checksum: int = 0
    mtime: int = 0


class FolderState(msgspec.Struct):
    """The content of a run's state file.

    `files` are the event files by kind, `generations` the highest generation of each kind ever used. `renamed` maps
    tags to metrics whose tag is not their own name. `media_steps` are the last steps in the media file, by tag.
    `unsupported` is as in `TargetContent`. `fits_hparams` is false if a step is too large for the HPARAMS page.
    """

    identity: str
    cursor: Cursor | None = None
    files: dict[str, FileRecord] = {}
    generations: dict[str, int] = {}
    renamed: dict[str, str] = msgspec.field(name="names", default_factory=dict)
    media_steps: dict[str, int] = msgspec.field(name="steps", default_factory=dict)
    unsupported: set[str] = set()
    fits_hparams: bool = msgspec.field(name="session", default=True)


def read_state(folder: Path | str) -> FolderState | None:
    """Return the state of `folder`, or None if it has none that can be trusted. Raise NewerFormatError."""
    path = f"{folder}/{STATE_NAME}"
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - called for thousands of folders
            data = json.loads(file.read())
        version = int(data["format"])
        if version > STATE_FORMAT:
            raise NewerFormatError(
                f"{path} was made by a newer bridge (state format {version}, this one knows {STATE_FORMAT}).",
                hint="pip install --upgrade registry-bridge",
            )
        if version != STATE_FORMAT or data.pop("digest") != digest(json.dumps(data, sort_keys=True), 32):
            return None
        cursor = data.pop("cursor")
        state = msgspec.convert(data, FolderState)
        state.cursor = None if cursor is None else Cursor.from_dict(cursor, where=path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return state


def write_state(folder: str, state: FolderState) -> None:
    """Replace the state of `folder`. A power cut may leave an empty one, which cannot be trusted."""
    data = msgspec.to_builtins(replace(state, cursor=None), order="deterministic")
    data |= {"format": STATE_FORMAT, "cursor": None if state.cursor is None else state.cursor.to_dict()}
    text = json.dumps(data, sort_keys=True, allow_nan=False)
    text = f'{{"digest": "{digest(text, 32)}", {text[1:]}'
    replace_file(f"{folder}/{STATE_NAME}", text, durable=False)


def encode_marker(identity: str) -> bytes:
    """Return the content of the marker of a folder that belongs to the run `identity`."""
    return json.dumps({"made by": "bridge export --to tensorboard", "identity": identity}).encode()


def folder_owner(folder: str) -> str | None:
    """Return the identity of the run that `folder` belongs to, or None if it belongs to none.

    The marker says it. If the marker cannot be read, the state does, whatever its format.
    """
    for name in (TARGET_MARK, STATE_NAME):
        try:
            with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123 - called for thousands of folders
                return str(json.loads(file.read())["identity"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None


# Event files


def event_file_name(kind: str, generation: int) -> str:
    """Return the name of an event file, without clock, pid or host. TensorBoard reads names with `tfevents`."""
    return f"events.out.tfevents.{EVENT_KINDS.index(kind) + 1:010d}.bridge.{kind}.g{generation:03d}"


def parse_event_file_name(name: str) -> tuple[str, int] | None:
    """Return kind and generation of an event file of ours, or None for any other name."""
    match = _EVENT_NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


class EventFile:
    """An event file being written: the end of the file `after`, or a new one.

    A new file gets its name when it is complete: it is written at once if it is small. A large one lies under a name
    that TensorBoard does not read until then. The caller calls `finish` or `abandon`.
    """

    def __init__(self, folder: str, name: str, *, after: FileRecord | None = None) -> None:
        self._name = name
        self._path = f"{folder}/{name}"
        # Not even a temporary name may have `tfevents` in it.
        self._open_path = self._path if after else f"{folder}/.bridge-{name.rpartition('.bridge.')[2]}.new"
        self._begin = self._length = self._written = after.length if after else 0
        self._checksum = after.checksum if after else 0
        self._waiting: list[bytes | memoryview[int]] = []
        self._descriptor = -1

    def write(self, data: bytes | memoryview[int]) -> None:
        """Write bytes at the end."""
        self._waiting.append(data)
        self._checksum = zlib.crc32(data, self._checksum)
        self._length += len(data)
        if self._length - self._written >= _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._descriptor < 0:
            made = 0 if self._begin else os.O_CREAT | os.O_TRUNC
            self._descriptor = os.open(self._open_path, os.O_WRONLY | os.O_CLOEXEC | made, 0o666)
            os.lseek(self._descriptor, self._begin, os.SEEK_SET)
        left = memoryview(self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting))
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._waiting.clear()
        self._written = self._length

    def copy(self, path: str, length: int) -> None:
        """Write the first `length` bytes of the file `path` at the end."""
        with open(path, "rb") as source:  # noqa: PTH123
            for chunk in _read_chunks(source, length):
                self.write(chunk)

    def finish(self) -> FileRecord:
        """Close the file, give it its name, and return what to remember of it.

        A new file that was written by one call need not be on the disk yet. Its length is wrong if a power cut comes
        before. In any other file an earlier part could be missing although the length is right.
        """
        is_one_write = self._descriptor < 0 and not self._begin
        if is_one_write:
            self._open_path = self._path
        self._flush()
        mtime = _backdate_mtime(self._descriptor)
        if not is_one_write:
            os.fsync(self._descriptor)
        self._close()
        if self._open_path != self._path:
            os.replace(self._open_path, self._path)  # noqa: PTH105 - called for thousands of files
            self._open_path = self._path
        return FileRecord(self._name, self._length, self._checksum, mtime)

    def abandon(self) -> None:
        """Take back what was written, so that a full disk does not stay fuller than before."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            if self._begin:
                os.truncate(self._path, self._begin)
            else:
                os.unlink(self._open_path)  # noqa: PTH108

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length and (chunk := file.read(min(length, _CHUNK_BYTES))):
        length -= len(chunk)
        yield chunk


def _backdate_mtime(descriptor: int) -> int:
    """Set the mtime of an open file back by a second, so that any later write changes it. Return the new mtime.

    Otherwise an edit within the same tick of the clock would leave no trace. Whole seconds survive copying.
    """
    found = os.fstat(descriptor)
    earlier = (found.st_mtime_ns // 10**9 - 1) * 10**9
    try:
        os.utime(descriptor, ns=(found.st_atime_ns, earlier))
    except OSError:  # another user's file in a shared folder, or a file system without mtimes
        return found.st_mtime_ns
    return earlier


def find_damage(folder: str, state: FolderState | None, names: Collection[str]) -> str:
    """Return what is wrong with the event files in `folder`, as a clause for a person; "" if they are as `state` says.

    `names` are the files in `folder`.
    """
    if state is None:
        return "its state file is missing or damaged" if any(map(parse_event_file_name, names)) else ""
    if state.cursor is None:
        return "its first export was never completed"
    for record in state.files.values():
        try:
            if not _is_unchanged(folder, record):
                short = os.stat(f"{folder}/{record.name}").st_size < record.length  # noqa: PTH116
                return f"{record.name} was {'cut short' if short else 'edited'}"
        except OSError:
            return f"{record.name} is missing or cannot be read"
    for name in sorted(names):
        # It may be all that there is of its kind, so it must not be removed as a left-over.
        parsed = parse_event_file_name(name)
        if parsed is not None and parsed[0] not in state.files:
            return f"its state file does not name {name}"
    return ""


def _is_unchanged(folder: str, record: FileRecord) -> bool:
    """Return whether the file begins with the recorded bytes.

    A file of the recorded length and mtime is not read. So a copy counts as unchanged, and an edit is noticed unless
    it also restores the mtime. Raise OSError.
    """
    path = f"{folder}/{record.name}"
    found = os.stat(path)  # noqa: PTH116 - called for thousands of folders
    if (found.st_size, found.st_mtime_ns) == (record.length, record.mtime):
        return True
    if found.st_size < record.length:
        return False
    checksum = 0
    with open(path, "rb") as file:  # noqa: PTH123
        for chunk in _read_chunks(file, record.length):
            checksum = zlib.crc32(chunk, checksum)
    return checksum == record.checksum


def leftover_files(folder: str, state: FolderState, names: Collection[str]) -> list[str]:
    """Return those of `names`, the files in `folder`, that hold bytes of a killed export beyond `state`."""
    lengths = {record.name: record.length for record in state.files.values()}
    found = [name for name in names if name.startswith(".bridge-") and name.endswith((".new", ".tmp"))]
    found += [
        name
        for name in names
        if parse_event_file_name(name) is not None
        and (name not in lengths or os.stat(f"{folder}/{name}").st_size > lengths[name])  # noqa: PTH116
    ]
    return sorted(found)


@contextlib.contextmanager
def os_errors(folder: str) -> Iterator[None]:
    """Raise a TargetError instead of an OSError in the block."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else folder
        what = f"{where}: {error.strerror or error}"
        if error.errno in _DISK_FULL:
            raise TargetRefusedError(
                f"No space left to write the event files: {what}.",
                hint="Free some space, or choose another --logdir. What was exported before is whole.",
            ) from error
        if error.errno in _FORBIDDEN:
            raise TargetRefusedError(
                f"The log directory cannot be written: {what}.", hint="Choose a --logdir that you may write to."
            ) from error
        raise TargetUnavailableError(f"The event files cannot be written: {what}.") from error
