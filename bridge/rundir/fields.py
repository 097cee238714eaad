"""The sidecar's fields by type, within bounds: what is wrong or too much is left out and named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.files import LONGEST_NAME, MOST_METRICS, MOST_TAGS, shortened
from bridge.model import Notice, NoticeKind
from bridge.rundir.hparams import clean
from logger.sidecar import parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Fields", "number"]

Item = TypeVar("Item")

_MOST_NAMED = 100
"""Values of a wrong type that are named one by one; more are counted."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The sidecar's fields by type; a value of another type is left out, once, with a notice."""

    data: Mapping[str, Any]
    notices: list[Notice]
    told: dict[str, int] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """A string; a number is taken for one (a run_id that looks like a number)."""
        value = self.data.get(name)
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        self.wrong(name, value, "a text")
        return None

    def time(self, name: str) -> float | None:
        """A time in seconds since the epoch."""
        value = self.data.get(name)
        then = parse_time(value)
        if then is None:
            self.wrong(name, value, "a time")
        return then

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, each once."""
        value = self.data.get(name)
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            self.wrong(name, value, "a list")
            return ()
        for item in value:
            if not isinstance(item, str):
                self.wrong(f"{name}: {_glimpse(item)}", item, "a text")
        found = dict.fromkeys(clean(item) for item in value if isinstance(item, str))
        return tuple(self._first(name, list(found), MOST_TAGS))

    def flag(self, name: str) -> bool:
        """True or false; false where it is neither."""
        value = self.data.get(name)
        if not isinstance(value, bool):
            self.wrong(name, value, "true or false")
        return value is True

    def bounded(self, name: str, text: str) -> str:
        """`text`, no longer than an identity."""
        short = shortened(text)
        if short != text:
            detail = f"of {len(text)} characters the first {LONGEST_NAME} are kept, with a digest as their end"
            self.notices.append(Notice(NoticeKind.CUT, f"sidecar.json: {name}", detail))
        return short

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A JSON object."""
        value = self.data.get(name)
        if isinstance(value, dict):
            return value
        self.wrong(name, value, "an object")
        return {}

    def numbers(self, name: str) -> dict[str, float]:
        """A JSON object of numbers, non-finite ones included."""
        found = {}
        for key, value in self._first(name, list(self.mapping(name).items()), MOST_METRICS):
            held = number(value)
            if held is None:
                self.wrong(f"{name}.{clean(key)}", value, "a number")
            else:
                found[clean(key)] = held
        return found

    def entries(self, name: str, most: int) -> list[Mapping[str, Any]]:
        """A list of JSON objects: the last ones, where it is too long."""
        value = self.data.get(name)
        if not isinstance(value, list):
            self.wrong(name, value, "a list")
            return []
        last = self._first(name, value[::-1], most)[::-1]
        for item in last:
            if not isinstance(item, dict):
                self.wrong(f"{name}: {_glimpse(item)}", item, "an object")
        return [item for item in last if isinstance(item, dict)]

    def uncounted(self) -> list[Notice]:
        """The notice that stands for the fields of a wrong type that were not named one by one."""
        more = self.told.get("", 0)
        return [Notice(NoticeKind.LEFT_OUT, "sidecar.json", "further values of a wrong type", more)] if more else []

    def _first(self, name: str, items: list[Item], most: int) -> list[Item]:
        if len(items) > most:
            detail = f"{most:,} of its {len(items):,} entries are kept"
            self.notices.append(Notice(NoticeKind.TOO_LARGE, f"sidecar.json: {name}", detail, len(items) - most))
        return items[:most]

    def wrong(self, name: str, value: object, wanted: str) -> None:
        """Name a field that is not what it should be, unless it is missing or was named already."""
        if value is None or name in self.told:
            return
        if len(self.told) > _MOST_NAMED:
            self.told[""] = self.told.get("", 0) + 1
        else:
            self.told[name] = 1
            whole = isinstance(value, int) and wanted == "a number"
            detail = "is too large for a number" if whole else f"is a {type(value).__name__}, not {wanted}"
            self.notices.append(Notice(NoticeKind.LEFT_OUT, f"sidecar.json: {name}", detail))


def _glimpse(value: object) -> str:
    try:
        return f"{value!r:.40}"
    except RecursionError:
        return "..."


def number(value: object) -> float | None:
    """A number as a float; None for what is none, or too large."""
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    return None
