"""MLflow's artifact repository on run directories: the files that an export would send, masked alike.

Pictures have the names that MLflow's slider of pictures expects, and are converted when they are asked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import urllib.parse
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

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
    ArtifactUpload,
    UnreadablePictureError,
    add_captions,
    add_checkpoints,
    add_copies,
    add_full_texts,
    add_media,
    due_files,
    full_and_small,
    full_extension,
    grid_paths,
    read_picture,
)
from bridge.files import open_file
from bridge.live import ByteCache
from bridge.model import RunFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bridge.exporters.mlflow.live import LiveView
    from bridge.live import LiveRun
    from bridge.model import MediaEvent


PICTURE_BYTES = 64 << 20
"""How much the made pictures may take together in memory."""

_MOST_LISTINGS = 32
"""How many runs' lists of files stay in memory."""

Content: TypeAlias = "bytes | RunFile | Callable[[], bytes]"
"""An artifact: its bytes, a file of the run directory, or what makes a picture on demand."""


class Listing(ArtifactUpload):
    """Collects artifacts by path instead of uploading them. `pictures` keeps those that are made on demand."""

    def __init__(self, pictures: ByteCache) -> None:
        super().__init__()
        self.found: dict[str, Content] = {}
        self._pictures = pictures

    def add(self, path: str, data: bytes) -> None:
        """Add a file with this content."""
        self.found[path] = data

    def add_file(self, path: str, file: RunFile) -> None:
        """Add a file of the run directory, which is read when it is asked for."""
        self.found[path] = file

    def add_picture(self, event: MediaEvent, identity: str) -> tuple[str, str] | None:
        """Add a picture, which is converted when it is asked for. Return its two paths, None if it cannot be shown."""
        extension = _extension(event.file, event.format)
        if extension is None:
            return None
        full, small = grid_paths(identity, event, extension)
        is_kept = event.format in ("png", "webp")
        self.found[full] = event.file if is_kept else functools.partial(self._convert, event, is_small=False)
        self.found[small] = functools.partial(self._convert, event, is_small=True)
        return full, small

    def _convert(self, event: MediaEvent, *, is_small: bool) -> bytes:
        def make() -> bytes:
            data = read_picture(event.file)
            if data is None:
                raise UnreadablePictureError("gone or too large")
            _, full, small = full_and_small(data, event.format)
            return small if is_small else full

        return self._pictures.get((event.file, is_small), make)


@functools.lru_cache(1 << 16)  # a run that grows has each picture decoded once
def _extension(file: RunFile, form: str) -> str | None:
    """Return the extension that a picture has in the grid, None if it cannot be shown there."""
    data = read_picture(file)
    with contextlib.suppress(UnreadablePictureError):
        return None if data is None else full_extension(data, form)
    return None


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
        files = Listing(self._pictures)
        add_copies(files, due_files(source, content), content, [])
        keys = keys_of(self.view.live.metrics(run), dict(content.rename))
        add_full_texts(files, keys, facts_of(source, content), "")
        media = add_media(files, source.identity, events)
        if media.captions:
            add_captions(files, media.captions, None)
        if media.names:
            files.add_json(MEDIA_FILE, media.names)
        if content.checkpoints:
            add_checkpoints(files, source, {}, [])
        return files.found


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
            size = None if slash else _size(content)
            found[first] = FileInfo(f"{prefix}{first}", bool(slash), size)
        return [found[name] for name in sorted(found)]

    def get_local_path(self, artifact_path: str) -> str | None:
        """Return the path of a file that is served as it lies in its run directory; None for any other."""
        content = self._content(artifact_path)
        if isinstance(content, RunFile) and content.offset is None:
            return os.fspath(content.path)
        return None

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
        if not isinstance(content, RunFile):
            try:
                Path(local_path).write_bytes(content if isinstance(content, bytes) else content())
            except UnreadablePictureError as error:  # the file has changed since it was listed
                raise MlflowException(f"No such artifact: {remote_file_path}", RESOURCE_DOES_NOT_EXIST) from error
            return
        with open_file(content) as source, Path(local_path).open("wb") as target:
            shutil.copyfileobj(source, target)

    log_artifact = log_artifacts = delete_artifacts = refuse


def _size(content: Content) -> int | None:
    if isinstance(content, RunFile):
        return content.size
    return len(content) if isinstance(content, bytes) else None
