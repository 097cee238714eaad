"""The bridge as a library: export, plan, verify and read_points, with the options of the command line."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bridge.errors import BridgeError
from bridge.options import CompareOptions, ContentOptions, SelectionOptions, checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bridge.exporters.contract import Exporter
    from bridge.registry import RunRecord
    from bridge.sync.report import Report, VerifyReport
    from bridge.sync.select import Selection

Paths: TypeAlias = "str | PathLike[str] | Iterable[str | PathLike[str]]"


def export(
    runs: Paths,
    *,
    to: str | Exporter,
    rebuild: bool = False,
    new_identity: str | None = None,
    heartbeat_timeout: float = 180.0,
    workers: int = 1,
    select: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    **content: Any,
) -> Report:
    """Copy the runs at and below `runs` to a target; call it again at any time, and only what is new is sent.

    `to` is an exporter, or the name of one that is made with the options `target`: `{"logdir": "tb_logs"}` for
    TensorBoard, `{"tracking_uri": ..., "experiment": ..., "database_uri": ...}` for MLflow. `select` holds options of
    `bridge.options.SelectionOptions` and chooses runs; `content` are options of `bridge.options.ContentOptions`.
    `heartbeat_timeout` is in seconds. More than one of `workers` starts processes, so a script needs its
    `if __name__ == "__main__":`.

    A run that fails does not stop the others: look at `Report.failed`. Raises UsageError for a wrong option and
    TargetError where the target cannot be reached at all.
    """
    how = {"rebuild": rebuild, "new_identity": new_identity, "heartbeat_timeout": heartbeat_timeout}
    return _run(runs, _exporter(to, target), select, content, how, workers)


def plan(
    runs: Paths,
    *,
    to: str | Exporter,
    rebuild: bool = False,
    new_identity: str | None = None,
    heartbeat_timeout: float = 180.0,
    select: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    **content: Any,
) -> Report:
    """Return what `export` would do, without touching the target. Arguments and errors are those of `export`."""
    how = {"rebuild": rebuild, "new_identity": new_identity, "heartbeat_timeout": heartbeat_timeout, "dry_run": True}
    return _run(runs, _exporter(to, target), select, content, how)


def verify(
    runs: Paths,
    *,
    to: str | Exporter,
    sample: int | None = None,
    strict: bool = False,
    heartbeat_timeout: float = 180.0,
    select: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
) -> VerifyReport:
    """Read a target back and compare it with the run directories.

    `sample` compares only so many metrics of each run; with `strict` what was not exported yet counts as a difference.
    The other arguments and the errors are those of `export`.
    """
    from bridge.sync.verify import verify_runs

    how = CompareOptions(sample=sample, strict=strict, heartbeat_timeout=heartbeat_timeout)
    chosen = _selection(select)
    return verify_runs(_paths(runs), _exporter(to, target), how, selection=chosen)


def read_points(
    run: str | PathLike[str] | RunRecord, metrics: str | Iterable[str] | None = None, *, arrow: bool = False
) -> Any:
    """Return the points of one run as a pandas table with the columns metric, step, time and value, by step.

    `run` is a run directory or a record of a registry. `metrics` are globs on metric names. Superseded points are left
    out, as in every target. With `arrow` the result is a pyarrow table. Raises RunDirectoryError for a run that cannot
    be read and BridgeError where pandas is not installed.
    """
    from bridge.rundir import read_run
    from bridge.rundir.points import points_table

    run_dir: Any = getattr(run, "run_dir", run)
    table = points_table(read_run(Path(run_dir)), (metrics,) if isinstance(metrics, str) else metrics or ())
    if arrow:
        return table
    try:
        return table.to_pandas()
    except ImportError as error:
        raise BridgeError("read_points needs pandas, which is not installed.", hint="pip install pandas") from error


def _run(
    runs: Paths,
    exporter: Exporter,
    select: Mapping[str, Any] | None,
    content: Mapping[str, Any],
    how: Mapping[str, Any],
    workers: int = 1,
) -> Report:
    from bridge.sync.export import Options, export_runs
    from bridge.sync.parallel import Workers

    options = Options(
        content=checked(ContentOptions, content, what="export"),
        given=frozenset(content),
        selection=_selection(select),
        workers=Workers(processes=workers),
        **how,
    )
    return export_runs(_paths(runs), exporter, options)


def _paths(runs: Paths) -> tuple[Path, ...]:
    return (Path(runs),) if isinstance(runs, str | PathLike) else tuple(Path(fspath(path)) for path in runs)


def _selection(select: Mapping[str, Any] | None) -> Selection | None:
    from bridge.sync.select import Selection

    return None if select is None else Selection.of(checked(SelectionOptions, select, what="select"))


def _exporter(to: str | Exporter, target: Mapping[str, Any] | None) -> Exporter:
    if not isinstance(to, str):
        return to
    from bridge.exporters.contract import make_exporter

    options = dict(target or {})
    if "logdir" in options:
        options["logdir"] = Path(options["logdir"])
    return make_exporter(to, options, meant={name: name for name in options})
