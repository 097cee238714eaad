"""Many runs: a scanner fills a SQLite cache of records, queries read it.

Its names are loaded when they are first asked for: a selection needs conditions, not a database.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.registry.record import RunRecord
    from bridge.registry.registry import Registry, open_registry
    from bridge.registry.scanner import ScanReport

__all__ = ["Registry", "RunRecord", "ScanReport", "open_registry"]

_LATER = {"Registry": "registry", "RunRecord": "record", "ScanReport": "scanner", "open_registry": "registry"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found
