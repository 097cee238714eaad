"""`bridge verify`: read a target back and compare it with the run directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bridge.cli.common import (
    Exit,
    Output,
    command,
    counted,
    heartbeat_option,
    output_options,
    plain,
    runs_argument,
    selection_options,
)
from bridge.cli.targets import TargetChoice, make_exporter, target_options

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.sync.select import Selection
    from bridge.sync.verdicts import Difference, RunCheck, VerifyReport

__all__ = ["verify"]

_EXITS = (Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE, Exit.DIFFERENCES)


@command("verify", example="bridge verify demo-runs --to tensorboard --logdir tb_logs", exits=_EXITS)
@runs_argument
@target_options
@selection_options
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compare only N metrics a run, evenly over their sorted names (for large targets).",
)
@click.option("--strict", is_flag=True, help="What the target has not been sent yet is a difference too.")
@click.option("--as", "new_identity", metavar="NEW_ID", help="The one run was exported under another identity.")
@heartbeat_option
@output_options
def verify(
    runs: tuple[Path, ...],
    target: TargetChoice,
    selection: Selection,
    sample: int | None,
    strict: bool,
    new_identity: str | None,
    heartbeat_timeout: float,
    out: Output,
) -> int:
    """Read a target back and compare it, point by point, with the run directories.

    Each run gets a sign: = same, + only in the source, - only in the target, * differs, ! unreadable.
    """
    from bridge.sync.verify import VerifyOptions, verify_runs

    options = VerifyOptions(
        selection=selection,
        sample=sample,
        strict=strict,
        new_identity=new_identity,
        heartbeat_timeout=heartbeat_timeout,
    )
    exporter = make_exporter(target)
    if out.json:
        report = verify_runs(runs, exporter, options)
        out.result_json(report.to_dict())
        return report.exit_code
    report = verify_runs(runs, exporter, options, told=lambda check: _show(check, out, strict=strict))
    out.result(_totals(report))
    return report.exit_code


def _show(check: RunCheck, out: Output, *, strict: bool) -> None:
    """One run: a line with its sign, then the first differences. Runs that are the same are shown unless --quiet."""
    is_same = str(check.verdict) == "=" and not (strict and check.behind)
    if is_same and out.quiet:
        return
    notes = [check.reason] if check.reason else []
    notes += [counted(check.differences, "difference")] if check.differences else []
    notes += [f"behind: {check.behind}"] if check.behind else []
    notes += [f"edited in the target: {', '.join(check.edited)}"] if check.edited else []
    compared = check.compared
    seen = compared.series or compared.media
    looked_at = f"{counted(compared.points, 'point')}, {compared.media:,} media" if seen else ""
    text = "; ".join([looked_at, *notes] if looked_at else notes)
    out.result(plain(f"{check.verdict} {check.run_id}: {text}" if text else f"{check.verdict} {check.run_id}"))
    for difference in check.first:
        out.result(plain(f"    {_in_words(difference)}"))
    if len(check.first) and check.differences > len(check.first):
        out.result(f"    and {check.differences - len(check.first):,} more")
    if check.where and (out.verbose or not is_same):
        out.result(plain(f"    target: {check.where}"))
    if check.hint and not is_same:
        out.result(plain(f"    hint: {check.hint}"))


def _in_words(difference: Difference) -> str:
    place = f" at step {difference.step}" if difference.step is not None else ""
    file = f"{difference.file}: " if difference.file else ""
    expected = "nothing" if difference.expected is None else _short(difference.expected)
    found = "nothing" if difference.found is None else _short(difference.found)
    return f"{difference.verdict} {file}{difference.what}{place}: expected {expected}, found {found}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _totals(report: VerifyReport) -> str:
    totals = report.to_dict()["totals"]
    signs = (("=", "same"), ("+", "source_only"), ("-", "target_only"), ("*", "different"), ("!", "unreadable"))
    verdicts = ", ".join(f"{totals[name]} {sign}" for sign, name in signs if totals[name])
    behind = f"; {totals['behind']} behind" if totals["behind"] else ""
    return (
        f"{counted(totals['runs'], 'run')}: {verdicts or 'none found'}{behind}; "
        f"compared {counted(totals['series'], 'metric')}, {counted(totals['points'], 'point')}, "
        f"{totals['media']:,} media; {report.seconds:.1f} s"
    )
