"""Pictures and captions: the records of the media file, and its order.

Each record holds one value, and per tag the steps increase strictly, as TensorBoard needs it. What comes late (a lower
step, a step again, a metric that takes an image's name, the first caption of a tag that has pictures without one) makes
the file anew in order, from its own records.

The IMAGES page shows one description a tag, that of the first record: it is the tag's first caption by step, whichever
picture has it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from bridge.exporters.tensorboard import protos
from bridge.exporters.tensorboard.pictures import picture_of
from bridge.exporters.tensorboard.records import FOOTER, HEADER, frame
from bridge.exporters.tensorboard.tags import (
    beside_metrics,
    caption_of_tag,
    caption_tag,
    image_of_tag,
    image_tag,
    plain,
)
from bridge.model import Notice

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from bridge.model import MediaEvent

__all__ = ["Item", "image_items", "ordered"]


@dataclass(frozen=True, slots=True)
class Item:
    """One record of the media file."""

    tag: str
    step: int
    record: bytes


def image_items(
    event: MediaEvent, metrics: Collection[str], known: Collection[str]
) -> tuple[list[Item], tuple[Notice, ...]]:
    """The picture of `event`, then its caption if it has one; nothing, and why, where it cannot be shown.

    `known` are the tags that have records already: the first record of a tag alone has a description.
    """
    picture = picture_of(event)
    if isinstance(picture, Notice):
        return [], (picture,)
    caption = plain(event.caption or "")
    tag = beside_metrics(image_tag(event.tag, event.index), metrics, "image")
    record = protos.image_record(
        tag,
        picture.data,
        size=picture.size,
        description="" if tag in known else caption,
        step=event.step,
        time=event.time,
    )
    items = [Item(tag, event.step, record)]
    if caption:
        tag = beside_metrics(caption_tag(event.tag, event.index), metrics, "text")
        items.append(Item(tag, event.step, protos.text_record(tag, caption, step=event.step, time=event.time)))
    return items, picture.notices


def ordered(file: BinaryIO, begin: int, end: int, metrics: Collection[str]) -> Iterator[Item]:
    """The records between two offsets of a media file by step, under tags that no metric has, with their descriptions.

    Of several with one tag and step only the last. Raises ValueError where the file is not what was written.
    """
    places: dict[tuple[str, int], tuple[int, int]] = {}
    captions: dict[tuple[str, int], tuple[int, str]] = {}
    for offset, data in _records(file, begin, end):
        event = protos.parse_event(data)
        key = (_free(event, metrics), event.step)
        places.pop(key, None)
        places[key] = (offset, len(data))
        _learn_caption(event, captions)
    described: set[str] = set()
    for (tag, step), (offset, length) in sorted(places.items(), key=lambda place: place[0][1]):
        file.seek(offset)
        record = file.read(HEADER + length + FOOTER)
        event = protos.parse_event(record[HEADER : HEADER + length])
        value = event.summary.value[0]
        place = image_of_tag(value.tag) if _is_image(value) and tag not in described else None
        _, description = captions.get(place, (0, "")) if place else (0, "")
        described.add(tag)
        if (value.tag, value.metadata.summary_description) != (tag, description):
            value.tag, value.metadata.summary_description = tag, description
            record = frame(event.SerializeToString(deterministic=True))
        yield Item(tag, step, record)


def _learn_caption(event: Any, captions: dict[tuple[str, int], tuple[int, str]]) -> None:
    """Keep the caption that `event` may be, as step and text by the image's tag and index, if it is the first by step."""
    value = event.summary.value[0]
    place = None if _is_image(value) else caption_of_tag(value.tag)
    if place is not None and (place not in captions or event.step <= captions[place][0]):
        captions[place] = (event.step, value.tensor.string_val[0].decode())


def _free(event: Any, metrics: Collection[str]) -> str:
    value = event.summary.value[0]
    return beside_metrics(value.tag, metrics, "image" if _is_image(value) else "text")


def _is_image(value: Any) -> bool:
    return bool(value.metadata.plugin_data.plugin_name == "images")


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
