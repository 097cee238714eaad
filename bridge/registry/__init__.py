"""Many runs: a scanner fills a SQLite cache of records, queries read it."""

from __future__ import annotations

from bridge.registry.record import RunRecord
from bridge.registry.registry import Registry, open_registry
from bridge.registry.scanner import ScanReport

__all__ = ["Registry", "RunRecord", "ScanReport", "open_registry"]
