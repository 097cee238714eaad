"""Print the last line of a test run: counts of passed and failed, and the reasons for skips."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest
    from _pytest.terminal import TerminalReporter


def closing_line(reporter: TerminalReporter) -> str:
    """Return `412 passed, 0 failed`, followed by each reason to skip with its number of tests."""
    stats = reporter.stats
    failed = len(stats.get("failed", ())) + len(stats.get("error", ()))
    line = f"{len(stats.get('passed', ()))} passed, {failed} failed"
    reasons = Counter(_reason(report) for report in stats.get("skipped", ()))
    if reasons:
        told = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        line += f", {reasons.total()} skipped: {told}"
    return line


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the line after pytest's own summary, except in workers of xdist and in listings."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput") or config.option.collectonly:
        return
    reporter.write_line(closing_line(reporter))


def _reason(report: object) -> str:
    longrepr = getattr(report, "longrepr", None)
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")
