"""Reading run directories: discover a tree, read one run, its metrics, media and params.

What reads metrics is loaded when it is first asked for: numpy and pyarrow take a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.rundir.discover import discover
from bridge.rundir.run import read_run
from bridge.rundir.times import Clock

if TYPE_CHECKING:
    from bridge.rundir.delta import read_delta
    from bridge.rundir.media import read_media
    from bridge.rundir.single import read_points, read_series, read_summary
    from bridge.rundir.wanted import ReadOptions
    from bridge.rundir.whole import read_whole

__all__ = [
    "Clock",
    "ReadOptions",
    "discover",
    "read_delta",
    "read_media",
    "read_points",
    "read_run",
    "read_series",
    "read_summary",
    "read_whole",
]

_LATER = {
    "ReadOptions": "wanted",
    "read_delta": "delta",
    "read_media": "media",
    "read_points": "single",
    "read_series": "single",
    "read_summary": "single",
    "read_whole": "whole",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found
