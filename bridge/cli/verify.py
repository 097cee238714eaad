"""`bridge verify`: read a target back and compare it with the run directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bridge.cli.command import command, make_exporter
from bridge.cli.export import cores, print_no_match, sizes
from bridge.cli.output import Exit, Output, tell_skipped
from bridge.errors import counted
from bridge.options import CompareOptions, SelectionOptions, TargetOptions

if TYPE_CHECKING:
    from bridge.sync.report import Difference, RunCheck, VerifyReport

SIGNS = {
    "=": ("same", "same"),
    "+": ("source_only", "not in the target"),
    "-": ("target_only", "only in the target"),
    "*": ("different", "different"),
    "!": ("unreadable", "unreadable"),
}
"""What each sign stands for: the name in the JSON report, and the words."""


@command(
    "verify",
    example="bridge verify demo-runs --to tensorboard --logdir tb_logs",
    exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE, Exit.DIFFERENCES),
)
def verify(
    runs: tuple[Path, ...], target: TargetOptions, selection: SelectionOptions, how: CompareOptions, out: Output
) -> int:
    """Read a target back and compare it, point by point, with the run directories.

    Each run gets a sign: = same, + not in the target, - only in the target, * different, ! unreadable.
    """
    from bridge.sync.parallel import Workers
    from bridge.sync.select import Selection
    from bridge.sync.verify import VerifyOptions, verify_runs

    options = VerifyOptions(
        selection=Selection.of(selection),
        sample=how.sample,
        strict=how.strict,
        new_identity=how.new_identity,
        heartbeat_timeout=how.heartbeat_timeout,
        workers=Workers(processes=how.workers or cores()),
    )
    exporter = make_exporter(target)
    if out.json:
        report = verify_runs(runs, exporter, options)
        out.result_json(report.to_dict())
    else:
        report = verify_runs(runs, exporter, options, told=lambda check: _print(check, out, strict=how.strict))
    for warning in report.warnings if not out.json else ():
        out.say(warning)
    if report.no_match.text:
        print_no_match(report.no_match, out)
    if not out.json and (report.runs or not report.no_match.text):
        tell_skipped([(folder.path, folder.reason) for folder in report.skipped], out)
        out.result(_totals(report))
    return report.exit_code


def _print(check: RunCheck, out: Output, *, strict: bool) -> None:
    """Print a line with the sign of one run, then its first differences. --quiet leaves out runs that are the same."""
    is_same = str(check.verdict) == "=" and not (strict and check.behind)
    if is_same and out.quiet:
        return
    compared = check.compared
    parts = [sizes(compared.points, compared.media)] if compared.series or compared.media else []
    parts += [check.reason] if check.reason else []
    parts += [counted(check.differences.count, "difference")] if check.differences.count else []
    parts += [f"not exported yet: {check.behind}"] if check.behind else []
    parts += [f"edited in the target: {', '.join(check.edited)}"] if check.edited else []
    out.line(f"{check.verdict} {check.name or check.run_id}: {'; '.join(parts)}".removesuffix(": "))
    for difference in check.differences.first:
        out.line(f"    {_in_words(difference)}")
    if check.differences.first and check.differences.count > len(check.differences.first):
        out.result(f"    and {check.differences.count - len(check.differences.first):,} more")
    if check.where and (out.verbose or not is_same):
        out.line(f"    target: {check.where}")
    if check.hint and not is_same:
        out.line(f"    hint: {check.hint}")


def _in_words(difference: Difference) -> str:
    place = f" at step {difference.step}" if difference.step is not None else ""
    file = f"{difference.file}: " if difference.file else ""
    expected, found = (_short(value) for value in (difference.expected, difference.found))
    return f"{difference.verdict} {file}{difference.what}{place}: expected {expected}, found {found}"


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= 80 else f"{text[:79]}…"


def _totals(report: VerifyReport) -> str:
    """Return the totals, which explain each sign that occurred."""
    totals = report.to_dict()["totals"]
    verdicts = [f"{totals[name]:,} {sign} {words}" for sign, (name, words) in SIGNS.items() if totals[name]]
    behind = f"; {totals['behind']:,} not exported in full yet" if totals["behind"] else ""
    return (
        f"{counted(totals['runs'], 'run')}: {', '.join(verdicts) or 'none found'}{behind}; "
        f"{counted(totals['series'], 'metric')}, {sizes(totals['points'], totals['media'])}; {report.seconds:.1f} s"
    )
