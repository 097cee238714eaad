"""Many runs: `store` keeps records of run directories in a SQLite cache, `query` finds and sorts them.

The names are loaded when they are first used, since a condition (`where`) needs no database.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.registry.query import Registry, open_registry
    from bridge.registry.record import RunRecord
    from bridge.registry.store import ScanReport

__all__ = ["Registry", "RunRecord", "ScanReport", "open_registry"]

_MODULES = {"Registry": "query", "RunRecord": "record", "ScanReport": "store", "open_registry": "query"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found
