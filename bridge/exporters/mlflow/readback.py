"""What an MLflow run holds, read through MLflow's API and put in the source's words."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.exporters.contract import TargetContent, TargetMedia
from bridge.exporters.mlflow.api import record_of
from bridge.exporters.mlflow.artifacts import NAMES_FILE, PARAMS_FILE
from bridge.exporters.mlflow.best import best_names, names_of
from bridge.exporters.mlflow.facts import Facts, facts_of
from bridge.exporters.mlflow.media import CAPTIONS_FILE, MEDIA_FILE, captions_of, parse_path
from bridge.exporters.mlflow.names import KEY_LIMIT, keys_of
from bridge.exporters.mlflow.notes import NOTES_FILE
from bridge.exporters.mlflow.params import volatile_tag
from bridge.exporters.mlflow.people import people_tags, read_list
from bridge.exporters.mlflow.points import series_of
from bridge.exporters.mlflow.tags import TAG_LIMIT, Tag

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from mlflow.entities import Run as MlflowRun

    from bridge.cursor import ContentOptions
    from bridge.exporters.mlflow.place import Place
    from bridge.exporters.mlflow.records import Record
    from bridge.model import Run, Scalar, Series

__all__ = ["read_back"]


def read_back(
    place: Place, run_id: str, run: Run, content: ContentOptions, *, only: Collection[str] | None = None
) -> TargetContent:
    """The MLflow run `run_id`, the target of `run`. `only` names metrics, as the run logged them.

    What was renamed or cut is put back together from the artifacts that keep it in full.
    """
    found = place.api.get(run_id)
    with tempfile.TemporaryDirectory(prefix="bridge-read-") as folder:
        return _Reader(place, found, record_of(found), run, facts_of(run, content), content, Path(folder)).held(only)


@dataclass(slots=True)
class _Reader:
    place: Place
    found: MlflowRun
    record: Record
    run: Run
    facts: Facts
    content: ContentOptions
    folder: Path
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    """For metrics, params and media: from what stands in MLflow to the name it was made of."""

    def held(self, only: Collection[str] | None) -> TargetContent:
        cursor = self.record.cursor(f"MLflow run {self.record.run_id}")
        extra = cursor.extra if cursor is not None else {}
        has_more = bool(extra.get("maps"))
        self._read_names(has_more=has_more)
        if extra.get("odd_media"):
            self.names["media"] = json.loads(self._artifact(MEDIA_FILE) or b"{}")
        times = {"start": self.record.start, "end": self.record.end}
        seconds = {name: None if value is None else value / 1000.0 for name, value in times.items()}
        bests = self._bests(only)
        series = self._series(only)
        return TargetContent(
            series=series,
            bests=bests,
            last=self._last((*series, *bests)),
            params=self._params(has_more=has_more),
            tags=self._tags(),
            notes=self._notes(has_more=has_more),
            name=self.record.name,
            status=self.record.status,
            start=seconds["start"],
            end=seconds["end"],
            media=tuple(self._media()) if self.content.media and not extra.get("no_files") else (),
            cursor=cursor,
            cut=frozenset(self._cut(has_more=has_more)),
            unsupported=frozenset(self._lacks(extra.get("lost_media", ()))),
        )

    def _cut(self, *, has_more: bool) -> Iterator[str]:
        """What is held in part only."""
        if len(self.record.name) == KEY_LIMIT:
            yield "name"
        if not has_more:
            if self.facts.whole_notes is not None:
                yield "notes"
            whole = self.facts.params.whole
            yield from (f"params.{name}" for name, key in self.facts.params.keys.items() if key in whole)

    def _lacks(self, media: Iterable[str]) -> Iterator[str]:
        """What cannot be held as it is: media without a place for files, and NUL characters."""
        yield from (f"media.{tag}" for tag in media)
        run = self.run
        yield from (f"params.{name}" for name, value in run.params.items() if isinstance(value, str) and "\0" in value)
        texts = {"notes": run.notes, "name": run.name, "tags": "".join(run.tags)}
        yield from (name for name, text in texts.items() if "\0" in text)
        if not self.facts.lists_all:
            yield "tags"

    def _read_names(self, *, has_more: bool) -> None:
        text: str | bytes | None = self._artifact(NAMES_FILE) if has_more else self.record.tags.get(Tag.NAMES)
        if text is not None:
            data: Any = json.loads(text)
            self.names = {kind: {key: name for name, key in names.items()} for kind, names in data.items()}

    @property
    def _made(self) -> dict[str, str]:
        """The keys of the running bests by their names."""
        return keys_of(best_names(self.content), dict(self.content.rename))

    def _bests(self, only: Collection[str] | None) -> dict[str, Series]:
        wanted = {name for metric in self.content.bests if only is None or metric in only for name in names_of(metric)}
        keys = {name: key for name, key in self._made.items() if name in wanted and key in self.found.data.metrics}
        return {name: series_of(name, self.place.api.history(self.record.run_id, key)) for name, key in keys.items()}

    def _last(self, names: Iterable[str]) -> dict[str, float]:
        """What MLflow calls the latest value, by name: a row of a table of its own."""
        own = {name: key for key, name in self.names.get("metrics", {}).items()} | self._made
        return {name: float(self.found.data.metrics[own.get(name, name)]) for name in names}

    def _series(self, only: Collection[str] | None) -> dict[str, Series]:
        made = set(self._made.values())
        series = {}
        for key in self.found.data.metrics:
            name = self.names.get("metrics", {}).get(key, key)
            if key not in made and (only is None or name in only):
                series[name] = series_of(name, self.place.api.history(self.record.run_id, key))
        return series

    def _params(self, *, has_more: bool) -> dict[str, Scalar]:
        whole = self._artifact(PARAMS_FILE) if has_more else None
        values: dict[str, str] = dict(self.found.data.params)
        values |= json.loads(whole) if whole is not None else {}
        wanted = self.facts.params
        names = self.names.get("params", {})
        params: dict[str, Scalar] = {}
        for key, value in values.items():
            newest = self.record.tags.get(volatile_tag(key), value) if key in wanted.volatile else value
            params[names.get(key, key)] = newest
        return params

    def _tags(self) -> tuple[str, ...]:
        """The list of all tags, without those of its tags that do not stand in MLflow as they were made of it."""
        tags = read_list(self.record.tags)
        made = people_tags(tags)
        missing = {key for key, value in made.values.items() if self.record.tags.get(key) != value[:TAG_LIMIT]}
        return tuple(tag for tag in tags if made.key(tag) not in missing)

    def _notes(self, *, has_more: bool) -> str:
        held = self.record.tags.get(Tag.NOTES, "")
        if self.facts.whole_notes is None or held != self.facts.notes or not has_more:
            return held
        whole = self._artifact(NOTES_FILE)
        return held if whole is None else whole.decode()

    def _media(self) -> Iterator[TargetMedia]:
        table = self._artifact(CAPTIONS_FILE)
        captions = captions_of(table) if table is not None else {}
        there = {file.path for file in self.place.api.files(self.record.run_id)}
        for top in sorted({"images", "media"} & there):
            root = self.place.api.fetch(self.record.run_id, top, self.folder)
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                place = parse_path(f"{top}/{file.relative_to(root).as_posix()}")
                if place is None:
                    continue
                plain, step, index = place
                tag = self.names.get("media", {}).get(plain, plain)
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                yield TargetMedia(tag, step, index, digest, captions.get((tag, step, index)))

    def _artifact(self, path: str) -> bytes | None:
        folder = path.rpartition("/")[0]
        if path not in {file.path for file in self.place.api.files(self.record.run_id, folder)}:
            return None
        return self.place.api.fetch(self.record.run_id, path, self.folder).read_bytes()
