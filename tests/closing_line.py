"""The last line of a test run: what passed, what failed, and by name what was skipped for want of something."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest
    from _pytest.terminal import TerminalReporter


def closing_line(reporter: TerminalReporter) -> str:
    """`412 passed, 0 failed`, and behind it each reason to skip with how many tests it cost."""
    stats = reporter.stats
    failed = len(stats.get("failed", ())) + len(stats.get("error", ()))
    line = f"{len(stats.get('passed', ()))} passed, {failed} failed"
    reasons = Counter(_reason(report) for report in stats.get("skipped", ()))
    if reasons:
        told = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        line += f", {reasons.total()} skipped: {told}"
    return line


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the line behind pytest's own summary; workers of xdist have no terminal, and listings no results."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput") or config.option.collectonly:
        return
    reporter.write_line(closing_line(reporter))


def _reason(report: object) -> str:
    longrepr = getattr(report, "longrepr", None)
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")
