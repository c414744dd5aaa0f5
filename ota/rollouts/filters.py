"""The filter language: which devices. A subset of RSQL / FIQL, as hawkBit's target filters are.

    site==berlin;model==pose-nano,version=lt=0.7      ";" = and, "," = or; and binds tighter; ( ) group
    name==box-*                                       * stands for any text, in == and != only; not within quotes
    site=in=(berlin,"New York")                       one of; =out= none of
    version=ge=0.10                                   =lt= =le= =gt= =ge= (also < <= > >=): numbers in it count as numbers

Upper and lower case are the same. A field may have several values: a comparison holds when it does for one of them, `!=` and `=out=` when
they do for all. A field that a device does not have equals nothing: `==` and `<` do not match, `!=` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from agent.errors import DataError

MAX_CHARACTERS = 1000
MAX_DEPTH = 20
Fields = Mapping[str, Sequence[str]]
Pieces = list[tuple[int, int, str]]
Version = tuple[Pieces, Pieces]
Versions = dict[str, list[Version]]
"""Of one device, by field: read when a filter first asks, however often it does."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_OPERATOR = re.compile(r"==|!=|=[a-z]+=|<=|>=|<|>")
_WORD = re.compile(r"""[^\s"'();,<>=!~]+""")
_SIGNS = {"<": "=lt=", "<=": "=le=", ">": "=gt=", ">=": "=ge="}
_OPERATORS = frozenset({"==", "!=", "=lt=", "=le=", "=gt=", "=ge=", "=in=", "=out="})
_PIECE = re.compile(r"(\d+)")


class FilterError(DataError):
    """The text is no filter. column: where it stops making sense, from 1."""

    def __init__(self, text: str, position: int, problem: str) -> None:
        self.column = position + 1
        self.problem = problem
        super().__init__(f"column {self.column}: {problem}\n{text}\n{' ' * position}^")


@dataclass(frozen=True, slots=True)
class Value:
    """text: in lower case; pattern: its * stand for any text."""

    text: str
    pattern: bool = False

    def equals(self, other: str) -> bool:
        return _like(self.text.split("*"), other.lower()) if self.pattern else self.text == other.lower()


@dataclass(frozen=True, slots=True)
class Equal:
    """With `unlike`, the opposite."""

    name: str
    value: Value
    unlike: bool

    def matches(self, fields: Fields, _: Versions) -> bool:
        return any(map(self.value.equals, fields.get(self.name, ()))) != self.unlike


@dataclass(frozen=True, slots=True)
class Listed:
    """As long as its list may be, it takes no longer than one comparison. With `unlike`, the opposite."""

    name: str
    texts: frozenset[str]
    unlike: bool

    def matches(self, fields: Fields, _: Versions) -> bool:
        return any(text.lower() in self.texts for text in fields.get(self.name, ())) != self.unlike


@dataclass(frozen=True, slots=True)
class Ordered:
    name: str
    operator: str
    version: Version

    def matches(self, fields: Fields, versions: Versions) -> bool:
        own = versions.get(self.name)
        if own is None:
            own = versions[self.name] = [_version(text) for text in fields.get(self.name, ())]
        return any(_holds(self.operator, _compare(version, self.version)) for version in own)


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Node, ...]

    def matches(self, fields: Fields, versions: Versions) -> bool:
        return all(part.matches(fields, versions) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Either:
    parts: tuple[Node, ...]

    def matches(self, fields: Fields, versions: Versions) -> bool:
        return any(part.matches(fields, versions) for part in self.parts)


Comparison = Equal | Listed | Ordered
Node = Comparison | All | Either


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter; `node` None takes every device. comparisons: how many there are in it, a list being one."""

    text: str
    node: Node | None
    comparisons: int = 0

    def matches(self, fields: Fields) -> bool:
        return self.node is None or self.node.matches(fields, {})


def parse(text: str) -> Filter:
    """The filter in `text`; empty text takes every device. Raises FilterError."""
    if len(text) > MAX_CHARACTERS:
        raise FilterError(text[:40] + "...", 0, f"longer than {MAX_CHARACTERS} characters")
    if not text.strip():
        return Filter("", None)
    parser = _Parser(text)
    node = parser.either(0)
    parser.end()
    return Filter(text.strip(), node, parser.comparisons)


def compare_versions(one: str, other: str) -> int:
    """-1, 0 or 1. Digits count as numbers (0.10 is above 0.9); what follows "-" is a version before (1.0-rc1 is below 1.0)."""
    return _compare(_version(one), _version(other))


def _compare(one: Version, other: Version) -> int:
    (first, first_early), (second, second_early) = one, other
    if order := _order(first, second):
        return order
    if not first_early or not second_early:
        return bool(second_early) - bool(first_early)
    return _order(first_early, second_early)


def _version(text: str) -> Version:
    main, _, early = text.lower().split("+", 1)[0].partition("-")
    return _pieces(main), _pieces(early)


def _pieces(text: str) -> Pieces:
    """Numbers rank above words, as in 1.0.1 above 1.0.beta."""
    parts = (piece.strip("._ ") for piece in _PIECE.split(text))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part]


def _order(first: Pieces, second: Pieces) -> int:
    """A version that is longer by zeros is the same: 1.0 and 1.0.0."""
    for one, other in zip_longest(first, second, fillvalue=(1, 0, "")):
        if one != other:
            return 1 if one > other else -1
    return 0


def _holds(operator: str, order: int) -> bool:
    return {"=lt=": order < 0, "=le=": order <= 0, "=gt=": order > 0, "=ge=": order >= 0}[operator]


def _like(pieces: list[str], text: str) -> bool:
    """Whether `text` is the pieces with anything between them, in one pass: no pattern takes longer than the text is long."""
    first, *middle, last = pieces
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


class _Parser:
    """Recursive descent; `at` is the position of the next character. comparisons: how many it has come by."""

    def __init__(self, text: str) -> None:
        self.comparisons = 0
        self._text = text
        self._at = 0

    def either(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} brackets inside each other")
        parts = [self._all(depth)]
        while self._take(","):
            parts.append(self._all(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def end(self) -> None:
        if not self._done():
            raise self._error(f'expected ";" (and) or "," (or), found {self._found()}')

    def _all(self, depth: int) -> Node:
        parts = [self._term(depth)]
        while self._take(";"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _term(self, depth: int) -> Node:
        if not self._take("("):
            return self._comparison()
        node = self.either(depth + 1)
        if not self._take(")"):
            raise self._error(f'expected ")", found {self._found()}')
        return node

    def _comparison(self) -> Comparison:
        name = self._match(_NAME)
        if name is None:
            raise self._error(f"expected the name of a field, found {self._found()}")
        self._skip()
        start = self._at
        sign = self._match(_OPERATOR)
        operator = _SIGNS.get(sign or "", sign or "")
        if operator not in _OPERATORS:
            self._at = start
            known = "== != =lt= =le= =gt= =ge= =in= =out="
            raise self._error(f"expected a comparison ({known}) after {name}, found {sign or self._found()}")
        self.comparisons += 1
        if operator in {"=in=", "=out="}:
            return Listed(name, self._list(), operator == "=out=")
        if operator in {"==", "!="}:
            return Equal(name, self._value(pattern=True), operator == "!=")
        return Ordered(name, operator, _version(self._value(pattern=False).text))

    def _list(self) -> frozenset[str]:
        if not self._take("("):
            raise self._error(f'expected "(" before the list, found {self._found()}')
        texts = [self._value(pattern=False).text]
        while self._take(","):
            texts.append(self._value(pattern=False).text)
        if not self._take(")"):
            raise self._error(f'expected "," or ")" in the list, found {self._found()}')
        return frozenset(texts)

    def _value(self, *, pattern: bool) -> Value:
        self._skip()
        if self._at < len(self._text) and self._text[self._at] in "\"'":
            return Value(self._quoted().lower())
        word = self._match(_WORD)
        if word is None:
            raise self._error(f"expected a value, found {self._found()}")
        return Value(word.lower(), pattern and "*" in word)

    def _quoted(self) -> str:
        start, quote = self._at, self._text[self._at]
        self._at += 1
        taken: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character == quote:
                return "".join(taken)
            if character == "\\" and self._at < len(self._text):
                character = self._text[self._at]
                self._at += 1
            taken.append(character)
        self._at = start
        raise self._error("this quote is not closed")

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        self._skip()
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found.group()

    def _take(self, character: str) -> bool:
        self._skip()
        there = self._text.startswith(character, self._at)
        self._at += there
        return there

    def _skip(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1

    def _done(self) -> bool:
        self._skip()
        return self._at == len(self._text)

    def _found(self) -> str:
        return "the end" if self._done() else repr(self._text[self._at])

    def _error(self, problem: str) -> FilterError:
        self._skip()
        return FilterError(self._text, self._at, problem)
