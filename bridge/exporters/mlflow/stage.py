"""Files on their way into a run's artifacts: laid out in a temporary folder, then sent in one go."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bridge.errors import TargetRefusedError
from bridge.files import open_plain
from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from types import TracebackType
    from typing import BinaryIO

    from bridge.exporters.mlflow.api import Api
    from bridge.model import RunFile

__all__ = ["Stage", "read_safely"]

_LINK_FROM_BYTES = 64 << 20
"""Files of this size and more are not copied into the temporary folder, only linked."""


_NOT_WORTH_MORE = 20
"""After so many refused files the store itself is what is wrong."""


class Stage:
    """A temporary folder whose layout is that of the artifacts; gone when the block ends."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._linked: list[BinaryIO] = []
        self.paths: list[str] = []
        self.bytes = 0

    @property
    def folder(self) -> Path:
        """The folder; made when it is first needed."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="bridge-stage-"))
        return self._folder

    def add(self, path: str, data: bytes) -> None:
        """Put `data` at the artifact path `path`."""
        self._place(path).write_bytes(data)
        self.bytes += len(data)

    def add_file(self, path: str, file: RunFile) -> Notice | None:
        """Put a file of the run directory at `path`; the notice where it is gone or no longer a plain file."""
        place = self._place(path)
        try:
            if file.size >= _LINK_FROM_BYTES:
                self._link(place, file.path)
            else:
                with open_plain(file.path) as source, place.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        except OSError as error:
            self.paths.remove(path)
            return Notice(NoticeKind.MISSING_FILE, path, str(error.strerror or error))
        self.bytes += file.size
        return None

    def send(self, api: Api, run_id: str) -> list[Notice]:
        """Upload everything; what the store does not take, for its size or its name, is a notice each."""
        if not self.paths:
            return []
        try:
            api.upload(run_id, self.folder)
        except TargetRefusedError:
            return self._send_one_by_one(api, run_id)
        return []

    def _send_one_by_one(self, api: Api, run_id: str) -> list[Notice]:
        """A folder is refused for one of its files: the others are sent all the same."""
        refused: list[tuple[str, TargetRefusedError]] = []
        others: list[TargetRefusedError] = []
        for path in self.paths:
            try:
                api.upload_file(run_id, self.folder / path, path.rpartition("/")[0] or None)
            except TargetRefusedError as error:
                refused.append((path, error))
                others += [] if _is_too_large(error) else [error]
                if len(others) == _NOT_WORTH_MORE:
                    raise
        if others and len(refused) == len(self.paths):
            raise others[0]
        return [
            Notice(NoticeKind.TOO_LARGE if _is_too_large(error) else NoticeKind.REFUSED, path, error.message)
            for path, error in refused
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        while self._linked:
            self._linked.pop().close()

    def _link(self, place: Path, path: Path) -> None:
        """Let `place` lead to the plain file that lies at `path` now: to itself, where the system can say that, and not to the path."""
        source = open_plain(path)
        self._linked.append(source)
        itself = Path(f"/proc/self/fd/{source.fileno()}")
        place.symlink_to(itself if itself.exists() else path)

    def _place(self, path: str) -> Path:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path not in self.paths:
            self.paths.append(path)
        return place


def read_safely(file: RunFile, *, limit: int) -> bytes | None:
    """The bytes of a plain file of at most `limit` bytes; None where it is gone, larger or no longer plain."""
    try:
        with open_plain(file.path) as source:
            data = source.read(limit + 1)
    except OSError:
        return None
    return data if len(data) <= limit else None


def _is_too_large(error: TargetRefusedError) -> bool:
    return "(413)" in error.message or "too large" in error.message.lower()
