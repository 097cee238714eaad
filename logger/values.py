"""What goes into a run directory as plain values: hyperparameters flattened, metrics as numbers.

Free of torch and lightning, and of numpy: their values are known by what they can do (`item`, `tolist`).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any, TypeAlias

__all__ = [
    "Flat",
    "Number",
    "Plain",
    "cell_number",
    "cell_text",
    "flatten",
    "number",
    "param_scalar",
    "plain",
    "restore_number",
    "strict",
]

Plain: TypeAlias = "bool | int | float | str | list[Any] | dict[str, Any] | None"
"""What both YAML and (but for non-finite numbers) JSON can hold."""

Number: TypeAlias = bool | int | float

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DEPTH = 32
_HUGE = 1 << 1023
"""Whole numbers beyond this are infinite to every reader, as no float holds them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flat:
    """Hyperparameters with dotted keys, in their order.

    Values are scalars, lists, or empty dicts. `renamed` are the keys that were taken already, with the key
    they got instead: `{"a": {"b": 1}, "a.b": 2}` gives `a.b` and `a.b_2`.
    """

    values: dict[str, Plain]
    renamed: tuple[tuple[str, str], ...] = ()


def plain(value: object) -> Plain:
    """`value` as bools, ints, floats, strings, None, lists and dicts, whatever it was.

    Mappings, namespaces, dataclasses, OmegaConf containers, named tuples, attrs and pydantic objects become dicts;
    sequences and sets become lists; enums their name (those that are strings or numbers their value); zero-dimensional arrays and tensors
    Python numbers. Anything else becomes its string, without memory addresses, so that a second start
    writes the same. What contains itself is cut off with the string `...`.
    """
    return _plain(value, ())


def flatten(params: object) -> Flat:
    """Hyperparameters of any kind with flat, dotted keys.

    Empty dicts and lists are kept as values, and so are lists. Two keys that become one are both kept: the
    later gets `_2` (`_3`, ...) and stands in `renamed`. An object that is neither a mapping nor anything like one
    contributes its attributes.
    """
    tree = plain(params)
    if not isinstance(tree, dict):
        attributes = getattr(params, "__dict__", None)
        tree = plain(attributes) if attributes else {}
    assert isinstance(tree, dict)
    values: dict[str, Plain] = {}
    renamed: list[tuple[str, str]] = []
    for key, value in _leaves(tree, ""):
        free = _free(key, values)
        if free != key:
            renamed.append((key, free))
        values[free] = value
    return Flat(values, tuple(renamed))


def param_scalar(value: Plain) -> bool | int | float | str | None:
    """A flat hyperparameter as one scalar: lists and empty dicts become their JSON text."""
    return json.dumps(strict(value), ensure_ascii=False) if isinstance(value, list | dict) else value


def number(value: object) -> Number | None:  # noqa: PLR0911 - one return a kind of value
    """The Python number that a metric's value is, or None if it is not a scalar (text, arrays, None, complex).

    Zero-dimensional and one-element tensors and arrays count, as do bools, Decimal and Fraction. Whole numbers that no
    float holds are infinite.
    """
    kind = type(value)
    if kind is float or kind is bool or (kind is int and -_HUGE < value < _HUGE):  # type: ignore[operator]
        return value  # type: ignore[return-value]
    if isinstance(value, str | bytes) or value is None:
        return None
    item = getattr(value, "item", None)
    if item is not None and callable(item):
        try:
            held = item() if getattr(value, "size", 1) != 0 else None
        except (ValueError, RuntimeError, TypeError):
            return None  # more than one element
        if type(held) is not kind:  # as of numpy's longdouble, which Python has no other number for
            return number(held)
    try:
        if isinstance(value, numbers.Integral):
            whole = int(value)
            if -_HUGE < whole < _HUGE:
                return whole
            return math.inf if whole > 0 else -math.inf
        return float(value) if isinstance(value, numbers.Real) or type(value).__name__ == "Decimal" else None  # type: ignore[arg-type]
    except (ValueError, OverflowError, TypeError):
        return None


def cell_number(cell: str) -> int | float | None:
    """The number that readers find in a cell of metrics.csv (`True` is 1, `False` is 0); None for text."""
    if cell.isdecimal() and len(cell) < 300:
        return int(cell)
    if cell in ("True", "False"):
        return int(cell == "True")
    try:
        return float(cell)
    except ValueError:
        return None


def cell_text(value: object) -> str:
    """What Lightning writes for a value that is no scalar; never raises."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a value that cannot be printed must not end a training
        return f"<{type(value).__qualname__}>"


def strict(value: Any) -> Any:
    """`value` (plain) with non-finite floats as the strings NaN, Infinity and -Infinity, which strict JSON can hold."""
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
    """The number that `strict` wrote as a string; anything else as it is."""
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _plain(value: object, seen: tuple[int, ...]) -> Plain:  # noqa: PLR0911 - one return a kind of value
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[return-value]
    if id(value) in seen or len(seen) > _DEPTH:
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
        result[_free(_key(key), result)] = _plain(value, seen)
    return result


def _as_mapping(value: object) -> Mapping[Any, Any] | None:  # noqa: PLR0911 - one return a kind of value
    """`value` as a mapping, if it is one or is made like one."""
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
    """An OmegaConf container as dict or list, its interpolations resolved; unresolved where one cannot be."""
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
    """The string of what has no plain form; functions and classes by their full name."""
    if isinstance(value, type | FunctionType | MethodType):
        return f"{value.__module__}.{value.__qualname__}"
    try:
        return _ADDRESS.sub("", str(value))
    except Exception:  # noqa: BLE001 - a user's broken __str__ must not end a training
        return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _order(value: Plain) -> tuple[str, Any]:
    """Sets in an order that is the same in every process: numbers by value, the rest by their text."""
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


def _free(key: str, taken: Mapping[str, object]) -> str:
    """`key`, or the first of key_2, key_3, ... that is not taken."""
    free, count = key, 1
    while free in taken:
        count += 1
        free = f"{key}_{count}"
    return free
