"""Conditions on a run as a small frozen tree."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from bridge.registry.record import RunRecord
    from bridge.registry.refs import Ref

__all__ = ["And", "Compare", "Contains", "Node", "Not", "OneOf", "Or", "Truth", "Value"]

Value: TypeAlias = bool | int | float | str | None


class Node(Protocol):
    """A condition."""

    def holds(self, record: RunRecord) -> bool:
        """Whether it is true of `record`."""
        ...


@dataclass(frozen=True, slots=True)
class And:
    """True where all parts are."""

    parts: tuple[Node, ...]

    def holds(self, record: RunRecord) -> bool:
        """Whether it is true of `record`."""
        return all(part.holds(record) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    """True where any part is."""

    parts: tuple[Node, ...]

    def holds(self, record: RunRecord) -> bool:
        """Whether it is true of `record`."""
        return any(part.holds(record) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not:
    """True where the part is not."""

    part: Node

    def holds(self, record: RunRecord) -> bool:
        """Whether it is true of `record`."""
        return not self.part.holds(record)


@dataclass(frozen=True, slots=True)
class Contains:
    """True of a run with this tag, or with one that matches the glob."""

    tag: str
    glob: bool = False

    def holds(self, record: RunRecord) -> bool:
        """Whether it is true of `record`."""
        return any(fnmatchcase(tag, self.tag) for tag in record.tags) if self.glob else self.tag in record.tags


@dataclass(frozen=True, slots=True)
class Truth:
    """True where a yes-or-no field says yes."""

    ref: Ref

    def holds(self, record: RunRecord) -> bool:
        """Whether it is true of `record`."""
        return self.ref.of(record) is True


@dataclass(frozen=True, slots=True)
class Compare:
    """True where what the run holds there compares so with the value; a missing value or NaN never does."""

    ref: Ref
    op: str
    value: Value

    def holds(self, record: RunRecord) -> bool:
        """Whether it is true of `record`."""
        found = self.ref.of(record)
        return not _missing(found) and _compare(found, self.op, self.value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """True where what the run holds there equals one of the values."""

    ref: Ref
    values: tuple[Value, ...]

    def holds(self, record: RunRecord) -> bool:
        """Whether it is true of `record`."""
        found = self.ref.of(record)
        return not _missing(found) and any(_compare(found, "=", value) for value in self.values)


def _missing(value: object) -> bool:
    # Only NaN differs from itself. `...` stands for what the run does not hold; None is a hyperparameter's value.
    return value is ... or value != value  # noqa: PLR0124


def _compare(found: object, op: str, value: Value) -> bool:
    if op == "=":
        return found == value
    if op == "!=":
        return found != value
    if isinstance(found, str) and isinstance(value, str):
        return fnmatchcase(found, value) if op == "~" else _ordered(found < value, found > value, op)
    if isinstance(found, int | float) and isinstance(value, int | float):
        return _ordered(found < value, found > value, op)
    return False


def _ordered(less: bool, greater: bool, op: str) -> bool:
    return {"<": less, ">": greater, "<=": not greater, ">=": not less}.get(op, False)
