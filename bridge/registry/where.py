r"""The language of `--where`: conditions on a run, read into a small frozen tree.

    expression = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation   = "not" negation | "(" expression ")" | comparison
    comparison = name op value | value op name | value ["not"] "in" tags | name ["not"] "in" "(" value {"," value} ")"
               | alive | archived
    op         = "=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "~"         (~ matches a glob: * ? [abc])
    name       = a field | "hparams." key | metric ["." statistic] | tag      odd names in backticks
    value      = number | 'text' | word | true | false | none | 2h (duration) | 2026-04-10 (local day or ISO time)

A missing value, a NaN, or one of another kind makes a comparison false (but `!=` holds between kinds that differ),
and the `not` of it true. Bare words on the value's side are text: `status = killed`. A status is compared without case, and must be one.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bridge.model import Status
from bridge.registry.refs import Kind, Ref, nearest_status, reference
from bridge.registry.tokens import Token, TokenKind, Tokens, complain, value_of
from bridge.registry.tree import And, Compare, Contains, Node, Not, OneOf, Or, Truth

if TYPE_CHECKING:
    from bridge.registry.record import RunRecord
    from bridge.registry.tree import Value

__all__ = ["Where", "parse"]

_DEEPEST = 100
_TAGS = Ref(Kind.TAGS, "tags")
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


@dataclass(frozen=True, slots=True)
class Where:
    """A condition as written and as understood; `metrics` says whether it asks for any metric."""

    text: str
    tree: Node
    metrics: bool = True

    def holds(self, record: RunRecord) -> bool:
        """Whether the condition is true of `record`."""
        return self.tree.holds(record)


def parse(text: str) -> Where:
    """The condition in `text`. Raises UsageError that points at the character it could not go on from."""
    parser = _Parser(Tokens(text))
    tree = parser.expression(0)
    parser.tokens.expect_end()
    return Where(text, tree, parser.metrics)


class _Parser:
    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.metrics = False

    def expression(self, depth: int) -> Node:
        parts = [self._conjunction(depth)]
        while self.tokens.take_word("or"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _conjunction(self, depth: int) -> Node:
        parts = [self._negation(depth)]
        while self.tokens.take_word("and"):
            parts.append(self._negation(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _negation(self, depth: int) -> Node:
        token = self.tokens.peek()
        if depth > _DEEPEST:
            raise complain(self.tokens.text, token.at, f"too deep: more than {_DEEPEST} parentheses and nots")
        if self.tokens.take_word("not"):
            return Not(self._negation(depth + 1))
        if self.tokens.take_sign("("):
            inner = self.expression(depth + 1)
            self.tokens.expect_sign(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Node:
        left = self.tokens.next_operand()
        if self.tokens.take_word("not"):
            self.tokens.expect_word("in")
            return Not(self._membership(left))
        if self.tokens.take_word("in"):
            return self._membership(left)
        op = self.tokens.take_operator()
        if op is None:
            return self._truth(left)
        right = self.tokens.next_operand()
        node = self._compare(left, op, right)
        again = self.tokens.peek()
        if again.kind is TokenKind.OPERATOR:
            raise complain(self.tokens.text, again.at, "one comparison at a time: join two of them with 'and'")
        return node

    def _compare(self, left: Token, op: Token, right: Token) -> Node:
        sign = "=" if op.text == "==" else op.text
        if left.names_something:
            return self._checked(left, sign, op, right)
        if right.names_something:
            return self._checked(right, _MIRRORED.get(sign, sign), op, left)
        raise complain(self.tokens.text, left.at, "one side must name a field, a metric, hparams.x or tag")

    def _checked(self, name: Token, sign: str, op: Token, operand: Token) -> Node:
        ref = self._reference(name)
        value = self._value(ref, operand)
        texts = (Kind.TEXT, Kind.HPARAM, Kind.TAGS, Kind.STATUS)
        if sign == "~" and (ref.kind not in texts or not isinstance(value, str)):
            raise complain(self.tokens.text, op.at, "~ matches a text with a glob: name ~ 'base*'")
        if ref.kind is Kind.STATUS:
            value = self._status(value, operand, glob=sign == "~")
        if ref.kind is Kind.TAGS:
            if sign not in ("=", "!=", "~"):
                raise complain(self.tokens.text, op.at, "tags are compared by =, != and ~ only")
            assert isinstance(value, str)
            found = Contains(value, glob=sign == "~")
            return Not(found) if sign == "!=" else found
        if ref.kind is Kind.YES_NO and sign not in ("=", "!="):
            raise complain(self.tokens.text, op.at, f"{ref} is yes or no: = true, = false")
        return Compare(ref, sign, value)

    def _membership(self, left: Token) -> Node:
        if not self.tokens.take_sign("("):
            return self._in_tags(left)
        ref = self._reference(left)
        values = [self._member(ref)]
        while self.tokens.take_sign(","):
            values.append(self._member(ref))
        self.tokens.expect_sign(")")
        if ref.kind is Kind.TAGS:
            return Or(tuple(Contains(str(value)) for value in values))
        return OneOf(ref, tuple(values))

    def _member(self, ref: Ref) -> Value:
        token = self.tokens.next_operand()
        value = self._value(ref, token)
        return self._status(value, token) if ref.kind is Kind.STATUS else value

    def _status(self, value: Value, token: Token, *, glob: bool = False) -> str:
        """The word as records have it. A word that no run can have is a slip, not a condition that never holds."""
        word = str(value).lower()
        if not any(fnmatchcase(status, word) if glob else status == word for status in Status):
            near = nearest_status(word)
            meant = f"did you mean {near}?" if near else f"one of {', '.join(Status)}"
            raise complain(self.tokens.text, token.at, f"there is no status {str(value)!r} ({meant})")
        return word

    def _in_tags(self, left: Token) -> Node:
        container = self.tokens.peek()
        if container.kind is not TokenKind.NAME or container.text not in ("tag", "tags"):
            raise complain(self.tokens.text, container.at, "after 'in' comes tags, or values as (a, b)")
        self.tokens.advance()
        return Contains(str(self._value(_TAGS, left)))

    def _truth(self, token: Token) -> Node:
        following = self.tokens.peek()
        if token.names_something:
            ref = self._reference(token)
            if ref.kind is Kind.YES_NO:
                return Truth(ref)
        raise complain(self.tokens.text, following.at, "expected a comparison: = != < <= > >= ~ or in")

    def _reference(self, token: Token) -> Ref:
        if not token.names_something:
            raise complain(self.tokens.text, token.at, "expected a field, a metric, hparams.x or tag")
        ref = reference(self.tokens.text, token)
        self.metrics |= ref.kind is Kind.METRIC
        return ref

    def _value(self, ref: Ref, token: Token) -> Value:
        # What looks like a number or a constant is still a text where a text is meant: run_id = 20260410.
        bare = token.kind is not TokenKind.TEXT and ref.kind in (Kind.TEXT, Kind.TAGS, Kind.STATUS)
        value = ref.value(token.text if bare else value_of(self.tokens.text, token))
        if value is NotImplemented:
            raise complain(self.tokens.text, token.at, f"{ref} is compared with {ref.kind.wants}")
        assert value is None or isinstance(value, bool | int | float | str)
        return value
