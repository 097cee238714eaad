"""`bridge export`: bring runs into a target."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.common import (
    Exit,
    Output,
    Seconds,
    coming_runs_argument,
    command,
    counted,
    heartbeat_option,
    interval_option,
    output_options,
    plain,
    selection_options,
)
from bridge.cli.content import content_options
from bridge.cli.targets import TargetChoice, make_exporter, target_options
from bridge.interrupts import pause

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.cursor import ContentOptions
    from bridge.exporters.contract import Exporter
    from bridge.sync.export import Options
    from bridge.sync.report import Report, RunReport
    from bridge.sync.select import Selection

__all__ = ["export"]

_EXITS = (Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE, Exit.SOME_FAILED)


@command("export", example="bridge export demo-runs --to tensorboard --logdir tb_logs", exits=_EXITS)
@coming_runs_argument
@target_options
@selection_options
@content_options
@click.option("--rebuild", is_flag=True, help="Replace every target by a fresh one.")
@click.option("--as", "new_identity", metavar="NEW_ID", help="Export the one run under another identity.")
@heartbeat_option
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes at work. Default: the cores.")
@click.option("--dask", metavar="ADDRESS", help="Work on this Dask cluster: tcp://host:8786, or a scheduler file.")
@click.option("--dry-run", is_flag=True, help="Print what would be done; touch nothing.")
@click.option("--follow", "following", is_flag=True, help="Go on: export what moved, again and again.")
@interval_option("With --follow: the time between two looks.")
@click.option("--until-done", is_flag=True, help="With --follow: end when every run has completed or failed.")
@click.option(
    "--grace",
    type=Seconds(min=0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="With --until-done: a killed or interrupted run counts as done after so long, since it may be requeued.",
)
@output_options
def export(
    runs: tuple[Path, ...],
    target: TargetChoice,
    selection: Selection,
    rebuild: bool,
    new_identity: str | None,
    heartbeat_timeout: float,
    workers: int | None,
    dask: str | None,
    dry_run: bool,
    following: bool,
    interval: float,
    until_done: bool,
    grace: float,
    content: ContentOptions,
    out: Output,
) -> int:
    """Bring runs into MLflow or TensorBoard; again at any time, only what is new is sent."""
    from bridge.sync.export import Options, export_runs
    from bridge.sync.together import Hands

    options = Options(
        content=content,
        selection=selection,
        dry_run=dry_run,
        rebuild=rebuild,
        new_identity=new_identity,
        heartbeat_timeout=heartbeat_timeout,
        hands=Hands(workers=workers or _cores(), dask=dask, threads=workers or max(_REQUESTS_AT_ONCE, _cores())),
    )
    if following:
        if dry_run or new_identity is not None or rebuild:
            raise click.UsageError("--follow goes with none of --dry-run, --rebuild and --as.")
        how = {"interval": interval, "until_done": until_done, "grace": grace}
        return _follow(runs, make_exporter(target), options, how, out)
    report = export_runs(runs, make_exporter(target), options, progress=out.progress())
    if out.json:
        out.result_json(report.to_dict())
    else:
        _print(report, out)
    return report.exit_code


def _follow(runs: tuple[Path, ...], exporter: Exporter, options: Options, how: dict[str, Any], out: Output) -> int:
    """Follow until done or until SIGINT or SIGTERM, which end whatever is going on at once (130)."""
    import json

    from bridge.sync.follow import Following, follow

    def told(report: Report) -> None:
        if out.json:
            out.result(json.dumps(report.to_dict(), allow_nan=False))
        else:
            _print(report, out)

    # A pass that takes a moment shows no bars: they would flicker at each one.
    progress = functools.partial(out.progress, after=1.0)
    return follow(runs, exporter, options, Following(**how, pause=pause), told=told, say=out.say, progress=progress)


_REQUESTS_AT_ONCE = 4
"""Runs on their way to a server at once, unless --workers says otherwise: they wait more than they work."""


def _cores() -> int:
    """The cores that this process may use: on a cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print(report: Report, out: Output) -> None:
    """The runs that something happened to (in a plan all), then a line of totals; with --quiet failures alone.

    Failures go to stderr, with their remedy.
    """
    for run in report.runs:
        if run.failed:
            out.warn(failure(run))
        elif not out.quiet and (str(run.action) != "unchanged" or out.verbose or report.dry_run):
            out.result(_line(run))
            for entry in run.to_dict()["notices"]:
                out.result(plain(f"    lost: {entry['count']} x {entry['kind']}{_examples(entry)}"))
            for note in run.notes:
                out.result(plain(f"    note: {note}"))
    if out.quiet:
        return
    totals = report.to_dict()["totals"]
    actions = ", ".join(f"{totals[name]} {name}" for name in _ACTIONS if totals[name])
    tense = "would send" if report.dry_run else "sent"
    out.result(
        f"{counted(totals['runs'], 'run')}: {actions or 'none found'}; {tense} {counted(totals['points'], 'point')}, "
        f"{totals['media']:,} media; {counted(totals['notices'], 'notice')}; {report.seconds:.1f} s"
    )


_ACTIONS = ("new", "changed", "unchanged", "rebuild", "deleted", "unreadable", "failed")


def _line(run: RunReport) -> str:
    sign = {"new": "+", "changed": "*", "rebuild": "r", "deleted": "-"}.get(str(run.action), "=")
    reason = f" ({run.reason})" if run.reason else ""
    where = f" -> {run.where}" if run.where else ""
    return plain(f"{sign} {run.run_id}: {run.action}{reason}, {counted(run.points, 'point')}, {run.media} media{where}")


def failure(run: RunReport) -> str:
    """A run that was not brought into its target, in words: why not, and what to try."""
    return plain(f"! {run.run_id}: {run.reason}") + (f"\n  {plain(run.hint)}" if run.hint else "")


def _examples(entry: dict[str, Any]) -> str:
    shown = "; ".join(f"{one['what']}: {one['detail']}" if one["detail"] else one["what"] for one in entry["examples"])
    return f" ({shown})" if shown else ""
