"""Sync training run directories to MLflow and TensorBoard."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.api import export, plan, read_points, verify
    from bridge.registry import Registry, RunRecord, open_registry
    from logger import RegistryLogger

__all__ = [
    "Registry",
    "RegistryLogger",
    "RunRecord",
    "__version__",
    "export",
    "open_registry",
    "plan",
    "read_points",
    "verify",
]

__version__: str

# Loaded when first asked for, so that `import bridge` costs nothing. No name here is also a submodule of bridge:
# importing that submodule would put the module in the function's place.
_LAZY = {
    "RegistryLogger": "logger",
    **dict.fromkeys(("Registry", "RunRecord", "open_registry"), "bridge.registry"),
    **dict.fromkeys(("export", "plan", "read_points", "verify"), "bridge.api"),
}


def __getattr__(name: str) -> object:
    """Import and return a public name."""
    if name == "__version__":
        from importlib.metadata import version

        return version("registry-bridge")
    if name not in _LAZY:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
