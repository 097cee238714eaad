"""Parts of a record that stay JSON text until somebody looks: of ten thousand runs, a list shows twenty."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError
from bridge.files import MOST_METRICS
from logger.values import restore_number

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Document", "Lazy", "Statistics"]


def readable(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statistics in `entry` that a float holds."""
    return {key: value for key, value in entry.items() if value is None or isinstance(value, bool | int | float)}


class Lazy(Mapping[str, Any]):
    """A mapping that is made at the first look; equal to any mapping with the same items."""

    __slots__ = ("_make", "_value")

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make
        self._value: dict[str, Any] | None = None

    def _now(self) -> dict[str, Any]:
        if self._value is None:
            self._value = self._make()
        return self._value

    def __getitem__(self, key: str) -> Any:
        return self._now()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __repr__(self) -> str:
        return repr(self._now())

    def __reduce__(self) -> tuple[object, ...]:
        return (dict, (self._now(),))


class Document:
    """The text of a sidecar (or of as much of one), and what it holds as flat mappings, read once for both."""

    __slots__ = ("_data", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._data: dict[str, Any] | None = None

    def hparams(self) -> dict[str, Any]:
        """The flat hyperparameters. Raises BridgeError where the text is none of ours."""
        return self._part("hparams")

    def summary(self) -> dict[str, float]:
        """The last value of each metric. Raises BridgeError where the text is none of ours."""
        return {name: float(restore_number(value)) for name, value in self._part("summary").items()}

    def _part(self, name: str) -> dict[str, Any]:
        try:
            if self._data is None:
                self._data = json.loads(self.text)
            part = self._data[name]
            assert isinstance(part, dict)
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            raise BridgeError("The cache of runs is damaged.", hint="bridge scan --full") from error
        return part


class Statistics(Lazy):
    """The statistics of each metric in the text of a summary.json; none where that cannot be read."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__(self._read)
        self.text = text

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.text)["metrics"].items()
            named = islice(((name, entry) for name, entry in entries if isinstance(entry, dict)), MOST_METRICS)
            return {
                name: readable({key: restore_number(value) for key, value in entry.items()}) for name, entry in named
            }
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            return {}
