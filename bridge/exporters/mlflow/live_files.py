"""MLflow's artifact repository on run directories: the files that an export would send, masked alike.

Pictures have the names that MLflow's slider of pictures expects, and are converted when they are asked for.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from bridge.errors import RunDirectoryError
from bridge.exporters.mlflow import media
from bridge.exporters.mlflow.live import LiveStore, refuse
from bridge.exporters.mlflow.live_options import split_address
from bridge.files import open_file
from bridge.model import RunFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bridge.live import LiveRun
    from bridge.model import MediaEvent


Content: TypeAlias = "bytes | RunFile | Callable[[], bytes]"
"""An artifact: its bytes, a file of the run directory, or what makes a picture on demand."""


class Listing(media.ArtifactUpload):
    """Collects artifacts by path instead of uploading them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Content] = {}

    def add(self, path: str, data: bytes) -> None:
        """Add a file with this content."""
        self.found[path] = data

    def add_file(self, path: str, file: RunFile, *, data: bytes | None = None, what: str | None = None) -> bool:
        """Add a file of the run directory, which is read when it is asked for."""
        self.found[path] = file
        return True

    def add_picture(self, event: MediaEvent, identity: str) -> tuple[str, str] | None:
        """Add a picture, which is converted when it is asked for. Return its two paths, None if it cannot be shown."""
        extension = media.picture_extension(event.file, event.format)
        if extension is None:
            return None
        full, small = media.grid_paths(identity, event, extension)
        self.found[full] = event.file if event.format in ("png", "webp") else partial(_converted, event, 1)
        self.found[small] = partial(_converted, event, 2)
        return full, small


def _converted(event: MediaEvent, part: int) -> bytes:
    """Return the full picture of `event` if `part` is 1, the small one if it is 2. This takes milliseconds."""
    data = media.read_picture(event.file) or b""
    return bytes(media.full_and_small(data, event.format)[part])  # type: ignore[arg-type]


def _size(content: Content) -> int | None:
    """Return the bytes of an artifact; None for a picture that is still to be made."""
    if isinstance(content, RunFile):
        return content.size
    return len(content) if isinstance(content, bytes) else None


class LiveArtifacts(ArtifactRepository):
    """The artifacts of all runs: `<run id>/<path>`, or a part of that if the address has the rest behind LIVE_PATH."""

    def __init__(self, artifact_uri: str, store: LiveStore) -> None:
        super().__init__(artifact_uri)
        self._store = store
        _, self._prefix = split_address(artifact_uri)

    def _split(self, path: str | None) -> tuple[Mapping[str, Content], str]:
        """Return the files of a run by path, and the path below the run."""
        run_id, _, rest = f"{self._prefix}/{path or ''}".strip("/").partition("/")
        try:
            run = self._store.find_run(run_id)
            events = self._store.live.media(run)
            kept = run.kept.get("files")
            if kept is None or kept[0] is not events:
                kept = run.kept["files"] = (events, self._list(run, events))
        except (MlflowException, RunDirectoryError):
            return {}, ""
        return kept[1], rest.strip("/")

    def _list(self, run: LiveRun, events: Sequence[MediaEvent]) -> Mapping[str, Content]:
        live, files = self._store.live, Listing()
        if "children" in run.kept:  # a sweep's parent
            return {}
        source, content = live.run(run), live.options.content
        media.add_copies(files, media.due_files(source, content), content)
        added = media.add_media(files, source.identity, events)
        if added.captions:
            media.add_captions(files, added.captions, {})
        if added.names:
            files.add_json(media.MEDIA_FILE, added.names)
        if content.checkpoints:
            media.add_checkpoints(files, source, {})
        return files.found

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return the files and folders right below `path`."""
        files, folder = self._split(path)
        prefix = f"{path.strip('/')}/" if path and path.strip("/") else ""
        below = f"{folder}/" if folder else ""
        found: dict[str, FileInfo] = {}
        for name, content in files.items():
            if name.startswith(below):
                first, slash, _ = name[len(below) :].partition("/")
                size = None if slash else _size(content)
                found[first] = FileInfo(f"{prefix}{first}", bool(slash), size)
        return [found[name] for name in sorted(found)]

    def get_local_path(self, artifact_path: str) -> str | None:
        """Return the path of a file that is served as it lies in its run directory; None for any other."""
        content = self._content(artifact_path)
        return os.fspath(content.path) if isinstance(content, RunFile) and content.offset is None else None

    def _content(self, path: str) -> Content:
        files, name = self._split(path)
        content = files.get(name)
        # A link that took the place of a file, or of a folder above it, is not followed.
        moved = isinstance(content, RunFile) and os.path.realpath(content.path) != os.fspath(content.path)
        if content is None or moved:
            raise MlflowException(f"No such artifact: {path}", RESOURCE_DOES_NOT_EXIST)
        return content

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        content = self._content(remote_file_path)
        if isinstance(content, RunFile):
            with open_file(content) as source, Path(local_path).open("wb") as target:
                shutil.copyfileobj(source, target)
            return
        try:
            Path(local_path).write_bytes(content if isinstance(content, bytes) else content())
        except media.UnreadablePictureError as error:  # the file has changed since it was listed
            raise MlflowException(f"No such artifact: {remote_file_path}", RESOURCE_DOES_NOT_EXIST) from error

    log_artifact = log_artifacts = delete_artifacts = refuse
