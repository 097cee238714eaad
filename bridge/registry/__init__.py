"""Many runs: `store` keeps records of run directories in a SQLite cache, `query` finds and sorts them."""

from bridge.registry.query import Registry, open_registry
from bridge.registry.record import RunRecord
from bridge.registry.store import ScanReport, look_at_each

__all__ = ["Registry", "RunRecord", "ScanReport", "look_at_each", "open_registry"]
