"""The truth about a run's own facts: what the sidecar (else hparams.yaml) says, read a second time."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bridge.model import Scalar

__all__ = ["Facts", "read_facts"]


@dataclass(frozen=True, slots=True)
class Facts:
    """A run's own facts. Times are seconds since the epoch; `last_alive` is the newest of heartbeat and metrics.csv.

    `status_word` is the sidecar's, None without a sidecar.
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

    def end(self, status: str) -> float | None:
        """When the run ended, given its status as it is shown: None while it is running."""
        if status == "running":
            return None
        return self.last_alive if self.ended_at is None or status == "killed" else self.ended_at


def read_facts(run_dir: Path) -> Facts:
    """What the files of `run_dir` say of the run; what is missing or of a wrong type is as if it were not there."""
    sidecar = _json(run_dir / "sidecar.json")
    run_id = _text(sidecar.get("run_id")) or run_dir.resolve().name
    tags = sidecar.get("tags")
    created = _time(sidecar.get("created_at"))
    return Facts(
        run_id=run_id,
        name=_text(sidecar.get("display_name")) or run_id.rstrip("/").rpartition("/")[2],
        status_word=_text(sidecar.get("status")) or None,
        params=_params(run_dir, sidecar),
        tags=tuple(_text(tag) for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        notes=_text(sidecar.get("notes")),
        start=created if created is not None else _first_mtime(run_dir),
        ended_at=_time(sidecar.get("ended_at")),
        last_alive=max((_mtime(run_dir / name) for name in ("heartbeat", "metrics.csv")), default=math.nan),
        time_column=_text(sidecar.get("time_column")) or None,
    )


def _text(value: object) -> str:
    """A text, or a number as one, that every target can encode: a lone surrogate becomes a replacement character."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in str(value))


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _params(run_dir: Path, sidecar: dict[str, Any]) -> dict[str, Scalar]:
    hparams = sidecar.get("hparams")
    if not isinstance(hparams, dict) or not hparams:
        hparams = _yaml(run_dir / "hparams.yaml")
    return {_text(key): _scalar(value) for key, value in _flat(hparams, "")}


def _yaml(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            data = yaml.load(file, Loader=_Loader)  # noqa: S506 - a SafeLoader that makes text of what it does not know
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


class _Loader(yaml.SafeLoader):
    """A safe loader for which an unknown tag is no error: what carries it becomes text."""


def _tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode) and suffix.endswith(":python/tuple"):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.ScalarNode) and node.value:
        return str(node.value)
    return suffix.rpartition(":")[2]


_Loader.add_multi_constructor("", _tagged)


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
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    try:
        then = datetime.fromisoformat(value.strip())
    except ValueError:
        with contextlib.suppress(ValueError):
            return _time(float(value))
        return None
    return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf


def _first_mtime(run_dir: Path) -> float:
    """hparams.yaml's mtime, else the oldest of the directory's files; NaN where there is none."""
    hparams = _mtime(run_dir / "hparams.yaml")
    if math.isfinite(hparams):
        return hparams
    return min((_mtime(path) for path in run_dir.iterdir() if path.is_file()), default=math.nan)
