"""Read a run back through MLflow's API, in the words of its run directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from bridge.errors import TargetError
from bridge.exporters.contract import Mismatch, TargetContent, TargetMedia
from bridge.exporters.mlflow.facts import (
    KEY_LIMIT,
    NOTES_ENDING,
    NOTES_LIMIT,
    Tag,
    UserTags,
    facts_of,
    key_of_best,
    newest_tag,
    read_list_tag,
    read_names_tags,
)
from bridge.exporters.mlflow.media import (
    CAPTIONS_FILE,
    MEDIA_FILE,
    ArtifactUpload,
    add_copies,
    captions_of,
    due_files,
    is_sent,
    parse_path,
)
from bridge.exporters.mlflow.pictures import is_preview_of
from bridge.exporters.mlflow.store import edited_tags
from bridge.model import Series

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from bridge.exporters.mlflow.store import MlflowStore
    from bridge.model import Run, Scalar
    from bridge.options import ContentOptions


class RunReader:
    """Reads the MLflow run `run_id`, the target of `run`, in the words of its run directory.

    Names that were changed are changed back.
    """

    def __init__(self, store: MlflowStore, run_id: str, run: Run, content: ContentOptions) -> None:
        self._store, self._run, self._content = store, run, content
        self._found = store.api.run(run_id)
        self._facts = facts_of(run, content, ignores_case=store.ignores_case)
        self._cursor = self._found.read_cursor()
        self._extra: Mapping[str, Any] = self._cursor.extra if self._cursor is not None else {}
        self._paths = cache(lambda folder: frozenset(file.path for file in store.api.files(run_id, folder)))
        self._names: dict[str, dict[str, str]] = {}
        """The names that were mapped: by kind, from MLflow's name to the run's own."""

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return the content. `only` names metrics as the run logged them. Only their points are read each time."""
        rest = self._all_but_points
        made: Collection[str] = self._extra.get("bests", ())
        names = self._names.get("metrics", {})
        own = {names.get(key, key): key for key in self._found.metrics if key not in made}
        best = {f"{metric}.best": key_of_best(own.get(metric, metric)) for metric in self._content.bests}
        best = {name: key for name, key in best.items() if key in made and key in self._found.metrics}
        if only is not None:
            best = {name: key for name, key in best.items() if name.removesuffix(".best") in only}
        wanted = {name: key for name, key in own.items() if only is None or name in only}
        return replace(
            rest,
            series={name: self._history(name, key) for name, key in wanted.items()},
            bests={name: self._history(name, key, from_row=-1) for name, key in best.items()},
            last={name: self._latest_point(name, key) for name, key in (wanted | best).items()},
            names=frozenset(own),
        )

    @cached_property
    def _all_but_points(self) -> TargetContent:
        found, media, mismatches = self._found, list[TargetMedia](), self._tag_mismatches()
        with tempfile.TemporaryDirectory(prefix="bridge-read-") as name:
            self._folder = Path(name)
            self._read_names()
            # If files are pending, the store may still be unusable.
            with contextlib.suppress(*((TargetError,) if self._extra.get("pending") else ())):
                if self._content.media:
                    media += self._media()
                    mismatches += self._image_mismatches()
                mismatches += self._copy_mismatches()
            return TargetContent(
                series={},
                params=self._params(),
                tags=self._tags(),
                notes=self._notes(),
                name=found.name,
                status=found.status,
                start=None if found.start is None else found.start / 1000.0,
                end=None if found.end is None else found.end / 1000.0,
                media=tuple(media),
                mismatches=tuple(mismatches),
                cursor=self._cursor,
                truncated=frozenset(self._truncated()),
                unsupported=self._facts.unsupported,
            )

    def _read_names(self) -> None:
        """Read the maps of names."""
        maps = read_names_tags(self._found.tags)
        self._names = {kind: {key: name for name, key in names.items()} for kind, names in maps.items()}
        if self._extra.get("odd_media"):
            self._names["media"] = json.loads(self._artifact(MEDIA_FILE) or b"{}")

    def _history(self, name: str, key: str, *, from_row: int = 0) -> Series:
        """Return the points of a key, by step and then by time, from the number `from_row` on."""
        rows = self._store.runs.history(self._found.run_id, key).take(slice(from_row, None))
        return Series(name, rows.step, rows.timestamp / 1000.0, rows.shown)

    def _latest_point(self, name: str, key: str) -> Series:
        """Return MLflow's latest point of a key, which it keeps beside all points."""
        step, timestamp = self._found.latest[key]
        return Series(name, np.array([step]), np.array([timestamp / 1000.0]), np.array([self._found.metrics[key]]))

    def _params(self) -> dict[str, Scalar]:
        """Return the params, and the newest value of a volatile one."""
        names, volatile = self._names.get("params", {}), self._facts.params.volatile
        return {
            names.get(key, key): self._found.tags.get(newest_tag(key), value) if key in volatile else value
            for key, value in self._found.params.items()
        }

    def _tags(self) -> tuple[str, ...]:
        """Return the user tags that MLflow holds as they were sent."""
        tags = read_list_tag(self._found.tags)
        sent, edited = UserTags.of(tags), edited_tags(self._found)
        return tuple(tag for tag in tags if sent.key(tag) not in edited)

    def _notes(self) -> str:
        """Return the notes, those that were truncated without the ending that says so."""
        held = self._found.tags.get(Tag.NOTES, "")
        return held.removesuffix(NOTES_ENDING) if len(held) == NOTES_LIMIT else held

    def _media(self) -> Iterator[TargetMedia]:
        """Yield the pictures, videos and other files with their digests and captions."""
        table = self._artifact(CAPTIONS_FILE)
        captions = captions_of(table) if table is not None else {}
        for top in sorted({"images", "media"} & self._paths("")):
            root = self._store.api.download(self._found.run_id, top, self._folder)
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                place = parse_path(f"{top}/{file.relative_to(root).as_posix()}")
                if place is not None:
                    plain, step, index = place
                    tag = self._names.get("media", {}).get(plain, plain)
                    yield TargetMedia(tag, step, index, _digest_of(file), captions.get((tag, step, index), ""))

    def _tag_mismatches(self) -> list[Mismatch]:
        """Return the bridge's own tags that are no longer as they were written."""
        held = self._found.tags
        return [
            Mismatch("bridge tags", "sidecar.json", f"tag {key}", value, held.get(key))
            for key, value in self._facts.own_tags.items()
            if held.get(key) != value
        ]

    def _image_mismatches(self) -> Iterator[Mismatch]:
        """Yield pictures without the preview that the grid shows, and the lack of the tag that switches the grid on."""
        paths = self._paths("images") if "images" in self._paths("") else frozenset()
        full = {path for path in paths if parse_path(path) is not None}
        if full and Tag.IMAGES not in self._found.tags:
            yield Mismatch("media", "media.jsonl", f"tag {Tag.IMAGES}", "any value", None)
        for path in sorted(full):
            preview = f"{path.rpartition('.')[0]}+compressed.webp"
            what = f"the preview of {path}"
            if preview not in paths:
                yield Mismatch("media", "media.jsonl", what, "a picture", None)
            elif not is_preview_of(self._folder / preview, self._folder / path):
                yield Mismatch("media", "media.jsonl", what, "the picture in small", "another picture")

    def _copy_mismatches(self) -> Iterator[Mismatch]:
        """Yield copies of the run's files that are not what was sent. Files that have changed since are left out."""
        content, sent = self._content, self._extra.get("files", {})
        due = due_files(self._run, content).items()
        upload = ArtifactUpload(self._folder / "expected")
        add_copies(upload, {name: file for name, file in due if is_sent(file, sent.get(name))}, content)
        for name in sorted(upload.paths):
            expected = _digest_of(self._folder / "expected" / name)
            held = self._find(name)
            found = None if held is None else _digest_of(held)
            if found != expected:
                yield Mismatch(name, name, f"the copy of {name}", expected, found)

    def _truncated(self) -> Iterator[str]:
        """Yield the names of what MLflow holds only the beginning of."""
        if len(self._found.name) == KEY_LIMIT:
            yield "name"
        if len(self._run.notes) > NOTES_LIMIT:
            yield "notes"
        params = self._facts.params
        yield from (f"params.{name}" for name, key in params.keys.items() if key in params.truncated)

    def _artifact(self, path: str) -> bytes | None:
        found = self._find(path)
        return None if found is None else found.read_bytes()

    def _find(self, path: str) -> Path | None:
        """Download an artifact. Return its local path, None if there is no such file."""
        if path not in self._paths(path.rpartition("/")[0]):
            return None
        return self._store.api.download(self._found.run_id, path, self._folder)


def _digest_of(file: Path) -> str:
    """Return the hexadecimal sha256 of a file of any size."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
