"""`bridge view`: open TensorBoard or MLflow on run directories, or on a target."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
import msgspec

from bridge.cli.command import command, exporter_of, given_names, was_typed
from bridge.cli.export import failures, sizes
from bridge.cli.output import Exit, Output
from bridge.errors import UsageError, counted
from bridge.interrupts import pause
from bridge.options import ContentOptions, ExportOptions, SelectionOptions, TargetOptions, ViewOptions
from bridge.registry import open_registry
from bridge.sync.export import Options
from bridge.sync.select import Selection

if TYPE_CHECKING:
    from bridge.exporters.contract import Exporter
    from bridge.sync.report import Report


_LOCAL = "127.0.0.1"

STARTING = "Starting the page ..."
"""Said before a server starts: MLflow's takes ten seconds, and more on a busy machine."""


@command("view", example="bridge view demo-runs --to tensorboard", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE))
def view(
    runs: tuple[Path, ...],
    target: TargetOptions,
    selection: SelectionOptions,
    content: ContentOptions,
    how: ViewOptions,
    out: Output,
) -> int:
    """Show runs in TensorBoard or MLflow until Ctrl-C.

    The page shows the run directories themselves, as they are at that moment; nothing is exported. Without --to it is
    TensorBoard's page, or MLflow's if TensorBoard is not installed.

    To view a target, give --logdir or --tracking-uri: the runs are exported to it first, and new rows for as long as
    the page is shown.
    """
    target = msgspec.structs.replace(target, to=target.to or _installed())
    is_live = not any(map(was_typed, ("logdir", "tracking_uri", "database_uri")))
    if is_live:  # the environment and bridge.yaml may name a target that nothing can be exported to
        target = msgspec.structs.replace(target, tracking_uri=None, database_uri=None)
    exporter = exporter_of(target)
    with contextlib.suppress(KeyboardInterrupt):
        if is_live:
            return _view_live(runs, exporter, selection, content, how, out)
        options = Options(
            content=content,
            given=given_names(ContentOptions),
            selection=Selection.of(selection),
            heartbeat_timeout=how.heartbeat_timeout,
        )
        return _view_target(runs, exporter, options, how, out)
    return Exit.DONE


def _installed() -> str:
    """Return the target whose package is installed: TensorBoard, else MLflow."""
    return "tensorboard" if find_spec("tensorboard") or not find_spec("mlflow") else "mlflow"


def _open_browser(address: str) -> None:
    """Open a browser, unless this machine has no screen: there it would be one for text, in this terminal."""
    has_screen = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & os.environ.keys()
    if has_screen or was_typed("open"):
        click.launch(address)


def _view_target(runs: tuple[Path, ...], exporter: Exporter, options: Options, how: ViewOptions, out: Output) -> int:
    """Export to a target, open its page, and keep it up to date."""
    from bridge.exporters.contract import Viewable
    from bridge.files import cache_dir
    from bridge.sync.export import export_runs
    from bridge.sync.follow import follow
    from bridge.view import free_port, serve, tunnel

    if how.host != _LOCAL or how.edit:
        option = "--edit" if how.edit else "--host"
        raise UsageError(f"{option} needs a view of the run directories themselves.", hint="Leave out the target.")
    if not isinstance(exporter, Viewable):
        raise UsageError(f"--to {exporter.name} has no page that can be opened here.")

    def told(report: Report) -> None:
        for line in report.runs if out.verbose else ():
            out.warn(f"{line.run_id}: {line.action}, {sizes(line.points, line.media)}")

    report = export_runs(runs, exporter, options, progress=out.progress(after=1.0))
    for failure in failures(report):
        out.warn(failure)
    out.say_no_match(report.no_match, report.exit_code)
    if report.exit_code == Exit.NOTHING_DONE or not report.runs:
        return report.exit_code
    interface = exporter.interface(free_port(how.port, usual=exporter.default_port))
    if how.port is not None and not interface.argv:
        raise UsageError(f"--port cannot be used here: the server at {interface.address} runs already.")
    if interface.argv:
        out.say(STARTING)
    with serve(interface, cache_dir() / "view" / f"{exporter.name}-{urlsplit(interface.address).port}.log"):
        out.result(interface.address)
        if interface.argv:
            out.result(f"From another machine first: {tunnel(urlsplit(interface.address).port or 80, _LOCAL)}")
        out.say("Press Ctrl-C to stop.")
        if how.open:
            _open_browser(interface.address)
        each = ExportOptions(interval=how.interval)
        progress = functools.partial(out.progress, after=1.0)
        follow(runs, exporter, options, each, told=told, say=out.say, progress=progress, pause=pause)
    return Exit.DONE


def _view_live(
    runs: tuple[Path, ...],
    exporter: Exporter,
    selection: SelectionOptions,
    content: ContentOptions,
    how: ViewOptions,
    out: Output,
) -> int:
    """Show the run directories themselves."""
    from bridge.exporters.contract import LiveViewable
    from bridge.live import LiveOptions, LiveRuns
    from bridge.sync.select import explain_none, select
    from bridge.view import free_port, tunnel

    if not isinstance(exporter, LiveViewable):
        raise UsageError(f"--to {exporter.name} cannot show run directories themselves.", hint="Name a target to view.")
    if how.edit and not exporter.can_edit:
        raise UsageError("--edit: nothing can be edited on this page.", hint="bridge view RUNS --to mlflow --edit")
    chosen = Selection.of(selection)
    options = LiveOptions(
        roots=list(map(str, runs)),
        selection=selection,
        content=content,
        heartbeat_timeout=how.heartbeat_timeout,
        edit=how.edit,
    )
    live = LiveRuns(options, functools.partial(select, selection=chosen))
    if how.host != _LOCAL:
        out.warn(f"! Every machine that can reach {how.host} can see the runs.")
    found = len(live.runs())
    out.say_skipped(live.skipped)
    if not found:
        registries = [open_registry(root, say=out.warn) for root in runs]
        no_match = explain_none([record for registry in registries for record in registry], chosen, runs)
        return out.say_no_match(no_match.text, Exit.NOTHING_DONE if no_match.unknown else Exit.DONE)
    port = free_port(how.port, usual=exporter.default_port, host=how.host)
    out.say(STARTING)
    with exporter.serve_live(live, host=how.host, port=port) as address:
        out.result(address)
        out.result(f"From another machine first: {tunnel(port, how.host)}")
        out.say(f"This page shows {counted(found, 'run')} as the files are now. Press Ctrl-C to stop.")
        if how.open:
            _open_browser(address)
        while True:
            pause(3600)
