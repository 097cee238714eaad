"""Turn whatever a training logs into plain values: hyperparameters into flat keys, metrics into numbers.

Free of torch, lightning and numpy: their values are recognized by what they offer (`item`, `tolist`, `ndim`).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any, TypeAlias

Plain: TypeAlias = "bool | int | float | str | list[Any] | dict[str, Any] | None"
"""A value that both YAML and JSON can hold (JSON with non-finite numbers as texts)."""

Number: TypeAlias = bool | int | float

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAX_DEPTH = 32
_FLOAT_RANGE = 1 << 1023
"""Whole numbers beyond this magnitude are infinite, because no float holds them."""


class ClassName(str):
    """The name of a Python class, in place of an object of that class that cannot be read from a YAML file."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Flat:
    """Hyperparameters with dotted keys, in their order.

    Values are scalars, lists, or empty dicts. `renamed` lists keys that were taken already, with the key used instead:
    `{"a": {"b": 1}, "a.b": 2}` gives `a.b` and `a.b_2`.
    """

    values: dict[str, Plain]
    renamed: tuple[tuple[str, str], ...] = ()


def plain(value: object) -> Plain:
    """Return `value` as bools, ints, floats, strings, None, lists and dicts.

    Mappings, namespaces, dataclasses, OmegaConf containers, named tuples, attrs and pydantic objects become dicts.
    Sequences and sets become lists, enums their name (an enum of strings or numbers its value), zero-dimensional arrays
    and tensors Python numbers. Anything else becomes its string without memory addresses, so that a second start writes
    the same. A container within itself becomes the string `...`.
    """
    return _plain(value, ())


def plain_dict(params: object) -> dict[str, Any]:
    """Return hyperparameters of any kind as a nested dict of plain values.

    An object that is neither a mapping nor similar to one contributes its attributes.
    """
    tree = plain(params)
    if not isinstance(tree, dict):
        tree = plain(getattr(params, "__dict__", None) or {})
    assert isinstance(tree, dict)
    return tree


def flatten(params: object) -> Flat:
    """Return hyperparameters of any kind, read as by `plain_dict`, with flat, dotted keys.

    Lists, empty lists and empty dicts stay values. If two keys become one, the later gets `_2` (`_3`, ...) and is
    listed in `renamed`.
    """
    values: dict[str, Plain] = {}
    renamed: list[tuple[str, str]] = []
    for key, value in _leaves(plain_dict(params), ""):
        free = _free_key(key, values)
        if free != key:
            renamed.append((key, free))
        values[free] = value
    return Flat(values, tuple(renamed))


def param_scalar(value: Plain) -> bool | int | float | str | None:
    """Return a flat hyperparameter as one scalar: lists and empty dicts become JSON text."""
    return json.dumps(strict(value), ensure_ascii=False) if isinstance(value, list | dict) else value


def number(value: object) -> Number | None:  # noqa: PLR0911 - one return per kind of value
    """Return a metric's value as a Python number, or None if it is no scalar (text, None, complex, larger arrays).

    Zero-dimensional and one-element tensors and arrays count, as do bools, Decimal and Fraction. Whole numbers too
    large for a float become infinite.
    """
    kind = type(value)
    if kind is float or kind is bool or (kind is int and -_FLOAT_RANGE < value < _FLOAT_RANGE):  # type: ignore[operator]
        return value  # type: ignore[return-value]
    if isinstance(value, str | bytes) or value is None:
        return None
    item = getattr(value, "item", None)
    if item is not None and callable(item):
        try:
            scalar = item() if getattr(value, "size", 1) != 0 else None
        except (ValueError, RuntimeError, TypeError):
            return None  # more than one element
        if type(scalar) is not kind:  # numpy's longdouble gives itself: Python has no such number
            return number(scalar)
    try:
        if isinstance(value, numbers.Integral):
            whole = int(value)
            if -_FLOAT_RANGE < whole < _FLOAT_RANGE:
                return whole
            return math.inf if whole > 0 else -math.inf
        return float(value) if isinstance(value, numbers.Real) or type(value).__name__ == "Decimal" else None  # type: ignore[arg-type]
    except (ValueError, OverflowError, TypeError):
        return None


def cell_number(cell: str) -> int | float | None:
    """Return the number that readers find in a cell of metrics.csv (`True` is 1, `False` is 0), or None for text."""
    if cell.isdecimal() and len(cell) < 300:
        return int(cell)
    if cell in ("True", "False"):
        return int(cell == "True")
    try:
        return float(cell)
    except ValueError:
        return None


def whole_number(cell: str) -> int | None:
    """Return the integer in a cell as Python's int() reads it; None if there is none, or it needs more than 64 bits."""
    try:
        found = int(cell)
    except ValueError:
        return None
    return found if -(2**63) <= found < 2**63 else None


def is_header(cells: Sequence[str], columns: tuple[str, ...]) -> bool:
    """Return whether `cells`, below the header `columns` of metrics.csv, are another header line.

    All of them are filled, one is `step`, and there is no number in the step's place.
    """
    if "step" not in columns:
        return tuple(cells) == columns
    if "step" not in cells or not all(cells):
        return False
    place = len(columns) - 1 - columns[::-1].index("step")  # the last column of that name counts
    return place >= len(cells) or whole_number(cells[place]) is None


def cell_text(value: object) -> str:
    """Return the text of a value that is no scalar, as Lightning writes it; never raises."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a value that cannot be printed must not end a training
        return f"<{type(value).__qualname__}>"


def strict(value: Any) -> Any:
    """Return a plain value with non-finite floats as the strings NaN, Infinity and -Infinity, as strict JSON needs."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value


def restore_number(value: Any) -> Any:
    """Return the number that `strict` wrote as a string, and any other value as it is."""
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _plain(value: object, seen: tuple[int, ...]) -> Plain:  # noqa: PLR0911 - one return per kind of value
    if value is None or type(value) in (bool, int, float, str, ClassName):
        return value  # type: ignore[return-value]
    if id(value) in seen or len(seen) > _MAX_DEPTH:
        return "..."
    inner = (*seen, id(value))
    if type(value).__module__.startswith("omegaconf."):
        return _plain(_omegaconf(value), inner)
    if isinstance(value, enum.Enum):
        mixed = isinstance(value, str | int | float)
        return _plain(value.value, inner) if mixed else value.name
    mapping = _as_mapping(value)
    if mapping is not None:
        return _plain_dict(mapping, inner)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Set):
        return sorted((_plain(item, inner) for item in value), key=_order)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview | range):
        return [_plain(item, inner) for item in value]
    scalar = number(value) if getattr(value, "ndim", 0) == 0 else None
    return scalar if scalar is not None else _text(value)


def _plain_dict(mapping: Mapping[Any, Any], seen: tuple[int, ...]) -> dict[str, Plain]:
    result: dict[str, Plain] = {}
    for key, value in mapping.items():
        result[_free_key(_key(key), result)] = _plain(value, seen)
    return result


def _as_mapping(value: object) -> Mapping[Any, Any] | None:  # noqa: PLR0911 - one return per kind of value
    """Return `value` as a mapping if it is one or resembles one, else None."""
    kind = type(value)
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if kind.__name__ in ("Namespace", "SimpleNamespace") or any(base.__name__ == "Namespace" for base in kind.__mro__):
        return vars(value)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return {name: getattr(value, name) for name in kind._fields}
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name, None) for field in kind.__attrs_attrs__}
    if hasattr(kind, "model_fields") and hasattr(value, "model_dump"):
        return {name: getattr(value, name, None) for name in kind.model_fields}
    return None


def _omegaconf(value: object) -> object:
    """Return an OmegaConf container as dict or list, with its interpolations resolved if all of them can be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not OmegaConf.is_config(value):
        return str(value)
    try:
        return OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_container(value, resolve=False)


def _key(key: object) -> str:
    if isinstance(key, enum.Enum) and not isinstance(key, str | int):
        return key.name
    return str.__str__(key) if isinstance(key, str) else str(key)


def _text(value: object) -> str:
    """Return the string of an object that has no plain form; of functions and classes their full name."""
    if isinstance(value, type | FunctionType | MethodType):
        return f"{value.__module__}.{value.__qualname__}"
    try:
        return _ADDRESS.sub("", str(value))
    except Exception:  # noqa: BLE001 - a user's broken __str__ must not end a training
        return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _order(value: Plain) -> tuple[str, Any]:
    """Return a sort key that orders a set alike in every process: numbers by value, the rest by their text."""
    return (
        ("", value) if isinstance(value, int | float) and not math.isnan(value) else (type(value).__name__, str(value))
    )


def _leaves(tree: Mapping[str, Plain], prefix: str) -> list[tuple[str, Plain]]:
    found: list[tuple[str, Plain]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found


def _free_key(key: str, taken: Mapping[str, object]) -> str:
    """Return `key`, or the first of key_2, key_3, ... that is not taken."""
    free, count = key, 1
    while free in taken:
        count += 1
        free = f"{key}_{count}"
    return free


SECRET_KEYS = (
    "*password*",
    "*passwd*",
    "*secret*",
    "*api_key*",
    "*apikey*",
    "*access_token*",
    "*auth_token*",
    "*private_key*",
    "*credential*",
)
"""Globs on keys whose values are masked unless somebody chooses others."""


@lru_cache(maxsize=1 << 14)
def names_secret(key: str, globs: tuple[str, ...] = SECRET_KEYS) -> bool:
    """Return True if a glob matches the whole dotted `key` or any part between its dots.

    Case does not matter, and `-` equals `_`.
    """
    folded = key.lower().replace("-", "_")
    return bool(key) and any(
        fnmatchcase(name, glob) for glob in _folded(globs) for name in (folded, *folded.split("."))
    )


@lru_cache(maxsize=64)
def _folded(globs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs in lower case with `_` for `-`, except inside brackets, where `-` means a range."""
    return tuple(
        re.sub(r"\[[^\]]*\]|-", lambda found: found[0] if found[0] != "-" else "_", glob.lower()) for glob in globs
    )
