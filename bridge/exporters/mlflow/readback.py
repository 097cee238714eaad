"""Read a run back through MLflow's API, in the words of its run directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import TargetRefusedError
from bridge.exporters.contract import Mismatch, TargetContent, TargetMedia
from bridge.exporters.mlflow.facts import (
    KEY_LIMIT,
    NAMES_FILE,
    NOTES_FILE,
    PARAMS_FILE,
    TAG_LIMIT,
    RunFacts,
    Tag,
    UserTags,
    clean,
    facts_of,
    newest_tag,
    read_list_tag,
)
from bridge.exporters.mlflow.media import (
    CAPTIONS_FILE,
    MEDIA_FILE,
    ArtifactUpload,
    add_copies,
    captions_of,
    due_files,
    is_preview_of,
    is_sent,
    parse_path,
)
from bridge.exporters.mlflow.store import cursor_of
from bridge.model import Series

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from bridge.exporters.mlflow.client import FoundRun
    from bridge.exporters.mlflow.store import MlflowStore
    from bridge.model import Run, Scalar
    from bridge.options import ContentOptions


def read_back(
    store: MlflowStore, run_id: str, run: Run, content: ContentOptions, *, only: Collection[str] | None = None
) -> TargetContent:
    """Return what the MLflow run `run_id`, the target of `run`, holds. `only` names metrics as the run logged them.

    Renamed and truncated things are restored from the artifacts that keep them in full.
    """
    found = store.api.run(run_id)
    cursor = cursor_of(found)
    extra = cursor.extra if cursor is not None else {}
    made: Collection[str] = extra.get("bests", ())
    with tempfile.TemporaryDirectory(prefix="bridge-read-") as folder:
        facts = facts_of(run, content, ignores_case=store.ignores_case)
        reader = _Reader(store, found, run, facts, Path(folder), has_full_texts=bool(extra.get("maps")))
        reader.read_names(odd_media=bool(extra.get("odd_media")))
        names = reader.names.get("metrics", {})
        own = {names.get(key, key): key for key in found.metrics if key not in made}
        best = {metric: clean(f"{own.get(metric, metric)}.best") for metric in content.bests}
        best = {metric: key for metric, key in best.items() if key in made and key in found.metrics}
        wanted = {name: key for name, key in own.items() if only is None or name in only}
        wanted_best = {f"{metric}.best": key for metric, key in best.items() if only is None or metric in only}
        media: tuple[TargetMedia, ...] = ()
        mismatches: tuple[Mismatch, ...] = ()
        # If files are pending, the store may still be unusable.
        with contextlib.suppress(*((TargetRefusedError,) if extra.get("pending") else ())):
            if content.media:
                media = tuple(reader.media())
                mismatches = tuple(reader.image_mismatches())
            mismatches += tuple(reader.copy_mismatches(content, extra.get("files", {})))
        return TargetContent(
            series={name: reader.history(name, key) for name, key in wanted.items()},
            bests={name: _last(reader.history(name, key)) for name, key in wanted_best.items()},
            last={name: reader.latest_point(name, key) for name, key in (wanted | wanted_best).items()},
            names=frozenset(own),
            params=reader.params(),
            tags=reader.tags(),
            notes=reader.notes(),
            name=found.name,
            status=found.status,
            start=None if found.start is None else found.start / 1000.0,
            end=None if found.end is None else found.end / 1000.0,
            media=media,
            mismatches=(*reader.tag_mismatches(), *mismatches),
            cursor=cursor,
            truncated=frozenset(reader.truncated()),
            unsupported=frozenset(reader.unsupported()),
        )


def _series(name: str, points: Sequence[tuple[int, int, float]]) -> Series:
    """Return points (step, time in milliseconds, value) as columns."""
    step, timestamp, value = zip(*points, strict=True) if points else ((), (), ())
    time = np.array(timestamp, dtype=np.float64) / 1000.0
    return Series(name, np.array(step, dtype=np.int64), time, np.array(value, dtype=np.float64))


def _last(series: Series) -> Series:
    return Series(series.name, series.step[-1:], series.time[-1:], series.value[-1:])


@dataclass(slots=True)
class _Reader:
    """The run as MLflow holds it, with the names that were mapped: by kind, from MLflow's name to the run's own."""

    store: MlflowStore
    found: FoundRun
    run: Run
    facts: RunFacts
    folder: Path
    has_full_texts: bool
    names: dict[str, dict[str, str]] = field(default_factory=dict)

    def read_names(self, *, odd_media: bool) -> None:
        """Read the maps of names."""
        text: str | bytes | None = self.found.tags.get(Tag.NAMES)
        if text is None and self.has_full_texts:
            text = self._artifact(NAMES_FILE)
        if text is not None:
            data: Any = json.loads(text)
            self.names = {kind: {key: name for name, key in names.items()} for kind, names in data.items()}
        if odd_media:
            self.names["media"] = json.loads(self._artifact(MEDIA_FILE) or b"{}")

    def history(self, name: str, key: str) -> Series:
        """Return all points of a key, by step and then by time."""
        step, timestamp, value = self.store.runs.history(self.found.run_id, key)
        return Series(name, step, timestamp / 1000.0, value)

    def latest_point(self, name: str, key: str) -> Series:
        """Return MLflow's latest point of a key, which it keeps beside all points."""
        step, timestamp = self.found.latest[key]
        return _series(name, [(step, timestamp, self.found.metrics[key])])

    def params(self) -> dict[str, Scalar]:
        """Return the params, long ones in full, and the newest value of a volatile one."""
        whole = self._artifact(PARAMS_FILE) if self.has_full_texts else None
        values: dict[str, str] = dict(self.found.params) | (json.loads(whole) if whole is not None else {})
        names, volatile = self.names.get("params", {}), self.facts.params.volatile
        return {
            names.get(key, key): self.found.tags.get(newest_tag(key), value) if key in volatile else value
            for key, value in values.items()
        }

    def tags(self) -> tuple[str, ...]:
        """Return the user tags that MLflow holds as they were sent."""
        tags = read_list_tag(self.found.tags)
        sent = UserTags.of(tags)
        missing = {key for key, value in sent.values.items() if self.found.tags.get(key) != value[:TAG_LIMIT]}
        return tuple(tag for tag in tags if sent.key(tag) not in missing)

    def notes(self) -> str:
        """Return the notes, in full if they were truncated and nobody edited them."""
        held = self.found.tags.get(Tag.NOTES, "")
        if self.facts.whole_notes is None or held != self.facts.notes or not self.has_full_texts:
            return held
        whole = self._artifact(NOTES_FILE)
        return held if whole is None else whole.decode()

    def media(self) -> Iterator[TargetMedia]:
        """Yield the pictures, videos and other files with their digests and captions."""
        table = self._artifact(CAPTIONS_FILE)
        captions = captions_of(table) if table is not None else {}
        there = {file.path for file in self.store.api.files(self.found.run_id)}
        for top in sorted({"images", "media"} & there):
            root = self.store.api.download(self.found.run_id, top, self.folder)
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                place = parse_path(f"{top}/{file.relative_to(root).as_posix()}")
                if place is not None:
                    plain, step, index = place
                    tag = self.names.get("media", {}).get(plain, plain)
                    yield TargetMedia(tag, step, index, _digest_of(file), captions.get((tag, step, index)))

    def tag_mismatches(self) -> Iterator[Mismatch]:
        """Yield the bridge's own tags that are no longer as they were written."""
        for key, value in self.facts.own_tags.items():
            held = self.found.tags.get(key)
            if held != value:
                yield Mismatch("bridge tags", "sidecar.json", f"tag {key}", value, held)

    def image_mismatches(self) -> Iterator[Mismatch]:
        """Yield pictures without the preview that the grid shows, and the lack of the tag that switches the grid on."""
        paths = {file.path for file in self.store.api.files(self.found.run_id, "images")}
        full = {path for path in paths if parse_path(path) is not None}
        if full and Tag.IMAGES not in self.found.tags:
            yield Mismatch("media", "media.jsonl", f"tag {Tag.IMAGES}", "any value", None)
        for path in sorted(full):
            preview = f"{path.rpartition('.')[0]}+compressed.webp"
            what = f"the preview of {path}"
            if preview not in paths:
                yield Mismatch("media", "media.jsonl", what, "a picture", None)
            elif not is_preview_of(self.folder / preview, self.folder / path):
                yield Mismatch("media", "media.jsonl", what, "the picture in small", "another picture")

    def copy_mismatches(self, content: ContentOptions, sent: Mapping[str, str]) -> Iterator[Mismatch]:
        """Yield copies of the run's files that are not what was sent. Files that have changed since are left out."""
        due = due_files(self.run, content).items()
        with ArtifactUpload() as upload:
            add_copies(upload, {name: file for name, file in due if is_sent(file, sent.get(name))}, content, [])
            for name in sorted(upload.paths):
                expected = _digest_of(upload.folder / name)
                held = self.store.api.find_artifact(self.found.run_id, name, self.folder)
                found = None if held is None else _digest_of(held)
                if found != expected:
                    yield Mismatch(name, name, f"the copy of {name}", expected, found)

    def truncated(self) -> Iterator[str]:
        """Yield the names of what MLflow holds only the beginning of."""
        if len(self.found.name) == KEY_LIMIT:
            yield "name"
        if not self.has_full_texts:
            if self.facts.whole_notes is not None:
                yield "notes"
            whole = self.facts.params.whole
            yield from (f"params.{name}" for name, key in self.facts.params.keys.items() if key in whole)

    def unsupported(self) -> Iterator[str]:
        """Yield the names of what MLflow cannot hold as it is: NUL characters, too many tags."""
        run = self.run
        yield from (f"params.{name}" for name, value in run.params.items() if isinstance(value, str) and "\0" in value)
        texts = {"notes": run.notes, "name": run.name, "tags": "".join(run.tags)}
        yield from (name for name, text in texts.items() if "\0" in text)
        if not self.facts.lists_all:
            yield "tags"

    def _artifact(self, path: str) -> bytes | None:
        found = self.store.api.find_artifact(self.found.run_id, path, self.folder)
        return None if found is None else found.read_bytes()


def _digest_of(file: Path) -> str:
    """Return the hexadecimal sha256 of a file of any size."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
