"""hparams.yaml as flat scalars, read safely: nothing is executed, and no file can grow beyond its bounds."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from bridge.bounds import LARGEST_YAML, MOST_NODES, too_large_yaml
from bridge.model import Loss, LossKind
from bridge.plain_files import read_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.model import RunFile, Scalar

__all__ = ["clean", "flat_params", "read_hparams"]

_DEPTH = 64


def read_hparams(file: RunFile) -> tuple[dict[str, Scalar], tuple[Loss, ...]]:
    """The parameters in `file` with dotted keys. Unknown tags become text; what cannot be read is a loss, never an error."""
    import yaml

    from bridge.source.safe_yaml import Loader

    try:
        text = read_plain(file.path, limit=LARGEST_YAML)
        reason = too_large_yaml(text)
        if reason:
            return {}, (Loss(LossKind.TOO_LARGE, "hparams.yaml", reason),)
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
        return {}, (Loss(LossKind.BAD_LINE, "hparams.yaml", f"cannot be read: {_short(error)}"),)
    if data is None:
        return {}, ()
    if not isinstance(data, dict):
        return {}, (Loss(LossKind.BAD_LINE, "hparams.yaml", f"holds a {type(data).__name__}, not keys with values"),)
    try:
        return flat_params(data), ()
    except (RecursionError, ValueError) as error:
        return {}, (Loss(LossKind.TOO_LARGE, "hparams.yaml", _short(error)),)


def flat_params(tree: Mapping[Any, Any]) -> dict[str, Scalar]:
    """`tree` with dotted keys; lists become JSON text, other things text. Raises ValueError for too large a tree."""
    flat: dict[str, Scalar] = {}
    _flatten(tree, "", flat, 0, [MOST_NODES])
    return flat


def _flatten(tree: Mapping[Any, Any], prefix: str, flat: dict[str, Scalar], depth: int, left: list[int]) -> None:
    if depth > _DEPTH:
        raise ValueError(f"nested deeper than {_DEPTH}")
    for key, value in tree.items():
        left[0] -= 1
        if left[0] < 0:  # aliases make a small file large: each use counts
            raise ValueError(f"more than {MOST_NODES} values")
        name = f"{prefix}{clean(str(key))}"
        if isinstance(value, dict) and value:
            _flatten(value, f"{name}.", flat, depth + 1, left)
        else:
            flat[name] = _scalar(value, left)


def _scalar(value: Any, left: list[int]) -> Scalar:
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | dict | tuple | set):
        _count(value, left, 0)
        if isinstance(value, list | dict):
            try:
                return clean(json.dumps(value, ensure_ascii=False, allow_nan=False))
            except (TypeError, ValueError):
                pass
    return clean(str(value))


def _count(value: Any, left: list[int], depth: int) -> None:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {MOST_NODES} values")
    if depth > _DEPTH:
        raise ValueError(f"nested deeper than {_DEPTH}")
    if isinstance(value, dict):
        for item in value.values():
            _count(item, left, depth + 1)
    elif isinstance(value, list | tuple | set):
        for item in value:
            _count(item, left, depth + 1)


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
