"""The bridge as a library: `bridge.export`, `bridge.plan`, `bridge.verify`, with the words of the command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.cursor import ContentOptions
    from bridge.exporters.contract import Exporter
    from bridge.sync.report import Report
    from bridge.sync.verdicts import VerifyReport

__all__ = ["Content", "Selecting", "export", "plan", "verify"]

Paths: TypeAlias = "str | PathLike[str] | Iterable[str | PathLike[str]]"


class Selecting(TypedDict, total=False):
    """Which runs: the options of the command line that select runs, by the same rules. One text is a list of one."""

    run_ids: tuple[str, ...]
    tags: tuple[str, ...]
    statuses: tuple[str, ...]
    since: str | None
    where: str | None
    top: tuple[int, str] | None
    last: bool


class Content(TypedDict, total=False):
    """What of a run: the fields of `bridge.cursor.ContentOptions`, which shape what a target holds.

    One text is a list of one; `rename` may be a dict.
    """

    metrics: tuple[str, ...]
    exclude_metrics: tuple[str, ...]
    media: bool
    artifacts: str
    checkpoints: bool
    best: tuple[str, ...]
    flat: bool
    rename: tuple[tuple[str, str], ...] | Mapping[str, str]
    redact: tuple[str, ...]
    volatile: tuple[str, ...]


def export(
    runs: Paths,
    *,
    to: str | Exporter,
    rebuild: bool = False,
    new_identity: str | None = None,
    heartbeat_timeout: float = 180.0,
    workers: int = 1,
    select: Selecting | None = None,
    target: Mapping[str, Any] | None = None,
    **content: Unpack[Content],
) -> Report:
    """Bring the runs at and below `runs` into a target, and only what is new; again at any time.

    `to` is an exporter or the name of one, made with `target`, its own options: `{"logdir": "tb_logs"}` for TensorBoard;
    `{"tracking_uri": ..., "experiment": ..., "database_uri": ...}` for MLflow. `heartbeat_timeout` is in seconds.
    With more than one of `workers` processes are started, so a script needs its `if __name__ == "__main__":`.

    A run that fails does not stop the others: look at `Report.failed`. Raises UsageError for what makes no sense and
    TargetError where the target cannot be reached at all.
    """
    return _run(
        runs,
        to,
        target,
        select,
        {
            "rebuild": rebuild,
            "new_identity": new_identity,
            "heartbeat_timeout": heartbeat_timeout,
            "workers": workers,
            "dry_run": False,
        },
        content,
    )


def plan(
    runs: Paths,
    *,
    to: str | Exporter,
    rebuild: bool = False,
    new_identity: str | None = None,
    heartbeat_timeout: float = 180.0,
    select: Selecting | None = None,
    target: Mapping[str, Any] | None = None,
    **content: Unpack[Content],
) -> Report:
    """What `export` would do and lose, without touching the target. Arguments, result and errors as there."""
    return _run(
        runs,
        to,
        target,
        select,
        {
            "rebuild": rebuild,
            "new_identity": new_identity,
            "heartbeat_timeout": heartbeat_timeout,
            "workers": 1,
            "dry_run": True,
        },
        content,
    )


def verify(
    runs: Paths,
    *,
    to: str | Exporter,
    sample: int | None = None,
    strict: bool = False,
    heartbeat_timeout: float = 180.0,
    select: Selecting | None = None,
    target: Mapping[str, Any] | None = None,
) -> VerifyReport:
    """Read a target back and compare it with the run directories, by a reader of its own.

    `sample` compares only so many metrics a run; `strict` makes what was not sent yet a difference. Other arguments and
    errors as in `export`.
    """
    from bridge.sync.verify import VerifyOptions, verify_runs

    options = VerifyOptions(
        selection=_selection(select), sample=sample, strict=strict, heartbeat_timeout=heartbeat_timeout
    )
    return verify_runs(_paths(runs), _exporter(to, target), options)


def _run(
    runs: Paths,
    to: str | Exporter,
    target: Mapping[str, Any] | None,
    select: Selecting | None,
    settings: dict[str, Any],
    content: Content,
) -> Report:
    from bridge.sync.export import Options, export_runs
    from bridge.sync.together import Hands

    hands = Hands(workers=settings.pop("workers"))
    options = Options(content=_shape(content), selection=_selection(select), hands=hands, **settings)
    return export_runs(_paths(runs), _exporter(to, target), options)


def _shape(content: Content) -> ContentOptions:
    """The checked shape: what a target is made with must not depend on a slip. Raises UsageError."""
    from bridge.cursor import ContentOptions
    from bridge.errors import UsageError

    given: dict[str, Any] = dict(content)
    for name, value in given.items():
        if name not in Content.__annotations__:
            raise UsageError(
                f"{name} is no option of an export.", hint="There are: " + ", ".join(Content.__annotations__)
            )
        if name in _LISTS:
            pairs = value.items() if isinstance(value, Mapping) else value
            given[name] = (value,) if isinstance(value, str) else tuple(pairs)
        elif name in _CHOICES and value not in _CHOICES[name]:
            raise UsageError(f"{name} must be one of {', '.join(map(repr, _CHOICES[name]))}, not {value!r}.")
    parts: dict[str, type] = {"rename": tuple}
    for name in _LISTS & given.keys():
        if not all(isinstance(item, parts.get(name, str)) for item in given[name]):
            raise UsageError(f"{name} must be a list of {'pairs' if name in parts else 'texts'}, not {given[name]!r}.")
    return ContentOptions(**given)


_LISTS = frozenset({"metrics", "exclude_metrics", "best", "rename", "redact", "volatile"})
_CHOICES: Mapping[str, tuple[object, ...]] = {
    "artifacts": ("ended", "now", "none"),
    **dict.fromkeys(("media", "checkpoints", "flat"), (True, False)),
}


def _paths(runs: Paths) -> tuple[Path, ...]:
    return (Path(runs),) if isinstance(runs, str | PathLike) else tuple(Path(fspath(path)) for path in runs)


def _selection(select: Selecting | None) -> Any:
    from bridge.sync.select import Selection

    if select is None:
        return None
    wrong = [name for name in select if name not in Selecting.__annotations__]
    if wrong:
        from bridge.errors import UsageError

        known = ", ".join(Selecting.__annotations__)
        raise UsageError(f"{wrong[0]} selects no runs.", hint=f"What does: {known}")
    one_text = {name: (value,) for name, value in select.items() if name in _SEVERAL and isinstance(value, str)}
    return Selection.of(**{**select, **one_text})  # type: ignore[arg-type]


_SEVERAL = frozenset({"run_ids", "tags", "statuses"})


def _exporter(to: str | Exporter, target: Mapping[str, Any] | None) -> Exporter:
    if not isinstance(to, str):
        return to
    from bridge.errors import UsageError
    from bridge.exporters import find_exporter

    factory, options = find_exporter(to), dict(target or {})
    taken = inspect.signature(factory).parameters
    for name in options:
        if name not in taken:
            raise UsageError(f"{name} is no option of {to}.", hint=f"There are: {', '.join(taken)}")
    if "logdir" in options:
        options["logdir"] = Path(options["logdir"])
    return factory(**options)
