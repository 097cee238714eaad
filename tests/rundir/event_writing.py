"""Write event files record by record, with TensorBoard's own messages."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.types_pb2 import DT_STRING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

START = 1_775_822_400.0


def record(event: Event | bytes) -> bytes:
    """Return a record with an event; the checksums are zeros, which no reader here looks at."""
    data = event if isinstance(event, bytes) else event.SerializeToString()
    return struct.pack("<Q", len(data)) + bytes(4) + data + bytes(4)


def scalar(tag: str, step: int, value: float, then: float) -> Event:
    """Return an event with one scalar."""
    event = Event(wall_time=then, step=step)
    event.summary.value.add(tag=tag, simple_value=np.float32(value))
    return event


def picture(tag: str, step: int, then: float, *pictures: bytes, is_tensor: bool = False) -> Event:
    """Return an event with pictures: as `Image` values, or as one tensor, which TensorFlow 2 writes."""
    event = Event(wall_time=then, step=step)
    if is_tensor:
        value = event.summary.value.add(tag=tag)
        value.metadata.plugin_data.plugin_name = "images"
        value.tensor.dtype = DT_STRING
        value.tensor.tensor_shape.dim.add(size=2 + len(pictures))
        value.tensor.string_val.extend([b"4", b"4", *pictures])
        return event
    for one in pictures:
        image = event.summary.value.add(tag=tag).image
        image.height, image.width, image.colorspace, image.encoded_image_string = 4, 4, 3, one
    return event


def age(folder: Path, seconds: float = 4000.0) -> None:
    """Make all files of a folder old."""
    then = time.time() - seconds
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def append(path: Path, *events: Event) -> None:
    """Add records to an event file."""
    path.write_bytes(path.read_bytes() + b"".join(map(record, events)))


def version(then: float) -> Event:
    """Return the event that a file begins with."""
    return Event(wall_time=then, file_version="brain.Event:2")


def write_events(folder: Path, number: int, points: Iterable[tuple[str, int, float, float]]) -> Path:
    """Write the file of one session with points (tag, step, value, time); return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    points = list(points)
    begin = points[0][3] if points else START
    path = folder / f"events.out.tfevents.{int(START)}.host.1.{number}"
    path.write_bytes(b"".join([record(version(begin)), *(record(scalar(*point)) for point in points)]))
    return path
