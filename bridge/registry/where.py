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

import operator
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from bridge.errors import UsageError
from bridge.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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

_TEXTS = (Kind.TEXT, Kind.TAGS, Kind.STATUS)


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


def column(text: str) -> Ref:
    """Return what a column or a sort key names.

    It is a name as in a condition, or `hparams.KEY`, `summary.METRIC` (its last value), `max.METRIC`, `min.METRIC`, and
    so on, where the whole rest after the first dot is the name, whatever characters it has. Raises UsageError if it
    names nothing.
    """
    head, _, name = text.partition(".")
    if name and head == "hparams":
        return Ref(Kind.HPARAM, name)
    if name and (head == "summary" or head in STATISTICS):
        return Ref(Kind.METRIC, name, "last" if head == "summary" else head)
    try:
        parser = _Parser(text)
        ref = parser.reference(parser.operand())
        parser.end()
    except UsageError:  # its message is about conditions
        raise UsageError(
            f"{text!r} names no field, metric or hyperparameter.",
            hint="For example run_id, val/acc, val/acc.max, hparams.lr; put a name with spaces in backticks.",
        ) from None
    return ref


def status_of(word: str) -> Status:
    """Return the status that `word` means, in any case. Raises UsageError for another word."""
    try:
        return Status(word.lower())
    except ValueError:
        near = get_close_matches(word.lower(), list(map(str, Status)), n=1)
        meant = f"did you mean {near[0]}?" if near else f"one of {', '.join(Status)}"
        raise UsageError(f"there is no status {word!r} ({meant})") from None


def time_of(text: str) -> float | None:
    """Return an ISO date or time, local if it has no zone, in seconds since the epoch; None if it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def duration_of(text: str) -> float | None:
    """Return the seconds of `90s`, `15m`, `12h`, `3d`, `2w`; None if it is no duration."""
    found = _DURATION.fullmatch(text)
    return float(found[1]) * _SECONDS[found[2]] if found else None


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------------------

_CONSTANTS: Mapping[str, Value] = {"true": True, "false": False, "none": None, "null": None}
_DURATION = re.compile(r"(-?\d+\.?\d*)([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

# A bare word goes on to the next blank, bracket, comma, quote or operator, so that paths and globs need no quotes.
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<sign>[(),])
      | (?P<operator>==|!=|<=|>=|[=<>~])
      | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<name>(?:`(?:[^`]|``)++`|[^\s()=!<>~,'"`&|\x00-\x1f\x7f]++)++)
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
# A name in backticks, where a doubled one stands for one: perhaps behind `hparams.`, perhaps before a statistic.
_QUOTED = re.compile(r"(hparams\.)?`((?:[^`]|``)+)`(?:\.([^`]*))?")
_MIRROR = str.maketrans("<>", "><")
_UNEXPECTED = {
    "'": "this quote is never closed",
    '"': "this quote is never closed",
    "`": "this backtick is never closed, or holds nothing",
    "&": "unexpected character (write and)",
    "|": "unexpected character (write or)",
    "!": "unexpected character (write not, or != to compare)",
}


class _Token(NamedTuple):
    """One token, and the index of its first character. `kind` is sign, operator, text, name or end."""

    kind: str
    text: str
    at: int

    @property
    def is_name(self) -> bool:
        """Return whether it can name a field, a metric or a hyperparameter."""
        return self.kind == "name" and isinstance(_constant(self.text), str) and self.text[0] not in "0123456789+-."

    def is_(self, *words: str) -> bool:
        """Return whether it is one of these signs, or of these words in any case."""
        return self.kind in ("sign", "name") and self.text.lower() in words


def _tokens(text: str) -> list[_Token]:
    """Split `text`. Raises UsageError at a character that begins no token."""
    tokens: list[_Token] = []
    at = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, at)
        if found is None:
            at = len(text) - len(text[at:].lstrip())
            _complain(text, at, _UNEXPECTED.get(text[at], "unexpected character"))
        kind = str(found.lastgroup)
        tokens.append(_Token(kind, found[kind], found.start(kind)))
        at = found.end()
    return tokens


def _constant(text: str) -> Value:
    """Return the number, or the value of the word, that a bare `text` stands for; for any other text itself."""
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text


def _complain(text: str, at: int, problem: str) -> NoReturn:
    """Raise the UsageError that shows `text` and points at its character `at`."""
    # Each character is shown as one character, so that the caret stands below it.
    shown = "".join(" " if char.isspace() else char if char.isprintable() else "?" for char in text)
    raise UsageError(f"--where: {problem}.\n  {shown}\n  {' ' * at}^")


# ---------------------------------------------------------------------------------------------------------------------
# Conditions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Where:
    """A condition: its text, the test for a record, and the values that it asks for."""

    text: str
    holds: Test = field(compare=False, repr=False)
    refs: tuple[Ref, ...] = field(default=(), compare=False, repr=False)


def parse(text: str) -> Where:
    """Return the condition in `text`. Raises UsageError that points at the character where it makes no sense."""
    parser = _Parser(text)
    test = parser.expression()
    parser.end()
    return Where(text, test, tuple(parser.refs))


_MOST_OPEN = 100
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "~": fnmatchcase,
}
_EQUALITY = ("=", "==", "!=")


class _Parser:
    """A recursive descent over the tokens. Each method reads one rule of the grammar and returns its test."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._open = 0
        self.refs: list[Ref] = []

    def expression(self) -> Test:
        """Read tests that are joined by `or`; the tests in them may be joined by `and`, which binds tighter."""
        return self._joined("or", any, self._conjunction)

    def _conjunction(self) -> Test:
        return self._joined("and", all, self._negation)

    def _joined(self, word: str, combine: Callable[[Iterable[bool]], bool], read: Callable[[], Test]) -> Test:
        parts = [read()]
        while self._accept(word):
            parts.append(read())
        return parts[0] if len(parts) == 1 else lambda record: combine(part(record) for part in parts)

    def _negation(self) -> Test:
        is_inverted = False
        while self._accept("not"):
            is_inverted = not is_inverted
        if self._accept("("):
            self._open += 1
            if self._open > _MOST_OPEN:
                self._fail(f"more than {_MOST_OPEN} open parentheses")
            test = self.expression()
            self._expect(")")
            self._open -= 1
        else:
            test = self._comparison()
        return _inverse(test) if is_inverted else test

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
        sign, right = self._advance(), self.operand()
        op = sign.text
        if not left.is_name and right.is_name:  # 0.7 < val/acc
            left, right, op = right, left, op.translate(_MIRROR)
        if not left.is_name:
            self._fail("one side must name a field, a metric, hparams.x or tag", left)
        test = self._compare(self.reference(left), op, right, sign)
        if self._peek.kind == "operator":
            self._fail("one comparison at a time: join two of them with 'and'")
        return test

    def _compare(self, ref: Ref, op: str, operand: _Token, sign: _Token) -> Test:
        value = self._value(ref, operand, is_glob=op == "~")
        if op == "~" and (ref.kind not in (*_TEXTS, Kind.HPARAM) or not isinstance(value, str)):
            self._fail("~ matches a text with a glob: name ~ 'base*'", sign)
        if ref.kind in (Kind.TAGS, Kind.YES_NO) and op not in (*_EQUALITY, "~"):
            self._fail(f"{ref} is compared by {'=, != and ~' if ref.kind is Kind.TAGS else '= and !='} only", sign)
        if ref.kind is Kind.TAGS and op == "!=":
            return _inverse(_present(ref, lambda found: found == value))
        compare = _OPERATORS[op]
        return _present(ref, lambda found: (op in _EQUALITY or _are_alike(found, value)) and compare(found, value))

    def _membership(self, left: _Token) -> Test:
        if self._accept("("):
            ref = self.reference(left)
            values = [self._value(ref, self.operand())]
            while self._accept(","):
                values.append(self._value(ref, self.operand()))
            self._expect(")")
        elif self._accept("tag", "tags"):
            ref = Ref(*FIELDS["tags"])
            values = [self._value(ref, left)]
        else:
            self._fail("after 'in' comes tags, or values as (a, b)")
        return _present(ref, lambda found: found in values)

    def operand(self) -> _Token:
        """Read a name or a value."""
        if self._peek.kind not in ("name", "text") or self._peek.is_("and", "or", "not", "in"):
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
        parts = _QUOTED.fullmatch(token.text)
        if not parts:
            if token.text in FIELDS:
                return Ref(*FIELDS[token.text])
            if "`" in token.text:
                self._fail("put the whole name into backticks", token)
            if len(token.text) > len("hparams.") and token.text.startswith("hparams."):
                return Ref(Kind.HPARAM, token.text.removeprefix("hparams."))
            metric = token.text.removeprefix("summary.")
            name, _, statistic = metric.rpartition(".")
            return Ref(Kind.METRIC, name, statistic) if name and statistic in STATISTICS else Ref(Kind.METRIC, metric)
        is_hparam, name, statistic = parts[1], parts[2].replace("``", "`"), parts[3]
        if is_hparam and statistic is None:
            return Ref(Kind.HPARAM, name)
        if is_hparam or statistic not in (None, *STATISTICS):
            self._fail(f"after a name in backticks comes one of .{', .'.join(STATISTICS)}", token)
        return Ref(Kind.METRIC, name, statistic or "last")

    def _value(self, ref: Ref, token: _Token, *, is_glob: bool = False) -> Value:
        """Return the value that `token` stands for, as `ref` is compared with it."""
        if token.kind == "name" and "`" in token.text:
            self._fail("expected a value, not a second name (put text in quotes)", token)
        text = token.text if token.kind == "name" else re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
        if ref.kind is Kind.STATUS:
            try:
                if is_glob and any(fnmatchcase(status, text.lower()) for status in Status):
                    return text.lower()
                return status_of(text)
            except UsageError as error:  # a word that no run can have is a slip
                self._fail(error.message, token)
        if ref.kind in _TEXTS:
            # A word that looks like a number or a constant is still a text here: run_id = 20260410.
            return text
        value = _constant(text) if token.kind == "name" else text
        if value != value:  # noqa: PLR0124 - only NaN differs from itself
            self._fail("nothing compares with NaN; METRIC.nan_count > 0 finds runs that have one", token)
        if isinstance(value, str) and ref.kind in (Kind.TIME, Kind.DURATION):
            value = time_of(value) if ref.kind is Kind.TIME else duration_of(value)
        is_number = isinstance(value, int | float) and isinstance(value, bool) == (ref.kind is Kind.YES_NO)
        if not is_number and ref.kind is not Kind.HPARAM:
            self._fail(f"{ref} is compared with {ref.kind.value}", token)
        return value

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _advance(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _accept(self, *words: str) -> bool:
        """Read the next token if it is one of these keywords or signs."""
        found = self._peek.is_(*words)
        self._next += found
        return found

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            self._fail(f"expected {word!r}{self._instead()}")

    def _instead(self) -> str:
        return " before the end" if self._peek.kind == "end" else f" instead of {self._peek.text!r}"

    def _fail(self, problem: str, token: _Token | None = None) -> NoReturn:
        _complain(self._text, (token or self._peek).at, problem)


def _inverse(test: Test) -> Test:
    return lambda record: not test(record)


def _present(ref: Ref, test: Callable[[Any], bool]) -> Test:
    """Return the test that `test` is true of the run's value, or of one of its tags. It is never true of NaN."""

    def holds(record: RunRecord) -> bool:
        found = ref.of(record)
        if ref.kind is Kind.TAGS:
            return any(map(test, found))
        # Only NaN differs from itself.
        return found is not ... and found == found and test(found)  # noqa: PLR0124

    return holds


def _are_alike(found: Any, value: Any) -> bool:
    """Return whether both are texts or both are numbers, so that one can be greater."""
    return any(isinstance(found, kind) and isinstance(value, kind) for kind in (str, int | float))
