"""Read a run's folder back with TensorBoard's own messages. Every checksum is checked."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import TargetRefusedError
from bridge.exporters.contract import TargetContent, TargetMedia
from bridge.exporters.tensorboard.events import parse_event, read_records, read_scalars
from bridge.exporters.tensorboard.facts import (
    HPARAMS_TAG,
    NOTES_TAG,
    TAGS_TAG,
    parse_caption_tag,
    parse_image_tag,
    parse_tags,
)
from bridge.exporters.tensorboard.state import FolderState, read_state
from bridge.model import Series

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from bridge.exporters.tensorboard.events import ScalarRows
    from bridge.model import Run, Scalar


def read_content(folder: Path, run: Run, *, only: Collection[str] | None = None) -> TargetContent:
    """Return what `folder` holds of `run`, with `only` the series of these metrics.

    Raise TargetRefusedError, which names the file, if one is missing or damaged.
    """
    state = read_state(folder)
    if state is None:
        raise TargetRefusedError(
            f"{folder} has no state file that can be read.", hint="The next export of this run writes it again."
        )
    reader = ContentReader(state, only)
    for kind, record in state.files.items():
        path = folder / record.name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if kind == "scalars":
                    reader.add_scalars(read_scalars(file, size))
                else:
                    for offset, data in read_records(file, 0, size):
                        reader.add(parse_event(data, offset))
        except FileNotFoundError as error:
            hint = "The next export of this run writes it again."
            raise TargetRefusedError(f"{path} is missing.", hint=hint) from error
        except ValueError as error:
            reason = f"{path} is damaged at byte {error.args[0]}: TensorBoard's reader stops there."
            raise TargetRefusedError(reason, hint="bridge export with --rebuild writes it again.") from error
    return reader.content(run)


class ContentReader:
    """Collects the events of one run's files; `content` returns them as a TargetContent."""

    def __init__(self, state: FolderState, only: Collection[str] | None) -> None:
        self._state = state
        self._only = only
        self._points: dict[str, list[tuple[NDArray[Any], ...]]] = {}
        self._names: set[str] = set()
        self._captions: dict[tuple[str, int, int], str] = {}
        self._images: dict[tuple[str, int, int], tuple[str, float]] = {}
        self._texts: dict[str, str] = {}
        self._sessions: dict[str, Any] = {}

    def add(self, event: Any) -> None:
        """Add the values of one Event."""
        for value in event.summary.value:
            plugin = value.metadata.plugin_data.plugin_name
            if plugin == "images":
                parsed = parse_image_tag(value.tag)
                if parsed is not None:
                    digest = hashlib.sha256(value.tensor.string_val[2]).hexdigest()
                    self._images[parsed[0], event.step, parsed[1]] = (digest, event.wall_time)
            elif plugin == "text":
                self._add_text(event, value.tag, value.tensor.string_val[0].decode())
            else:
                self._add_session(value.metadata.plugin_data.content)

    def add_scalars(self, found: Iterable[ScalarRows]) -> None:
        """Add the points of rows."""
        for rows in found:
            for tag, values in zip(rows.tags, rows.values, strict=True):
                name = self._state.renamed.get(tag, tag)
                self._names.add(name)
                if self._only is None or name in self._only:
                    columns = (rows.steps, rows.times, values.astype(np.float64))
                    self._points.setdefault(name, []).append(columns)

    def _add_text(self, event: Any, tag: str, text: str) -> None:
        own = tag.split(" (text)", maxsplit=1)[0]
        caption = parse_caption_tag(tag)
        if own in (NOTES_TAG, HPARAMS_TAG, TAGS_TAG):
            self._texts[own] = text
        elif caption is not None:
            self._captions[caption[0], event.step, caption[1]] = text

    def _add_session(self, data: bytes) -> None:
        from tensorboard.plugins.hparams import plugin_data_pb2

        plugin_data = plugin_data_pb2.HParamsPluginData.FromString(data)
        kind = plugin_data.WhichOneof("data")
        if kind is not None:
            self._sessions.setdefault(kind, getattr(plugin_data, kind))  # TensorBoard, too, takes the first of each

    def content(self, run: Run) -> TargetContent:
        """Return what was added."""
        start, end = (self._sessions.get(f"session_{kind}_info") for kind in ("start", "end"))
        unsupported = set(self._state.unsupported)
        if start is None:
            unsupported |= {"params", "status"}
        if end is None:
            # A status that TensorBoard has no word for has no end either.
            unsupported.add("end")
        return TargetContent(
            series={
                name: Series(name, *map(np.concatenate, zip(*parts, strict=True)))
                for name, parts in self._points.items()
            },
            params=None if start is None else _params(start),
            tags=parse_tags(self._texts.get(TAGS_TAG, "")),
            notes=self._texts.get(NOTES_TAG, ""),
            status="" if end is None else _status(end.status),
            start=None if start is None else start.start_time_secs,
            end=None if end is None else end.end_time_secs,
            names=frozenset(self._names),
            media=tuple(
                TargetMedia(tag, step, index, digest, self._captions.get((tag, step, index)), time)
                for (tag, step, index), (digest, time) in sorted(self._images.items())
            ),
            cursor=self._state.cursor,
            unsupported=frozenset(unsupported),
        )


def _params(start: Any) -> dict[str, Scalar]:
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}


def _status(number: int) -> str:
    from tensorboard.plugins.hparams.api_pb2 import Status

    return str(Status.Name(number)).removeprefix("STATUS_")
