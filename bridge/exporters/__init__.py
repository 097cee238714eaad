"""Exporters, found by name: built in, installed by others, or named as `MODULE:FACTORY`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeAlias

from bridge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.exporters.contract import Exporter

__all__ = ["ENTRY_POINTS", "ExporterFactory", "exporter_names", "find_exporter"]

ExporterFactory: TypeAlias = "Callable[..., Exporter]"
"""Makes an exporter of keyword options; the names in its signature are the options that it takes."""

ENTRY_POINTS = "bridge.exporters"
"""The entry point group in which other packages register their exporters."""

# The built-in ones are entry points of this package too, but must be found in a plain checkout, and without the
# cost of reading the metadata of every installed package.
_BUILT_IN = {
    "mlflow": "bridge.exporters.mlflow:MlflowExporter",
    "tensorboard": "bridge.exporters.tensorboard:TensorBoardExporter",
}


def exporter_names() -> tuple[str, ...]:
    """The names of all exporters there are, sorted."""
    return tuple(sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def find_exporter(name: str) -> ExporterFactory:
    """The factory of the exporter `name`: a built-in name, an entry point's, or `MODULE:FACTORY`.

    Raises UsageError, which lists the names there are.
    """
    if name in _BUILT_IN:
        return _load(_BUILT_IN[name])
    for point in entry_points(group=ENTRY_POINTS, name=name):
        factory: ExporterFactory = point.load()
        return factory
    if ":" in name:
        try:
            return _load(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"There is no exporter {name!r}: {error}.") from error
    raise UsageError(f"There is no exporter {name!r}.", hint="There are: " + ", ".join(exporter_names()))


def _load(place: str) -> ExporterFactory:
    module, _, attribute = place.partition(":")
    factory: ExporterFactory = getattr(import_module(module), attribute)
    return factory
