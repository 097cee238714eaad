"""What a condition, a sort or a column can name of a run: fields, hyperparameters, metrics, tags."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import TYPE_CHECKING, Any

from bridge.errors import UsageError
from bridge.model import Status
from bridge.registry.tokens import Tokens, complain, duration_of, time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bridge.registry.record import RunRecord
    from bridge.registry.tokens import Token

__all__ = ["FIELDS", "STATISTICS", "Kind", "Ref", "column", "named", "nearest_status", "reference", "status_of"]


class Kind(Enum):
    """What is found there, and what it can be compared with."""

    TEXT = "a text"
    STATUS = "a status"
    TIME = "an ISO date or time, or seconds since the epoch"
    DURATION = "seconds, or a duration such as 90s, 15m, 2h, 3d"
    NUMBER = "a number"
    YES_NO = "true or false"
    TAGS = "the text of a tag"
    HPARAM = "a value"
    METRIC = "a number (it is the name of a metric)"

    @property
    def wants(self) -> str:
        """In words, what it is compared with."""
        return self.value


FIELDS: Mapping[str, tuple[Kind, str]] = {
    "run_id": (Kind.TEXT, "run_id"),
    "uid": (Kind.TEXT, "identity"),
    "identity": (Kind.TEXT, "identity"),
    "name": (Kind.TEXT, "name"),
    "parent": (Kind.TEXT, "parent"),
    "path": (Kind.TEXT, "run_dir"),
    "run_dir": (Kind.TEXT, "run_dir"),
    "status": (Kind.STATUS, "status"),
    "notes": (Kind.TEXT, "notes"),
    "checkpoint_path": (Kind.TEXT, "checkpoint_path"),
    "start": (Kind.TIME, "start"),
    "created_at": (Kind.TIME, "start"),
    "end": (Kind.TIME, "end"),
    "ended_at": (Kind.TIME, "end"),
    "updated_at": (Kind.TIME, "updated"),
    "heartbeat": (Kind.TIME, "last_alive"),
    "last_alive": (Kind.TIME, "last_alive"),
    "duration": (Kind.DURATION, "duration"),
    "sessions": (Kind.NUMBER, "sessions"),
    "alive": (Kind.YES_NO, "alive"),
    "archived": (Kind.YES_NO, "archived"),
    "tag": (Kind.TAGS, "tags"),
    "tags": (Kind.TAGS, "tags"),
}
"""Each field's kind and the attribute of RunRecord that it reads."""

STATISTICS = ("last", "max", "min", "count", "max_step", "min_step", "nan_count", "first_nan_step")
"""What can be asked of a metric: `val/acc.max`."""

_GETTERS: Mapping[str, Callable[[RunRecord], Any]] = {
    attribute: operator.attrgetter(attribute) for _, attribute in FIELDS.values()
}


@dataclass(frozen=True, slots=True)
class Ref:
    """A named thing of a run: a field's attribute, a hyperparameter's key, or a metric with a statistic."""

    kind: Kind
    name: str
    statistic: str = "last"

    def __str__(self) -> str:
        if self.kind is Kind.HPARAM:
            return f"hparams.{self.name}"
        return self.name if self.statistic == "last" else f"{self.name}.{self.statistic}"

    def of(self, record: RunRecord) -> Any:
        """What the run holds there; `...` where it holds nothing."""
        if self.kind is Kind.METRIC:
            found = record.metric(self.name, self.statistic)
        elif self.kind is Kind.HPARAM:
            return record.hparams.get(self.name, ...)
        else:
            found = _GETTERS[self.name](record)
        return ... if found is None else found

    def value(self, value: object) -> object:
        """`value` as what is found there can be compared with; NotImplemented where it cannot."""
        if self.kind is Kind.HPARAM:
            return value
        if self.kind in (Kind.TEXT, Kind.TAGS, Kind.STATUS):
            return value if isinstance(value, str) else NotImplemented
        if self.kind is Kind.YES_NO:
            return value if isinstance(value, bool) else NotImplemented
        if isinstance(value, str):
            read = {Kind.TIME: time_of, Kind.DURATION: duration_of}.get(self.kind)
            seconds = read(value) if read else None
            return NotImplemented if seconds is None else seconds
        return value if isinstance(value, int | float) and not isinstance(value, bool) else NotImplemented


def status_of(word: str) -> Status:
    """The status that `word` means, in any case. Raises UsageError for another word."""
    try:
        return Status(word.lower())
    except ValueError:
        near = nearest_status(word)
        raise UsageError(
            f"There is no status {word!r}" + (f"; did you mean {near!r}?" if near else "."),
            hint=f"One of {', '.join(Status)}.",
        ) from None


def nearest_status(word: str) -> str:
    """The status that `word` was perhaps meant to be, "" for none."""
    return next(iter(get_close_matches(word.lower(), list(map(str, Status)), n=1)), "")


def reference(text: str, token: Token) -> Ref:
    """What a name in a condition stands for. Raises UsageError that points at it.

    Bare: a field, `hparams.KEY`, else a metric, with a statistic if it ends with one. In backticks: a metric (after
    `hparams.` a key) of exactly that name; a statistic may follow.
    """
    (first, quoted), *rest = token.parts
    tail = "".join(part for part, _ in rest)
    if not quoted:
        head, _, key = first.partition(".")
        if head == "hparams" and (key or tail):
            return Ref(Kind.HPARAM, key + tail)
        if head == "summary" and not key and rest:
            (first, quoted), tail = rest[0], "".join(part for part, _ in rest[1:])
    if quoted:
        if tail and tail.removeprefix(".") not in STATISTICS:
            raise complain(text, token.at, f"after a name in backticks comes one of .{', .'.join(STATISTICS)}")
        return Ref(Kind.METRIC, first, tail[1:] or "last")
    if tail:
        raise complain(text, token.at, "put the whole name into backticks")
    if first in FIELDS:
        kind, attribute = FIELDS[first]
        return Ref(kind, attribute)
    name, _, statistic = first.removeprefix("summary.").rpartition(".")
    if name and statistic in STATISTICS:
        return Ref(Kind.METRIC, name, statistic)
    return Ref(Kind.METRIC, first.removeprefix("summary."))


def named(text: str) -> Ref:
    """What `text` names outside of a condition (to sort by, as a column), where names need no quoting.

    A field, `hparams.KEY`, `summary.METRIC` (its last value), or `max.`, `min.`, `count.METRIC`: after the first dot
    stands the whole name, whatever signs it has. Raises UsageError for another word.
    """
    if text in FIELDS:
        kind, attribute = FIELDS[text]
        return Ref(kind, attribute)
    head, dot, name = text.partition(".")
    if dot and name:
        if head == "hparams":
            return Ref(Kind.HPARAM, name)
        if head == "summary" or head in STATISTICS:
            return Ref(Kind.METRIC, name, "last" if head == "summary" else head)
    near = get_close_matches(text, FIELDS, n=1)
    raise UsageError(
        f"There is no field {text!r}" + (f"; did you mean {near[0]!r}?" if near else "."),
        hint=f"One of {', '.join(FIELDS)}, or hparams.KEY, summary.METRIC, max.METRIC, min.METRIC.",
    )


def column(text: str) -> Ref:
    """What a column or sort key on the command line names: as `named`, else a name as `--where` reads it."""
    head, dot, name = text.partition(".")
    if dot and name and (head in ("hparams", "summary") or head in STATISTICS):
        return named(text)
    try:
        tokens = Tokens(text)
        token = tokens.next_operand()
        tokens.expect_end()
        if token.names_something:
            return reference(text, token)
    except UsageError:
        pass  # it spoke of conditions; the same is said in this place's words
    raise UsageError(
        f"{text!r} names no field, metric or hyperparameter.",
        hint="For example run_id, val/acc, val/acc.max, hparams.lr; a name with odd signs stands in backticks.",
    )
