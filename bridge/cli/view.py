"""`bridge view`: export, then open the target's own page on it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from bridge.cli.common import (
    Exit,
    Output,
    command,
    counted,
    heartbeat_option,
    interval_option,
    output_options,
    runs_argument,
    selection_options,
)
from bridge.cli.content import content_options
from bridge.cli.export import failure
from bridge.cli.targets import TargetChoice, make_exporter, target_options
from bridge.interrupts import pause

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.cursor import ContentOptions
    from bridge.exporters.contract import Exporter, Interface
    from bridge.sync.export import Options
    from bridge.sync.report import Report
    from bridge.sync.select import Selection

__all__ = ["view"]


@command(
    "view",
    example="bridge view demo-runs --to tensorboard",
    exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE),
)
@runs_argument
@target_options
@selection_options
@content_options
@click.option("--port", type=click.IntRange(1, 65535), metavar="P", help="Default: the usual one, or a free one.")
@click.option("--open/--no-open", "opens", default=True, help="Open a browser, or only print the address.")
@heartbeat_option
@interval_option("The time between two looks for new rows.")
@output_options
def view(
    runs: tuple[Path, ...],
    target: TargetChoice,
    selection: Selection,
    port: int | None,
    opens: bool,
    heartbeat_timeout: float,
    interval: float,
    content: ContentOptions,
    out: Output,
) -> int:
    """Export runs into a target of their own, open its page on them, and follow them until Ctrl-C.

    The target is kept in the cache, so the next view sends only what is new; or give --logdir or --tracking-uri. A
    target that you give is never made anew because it was made with other options.
    """
    from bridge.errors import UsageError
    from bridge.exporters.contract import Viewable
    from bridge.sync.export import Options, export_runs

    place, own = _place(runs, target, selection), not target.given & _PLACES
    exporter = make_exporter(_in_cache(target, place) if own else target)
    if not isinstance(exporter, Viewable):
        raise UsageError(f"--to {target.to} has no page that can be opened here.")
    options = Options(content=content, selection=selection, heartbeat_timeout=heartbeat_timeout, reshape=own)
    try:
        report = export_runs(runs, exporter, options, progress=out.progress(after=1.0))
        for line in report.failed:
            out.warn(failure(line))
        if report.exit_code == Exit.NOTHING_DONE:
            return Exit.NOTHING_DONE
        interface = _interface(exporter, port)
        return _show(interface, place, runs, exporter, options, opens=opens, interval=interval, out=out)
    except KeyboardInterrupt:
        return Exit.DONE


_PLACES = frozenset({"logdir", "tracking_uri", "database_uri"})
"""The options that name a target of the user's own."""


def _place(runs: tuple[Path, ...], target: TargetChoice, selection: Selection) -> Path:
    """The folder in the cache that belongs to these runs and this selection, which is taken by its words: days pass."""
    from bridge.files import cache_dir

    words = click.get_current_context().params
    asked = repr((sorted(str(path.resolve()) for path in runs), replace(selection, since=None), words["since"]))
    return cache_dir() / "view" / f"{target.to}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"


def _in_cache(target: TargetChoice, place: Path) -> TargetChoice:
    """The target in the cache: of what is configured only the experiment's name is kept."""
    place.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in target.options.items() if name not in _PLACES}
    own = {"logdir": place / "logdir", "tracking_uri": f"sqlite:///{quote(str(place / 'mlflow.db'))}"}
    return replace(target, options={"experiment": "runs", **kept, **own})


def _interface(exporter: Exporter, port: int | None) -> Interface:
    """The exporter's page at `port`. Raises UsageError for a port that is taken, or of no use."""
    from bridge.errors import UsageError
    from bridge.view import free_port

    interface: Interface = exporter.interface(free_port(port, usual=exporter.default_port))  # type: ignore[attr-defined]
    if port is not None and not interface.argv:
        raise UsageError(f"--port says where to start a server, and there is one already: {interface.address}")
    return interface


def _show(
    interface: Interface,
    place: Path,
    runs: tuple[Path, ...],
    exporter: Exporter,
    options: Options,
    *,
    opens: bool,
    interval: float,
    out: Output,
) -> int:
    from bridge.sync.follow import Following, follow
    from bridge.view import serve, tunnel

    def told(report: Report) -> None:
        for line in report.runs:
            out.detail(f"{line.run_id}: {line.action}, {counted(line.points, 'point')}")

    with serve(interface, place / "server.log"):
        out.result(interface.address)
        if interface.argv:
            out.result(f"From another machine first: {tunnel(_port(interface.address))}")
        out.say("Ctrl-C ends it.")
        if opens:
            click.launch(interface.address)
        progress = functools.partial(out.progress, after=1.0)
        follow(
            runs,
            exporter,
            options,
            Following(interval=interval, pause=pause),
            told=told,
            say=out.say,
            progress=progress,
        )
    return Exit.DONE


def _port(address: str) -> int:
    from urllib.parse import urlsplit

    return urlsplit(address).port or 80
