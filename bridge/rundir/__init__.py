"""Read run directories: find them in a tree, read one run, its metrics, media and params.

The functions that read metrics are loaded when they are first asked for: numpy and pyarrow take a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.rundir.discover import discover, file_stamp, runs_within
from bridge.rundir.run import read_run

if TYPE_CHECKING:
    from bridge.rundir.deltas import ReadOptions, read_delta, read_whole
    from bridge.rundir.media import read_media
    from bridge.rundir.series import count_points, read_points, read_small, read_summary

__all__ = [
    "ReadOptions",
    "count_points",
    "discover",
    "file_stamp",
    "read_delta",
    "read_media",
    "read_points",
    "read_run",
    "read_small",
    "read_summary",
    "read_whole",
    "runs_within",
]

_LATER = {
    "read_media": "media",
    **dict.fromkeys(("ReadOptions", "read_delta", "read_whole"), "deltas"),
    **dict.fromkeys(("count_points", "read_points", "read_small", "read_summary"), "series"),
}


def __getattr__(name: str) -> object:
    """Return a name of a module that is loaded only now."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found
