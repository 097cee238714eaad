"""MLflow's artifact repository on run directories: the files that an export would send, masked alike.

Pictures have the names that MLflow's slider of pictures expects, and are converted when they are asked for.
"""

from __future__ import annotations

import os
import shutil
import urllib.parse
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from bridge.errors import RunDirectoryError
from bridge.exporters.mlflow.facts import facts_of, keys_of
from bridge.exporters.mlflow.live_options import LIVE_PATH
from bridge.exporters.mlflow.live_store import refuse
from bridge.exporters.mlflow.media import (
    MEDIA_FILE,
    TARGET_MARK,
    ArtifactUpload,
    UnreadablePictureError,
    add_captions,
    add_checkpoints,
    add_full_texts,
    add_run_files,
    clean_tag,
    full_and_small,
    full_extension,
    grid_paths,
    plain_media_path,
)
from bridge.files import open_file
from bridge.live import ByteCache
from bridge.model import MediaType, RunFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.exporters.mlflow.live import LiveView
    from bridge.live import LiveRun
    from bridge.model import MediaEvent


PICTURE_BYTES = 64 << 20
"""How much the made pictures may take together, and the file of one of them at most."""

_MOST_LISTINGS = 32
"""How many runs' lists of files stay in memory."""


class Listing(ArtifactUpload):
    """Collects artifacts by path instead of uploading them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Content] = {}

    def add(self, path: str, data: bytes) -> None:
        """Add a file with this content."""
        self.found[path] = data

    def add_file(self, path: str, file: RunFile) -> None:
        """Add a file of the run directory, which is read when it is asked for."""
        self.found[path] = file


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture made of a run's file on demand: the full one (`part` 1) or the small one (2) of `full_and_small`."""

    event: MediaEvent
    part: int


Content: TypeAlias = "bytes | RunFile | _Picture"


class LiveFiles:
    """The artifacts of the runs of `view`. Small previews and converted pictures are made on demand and kept in memory.

    They take milliseconds to make, so a copy on disk, which somebody would have to clear, is not worth it.
    """

    def __init__(self, view: LiveView) -> None:
        self.view = view
        self._listings: OrderedDict[str, tuple[LiveRun, object, dict[str, Content]]] = OrderedDict()
        self._pictures = ByteCache(PICTURE_BYTES)

    def of(self, run_id: str) -> Mapping[str, Content]:
        """Return the artifacts of a run by path: the files that an export would send; none of an unknown run."""
        try:
            _, run = self.view.of_run(run_id)
            if run is None:
                return {}
            events = self.view.live.media(run)
            kept = self._listings.get(run_id)
            if kept is None or kept[0] is not run or kept[1] is not events:
                kept = self._listings[run_id] = (run, events, self._list(run, events))
                while len(self._listings) > _MOST_LISTINGS:
                    self._listings.popitem(last=False)
            return kept[2]
        except (MlflowException, RunDirectoryError):
            return {}

    def _list(self, run: LiveRun, events: Sequence[MediaEvent]) -> dict[str, Content]:
        source, content = self.view.live.run(run), self.view.live.content
        files = Listing()
        add_run_files(files, source, content, {}, [])
        files.found.pop(TARGET_MARK, None)
        keys = keys_of(self.view.live.metrics(run), dict(content.rename))
        add_full_texts(files, keys, facts_of(source, content), "")
        names: dict[str, str] = {}
        captions: list[list[Any]] = []
        for event in events:
            tag = clean_tag(event.tag)
            if tag != event.tag:
                names[tag] = event.tag
            image: Any = plain_media_path(event)
            if event.type is MediaType.IMAGE:
                full, small = grid_paths(source.identity, event, full_extension(event))
                files.found[full] = event.file if event.format in ("png", "webp") else _Picture(event, 1)
                files.found[small] = _Picture(event, 2)
                image = {"type": "image", "filepath": full, "compressed_filepath": small}
            else:
                files.found[image] = event.file
            if event.caption:
                captions.append([event.tag, event.index, event.step, event.caption, image])
        if captions:
            add_captions(files, captions, None)
        if names:
            files.add_json(MEDIA_FILE, names)
        if content.checkpoints:
            add_checkpoints(files, source, {}, [])
        return files.found

    def read(self, content: bytes | _Picture) -> bytes:
        """Return the bytes of an artifact that is no file of its own."""
        if isinstance(content, bytes):
            return content
        return self._pictures.get((content.event.file, content.part), lambda: _made(content))


def _made(picture: _Picture) -> bytes:
    """Return the picture; the file as it is if it cannot be decoded, and b"" if it cannot be read."""
    try:
        with open_file(picture.event.file) as stream:
            data = stream.read(PICTURE_BYTES + 1)
    except OSError:
        return b""
    if len(data) > PICTURE_BYTES:
        return b""
    try:
        _, full, small = full_and_small(data, picture.event.format)
    except UnreadablePictureError:
        return data
    return full if picture.part == 1 else small


class LiveArtifacts(ArtifactRepository):
    """The artifacts of all runs: `<run id>/<path>`, or a part of that if the address has the rest behind LIVE_PATH."""

    def __init__(self, artifact_uri: str, files: LiveFiles) -> None:
        super().__init__(artifact_uri)
        self._all_files = files
        _, _, self._prefix = urllib.parse.unquote(urllib.parse.urlsplit(artifact_uri).path).partition(LIVE_PATH)

    def _split(self, path: str | None) -> tuple[str, str]:
        """Return the run's id and the path of a file of the run."""
        run_id, _, rest = f"{self._prefix}/{path or ''}".strip("/").partition("/")
        return run_id, rest.strip("/")

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return the files and folders right below `path`."""
        run_id, folder = self._split(path)
        prefix = f"{path.strip('/')}/" if path and path.strip("/") else ""
        below = f"{folder}/" if folder else ""
        found: dict[str, FileInfo] = {}
        for name, content in self._all_files.of(run_id).items():
            if not name.startswith(below):
                continue
            first, slash, _ = name[len(below) :].partition("/")
            size = None if slash or isinstance(content, _Picture) else _size(content)
            found[first] = FileInfo(f"{prefix}{first}", bool(slash), size)
        return [found[name] for name in sorted(found)]

    def get_local_path(self, artifact_path: str) -> str | None:
        """Return the path of a file that is served as it lies in its run directory; None for any other."""
        content = self._content(artifact_path)
        if isinstance(content, bytes | _Picture) or content.offset is not None:
            return None
        return os.fspath(content.path)

    def _content(self, path: str) -> Content:
        run_id, name = self._split(path)
        content = self._all_files.of(run_id).get(name)
        # A link that took the place of a file, or of a folder above it, is not followed.
        moved = isinstance(content, RunFile) and os.path.realpath(content.path) != os.fspath(content.path)
        if content is None or moved:
            raise MlflowException(f"No such artifact: {path}", RESOURCE_DOES_NOT_EXIST)
        return content

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        content = self._content(remote_file_path)
        if isinstance(content, bytes | _Picture):
            Path(local_path).write_bytes(self._all_files.read(content))
            return
        with open_file(content) as source, Path(local_path).open("wb") as target:
            shutil.copyfileobj(source, target)

    log_artifact = log_artifacts = delete_artifacts = refuse


def _size(content: bytes | RunFile) -> int:
    return len(content) if isinstance(content, bytes) else content.size
