"""Pictures, captions and text cells: the records of the media file, and its order.

Each record holds one value, and per tag the steps increase strictly, as TensorBoard needs it. What comes late (a lower
step, a step again, a metric that takes an image's name) makes the file anew in order, from its own records.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from bridge.exporters.tensorboard import protos
from bridge.exporters.tensorboard.pictures import picture_of
from bridge.exporters.tensorboard.records import FOOTER, HEADER, frame
from bridge.exporters.tensorboard.tags import beside_metrics, caption_tag, image_tag, plain, text_tag
from bridge.model import Loss

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from bridge.model import MediaEvent, Text

__all__ = ["Item", "image_items", "ordered", "text_item"]


@dataclass(frozen=True, slots=True)
class Item:
    """One record of the media file."""

    tag: str
    step: int
    record: bytes


def text_item(text: Text, metrics: Collection[str]) -> Item:
    """A text cell at its step."""
    tag = beside_metrics(text_tag(text.name), metrics, "text")
    return Item(tag, text.step, protos.text_record(tag, plain(text.text), step=text.step, time=text.time))


def image_items(event: MediaEvent, metrics: Collection[str]) -> tuple[list[Item], tuple[Loss, ...]]:
    """The picture of `event` and its caption; nothing, and why, where it cannot be shown."""
    picture = picture_of(event)
    if isinstance(picture, Loss):
        return [], (picture,)
    caption = plain(event.caption or "")
    tag = beside_metrics(image_tag(event.tag, event.index), metrics, "image")
    record = protos.image_record(
        tag, picture.data, size=picture.size, description=caption, step=event.step, time=event.time
    )
    items = [Item(tag, event.step, record)]
    if caption:
        tag = beside_metrics(caption_tag(event.tag, event.index), metrics, "text")
        items.append(Item(tag, event.step, protos.text_record(tag, caption, step=event.step, time=event.time)))
    return items, picture.losses


def ordered(file: BinaryIO, begin: int, end: int, metrics: Collection[str]) -> Iterator[Item]:
    """The records between two offsets of a media file by step, under tags that no metric has.

    Of several with one tag and step only the last. Raises ValueError where the file is not what was written.
    """
    places: dict[tuple[str, int], tuple[int, int]] = {}
    for offset, data in _records(file, begin, end):
        event = protos.parse_event(data)
        key = (_free(event, metrics), event.step)
        places.pop(key, None)
        places[key] = (offset, len(data))
    for (tag, step), (offset, length) in sorted(places.items(), key=lambda place: place[0][1]):
        file.seek(offset)
        record = file.read(HEADER + length + FOOTER)
        event = protos.parse_event(record[HEADER : HEADER + length])
        if event.summary.value[0].tag != tag:
            event.summary.value[0].tag = tag
            record = frame(event.SerializeToString(deterministic=True))
        yield Item(tag, step, record)


def _free(event: object, metrics: Collection[str]) -> str:
    value = event.summary.value[0]  # type: ignore[attr-defined]  # protocol buffers come without types
    suffix = "image" if value.metadata.plugin_data.plugin_name == "images" else "text"
    return beside_metrics(value.tag, metrics, suffix)


def _records(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Where each record begins, and its data."""
    offset = begin
    while offset < end:
        file.seek(offset)
        (length,) = struct.unpack("<Q", file.read(8))
        if offset + HEADER + length + FOOTER > end:
            raise ValueError(f"a record at byte {offset} goes beyond the end")
        file.seek(offset + HEADER)
        yield offset, file.read(length)
        offset += HEADER + length + FOOTER
