"""`bridge export`: copy runs to a target, once or again and again."""

from __future__ import annotations

import functools
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli.command import command, exporter_of, given_names
from bridge.cli.output import Exit, Output, plain
from bridge.errors import counted
from bridge.interrupts import pause
from bridge.options import ContentOptions, ExportOptions, SelectionOptions, TargetOptions, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bridge.exporters.contract import Exporter
    from bridge.sync.export import Options
    from bridge.sync.report import Report, RunReport

MOST_NAMED = 3
"""Runs that are named beside a reason for which they all failed."""

REQUESTS_AT_ONCE = 8
"""Runs that are sent to a server at once, unless --workers is given; they wait more than they work."""


@command(
    "export",
    example="bridge export demo-runs --to tensorboard --logdir tb_logs",
    exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE, Exit.SOME_FAILED),
)
def export(
    runs: tuple[Path, ...],
    target: TargetOptions,
    selection: SelectionOptions,
    content: ContentOptions,
    how: ExportOptions,
    out: Output,
) -> int:
    """Copy runs to MLflow or TensorBoard; run it again at any time. Only what is new is sent.

    Each run gets a sign: + new, * changed or rebuilt, = unchanged, ! failed.
    """
    from bridge.sync.export import Options, export_runs
    from bridge.sync.parallel import Workers
    from bridge.sync.select import Selection

    most = cores()
    options = Options(
        content=content,
        given=given_names(ContentOptions),
        selection=Selection.of(selection),
        dry_run=how.dry_run,
        rebuild=how.rebuild,
        new_identity=how.new_identity,
        heartbeat_timeout=how.heartbeat_timeout,
        workers=Workers(
            processes=how.workers or most, threads=how.workers or max(REQUESTS_AT_ONCE, most), dask=how.dask
        ),
    )
    exporter = exporter_of(target)
    if how.follow:
        if how.dry_run or how.rebuild or how.new_identity is not None:
            raise click.UsageError("--follow cannot be combined with --dry-run, --rebuild or --as.")
        return _follow(runs, exporter, options, how, out)
    report = export_runs(runs, exporter, options, progress=out.progress())
    if out.json:
        out.result_json(report.to_dict())
        return out.say_no_match(report.no_match, report.exit_code)
    print_report(report, out)
    if not out.quiet and not how.dry_run and report.runs and report.exit_code != Exit.NOTHING_DONE:
        out.result(f"Open: {how_to_look(runs, target, exporter)}")
    return report.exit_code


def _follow(runs: tuple[Path, ...], exporter: Exporter, options: Options, how: ExportOptions, out: Output) -> int:
    """Export again and again until all runs are done, or until SIGINT or SIGTERM ends the command (130)."""
    import json

    from bridge.sync.follow import follow

    def told(report: Report) -> None:
        if out.json:
            out.result(json.dumps(report.to_dict(), allow_nan=False))
        else:
            print_report(report, out)

    # A pass that takes a moment shows no bars: they would flicker every time.
    progress = functools.partial(out.progress, after=1.0)
    return follow(runs, exporter, options, how, told=told, say=out.say, progress=progress, pause=pause)


def cores() -> int:
    """Return the number of cores that this process may use, which on a cluster is less than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def how_to_look(runs: tuple[Path, ...], target: TargetOptions, exporter: Exporter) -> str:
    """Return the address of the runs on a server, or the command that opens the target."""
    from bridge.exporters.contract import Viewable

    if (target.tracking_uri or "").startswith("http") and isinstance(exporter, Viewable):
        return exporter.interface(exporter.default_port).address
    words = ["bridge", "view", *map(str, runs), "--to", target.to]
    for item in fields_of(TargetOptions):
        value = getattr(target, item.name)
        if item.name != "to" and value != item.default:
            words += [f"--{item.name.replace('_', '-')}", str(value)]
    # Without the target, `bridge view` would show the run directories themselves.
    if isinstance(exporter, Viewable) and not {"--logdir", "--tracking-uri", "--database-uri"} & set(words):
        words += exporter.place
    return shlex.join(words)


def print_report(report: Report, out: Output) -> None:
    """Print a line for each run that something happened to (in a plan for all runs), then the totals.

    Failures go to stderr, also with --quiet, and so do warnings without it.
    """
    for warning in report.warnings:
        out.say(warning)
    out.say_no_match(report.no_match, report.exit_code)
    if report.no_match and not report.runs:
        return
    labels = labels_of(report.runs)
    for failure in failures(report):
        out.warn(failure)
    for run in report.runs:
        if run.failed or out.quiet or not (run.action != "unchanged" or out.verbose or report.dry_run):
            continue
        out.line(_line(run, labels[run.path], report.exporter))
        for entry in run.notices:
            examples = "; ".join(": ".join(filter(None, (one.what, one.detail))) for one in entry.examples)
            out.line(f"    {counted(entry.count, 'notice')}: {entry.kind}: {examples}")
        for note in run.notes:
            out.line(f"    {note}")
    out.say_skipped(report.skipped)
    if not out.quiet:
        out.result(_totals(report))


def labels_of(runs: Sequence[RunReport]) -> dict[str, str]:
    """Return how each run is called, by its path: its name, with the path behind it if another run has that name."""
    names = {run.path: run.name or run.run_id for run in runs}
    counts = Counter(names.values())
    return {path: name if counts[name] == 1 else f"{name} ({os.path.relpath(path)})" for path, name in names.items()}


def _line(run: RunReport, label: str, exporter: str) -> str:
    action = run.action
    if action == "deleted":
        name = {"mlflow": "MLflow", "tensorboard": "TensorBoard"}.get(exporter, exporter)
        return f"{label}: skipped, because it was deleted in {name}. Use --rebuild to export it again."
    if action == "copy":
        return f"{label}: skipped, because {run.path} is {run.reason}."
    if action == "unchanged":
        return f"= {label}: unchanged" + (f", {run.reason}" if run.reason else "")
    sign, word = ("+", "new") if action == "new" else ("*", "rebuilt" if action == "rebuild" else action)
    reason = f" ({run.reason.removeprefix('changed: ')})" if run.reason else ""
    sent = f", {sizes(run.points, run.media)}" if run.points or run.media or action == "new" else ""
    return f"{sign} {label}: {word}{reason}{sent}"


def sizes(points: int, media: int) -> str:
    """Return `20 points, 3 images and videos`."""
    pictures = f", {media:,} images and videos" if media > 1 else ", 1 image or video" if media else ""
    return f"{counted(points, 'point')}{pictures}"


def _totals(report: Report) -> str:
    totals = report.totals
    exported = [(totals.new, "new"), (totals.changed, "changed"), (totals.rebuild, "rebuilt")]
    verb = "would be exported" if report.dry_run else "exported"
    kinds = ", ".join(f"{number:,} {word}" for number, word in exported if number)
    parts = [
        (totals.new + totals.changed + totals.rebuild, f"{verb} ({kinds})"),
        (totals.unchanged, "unchanged"),
        (totals.deleted + totals.copy, "skipped"),
        (totals.failed + totals.unreadable, "failed"),
    ]
    parts = [(number, words) for number, words in parts if number]
    if not parts:
        return f"0 runs exported, {report.seconds:.1f} s"
    (number, words), *others = parts
    said = ", ".join([f"{counted(number, 'run')} {words}", *(f"{number:,} {words}" for number, words in others)])
    sent = f": {sizes(totals.points, totals.media)}" if totals.points or totals.media else ""
    notices = f"; {counted(totals.notices, 'notice')}" if totals.notices else ""
    return f"{said}{sent}, {report.seconds:.1f} s{notices}"


def failures(report: Report) -> Iterator[str]:
    """Yield why runs were not exported, and what to try; runs with the same reason share one message."""
    labels = labels_of(report.runs)
    groups: dict[tuple[str, str], list[str]] = {}
    for run in report.failed:
        groups.setdefault((run.reason, run.hint), []).append(labels[run.path])
    for (reason, hint), names in groups.items():
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        who = f"{', '.join(names[:MOST_NAMED])}{more}"
        yield plain(f"! {who}: {reason}") + (f"\n  {plain(hint)}" if hint else "")
