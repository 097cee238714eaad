"""The writer: a Lightning logger that writes each run to a plain directory and touches no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logger.registry_logger import RegistryLogger

__all__ = ["RegistryLogger"]


def __getattr__(name: str) -> Any:
    """RegistryLogger is loaded when it is asked for: readers of run directories need neither lightning nor torch."""
    if name == "RegistryLogger":
        from logger.registry_logger import RegistryLogger

        return RegistryLogger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
