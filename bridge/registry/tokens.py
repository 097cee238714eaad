"""The words of the `--where` language, each with its place, and errors that point at one."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bridge.errors import UsageError

__all__ = ["Token", "TokenKind", "Tokens", "complain", "duration_of", "time_of", "value_of"]


class TokenKind(StrEnum):
    """What a token is; a NAME can also be text on the value's side."""

    NAME = "name"
    LITERAL = "literal"
    TEXT = "text"
    OPERATOR = "operator"
    SIGN = "sign"
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its text as written, the index of its first character, and for a name its (text, quoted) parts."""

    kind: TokenKind
    text: str
    at: int
    parts: tuple[tuple[str, bool], ...] = ()

    @property
    def names_something(self) -> bool:
        """Whether it can stand for a field, a metric, a hyperparameter; a bare one begins with no digit or sign."""
        if self.kind is not TokenKind.NAME or self.is_word(*_CONSTANTS):
            return False
        return self.parts[0][1] or self.text[0] not in "0123456789+-."

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these words, in any case and without backticks."""
        return (
            self.kind is TokenKind.NAME and len(self.parts) == 1 and not self.parts[0][1] and self.text.lower() in words
        )


_KEYWORDS = ("and", "or", "not", "in")
_CONSTANTS = ("true", "false", "none", "null", "inf", "infinity", "nan")
_NUMBER = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_DURATION = re.compile(rf"({_NUMBER})(s|m|h|d|w)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_LITERAL = re.compile(rf"{_NUMBER}|[+-](?:inf|infinity)", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_OPERATOR = re.compile(r"==|!=|<=|>=|[=<>~]")
# A bare word goes on to the next space, bracket, comma, quote or operator, so that paths and globs need no quotes.
_WORD = re.compile(r"[^\s()=!<>~,'\"`&|\x00-\x1f\x7f]+")
_QUOTED = re.compile(r"`((?:[^`]|``)+)`")
_TEXT = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)


class Tokens:
    """The tokens of a condition, with a place to read on from."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = _split(text)
        self._next = 0

    def peek(self) -> Token:
        """The next token, which stays the next one."""
        return self._tokens[self._next]

    def advance(self) -> Token:
        """The next token, taken; the end can be taken any number of times."""
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def take_word(self, word: str) -> Token | None:
        """The next token if it is this keyword."""
        return self.advance() if self.peek().is_word(word) else None

    def take_sign(self, sign: str) -> Token | None:
        """The next token if it is this bracket or comma."""
        token = self.peek()
        return self.advance() if token.kind is TokenKind.SIGN and token.text == sign else None

    def take_operator(self) -> Token | None:
        """The next token if it compares."""
        return self.advance() if self.peek().kind is TokenKind.OPERATOR else None

    def next_operand(self) -> Token:
        """The next token, which must be a name or a value."""
        token = self.peek()
        operand = token.kind in (TokenKind.NAME, TokenKind.LITERAL, TokenKind.TEXT) and not token.is_word(*_KEYWORDS)
        if not operand:
            raise complain(self.text, token.at, f"expected a name or a value{_instead(token)}")
        return self.advance()

    def expect_sign(self, sign: str) -> None:
        """Take this bracket. Raises UsageError if something else comes."""
        if not self.take_sign(sign):
            raise complain(self.text, self.peek().at, f"expected {sign!r}{_instead(self.peek())}")

    def expect_word(self, word: str) -> Token:
        """Take this keyword. Raises UsageError if something else comes."""
        found = self.take_word(word)
        if not found:
            raise complain(self.text, self.peek().at, f"expected {word!r}{_instead(self.peek())}")
        return found

    def expect_end(self) -> None:
        """Raises UsageError if anything is left."""
        token = self.peek()
        if token.kind is not TokenKind.END:
            raise complain(self.text, token.at, f"expected 'and' or 'or'{_instead(token)}")


def complain(text: str, at: int, problem: str) -> UsageError:
    """The error that shows `text` and points at its character `at`."""
    # Each character stays one character, so that the caret stands where it belongs.
    shown = "".join(" " if letter.isspace() else letter if letter.isprintable() else "?" for letter in text)
    width = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in shown[:at])
    return UsageError(f"--where: {problem}.\n  {shown}\n  {' ' * width}^")


def value_of(text: str, token: Token) -> object:
    """The value that a token stands for: a number, a bool, None, or text. Raises UsageError for a quoted name."""
    if token.kind is TokenKind.TEXT:
        return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
    if token.kind is TokenKind.LITERAL:
        return _number(token.text)
    if any(quoted for _, quoted in token.parts):
        raise complain(text, token.at, "expected a value, not a second name (text stands in quotes)")
    word = token.text.lower()
    if word == "nan":
        raise complain(text, token.at, "nothing compares with NaN; METRIC.nan_count > 0 finds runs that have one")
    constants = {"true": True, "false": False, "none": None, "null": None, "inf": math.inf, "infinity": math.inf}
    return constants.get(word, token.text) if word in constants else token.text


def time_of(text: str) -> float | None:
    """Seconds since the epoch of an ISO date or time, local where it has no zone; None if it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def duration_of(text: str) -> float | None:
    """Seconds of `90s`, `15m`, `12h`, `3d`, `2w`; None if it is none."""
    found = _DURATION.fullmatch(text)
    return _number(found[1]) * _SECONDS[found[2]] if found else None


def _number(text: str) -> float | int:
    plain = text.replace("_", "")
    try:
        return int(plain)
    except ValueError:
        return float(plain)


def _split(text: str) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    while True:
        space = _SPACE.match(text, at)
        at = space.end() if space else at
        if at == len(text):
            return [*tokens, Token(TokenKind.END, "", at)]
        token = _token(text, at)
        tokens.append(token)
        at += len(token.text)


def _token(text: str, at: int) -> Token:
    if text[at] in "(),":
        return Token(TokenKind.SIGN, text[at], at)
    operator = _OPERATOR.match(text, at)
    if operator:
        return Token(TokenKind.OPERATOR, operator.group(), at)
    if text[at] in "'\"":
        found = _TEXT.match(text, at)
        if not found:
            raise complain(text, at, "this quote is never closed")
        return Token(TokenKind.TEXT, found.group(), at)
    return _name(text, at)


def _name(text: str, start: int) -> Token:
    parts: list[tuple[str, bool]] = []
    at = start
    while at < len(text):
        quoted, word = _QUOTED.match(text, at), _WORD.match(text, at)
        if quoted:
            parts.append((quoted[1].replace("``", "`"), True))
        elif word:
            parts.append((word.group(), False))
        elif text[at] == "`":
            raise complain(text, at, "this backtick is never closed, or holds nothing")
        else:
            break
        at = (quoted or word).end()  # type: ignore[union-attr]
    if not parts:
        hint = {"&": " (write and)", "|": " (write or)", "!": " (write not, or != to compare)"}.get(text[start], "")
        raise complain(text, start, f"unexpected character{hint}")
    raw = text[start:at]
    return Token(TokenKind.LITERAL if _LITERAL.fullmatch(raw) else TokenKind.NAME, raw, start, tuple(parts))


def _instead(token: Token) -> str:
    return " before the end" if token.kind is TokenKind.END else f" instead of {token.text!r}"
