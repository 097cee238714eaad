"""Find and make exporters by name: built in, installed by other packages, or given as `MODULE:FACTORY`."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeAlias

from bridge.errors import UsageError
from bridge.options import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from bridge.exporters.contract import Exporter

__all__ = ["ENTRY_POINTS", "ExporterFactory", "exporter_names", "find_exporter", "make_exporter"]

ExporterFactory: TypeAlias = "Callable[..., Exporter]"
"""Creates an exporter from keyword options. The names in its signature are the options that it takes."""

ENTRY_POINTS = "bridge.exporters"
"""The entry point group in which other packages register their exporters."""

# They are entry points of this package too. This table finds them in a plain checkout, and without reading the metadata
# of every installed package.
_BUILT_IN = {
    "mlflow": "bridge.exporters.mlflow:MlflowExporter",
    "tensorboard": "bridge.exporters.tensorboard:TensorBoardExporter",
}


def exporter_names() -> tuple[str, ...]:
    """Return the names of all exporters, sorted."""
    return tuple(sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def find_exporter(name: str) -> ExporterFactory:
    """Return the factory of the exporter `name`: a built-in name, an entry point's, or `MODULE:FACTORY`.

    Raise UsageError, which lists the names, if there is none.
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
    near = get_close_matches(name, exporter_names(), n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"There is no exporter {name!r}.{guess}", hint="--to takes " + " or ".join(exporter_names()) + ".")


def make_exporter(name: str, options: Mapping[str, Any], *, meant: Collection[str]) -> Exporter:
    """Return the exporter `name`, made with those of `options` that it takes.

    Raise UsageError if there is none, and for an option in `meant` that it does not take: it would be ignored.
    """
    factory = find_exporter(name)
    taken = inspect.signature(factory).parameters
    for option in meant:
        if option not in taken:
            raise UsageError(f"{option} is not an option of {name}.", hint=did_you_mean(option, taken, "Options"))
    return factory(**{option: value for option, value in options.items() if option in taken and value is not None})


def _load(reference: str) -> ExporterFactory:
    module, _, attribute = reference.partition(":")
    factory: ExporterFactory = getattr(import_module(module), attribute)
    return factory
