"""hparams.yaml as flat scalars, read safely: nothing is executed, and no file can grow beyond its bounds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.files import LARGEST_YAML, MOST_NODES, MOST_PARAM_LETTERS, MOST_PARAMS, read_plain, too_large_yaml
from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.model import RunFile, Scalar

__all__ = ["clean", "flat_params", "read_hparams"]

_DEPTH = 64
_MOST_NAMED = 20


def read_hparams(file: RunFile) -> tuple[dict[str, Scalar], tuple[Notice, ...]]:
    """The parameters in `file` with dotted keys. Unknown tags become text; what cannot be read is a notice, never an error."""
    import yaml

    from bridge.rundir.safe_yaml import Loader

    try:
        text = read_plain(file.path, limit=LARGEST_YAML)
        reason = too_large_yaml(text)
        if reason:
            return {}, (Notice(NoticeKind.TOO_LARGE, "hparams.yaml", reason),)
        data = yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader that makes text of unknown tags
    # PyYAML's constructors meet a value that is not of its tag with any of these.
    except (
        OSError,
        yaml.YAMLError,
        ValueError,
        RecursionError,
        ArithmeticError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:
        return {}, (Notice(NoticeKind.BAD_LINE, "hparams.yaml", f"cannot be read: {_short(error)}"),)
    if data is None:
        return {}, ()
    if not isinstance(data, dict):
        return {}, (
            Notice(NoticeKind.BAD_LINE, "hparams.yaml", f"holds a {type(data).__name__}, not keys with values"),
        )
    try:
        return flat_params(data, "hparams.yaml")
    except (RecursionError, ValueError) as error:
        return {}, (Notice(NoticeKind.TOO_LARGE, "hparams.yaml", _short(error)),)


def flat_params(tree: Mapping[Any, Any], where: str) -> tuple[dict[str, Scalar], tuple[Notice, ...]]:
    """`tree`, which stands in the file `where`, with dotted keys; lists become JSON text, other things text.

    Of keys that become one (`a: {b: 1}` beside `a.b: 2`) the first keeps it, the next is `a.b_2`, as the logger names them:
    a notice each. Raises ValueError for too large a tree.
    """
    flat = _Names()
    _flatten(tree, "", flat, 0, _Left())
    renamed = list(flat.renamed.items())
    notices = [
        Notice(
            NoticeKind.RENAMED,
            f"{where}: {name}",
            f"{count + 1} params have this name; the later ones are {name}_2, ...",
            count,
        )
        for name, count in renamed[:_MOST_NAMED]
    ]
    if further := sum(count for _, count in renamed[_MOST_NAMED:]):
        notices.append(Notice(NoticeKind.RENAMED, where, "further params that share a name", further))
    return flat.values, tuple(notices)


@dataclass(slots=True)
class _Names:
    """Values by their flat names; `renamed` says how many more there are of a name that several have."""

    values: dict[str, Scalar] = field(default_factory=dict)
    renamed: dict[str, int] = field(default_factory=dict)
    _last: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Scalar) -> None:
        """Take one value, under the first of name, name_2, name_3, ... that is free."""
        free = name
        if name in self.values:
            self.renamed[name] = self.renamed.get(name, 0) + 1
            while free in self.values:
                self._last[name] = self._last.get(name, 1) + 1
                free = f"{name}_{self._last[name]}"
        self.values[free] = value
        if len(self.values) > MOST_PARAMS:
            raise ValueError(f"more than {MOST_PARAMS:,} hyperparameters")


@dataclass(slots=True)
class _Left:
    """What may still be taken. A small file can mean a lot: an alias counts each time, a nested name with those above it."""

    values: int = MOST_NODES
    letters: int = MOST_PARAM_LETTERS

    def take(self, name: str, value: object) -> None:
        """Count one value with its name. Raises ValueError where it is one too many."""
        self.values -= 1
        self.letters -= len(name) + (len(value) if isinstance(value, str | bytes) else 0)
        if self.values < 0:
            raise ValueError(f"more than {MOST_NODES:,} values")
        if self.letters < 0:
            raise ValueError(f"names and texts of more than {MOST_PARAM_LETTERS >> 20} million characters")


def _flatten(tree: Mapping[Any, Any], prefix: str, flat: _Names, depth: int, left: _Left) -> None:
    if depth > _DEPTH:
        raise ValueError(f"nested deeper than {_DEPTH}")
    for key, value in tree.items():
        name = f"{prefix}{clean(str(key))}"
        left.take(name, value)
        if isinstance(value, dict) and value:
            _flatten(value, f"{name}.", flat, depth + 1, left)
        else:
            flat.add(name, _scalar(value, depth + 1, left))


def _scalar(value: Any, depth: int, left: _Left) -> Scalar:
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | dict | tuple | set):
        _count(value, depth, left)
        if isinstance(value, list | dict):
            try:
                return clean(json.dumps(value, ensure_ascii=False, allow_nan=False))
            except (TypeError, ValueError):
                pass
    return clean(str(value))


def _count(value: dict[Any, Any] | list[Any] | tuple[Any, ...] | set[Any], depth: int, left: _Left) -> None:
    if depth > _DEPTH:
        raise ValueError(f"nested deeper than {_DEPTH}")
    items = value.items() if isinstance(value, dict) else (("", item) for item in value)
    for name, item in items:
        left.take(str(name), item)
        if isinstance(item, dict | list | tuple | set):
            _count(item, depth + 1, left)


def clean(text: str) -> str:
    """`text` without lone surrogates, which no target can encode."""
    if text.isascii():
        return text
    return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


def finite(value: object) -> float | None:
    """`value` as a float where it is a finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
