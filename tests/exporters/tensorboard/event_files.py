"""Read event files with TensorBoard's own loader, which checks every checksum."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.exporters.tensorboard.events import FOOTER, HEADER
from tests.deltas import make_block, make_delta

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.model import Delta, Run

SCALARS = "events.out.tfevents.0000000003.bridge.scalars.g000"


def first_of(run: Run) -> Delta:
    """Return the first two points of a run."""
    return make_delta(run, [make_block([0, 1], {"loss": [4.0, 3.0]})])


def second_of(run: Run, first: Delta) -> Delta:
    """Return the two points that follow."""
    return make_delta(run, [make_block([2, 3], {"loss": [2.0, 1.0]}, first_row=2)], before=first.after)


def events(path: Path) -> list[Any]:
    """Return all events of a file, and fail if the loader stops before its end."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2

    raw = list(RawEventFileLoader(str(path)).Load())
    assert sum(HEADER + len(data) + FOOTER for data in raw) == path.stat().st_size, f"{path.name} is damaged"
    return [event_pb2.Event.FromString(data) for data in raw]


def rows(path: Path) -> list[tuple[int, float, dict[str, str]]]:
    """Return step, time and values of every event with scalars; values are float32 in hex, so that NaN compares."""
    return [
        (event.step, event.wall_time, {value.tag: np.float32(value.simple_value).tobytes().hex() for value in values})
        for event in events(path)
        if (values := [value for value in event.summary.value if value.HasField("simple_value")])
    ]


def hex32(value: float) -> str:
    """Return the bytes of a value as float32, in hex."""
    with np.errstate(over="ignore"):
        return np.float64(value).astype("<f4").tobytes().hex()


def content(folder: Path) -> dict[str, object]:
    """Return every file's bytes, and the state without the files' mtimes."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    state = json.loads((folder / "bridge-state.json").read_bytes())
    del state["digest"]
    for kept in state["files"].values():
        del kept["mtime"]
    return found | {"bridge-state.json": state}


def file_of(folder: Path, kind: str) -> Path:
    """Return the one event file of a kind."""
    (found,) = folder.glob(f"events.out.tfevents.*.bridge.{kind}.g*")
    return found
