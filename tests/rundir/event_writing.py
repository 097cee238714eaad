"""Write event files record by record, with TensorBoard's own messages."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

START = 1_775_822_400.0


def record(event: Event | bytes) -> bytes:
    """Return a record with an event; the checksums are zeros, which no reader here looks at."""
    data = event if isinstance(event, bytes) else event.SerializeToString()
    return struct.pack("<Q", len(data)) + bytes(4) + data + bytes(4)


def scalar(tag: str, step: int, value: float, time: float) -> Event:
    """Return an event with one scalar."""
    event = Event(wall_time=time, step=step)
    event.summary.value.add(tag=tag, simple_value=np.float32(value))
    return event


def version(time: float) -> Event:
    """Return the event that a file begins with."""
    return Event(wall_time=time, file_version="brain.Event:2")


def write_events(folder: Path, number: int, points: Iterable[tuple[str, int, float, float]]) -> Path:
    """Write the file of one session with points (tag, step, value, time); return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    points = list(points)
    begin = points[0][3] if points else START
    path = folder / f"events.out.tfevents.{int(START)}.host.1.{number}"
    path.write_bytes(b"".join([record(version(begin)), *(record(scalar(*point)) for point in points)]))
    return path
