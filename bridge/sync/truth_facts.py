"""The truth about a run's own facts: what the sidecar (else hparams.yaml) says, read a second time."""

from __future__ import annotations

import contextlib
import json
import math
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import yaml

from bridge.files import (
    LARGEST_JSON,
    LARGEST_YAML,
    LONGEST_NUMBER,
    MOST_NODES,
    MOST_PARAM_LETTERS,
    MOST_PARAMS,
    MOST_TAGS,
    read_plain,
    shortened,
    too_large_json,
    too_large_yaml,
)
from bridge.sync.truth_files import own_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bridge.model import Scalar

__all__ = ["Facts", "read_facts"]

DEEPEST = 64
YEAR_10000 = 253402300800.0
_FILES = ("sidecar.json", "summary.json", "hparams.yaml", "metrics.csv", "media.jsonl")


@dataclass(frozen=True, slots=True)
class Facts:
    """A run's own facts. Times are seconds since the epoch; `last_alive` is the newest of heartbeat and metrics.csv.

    `status_word` is the sidecar's, None without a sidecar. `time_column_before` is the time column's name as long as metrics.csv
    does not have the new one yet.
    """

    run_id: str
    name: str
    status_word: str | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    notes: str = ""
    start: float = math.nan
    ended_at: float | None = None
    last_alive: float = math.nan
    time_column: str | None = None
    time_column_before: str | None = None

    def end(self, status: str) -> float | None:
        """When the run ended, given its status as it is shown: None while it is running."""
        if status == "running":
            return None
        return self.last_alive if self.ended_at is None or status == "killed" else self.ended_at


def read_facts(run_dir: Path) -> Facts:
    """What the files of `run_dir` say of the run; what is missing or of a wrong type is as if it were not there."""
    sidecar = _json(own_file(run_dir, "sidecar.json"))
    run_id = shortened(_text(sidecar.get("run_id")) or run_dir.resolve().name)
    created = _time(sidecar.get("created_at"))
    return Facts(
        run_id=run_id,
        name=shortened(_text(sidecar.get("display_name")) or run_id.rstrip("/").rpartition("/")[2]),
        status_word=_text(sidecar.get("status")) or None,
        params=_params(run_dir, sidecar),
        tags=_tags(sidecar.get("tags")),
        notes=_text(sidecar.get("notes")),
        start=created if created is not None else _first_mtime(run_dir),
        ended_at=_time(sidecar.get("ended_at")),
        last_alive=max(_mtime(run_dir / name) for name in ("heartbeat", "metrics.csv")),
        time_column=_text(sidecar.get("time_column")) or None,
        time_column_before=_text(sidecar.get("time_column_before")) or None,
    )


def _tags(value: object) -> tuple[str, ...]:
    """A list of texts, each once, or one text."""
    tags = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(_text(tag) for tag in tags if isinstance(tag, str)))[:MOST_TAGS]


def _text(value: object) -> str:
    """A text, or a number as one, that every target can encode: a lone surrogate becomes a replacement character."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in str(value))


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        held = read_plain(path, limit=LARGEST_JSON)
        data = None if too_large_json(held) else json.loads(held)
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _params(run_dir: Path, sidecar: dict[str, Any]) -> dict[str, Scalar]:
    """The params, flat; none where there are more than anybody can want (aliases make a small file large)."""
    hparams = sidecar.get("hparams")
    if not isinstance(hparams, dict) or not hparams:
        hparams = _yaml(own_file(run_dir, "hparams.yaml"))
    try:
        if _is_too_much(hparams):
            return {}
        params = _named(islice(_flat(hparams, ""), MOST_PARAMS + 1))
        return {} if len(params) > MOST_PARAMS else params
    except RecursionError:
        return {}


def _named(leaves: Iterator[tuple[str, Any]]) -> dict[str, Scalar]:
    """The leaves by name; keys that become one are all kept: the second of `a.b` is `a.b_2`, as the logger names them."""
    params: dict[str, Scalar] = {}
    times: dict[str, int] = {}
    for key, value in leaves:
        wanted = name = _text(key)
        again = times.get(wanted, 1)
        while name in params:
            again += 1
            name = f"{wanted}_{again}"
        times[wanted] = again
        params[name] = _scalar(value)
    return params


def _is_too_much(hparams: Mapping[Any, Any]) -> bool:
    """Whether the params are more than anybody reads. RecursionError where they are nested too deep."""
    letters = 0
    for count, length in enumerate(_lengths(hparams, 0, 0), start=1):
        letters += length
        if count > MOST_NODES or letters > MOST_PARAM_LETTERS:
            return True
    return False


def _lengths(tree: Any, depth: int, prefix: int | None) -> Iterator[int]:
    """For every value in `tree` the length of its name and its text; `prefix` is that of the names above, None in a list."""
    if depth > DEEPEST:
        raise RecursionError
    for name, item in tree.items() if isinstance(tree, dict) else (("", item) for item in tree):
        length = (prefix or 0) + len(str(name))
        yield length + (len(item) if isinstance(item, str | bytes) else 0)
        if isinstance(item, dict | list | tuple | set):
            nested = isinstance(item, dict) and prefix is not None
            yield from _lengths(item, depth + 1, length + 1 if nested else None)


def _yaml(path: Path | None) -> dict[Any, Any]:
    if path is None:
        return {}
    try:
        held = read_plain(path, limit=LARGEST_YAML)
        data = None if too_large_yaml(held) else yaml.load(held, Loader=_Loader)  # noqa: S506 - a SafeLoader that makes text of unknown tags
    except (
        OSError,
        yaml.YAMLError,
        ValueError,
        RecursionError,
        ArithmeticError,
        TypeError,
        LookupError,
        AttributeError,
    ):
        return {}
    return data if isinstance(data, dict) else {}


class _Loader(yaml.SafeLoader):
    """A safe loader for which an unknown tag is no error: what carries it becomes text."""

    merges = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys multiply by each level and use: what they bring is counted before it is brought."""
        merged = [value for key, value in node.value if key.tag.endswith(":merge")]
        for value in merged:
            for source in value.value if isinstance(value, yaml.SequenceNode) else (value,):
                if isinstance(source, yaml.MappingNode):
                    self.flatten_mapping(source)
                    self.merges += len(source.value)
                    if self.merges > MOST_NODES:
                        raise yaml.YAMLError("too many merged keys")
        super().flatten_mapping(node)


def _tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode) and suffix.endswith(":python/tuple"):  # as Lightning writes `betas`
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.ScalarNode) and node.value:
        return str(node.value)
    return suffix.rpartition(":")[2]


def _numeric(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """A number, or the text of one that is too long to be worked out."""
    if isinstance(node.value, str) and len(node.value) > LONGEST_NUMBER:
        return node.value
    return loader.construct_yaml_int(node) if node.tag.endswith(":int") else loader.construct_yaml_float(node)


_Loader.add_multi_constructor("", _tagged)
_Loader.add_constructor("tag:yaml.org,2002:int", _numeric)
_Loader.add_constructor("tag:yaml.org,2002:float", _numeric)


def _flat(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _scalar(value: Any) -> Scalar:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | dict):
        with contextlib.suppress(TypeError, ValueError):
            return _text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    return _text(str(value))


def _time(value: object) -> float | None:
    """Seconds since the epoch of an ISO time (UTC unless it says otherwise), or of a number; within years 1970 to 9999."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            seconds = float(value)
    elif isinstance(value, str):
        try:
            then = datetime.fromisoformat(value.strip())
            seconds = (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            with contextlib.suppress(ValueError):
                seconds = float(value)
    return seconds if 0 <= seconds < YEAR_10000 else None


def _mtime(path: Path) -> float:
    """When a plain file was changed last; what a link leads to is no sign of anything."""
    try:
        found = path.lstat()
    except OSError:
        return -math.inf
    return found.st_mtime if stat.S_ISREG(found.st_mode) else -math.inf


def _first_mtime(run_dir: Path) -> float:
    """hparams.yaml's mtime, else the oldest of the run's own files; NaN where there is none."""
    found = {name: path.stat().st_mtime for name in _FILES if (path := own_file(run_dir, name)) is not None}
    return found.get("hparams.yaml", min(found.values(), default=math.nan))
