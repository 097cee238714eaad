r"""The names of what a run holds, and the language of `--where`: conditions that name them.

    expression = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation   = "not" negation | "(" expression ")" | comparison
    comparison = name op value | value op name | value ["not"] "in" tags | name ["not"] "in" "(" value {"," value} ")"
               | alive | archived
    op         = "=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "~"         (~ matches a glob: * ? [abc])
    name       = a field | "hparams." key | metric ["." statistic] | tag      odd names in backticks
    value      = number | 'text' | word | true | false | none | 2h (duration) | 2026-04-10 (local day or ISO time)

A missing value, a NaN, or one of another kind makes a comparison false (only `!=` holds between different kinds), and
its `not` true. A bare word on the value's side is text: `status = killed`. A status is compared without regard to case
and must be a known one.

`parse` splits the text into tokens and turns them into one function of a record, made of smaller ones.
"""

from __future__ import annotations

import math
import operator
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from bridge.errors import UsageError
from bridge.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bridge.registry.record import RunRecord

Test: TypeAlias = "Callable[[RunRecord], bool]"
Value: TypeAlias = bool | int | float | str | None


# ---------------------------------------------------------------------------------------------------------------------
# What a condition, a sort key or a column can name
# ---------------------------------------------------------------------------------------------------------------------


class Kind(Enum):
    """The kind of a named value; the text says, for messages, what it can be compared with."""

    TEXT = "a text"
    STATUS = "a status"
    TIME = "an ISO date or time, or seconds since the epoch"
    DURATION = "seconds, or a duration such as 90s, 15m, 2h, 3d"
    NUMBER = "a number"
    YES_NO = "true or false"
    TAGS = "the text of a tag"
    HPARAM = "a value"
    METRIC = "a number (it is the name of a metric)"


FIELDS: Mapping[str, tuple[Kind, str]] = {
    "run_id": (Kind.TEXT, "run_id"),
    "uid": (Kind.TEXT, "identity"),
    "identity": (Kind.TEXT, "identity"),
    "name": (Kind.TEXT, "name"),
    "parent": (Kind.TEXT, "parent"),
    "path": (Kind.TEXT, "run_dir"),
    "run_dir": (Kind.TEXT, "run_dir"),
    "status": (Kind.STATUS, "status"),
    "kind": (Kind.TEXT, "kind"),
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
"""The statistics that can be asked of a metric: `val/acc.max`."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A named value of a run: the attribute of a field, the key of a hyperparameter, or a metric with a statistic."""

    kind: Kind
    name: str
    statistic: str = "last"

    def __str__(self) -> str:
        if self.kind is Kind.HPARAM:
            return f"hparams.{self.name}"
        return self.name if self.statistic == "last" else f"{self.name}.{self.statistic}"

    def of(self, record: RunRecord) -> Any:
        """Return the run's value; `...` if it has none. None is a value of a hyperparameter."""
        if self.kind is Kind.HPARAM:
            return record.hparams.get(self.name, ...)
        if self.kind is Kind.METRIC:
            found: Any = record.metric(self.name, self.statistic)
        else:
            found = getattr(record, self.name)
        return ... if found is None else found

    def comparable(self, value: Value) -> Value:
        """Return `value` as the run's value can be compared with it. Raises TypeError if it cannot."""
        if self.kind is Kind.HPARAM:
            return value
        if self.kind in _TEXTS and isinstance(value, str):
            return value
        if self.kind in (Kind.TIME, Kind.DURATION) and isinstance(value, str):
            value = time_of(value) if self.kind is Kind.TIME else duration_of(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, bool) if self.kind is Kind.YES_NO else is_number and self.kind not in _TEXTS:
            return value
        raise TypeError(f"{self} is compared with {self.kind.value}")


_TEXTS = (Kind.TEXT, Kind.TAGS, Kind.STATUS)


def named(text: str) -> Ref:
    """Return what `text` names as a sort key in Python, where names need no quotes.

    It is a field, `hparams.KEY`, `summary.METRIC` (its last value), or `max.METRIC`, `min.METRIC`, `count.METRIC`, and
    so on. The whole rest after the first dot is the name, whatever characters it has. Raises UsageError otherwise.
    """
    if text in FIELDS:
        return Ref(*FIELDS[text])
    head, _, name = text.partition(".")
    if name and head == "hparams":
        return Ref(Kind.HPARAM, name)
    if name and (head == "summary" or head in STATISTICS):
        return Ref(Kind.METRIC, name, "last" if head == "summary" else head)
    near = get_close_matches(text, FIELDS, n=1)
    raise UsageError(
        f"There is no field {text!r}" + (f"; did you mean {near[0]!r}?" if near else "."),
        hint=f"One of {', '.join(FIELDS)}, or hparams.KEY, summary.METRIC, max.METRIC, min.METRIC.",
    )


def column(text: str) -> Ref:
    """Return what a column or sort key on the command line names: as in `named`, else as in a condition.

    Raises UsageError if it names nothing.
    """
    head, _, name = text.partition(".")
    if name and (head in ("hparams", "summary") or head in STATISTICS):
        return named(text)
    try:
        parser = _Parser(text)
        token = parser.operand()
        parser.end()
        if token.is_name:
            return parser.reference(token)
    except UsageError:
        pass  # its message is about conditions
    raise UsageError(
        f"{text!r} names no field, metric or hyperparameter.",
        hint="For example run_id, val/acc, val/acc.max, hparams.lr; put a name with spaces in backticks.",
    )


def status_of(word: str) -> Status:
    """Return the status that `word` means, in any case. Raises UsageError for another word."""
    try:
        return Status(word.lower())
    except ValueError:
        near = _nearest_status(word)
        raise UsageError(
            f"There is no status {word!r}" + (f"; did you mean {near!r}?" if near else "."),
            hint=f"One of {', '.join(Status)}.",
        ) from None


def _nearest_status(word: str) -> str:
    return next(iter(get_close_matches(word.lower(), list(map(str, Status)), n=1)), "")


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------------------

_KEYWORDS = ("and", "or", "not", "in")
_CONSTANTS: Mapping[str, Value] = {
    "true": True,
    "false": False,
    "none": None,
    "null": None,
    "inf": math.inf,
    "infinity": math.inf,
    "nan": math.nan,
}
_NUMBER = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LITERAL = re.compile(rf"{_NUMBER}|[+-](?:inf|infinity)", re.IGNORECASE)
_DURATION = re.compile(rf"({_NUMBER})([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

# A bare word goes on to the next blank, bracket, comma, quote or operator, so that paths and globs need no quotes.
_TOKEN = re.compile(
    r"""(?P<sign>[(),])
      | (?P<operator>==|!=|<=|>=|[=<>~])
      | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<name>(?:`(?:[^`]|``)++`|[^\s()=!<>~,'"`&|\x00-\x1f\x7f]++)++)""",
    re.VERBOSE | re.DOTALL,
)
_NAME_PART = re.compile(r"`((?:[^`]|``)++)`|[^`]+")
_BLANKS = re.compile(r"\s*")
_UNEXPECTED = {
    "'": "this quote is never closed",
    '"': "this quote is never closed",
    "`": "this backtick is never closed, or holds nothing",
    "&": "unexpected character (write and)",
    "|": "unexpected character (write or)",
    "!": "unexpected character (write not, or != to compare)",
}


@dataclass(frozen=True, slots=True)
class _Token:
    """One token, and the index of its first character. `kind` is sign, operator, text, name, number or end."""

    kind: str
    text: str
    at: int

    @property
    def is_name(self) -> bool:
        """Return whether it can name a field, a metric or a hyperparameter."""
        if self.kind != "name" or self.text.lower() in _CONSTANTS:
            return False
        return self.text[0] not in "0123456789+-."

    def is_word(self, *words: str) -> bool:
        """Return whether it is one of these words, in any case."""
        return self.kind == "name" and self.text.lower() in words


def _tokens(text: str) -> list[_Token]:
    """Split `text`. Raises UsageError at a character that begins no token."""
    tokens = []
    at = _BLANKS.match(text).end()  # type: ignore[union-attr]
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            _complain(text, at, _UNEXPECTED.get(text[at], "unexpected character"))
        kind = str(found.lastgroup)
        is_number = kind == "name" and _LITERAL.fullmatch(found[0])
        tokens.append(_Token("number" if is_number else kind, found[0], at))
        at = _BLANKS.match(text, found.end()).end()  # type: ignore[union-attr]
    return [*tokens, _Token("end", "", at)]


def _complain(text: str, at: int, problem: str) -> NoReturn:
    """Raise the UsageError that shows `text` and points at its character `at`."""
    # Each character is shown as one character, and a wide one takes two columns, so that the caret stands below it.
    shown = "".join(" " if char.isspace() else char if char.isprintable() else "?" for char in text)
    width = sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in shown[:at])
    raise UsageError(f"--where: {problem}.\n  {shown}\n  {' ' * width}^")


def time_of(text: str) -> float | None:
    """Return an ISO date or time, local if it has no zone, in seconds since the epoch; None if it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def duration_of(text: str) -> float | None:
    """Return the seconds of `90s`, `15m`, `12h`, `3d`, `2w`; None if it is no duration."""
    found = _DURATION.fullmatch(text)
    return _number(found[1]) * _SECONDS[found[2]] if found else None


def _number(text: str) -> float | int:
    plain = text.replace("_", "")
    try:
        return int(plain)
    except ValueError:
        return float(plain)


# ---------------------------------------------------------------------------------------------------------------------
# Conditions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Where:
    """A condition: its text, the test for a record, and the values that it asks for. Pickled as its text."""

    text: str
    holds: Test = field(compare=False, repr=False)
    refs: tuple[Ref, ...] = field(default=(), compare=False, repr=False)

    @property
    def metrics(self) -> bool:
        """Return whether the condition asks for a metric."""
        return any(ref.kind is Kind.METRIC for ref in self.refs)

    def __reduce__(self) -> tuple[Any, ...]:
        return parse, (self.text,)


def parse(text: str) -> Where:
    """Return the condition in `text`. Raises UsageError that points at the character where it makes no sense."""
    parser = _Parser(text)
    test = parser.expression(0)
    parser.end()
    return Where(text, test, tuple(parser.refs))


_DEEPEST = 100
# From the loosest binding word to the tightest, with the function that combines the tests it joins.
_JOINED_BY: tuple[tuple[str, Callable[[Any], bool]], ...] = (("or", any), ("and", all))
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


class _Parser:
    """A recursive descent over the tokens. Each method reads one rule of the grammar and returns its test."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self.refs: list[Ref] = []

    def expression(self, depth: int, level: int = 0) -> Test:
        """Read tests that are joined by the words of `level` and those that bind tighter."""
        if level == len(_JOINED_BY):
            return self._negation(depth)
        word, combine = _JOINED_BY[level]
        parts = [self.expression(depth, level + 1)]
        while self._accept(word):
            parts.append(self.expression(depth, level + 1))
        return parts[0] if len(parts) == 1 else lambda record: combine(part(record) for part in parts)

    def _negation(self, depth: int) -> Test:
        if depth > _DEEPEST:
            self._fail(f"too deep: more than {_DEEPEST} parentheses and nots")
        if self._accept("not"):
            return _inverse(self._negation(depth + 1))
        if self._accept("("):
            inner = self.expression(depth + 1)
            self._expect(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        left = self.operand()
        if self._accept("not"):
            self._expect("in")
            return _inverse(self._membership(left))
        if self._accept("in"):
            return self._membership(left)
        if self._peek.kind != "operator":
            if left.is_name and (ref := self.reference(left)).kind is Kind.YES_NO:
                return lambda record: ref.of(record) is True
            self._fail("expected a comparison: = != < <= > >= ~ or in")
        op = self._advance()
        right = self.operand()
        if left.is_name:
            test = self._compare(left, op.text, op, right)
        elif right.is_name:
            test = self._compare(right, _MIRRORED.get(op.text, op.text), op, left)
        else:
            self._fail("one side must name a field, a metric, hparams.x or tag", left)
        if self._peek.kind == "operator":
            self._fail("one comparison at a time: join two of them with 'and'")
        return test

    def _compare(self, name: _Token, sign: str, op: _Token, operand: _Token) -> Test:
        ref = self.reference(name)
        value = self._value(ref, operand, glob=sign == "~")
        if sign == "~" and (ref.kind not in (*_TEXTS, Kind.HPARAM) or not isinstance(value, str)):
            self._fail("~ matches a text with a glob: name ~ 'base*'", op)
        if ref.kind is Kind.TAGS:
            if sign not in ("=", "==", "!=", "~"):
                self._fail("tags are compared by =, != and ~ only", op)
            found = _tagged(str(value), glob=sign == "~")
            return _inverse(found) if sign == "!=" else found
        if ref.kind is Kind.YES_NO and sign not in ("=", "==", "!="):
            self._fail(f"{ref} is yes or no: = true, = false", op)
        compare = _COMPARISONS[sign]
        return _present(ref, lambda found: compare(found, value))

    def _membership(self, left: _Token) -> Test:
        if not self._accept("("):
            if not self._peek.is_word("tag", "tags"):
                self._fail("after 'in' comes tags, or values as (a, b)")
            self._advance()
            return _tagged(str(self._value(Ref(Kind.TAGS, "tags"), left)))
        ref = self.reference(left)
        values = [self._value(ref, self.operand())]
        while self._accept(","):
            values.append(self._value(ref, self.operand()))
        self._expect(")")
        if ref.kind is Kind.TAGS:
            return lambda record: any(value in record.tags for value in values)
        return _present(ref, lambda found: any(found == value for value in values))

    def operand(self) -> _Token:
        """Read a name or a value."""
        if self._peek.kind not in ("name", "number", "text") or self._peek.is_word(*_KEYWORDS):
            self._fail(f"expected a name or a value{self._instead()}")
        return self._advance()

    def end(self) -> None:
        """Raise UsageError if anything is left."""
        if self._peek.kind != "end":
            self._fail(f"expected 'and' or 'or'{self._instead()}")

    def reference(self, token: _Token) -> Ref:
        """Return what a name in a condition stands for.

        Bare it is a field, `hparams.KEY`, or else a metric, with a statistic if it ends in one. In backticks it is a
        metric (after `hparams.` a key) of exactly this name, and a statistic may follow.
        """
        if not token.is_name:
            self._fail("expected a field, a metric, hparams.x or tag", token)
        ref = self._resolve(token)
        self.refs.append(ref)
        return ref

    def _resolve(self, token: _Token) -> Ref:
        parts = [(part[0], part[1]) for part in _NAME_PART.finditer(token.text)]  # whole, inside of backticks
        bare = "".join(quoted.replace("``", "`") if quoted else whole for whole, quoted in parts)
        (first, quoted), rest = parts[0], bare[len(parts[0][0]) :]
        if not quoted and bare.startswith("hparams.") and bare != "hparams.":
            return Ref(Kind.HPARAM, bare.removeprefix("hparams."))
        if first == "summary." and len(parts) > 1:
            parts = parts[1:]
            (first, quoted) = parts[0]
        if quoted:
            rest = "".join(whole for whole, _ in parts[1:])
            if rest and rest.removeprefix(".") not in STATISTICS:
                self._fail(f"after a name in backticks comes one of .{', .'.join(STATISTICS)}", token)
            return Ref(Kind.METRIC, quoted.replace("``", "`"), rest[1:] or "last")
        if rest:
            self._fail("put the whole name into backticks", token)
        if first in FIELDS:
            return Ref(*FIELDS[first])
        metric = first.removeprefix("summary.")
        name, _, statistic = metric.rpartition(".")
        return Ref(Kind.METRIC, name, statistic) if name and statistic in STATISTICS else Ref(Kind.METRIC, metric)

    def _value(self, ref: Ref, token: _Token, *, glob: bool = False) -> Value:
        """Return the value that `token` stands for, as `ref` is compared with it."""
        # A word that looks like a number or a constant is still a text where a text is meant: run_id = 20260410.
        value = token.text if ref.kind in _TEXTS and token.kind != "text" else self._plain_value(token)
        try:
            value = ref.comparable(value)
        except TypeError as error:
            self._fail(str(error), token)
        return self._status(str(value), token, glob=glob) if ref.kind is Kind.STATUS else value

    def _plain_value(self, token: _Token) -> Value:
        if token.kind == "text":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
        if token.kind == "number":
            return _number(token.text)
        if "`" in token.text:
            self._fail("expected a value, not a second name (put text in quotes)", token)
        if token.is_word("nan"):
            self._fail("nothing compares with NaN; METRIC.nan_count > 0 finds runs that have one", token)
        return _CONSTANTS.get(token.text.lower(), token.text)

    def _status(self, word: str, token: _Token, *, glob: bool) -> str:
        """Return the word as records have it. A word that no run can have is a slip, so it is an error."""
        low = word.lower()
        if not any(fnmatchcase(status, low) if glob else status == low for status in Status):
            near = _nearest_status(low)
            meant = f"did you mean {near}?" if near else f"one of {', '.join(Status)}"
            self._fail(f"there is no status {word!r} ({meant})", token)
        return low

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _advance(self) -> _Token:
        token = self._peek
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _accept(self, text: str) -> bool:
        """Read the next token if it is this keyword or sign."""
        found = self._peek.is_word(text) or (self._peek.kind == "sign" and self._peek.text == text)
        if found:
            self._advance()
        return found

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            self._fail(f"expected {text!r}{self._instead()}")

    def _instead(self) -> str:
        return " before the end" if self._peek.kind == "end" else f" instead of {self._peek.text!r}"

    def _fail(self, problem: str, token: _Token | None = None) -> NoReturn:
        _complain(self._text, (token or self._peek).at, problem)


def _inverse(test: Test) -> Test:
    return lambda record: not test(record)


def _tagged(tag: str, *, glob: bool = False) -> Test:
    if glob:
        return lambda record: any(fnmatchcase(each, tag) for each in record.tags)
    return lambda record: tag in record.tags


def _present(ref: Ref, test: Callable[[Any], bool]) -> Test:
    """Return the test that `test` is true of the run's value, and that there is one that is not NaN."""

    def holds(record: RunRecord) -> bool:
        found = ref.of(record)
        # Only NaN differs from itself.
        return found is not ... and found == found and test(found)  # noqa: PLR0124

    return holds


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Return `compare` for two texts and for two numbers, and false for values of different kinds."""

    def ordered(found: Any, value: Any) -> bool:
        alike = any(isinstance(found, kind) and isinstance(value, kind) for kind in (str, int | float))
        return alike and compare(found, value)

    return ordered


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "~": lambda found, glob: isinstance(found, str) and fnmatchcase(found, glob),
}
