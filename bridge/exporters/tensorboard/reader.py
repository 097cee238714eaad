"""Read a run's folder back as TensorBoard's Python loader does, which checks every checksum."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import TargetRefusedError
from bridge.exporters.contract import TargetContent, TargetMedia
from bridge.exporters.tensorboard import facts, protos
from bridge.exporters.tensorboard.records import FOOTER, HEADER
from bridge.exporters.tensorboard.state import State, read_state
from bridge.exporters.tensorboard.tags import caption_of_tag, image_of_tag
from bridge.model import Series

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from bridge.model import Run, Scalar

__all__ = ["read_held"]


def read_held(folder: Path, run: Run, *, only: Collection[str] | None = None) -> TargetContent:
    """What `folder` holds of `run`. Raises TargetRefusedError, which names the file, where it is damaged."""
    state = read_state(folder)
    if state is None:
        raise TargetRefusedError(
            f"{folder} has no state file that can be read.", hint="The next export of this run makes it anew."
        )
    found = _Found(state, only)
    for kept in state.files.values():
        for event in _events(folder / kept.name):
            found.take(event)
    return found.held(run)


def _events(path: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    if not path.is_file():
        raise TargetRefusedError(f"{path} is missing.", hint="The next export of this run makes it anew.")
    read = 0
    try:
        for data in RawEventFileLoader(str(path)).Load():
            read += HEADER + len(data) + FOOTER
            yield protos.parse_event(data)
    except ValueError as error:
        raise _damaged(path, read) from error
    # The loader takes a wrong checksum for a record that is still being written, and ends there.
    if read != path.stat().st_size:
        raise _damaged(path, read)


def _damaged(path: Path, place: int) -> TargetRefusedError:
    return TargetRefusedError(
        f"{path} is damaged at byte {place}: TensorBoard's reader stops there.",
        hint="bridge export with --rebuild makes it anew.",
    )


class _Found:
    """What was found so far, put together by `held`."""

    def __init__(self, state: State, only: Collection[str] | None) -> None:
        self._state = state
        self._only = only
        self._points: dict[str, tuple[list[int], list[float], list[float]]] = {}
        self._captions: dict[tuple[str, int, int], str] = {}
        self._images: dict[tuple[str, int, int], str] = {}
        self._own: dict[str, str] = {}
        self._session: Any = None
        self._end: Any = None

    def take(self, event: Any) -> None:
        for value in event.summary.value:
            if value.HasField("simple_value"):
                self._take_point(event, value)
            elif value.metadata.plugin_data.plugin_name == "images":
                place = image_of_tag(value.tag)
                if place is not None:
                    key = (place[0], event.step, place[1])
                    self._images[key] = hashlib.sha256(value.tensor.string_val[2]).hexdigest()
            elif value.metadata.plugin_data.plugin_name == "text":
                self._take_text(event, value.tag, value.tensor.string_val[0].decode())
            else:
                self._take_session(value.metadata.plugin_data.content)

    def _take_point(self, event: Any, value: Any) -> None:
        name = self._state.names.get(value.tag, value.tag)
        if self._only is None or name in self._only:
            steps, times, values = self._points.setdefault(name, ([], [], []))
            steps.append(event.step)
            times.append(event.wall_time)
            values.append(value.simple_value)

    def _take_text(self, event: Any, tag: str, text: str) -> None:
        own = tag.split(" (text)", maxsplit=1)[0]
        if own in (facts.NOTES_TAG, facts.HPARAMS_TAG, facts.TAGS_TAG):
            self._own[own] = text
            return
        caption = caption_of_tag(tag)
        if caption is not None:
            self._captions[caption[0], event.step, caption[1]] = text

    def _take_session(self, content: bytes) -> None:
        from tensorboard.plugins.hparams import plugin_data_pb2

        data = plugin_data_pb2.HParamsPluginData.FromString(content)
        # TensorBoard, too, takes the first of each.
        if data.HasField("session_start_info") and self._session is None:
            self._session = data.session_start_info
        if data.HasField("session_end_info") and self._end is None:
            self._end = data.session_end_info

    def held(self, run: Run) -> TargetContent:
        unsupported = set(self._state.unsupported)
        if self._session is None:
            unsupported |= {"params", "status"}
        if self._end is None:
            # A status that TensorBoard has no word for has no end either.
            unsupported.add("end")
        return TargetContent(
            series={
                name: Series(
                    name,
                    np.array(steps, dtype=np.int64),
                    np.array(times, dtype=np.float64),
                    np.array(values, dtype=np.float64),
                )
                for name, (steps, times, values) in self._points.items()
            },
            params=None if self._session is None else _params(self._session),
            tags=facts.list_of_markdown(self._own.get(facts.TAGS_TAG, "")),
            notes=self._own.get(facts.NOTES_TAG, ""),
            status=_status(self._end),
            start=None if self._session is None else self._session.start_time_secs,
            end=None if self._end is None else self._end.end_time_secs,
            media=tuple(
                TargetMedia(tag, step, index, digest, self._captions.get((tag, step, index)))
                for (tag, step, index), digest in sorted(self._images.items())
            ),
            cursor=self._state.cursor,
            unsupported=frozenset(unsupported),
        )


def _params(session: Any) -> dict[str, Scalar]:
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in session.hparams.items()}


def _status(end: Any) -> str:
    from tensorboard.plugins.hparams import api_pb2

    if end is None:
        return ""
    return {api_pb2.STATUS_SUCCESS: "SUCCESS", api_pb2.STATUS_FAILURE: "FAILURE"}.get(end.status, "")
