"""Put a run's files into MLflow's artifacts.

The files are pictures for the image grid, videos, captions, copies of the run directory's files, and checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
import uuid
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import TargetRefusedError
from bridge.exporters.mlflow.errors import artifact_errors
from bridge.exporters.mlflow.facts import Tag, digest, milliseconds, plain_file
from bridge.files import BROKEN_PICTURE, MOST_DECODED_PIXELS, TARGET_MARK, open_file, why_broken
from bridge.model import MediaType, Notice, NoticeKind
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

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
        self.add(path, _json_bytes(data))

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
        data = read_picture(event.file)
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


def read_picture(file: RunFile) -> bytes | None:
    """Return the bytes of a picture's file, None if it is gone, too large or no longer plain."""
    return _read(file, limit=_LARGEST_PICTURE)


def _read(file: RunFile, *, limit: int) -> bytes | None:
    """Return the bytes of a plain file of at most `limit` bytes, None if it is gone, larger or no longer plain."""
    try:
        with open_file(file) as source:
            data = source.read(limit + 1)
    except OSError:
        return None
    return data if len(data) <= limit else None


def _json_bytes(data: object) -> bytes:
    return json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures, videos, captions

_NAMESPACE = uuid.UUID("0d3a2c51-6f57-5c0e-8a63-4d1f0a6f7b1e")
_LONGEST_TAG = 120
_LARGEST_PICTURE = 64 << 20
"""Bytes. A larger picture is a plain artifact."""

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
    """Return the path of a medium that is a plain artifact."""
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
    return f"{plain[:_LONGEST_TAG]}-{hashlib.sha256(tag.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


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
# A picture as the two files that the grid shows

SMALL = 256
"""The longer side of the small picture in pixels, as MLflow makes it."""

_MOST_FRAMES = 2_000
_LONGEST_WEBP = 16_383
"""Pixels of the longest side that a WebP can have."""

_DECODED = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
"""What is shown in the grid. A picture in another format is kept as a file, as in TensorBoard."""


class UnreadablePictureError(Exception):
    """A picture that cannot be decoded, or not within the limits. `str()` says why."""


def full_and_small(data: bytes, form: str) -> tuple[str, bytes, bytes]:
    """Return the extension and bytes of the full picture, and the small one as WebP.

    PNG and WebP stay as they are. A moving GIF becomes a lossless moving WebP, anything else that Pillow reads a PNG.
    Raise UnreadablePictureError.
    """
    from PIL import Image

    with _opened(data) as (picture, frames):
        try:
            small = _webp(picture, _resized, lossless=max(picture.size) <= SMALL)
        except BROKEN_PICTURE:
            if picture.format != "PNG":
                raise
            # Its checksums are right, its pixels are not. A browser shows those above the fault.
            small = _webp(Image.new("L", _small_size(picture), 128), lambda frame: frame, lossless=True)
        extension, is_kept = _extension(picture, frames, form)
        if is_kept:
            return extension, data, small
        if extension == "webp":
            return extension, _webp(picture, lambda frame: frame.copy(), lossless=True), small
        full = io.BytesIO()
        _eight_bits(picture).save(full, "PNG")
        return extension, full.getvalue(), small


@lru_cache(1 << 16)  # a run that grows has each picture looked at once
def picture_extension(file: RunFile, form: str) -> str | None:
    """Return the extension that `full_and_small` gives, None where it raises or the file is gone."""
    with contextlib.suppress(UnreadablePictureError), _opened(read_picture(file) or b"") as (picture, frames):
        return _extension(picture, frames, form)[0]
    return None


def _extension(picture: Image, frames: int, form: str) -> tuple[str, bool]:
    """Return the extension of the full picture, and if that is the file as it is."""
    if form in ("png", "webp") or picture.format == "PNG":
        return form if form == "webp" else "png", True
    return "webp" if frames > 1 else "png", False


def has_picture(events: Iterable[MediaEvent]) -> bool:
    """Return True if any of `events` is shown in the image grid."""
    return any(
        event.type is MediaType.IMAGE and picture_extension(event.file, event.format) is not None for event in events
    )


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[tuple[Image, int]]:
    """Open a picture that can be shown for the block, with its number of frames.

    Few formats must be decoded to know that: of a PNG, which most pictures are, the checksums say that it is whole.
    Raise UnreadablePictureError if it is too large or cannot be decoded, also for what Pillow raises in the block.
    """
    from PIL import Image, ImageSequence

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of single pictures; an unreadable one raises
            picture = Image.open(io.BytesIO(data), formats=_DECODED)
            frames = int(getattr(picture, "n_frames", 1))
            pixels = max(math.prod(picture.size), math.prod(_small_size(picture))) * frames
            edge = max(picture.size) if frames > 1 else 0
            if pixels > MOST_DECODED_PIXELS or frames > _MOST_FRAMES or edge > _LONGEST_WEBP:
                size = f"{picture.width} x {picture.height}, {frames} frames"
                raise UnreadablePictureError(f"{size}: too large to be decoded")
            if picture.format == "PNG":
                picture.verify()  # after that it must be opened again
                picture = Image.open(io.BytesIO(data))
            else:
                for frame in ImageSequence.Iterator(picture):
                    frame.load()
                picture.seek(0)
            yield picture, frames
    except BROKEN_PICTURE as error:
        raise UnreadablePictureError(why_broken(error)) from error
    except Image.DecompressionBombError as error:
        raise UnreadablePictureError("too many pixels") from error


_MOST_APART = 24.0
"""The mean difference of the channels, in 0 to 255, up to which a lossy small picture shows the full one."""


def is_preview_of(small: Path, full: Path) -> bool:
    """Return if `small` holds the first frame of `full` as `full_and_small` makes it small, or `full` is unreadable."""
    import numpy as np

    found, expected = _first_frame(small), _first_frame(full, _resized)
    if found is None or expected is None:
        return expected is None
    # Red, green and blue times alpha of both pictures, (height, width, 3) in 0 to 255: WebP may change the colour of
    # what is transparent.
    colours = [frame[..., :3] * (frame[..., 3:] / 255.0) for frame in (found, expected)]
    return found.shape == expected.shape and float(np.abs(colours[0] - colours[1]).mean()) <= _MOST_APART


def _first_frame(file: Path, change: Callable[[Image], Image] = lambda frame: frame) -> NDArray[np.float64] | None:
    """Return the channels of a picture, (height, width, 4) in 0 to 255, None if it cannot be decoded."""
    import numpy as np

    try:
        with _opened(file.read_bytes()) as (picture, _):
            return np.asarray(change(_eight_bits(picture)).convert("RGBA"), dtype=np.float64)
    except UnreadablePictureError:
        return None


def _webp(picture: Image, change: Callable[[Image], Image], *, lossless: bool) -> bytes:
    """Return `picture` as WebP, a moving one with all its frames."""
    from PIL import ImageSequence

    frames, durations = [], []
    for frame in ImageSequence.Iterator(picture):
        frames.append(change(_eight_bits(frame)))
        durations.append(int(frame.info.get("duration") or 100))
    picture.seek(0)
    options: dict[str, Any] = {"lossless": lossless, "quality": 80}
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0, "method": 0}
    encoded = io.BytesIO()
    frames[0].save(encoded, "WEBP", **options)
    return encoded.getvalue()


def _resized(frame: Image) -> Image:
    """Return `frame` with SMALL pixels on its longer side, as MLflow makes it. Enlarged pixels stay sharp."""
    from PIL import Image as Pillow

    method = Pillow.Resampling.BOX if max(frame.size) > SMALL else Pillow.Resampling.NEAREST
    return frame.resize(_small_size(frame), method)


def _small_size(frame: Image) -> tuple[int, int]:
    width, height = (max(1, side * SMALL // max(frame.size)) for side in frame.size)
    return width, height


def _eight_bits(frame: Image) -> Image:
    """Return `frame` in 8 bits a channel. Greys of 16 bits are stretched from their least to their greatest value."""
    if frame.mode.startswith("I"):
        grey = frame.convert("I")
        extrema: Any = grey.getextrema()
        low, high = extrema
        scale = 255.0 / max(high - low, 1)
        return grey.point(lambda value: value * scale - low * scale).convert("L")
    if frame.mode in ("L", "RGB", "RGBA"):
        return frame
    has_alpha = "A" in frame.mode or "transparency" in frame.info
    return frame.convert("RGBA" if has_alpha else "RGB")


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
    """Return if `file` was sent as it is now, by the signature of what was `sent`.

    The content decides where only the mtime differs: copying a directory without its times changes nothing.
    """
    size, mtime, content = (*(sent or "").split(":"), "", "", "")[:3]
    if size != str(file.size):
        return False
    return mtime == str(file.mtime_ns) or (content != "" and content == _content_digest(_small_content(file)))


def _small_content(file: RunFile) -> bytes | None:
    """Return a file's bytes, None if it is too large to be read at once, gone, or no plain file."""
    return _read(file, limit=_LARGEST_MASKED) if file.size <= _LARGEST_MASKED else None


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
    each = {path: digest(f"{file.size}:{file.mtime_ns}")[:8] for path, file in _checkpoint_files(run).items()}
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
