"""`bridge verify`: read a target back and compare it with the run directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bridge.cli.command import command, exporter_of
from bridge.cli.export import cores, sizes
from bridge.cli.output import Exit, Output
from bridge.errors import counted
from bridge.options import CompareOptions, SelectionOptions, TargetOptions
from bridge.sync.report import Verdict

if TYPE_CHECKING:
    from bridge.sync.report import Difference, RunCheck, VerifyReport

WORDS = {
    Verdict.SAME: "same",
    Verdict.SOURCE_ONLY: "not in the target",
    Verdict.TARGET_ONLY: "only in the target",
    Verdict.DIFFERENT: "different",
    Verdict.UNREADABLE: "unreadable",
}
"""What each sign stands for."""


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
    from bridge.sync.select import Selection
    from bridge.sync.verify import verify_runs

    chosen = Selection.of(selection)
    how = replace(how, workers=how.workers or cores())

    def told(check: RunCheck) -> None:
        if not out.json:
            _print(check, out, strict=how.strict)

    report = verify_runs(runs, exporter_of(target), how, selection=chosen, told=told)
    if out.json:
        out.result_json(report.to_dict())
        return out.say_no_match(report.no_match, report.exit_code)
    for warning in report.warnings:
        out.say(warning)
    if report.runs or not report.no_match:
        out.say_skipped(report.skipped)
        out.result(_totals(report))
    return out.say_no_match(report.no_match, report.exit_code)


def _print(check: RunCheck, out: Output, *, strict: bool) -> None:
    """Print a line with the sign of one run, then its first differences. --quiet leaves out runs that are the same."""
    is_same = check.verdict is Verdict.SAME and not (strict and check.behind)
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
    totals = report.totals
    counts = [(getattr(totals, verdict.name.lower()), verdict) for verdict in Verdict]
    verdicts = ", ".join(f"{count:,} {verdict} {WORDS[verdict]}" for count, verdict in counts if count)
    behind = f"; {totals.behind:,} not exported in full yet" if totals.behind else ""
    return (
        f"{counted(totals.runs, 'run')}: {verdicts or 'none found'}{behind}; "
        f"{counted(totals.series, 'metric')}, {sizes(totals.points, totals.media)}; {report.seconds:.1f} s"
    )
