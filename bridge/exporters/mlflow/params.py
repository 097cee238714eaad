"""A run's hyperparameters as MLflow's params: every one of them, as text, within MLflow's limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bridge.exporters.mlflow.names import clean, keys_of, renamed, storable
from bridge.model import Notice, NoticeKind
from bridge.secrets import MASK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.cursor import ContentOptions
    from bridge.model import Run
    from bridge.secrets import Redaction

__all__ = ["PARAM_LIMIT", "Params", "params_of", "volatile_tag"]

PARAM_LIMIT = 6000
"""Characters in a param's value."""


@dataclass(frozen=True, slots=True)
class Params:
    """The params of a run by MLflow's key.

    `values` are as MLflow holds them, `whole` those that were cut, in full; `keys` maps the hparams' own names;
    `volatile` are keys whose first value stays, `globs` tell of any key whether it is one.
    """

    values: Mapping[str, str]
    whole: Mapping[str, str]
    keys: Mapping[str, str]
    volatile: frozenset[str]
    globs: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = field(default=())

    def stays(self, key: str) -> bool:
        """Whether what MLflow holds under `key` stays whatever becomes of the param: another value, or none."""
        return key in self.volatile or (key not in self.values and _matches(key, self.globs))


def params_of(run: Run, content: ContentOptions, redaction: Redaction) -> Params:
    """The params of `run`: renamed, masked and cut where MLflow's rules or `shape` ask for it."""
    keys = keys_of(run.params)
    values: dict[str, str] = {}
    whole: dict[str, str] = {}
    notices = [
        Notice(NoticeKind.RENAMED, f"param {name}", f"as {key}; the map is in bridge/names.json")
        for name, key in renamed(keys).items()
    ]
    for name, value in run.params.items():
        key, text = keys[name], storable(str(value))
        if text != str(value):
            notices.append(Notice(NoticeKind.CUT, f"param {name}", "NUL characters cannot be stored"))
        shown = str(redaction.value(name, text))
        if shown != text:
            notices.append(
                Notice(NoticeKind.REDACTED, f"param {name}", f"its value, or what of it is secret, is {MASK}")
            )
        if len(shown) > PARAM_LIMIT:
            whole[key] = shown
            notices.append(
                Notice(NoticeKind.CUT, f"param {name}", f"of {len(shown)} characters; in full in bridge/params.json")
            )
        values[key] = shown[:PARAM_LIMIT]
    volatile = frozenset(keys[name] for name in run.params if _matches(name, content.volatile))
    return Params(values, whole, keys, volatile, content.volatile, tuple(notices))


def volatile_tag(key: str) -> str:
    """The tag that holds the newest value of a volatile param."""
    return clean(f"bridge.newest.{key}")


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    low = name.lower()
    return any(fnmatchcase(low, glob.lower()) for glob in globs)
