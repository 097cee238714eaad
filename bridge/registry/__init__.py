"""Many runs: `store` keeps records of run directories in a SQLite cache, `query` finds and sorts them."""

from bridge.registry.query import Registry, open_registry
from bridge.registry.record import RunRecord
from bridge.registry.store import ScanReport

__all__ = ["Registry", "RunRecord", "ScanReport", "open_registry"]
