"""The bridge as a library: `bridge.export`, `bridge.plan`, `bridge.verify`, with the words of the command line."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bridge.exporters.contract import Exporter
    from bridge.report import Report
    from bridge.verbs.verdicts import VerifyReport

__all__ = ["Content", "Selecting", "export", "plan", "verify"]

Paths: TypeAlias = "str | PathLike[str] | Iterable[str | PathLike[str]]"


class Selecting(TypedDict, total=False):
    """Which runs: the options of the command line that select runs, by the same rules."""

    run_ids: tuple[str, ...]
    tags: tuple[str, ...]
    statuses: tuple[str, ...]
    since: str | None
    where: str | None
    top: tuple[int, str] | None
    last: bool


class Content(TypedDict, total=False):
    """What of a run: the fields of `bridge.cursor.Shape`, which shape what a target holds."""

    metrics: tuple[str, ...]
    exclude_metrics: tuple[str, ...]
    media: bool
    artifacts: str
    checkpoints: bool
    best: tuple[str, ...]
    overlap: str
    max_points: int | None
    flat: bool
    rename: tuple[tuple[str, str], ...]
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
    from bridge.verbs.verify import VerifyOptions, verify_runs

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
    from bridge.cursor import Shape
    from bridge.verbs.export import Options, export_runs
    from bridge.verbs.together import Hands

    hands = Hands(workers=settings.pop("workers"))
    options = Options(shape=Shape(**content), selection=_selection(select), hands=hands, **settings)
    return export_runs(_paths(runs), _exporter(to, target), options)


def _paths(runs: Paths) -> tuple[Path, ...]:
    return (Path(runs),) if isinstance(runs, str | PathLike) else tuple(Path(fspath(path)) for path in runs)


def _selection(select: Selecting | None) -> Any:
    from bridge.verbs.select import Selection

    return None if select is None else Selection.of(**select)


def _exporter(to: str | Exporter, target: Mapping[str, Any] | None) -> Exporter:
    if not isinstance(to, str):
        return to
    from bridge.exporters import find_exporter

    options = dict(target or {})
    if "logdir" in options:
        options["logdir"] = Path(options["logdir"])
    return find_exporter(to)(**options)
