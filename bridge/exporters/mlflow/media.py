"""Put a run's files into MLflow's artifacts.

The files are pictures for the image grid, videos, captions, copies of the run directory's files, and checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import TargetRefusedError
from bridge.exporters.mlflow.errors import artifact_errors
from bridge.exporters.mlflow.facts import Tag, milliseconds, plain_file
from bridge.exporters.mlflow.pictures import LARGEST_PICTURE, UnreadablePictureError, full_and_small
from bridge.files import TARGET_MARK, open_file, read_limited
from bridge.model import MediaType, Notice, NoticeKind, digest
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bridge.exporters.mlflow.client import MlflowApi
    from bridge.model import MediaEvent, Run, RunFile
    from bridge.options import ContentOptions

_TARGET_TEXT = """`bridge export` wrote these files:
- hparams.yaml, sidecar.json, metrics.csv, media.jsonl, summary.json and other files beside them are copies from the
  run directory, their secrets masked. This file keeps bridge from taking them for a run directory.
- hparams.yaml and sidecar.json hold in full what MLflow would truncate.
- bridge/media.json maps the names of pictures and videos that MLflow refuses to the run's own names.
- bridge/captions.json is the table of all captions.
"""

CAPTIONS_FILE = "bridge/captions.json"
"""The table of all captions, which MLflow's UI shows as a table."""

MEDIA_FILE = "bridge/media.json"
"""The map from the tags in file names to the tags of the run."""

# ---------------------------------------------------------------------------------------------------------------------
# Uploads

_LINK_FROM_BYTES = 64 << 20
"""Files of this size or more are sent without a copy, unless they grow row by row."""

_LEFTOVER_AGE_S = 86_400.0
"""Seconds after which a temporary file beside the artifacts belongs to an export that was stopped."""

_MOST_REFUSED = 20
"""After so many refused files the store itself is at fault."""


class ArtifactUpload:
    """The files on their way into a run's artifacts: written below `folder`, or sent one by one through `api`.

    `notices` has one for each file that is not sent, and for what is renamed on the way.
    """

    def __init__(self, folder: Path | None = None, *, api: MlflowApi | None = None, run_id: str = "") -> None:
        self._folder = folder
        self._api = api
        self._run_id = run_id
        self._refused: list[TargetRefusedError] = []
        self._made: set[Path] = set()
        self.notices: list[Notice] = []
        self.paths: dict[str, None] = {}
        self.bytes = 0

    def add(self, path: str, data: bytes) -> None:
        """Add `data` at the artifact path `path`. Raise TargetError if the store is at fault."""
        with self._local_path(path) as local:
            local.write_bytes(data)
        self.bytes += len(data)

    def add_json(self, path: str, data: object) -> None:
        """Add `data` as JSON at `path`."""
        self.add(path, json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8", "replace"))

    def add_file(self, path: str, file: RunFile, *, data: bytes | None = None, what: str | None = None) -> bool:
        """Add a file of the run directory at `path`. Return False, after a notice on `what`, if it cannot be opened.

        `data` are its bytes, if they were read already. metrics.csv and media.jsonl are copied before they are sent: a
        file that grew beyond the length that its request states would spoil the next request.
        """
        if data is not None:
            self.add(path, data)
            return True
        try:
            source = open_file(file)
        except OSError as error:
            self.tell(NoticeKind.MISSING_FILE, what or path, str(error.strerror or error))
            return False
        with source, self._local_path(path) as local:
            # Link to the opened file where the system can, so that a swapped path is not followed.
            opened = Path(f"/proc/self/fd/{source.fileno()}")
            is_plain = self._folder is None and file.offset is None and path not in _UNMASKED
            if is_plain and file.size >= _LINK_FROM_BYTES and opened.exists():
                local.symlink_to(opened)
            else:
                with local.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        self.bytes += file.size
        return True

    def tell(self, kind: NoticeKind, what: str, detail: str) -> None:
        """Add a notice."""
        self.notices.append(Notice(kind, what, detail))

    def add_picture(self, event: MediaEvent, identity: str) -> tuple[str, str] | None:
        """Add a picture to the grid. Return the paths of its two files, None if its file is gone or too large.

        Raise UnreadablePictureError.
        """
        data = read_limited(event.file, LARGEST_PICTURE)
        if data is None:
            return None
        extension, full, small = full_and_small(data, event.format)
        paths = grid_paths(identity, event, extension)
        self.add(paths[0], full)
        self.add(paths[1], small)
        return paths

    @contextlib.contextmanager
    def _local_path(self, path: str) -> Iterator[Path]:
        """Yield where the block must write the file of `path`. Send it after the block, or rename it to its place.

        A local file is written beside the folder of the artifacts, so a stopped export leaves no torn artifact.
        """
        self.paths[path] = None
        if self._folder is not None:
            with artifact_errors(str(self._folder)):
                if not self._made:
                    _delete_leftovers(self._folder.parent)
                local = self._folder / path
                if local.parent not in self._made:
                    local.parent.mkdir(parents=True, exist_ok=True)
                    self._made.add(local.parent)
                beside = self._folder.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
                try:
                    yield beside
                    beside.replace(local)
                finally:
                    beside.unlink(missing_ok=True)
            return
        with contextlib.ExitStack() as stack:
            with artifact_errors(f"{tempfile.gettempdir()} before it is sent"):
                temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-upload-"))
                local = Path(temporary) / path.rpartition("/")[2]
                yield local
            self._send(local, path)

    def _send(self, local: Path, path: str) -> None:
        assert self._api is not None
        try:
            self._api.upload_file(self._run_id, local, path.rpartition("/")[0] or None)
        except TargetRefusedError as error:
            del self.paths[path]
            is_too_large = "(413)" in error.message or "too large" in error.message.lower()
            self.tell(NoticeKind.TOO_LARGE if is_too_large else NoticeKind.REFUSED, path, error.message)
            self._refused += [] if is_too_large else [error]
            if len(self._refused) == _MOST_REFUSED:
                raise

    def finish(self, *, is_shared_path: bool = False) -> list[Notice]:
        """Return the notices. Raise TargetRefusedError if the store took no file at all.

        With `is_shared_path` the store is a path that the server must see too, so ask the server whether it does.
        """
        if self._refused and not self.paths:
            raise self._refused[0]
        if self._api is not None and self.paths and is_shared_path:
            self._api.check_visible(self._run_id, {path.partition("/")[0] for path in self.paths})
        return self.notices


_TEMPORARY = ".bridge-artifact-"


def _delete_leftovers(folder: Path) -> None:
    """Delete the temporary files that exports left in `folder` when they were stopped."""
    for file in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < time.time() - _LEFTOVER_AGE_S:
                file.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# Pictures, videos, captions

_NAMESPACE = uuid.UUID("0d3a2c51-6f57-5c0e-8a63-4d1f0a6f7b1e")
_LONGEST_TAG = 120
_IN_GRID = re.compile(r"images/(.+)~(\d+)\+step\+(-?\d+)\+timestamp\+-?\d+\+bridge-[0-9a-f]+\.(?:png|webp)")
_AS_FILE = re.compile(r"media/(.+)/(-?\d+)_(\d+)\.\w+")
_OWN_FILES = re.compile(
    r"(?:hparams\.yaml|sidecar\.json|metrics\.csv|media\.jsonl|summary\.json|config\.yaml|\.hydra/[^/]+\.yaml|"
    + re.escape(TARGET_MARK)
    + r")"
    r"|bridge/.*|checkpoints/.*|images/.*\+bridge-[0-9a-f]{16}\+compressed\.webp"
)


@dataclass(slots=True)
class AddedMedia:
    """The media that were added to an upload: `captions` as rows of their table, `names` from cleaned tags to tags."""

    in_grid: bool = False
    captions: list[list[Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def add_media(upload: ArtifactUpload, identity: str, events: Sequence[MediaEvent]) -> AddedMedia:
    """Add `events` to `upload`: each picture twice for the grid, anything else once.

    A path depends on `identity` and the event alone, so an upload that is repeated replaces its own files.
    """
    added = AddedMedia()
    for event in events:
        tag = clean_tag(event.tag)
        if tag != event.tag and tag not in added.names:
            added.names[tag] = event.tag
            upload.tell(NoticeKind.RENAMED, f"media {event.tag}", f"as {tag}; {MEDIA_FILE} maps it back")
        plain = plain_media_path(event)
        paths = None
        if event.type is MediaType.IMAGE:
            try:
                paths = upload.add_picture(event, identity)
            except UnreadablePictureError as error:
                upload.tell(NoticeKind.NOT_SHOWABLE, event.path, f"{error}; kept as {plain}")
        if paths is not None:
            added.in_grid = True
        elif not upload.add_file(plain, event.file, what=event.path):
            continue
        if event.caption:
            image: Any = plain
            if paths is not None:
                image = {"type": "image", "filepath": paths[0], "compressed_filepath": paths[1]}
            added.captions.append([event.tag, event.index, event.step, event.caption, image])
    return added


def plain_media_path(event: MediaEvent) -> str:
    """Return the path of a media file stored as a plain artifact."""
    extension = re.sub(r"\W", "", event.format) or "bin"
    name = f"{event.step:08d}_{event.index}.{'jpg' if extension == 'jpeg' else extension}"
    return f"media/{clean_tag(event.tag)}/{name}"


def grid_paths(identity: str, event: MediaEvent, extension: str) -> tuple[str, str]:
    """Return the paths of a picture in the image grid: the full one with this extension, and the small one.

    MLflow's page reads key, step and time from the path, and finds the small one by its ending.
    """
    name = uuid.uuid5(_NAMESPACE, f"{identity}\n{event.tag}\n{event.step}\n{event.index}").hex[:16]
    # MLflow shows one picture of a key at a step, so the index is part of the key.
    key = f"{clean_tag(event.tag)}/{event.index}".replace("/", "~")
    stem = f"images/{key}+step+{event.step}+timestamp+{milliseconds(event.time)}+bridge-{name}"
    return f"{stem}.{extension}", f"{stem}+compressed.webp"


def clean_tag(tag: str) -> str:
    """Return `tag` as the image grid can show it. A changed one ends in a digest, so that no two are the same."""
    plain = re.sub(r"[^A-Za-z0-9_\-. /]", "_", tag)
    plain = "/".join("_" if part in ("", ".", "..") else part for part in plain.split("/"))
    if plain == tag and len(tag) <= _LONGEST_TAG:
        return tag
    return f"{plain[:_LONGEST_TAG]}-{digest(tag, 6)}"


def parse_path(path: str) -> tuple[str, int, int] | None:
    """Return the cleaned tag, step and index of one of the bridge's media; None for small pictures and other files."""
    found = _IN_GRID.fullmatch(path)
    if found:
        return found[1].replace("~", "/"), int(found[3]), int(found[2])
    found = _AS_FILE.fullmatch(path)
    return (found[1], int(found[2]), int(found[3])) if found else None


def is_own_file(path: str) -> bool:
    """Return True for an artifact that the bridge uploaded."""
    return _OWN_FILES.fullmatch(path) is not None or parse_path(path) is not None


def add_captions(upload: ArtifactUpload, rows: Iterable[Sequence[Any]], held: Mapping[str, Any]) -> None:
    """Add the captions' table with `rows` merged into the one that MLflow holds. A new row replaces an old one."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for row in (*held.get("data", ()), *rows):
        found[tuple(row[:3])] = list(row)
    data = [found[place] for place in sorted(found, key=lambda place: (str(place[0]), place[2], place[1]))]
    table = {"columns": ["tag", "index", "step", "caption", "image"], "data": data}
    upload.add(CAPTIONS_FILE, json.dumps(table, ensure_ascii=False).encode("utf-8", "replace"))


def captions_of(table: bytes) -> Mapping[tuple[str, int, int], str]:
    """Return the captions by tag, step and index."""
    return {(row[0], row[2], row[1]): row[3] for row in json.loads(table)["data"]}


def has_captions(tags: Mapping[str, str]) -> bool:
    """Return True if the captions' table is among those that a run with `tags` lists."""
    return not table_tag(tags)


def table_tag(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tag that makes MLflow's UI show the captions as a table, none if it is among the run's `tags`."""
    try:
        tables = json.loads(tags.get(Tag.ARTIFACTS) or "[]")
    except ValueError:
        tables = []
    entry = {"path": CAPTIONS_FILE, "type": "table"}
    tables = tables if isinstance(tables, list) else []
    return {} if entry in tables else {Tag.ARTIFACTS: json.dumps([*tables, entry])}


# ---------------------------------------------------------------------------------------------------------------------
# The run's own files

_AT_THE_END = ("metrics.csv", "media.jsonl", "summary.json")
_UNMASKED = ("metrics.csv", "media.jsonl")
_LARGEST_MASKED = 64 << 20
"""Bytes. A file that may hold secrets is read whole, so a larger one is not sent."""


def due_files(run: Run, content: ContentOptions) -> dict[str, RunFile]:
    """Return the files of `run` that are due as artifacts: some only once the run has ended."""
    if content.artifacts == "none":
        return {}
    names = [name for name in run.files if name not in _AT_THE_END]
    if not run.running or content.artifacts == "now":
        names += [name for name in _AT_THE_END if name in run.files]
    return {name: run.files[name] for name in names}


def is_sent(file: RunFile, sent: str | None) -> bool:
    """Return whether `file` was sent as it is now, by the signature of what was `sent`.

    The content decides where only the mtime differs: copying a directory without its times changes nothing.
    """
    size, mtime, content = (*(sent or "").split(":"), "", "", "")[:3]
    if size != str(file.size):
        return False
    return mtime == str(file.mtime_ns) or (content != "" and content == _content_digest(_small_content(file)))


def _small_content(file: RunFile) -> bytes | None:
    """Return a file's bytes, None if it is too large to be read at once, gone, or no plain file."""
    return read_limited(file, _LARGEST_MASKED) if file.size <= _LARGEST_MASKED else None


def _content_digest(data: bytes | None) -> str:
    """Return a digest of a file's bytes, "" if there are none."""
    return "" if data is None else hashlib.blake2b(data, digest_size=8).hexdigest()


def add_run_files(upload: ArtifactUpload, run: Run, content: ContentOptions, sent: Mapping[str, str]) -> dict[str, str]:
    """Add the files that are due and differ from `sent`. Return what is sent after that."""
    due = due_files(run, content)
    new = {name: file for name, file in due.items() if not is_sent(file, sent.get(name))}
    now = dict(sent) | add_copies(upload, new, content)
    if now and not sent:
        upload.add(TARGET_MARK, _TARGET_TEXT.encode())
    return now


def add_copies(upload: ArtifactUpload, files: Mapping[str, RunFile], content: ContentOptions) -> dict[str, str]:
    """Add files of a run directory, their secrets masked.

    Return the texts by which a cursor recognises each one as it is now: size, mtime, digest.
    """
    redaction = Redaction(content.redact)
    signatures = {}
    for name, file in files.items():
        data = _small_content(file)
        signatures[name] = f"{file.size}:{file.mtime_ns}:{_content_digest(data)}"
        if name in _UNMASKED:
            upload.add_file(name, file, data=data)
            continue
        if data is None:
            upload.tell(NoticeKind.MISSING_FILE, name, "gone, too large or not a plain file")
            continue
        masked = redaction.yaml_file(data) if name.endswith(".yaml") else redaction.json_file(data)
        if masked or not data:
            upload.add(name, masked)
        else:
            upload.tell(NoticeKind.LEFT_OUT, name, "it cannot be read, so secrets in it cannot be masked")
    return signatures


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints

_CHECKPOINTS = "checkpoints"
_MOST_SIGNATURES = 12
"""With more checkpoints their signatures would make a cursor too long."""

_ENDS_A_PATH = re.compile(r"[#?%\x00-\x1f\x7f\ud800-\udfff]")
"""Characters at which a server takes a path for ended or encoded: another name arrives, and two may become one."""


def add_checkpoints(upload: ArtifactUpload, run: Run, sent: Mapping[str, str]) -> dict[str, str]:
    """Add the checkpoints that differ from `sent`. Return what is sent after that."""
    now = checkpoint_signatures(run)
    if now and now == sent:
        return now
    files = _checkpoint_files(run)
    for path, file in files.items():
        if path not in now or sent.get(path) != now[path]:
            upload.add_file(path, file)
    for path in (path.as_posix() for path in _checkpoint_paths(run)):
        if path not in files:
            why = "it is not a plain file inside the run directory"
            if _ENDS_A_PATH.search(path):
                why = "a server would store it under another name, since it holds one of # ? %"
            upload.tell(NoticeKind.REFUSED_PATH, path, f"not sent: {why}")
    return now


def checkpoint_signatures(run: Run) -> dict[str, str]:
    """Return what a cursor keeps of sent checkpoints: a short digest for each, or one for all if they are many."""
    each = {path: digest(f"{file.size}:{file.mtime_ns}", 8) for path, file in _checkpoint_files(run).items()}
    return each if len(each) <= _MOST_SIGNATURES else {"*": digest(json.dumps(sorted(each.items())))}


def _checkpoint_files(run: Run) -> dict[str, RunFile]:
    """Return the checkpoints that can be sent, by path: plain files below `checkpoints`."""
    names = ((path.as_posix(), plain_file(run, path)) for path in _checkpoint_paths(run))
    return {name: file for name, file in names if file is not None and not _ENDS_A_PATH.search(name)}


def _checkpoint_paths(run: Run) -> Iterator[Path]:
    """Yield the paths of everything below `checkpoints` but folders, relative to the run directory."""
    top = run.path / _CHECKPOINTS
    # If the folder itself is a link that leads out, it is not even listed: it may hold the whole file system.
    is_inside = Path(os.path.realpath(top)).is_relative_to(run.path)
    for folder, folders, names in os.walk(top, followlinks=False) if is_inside else ():
        folders.sort()
        for name in sorted(names):
            yield (Path(folder) / name).relative_to(run.path)
