"""`python -m tests.benchmarks [--write PAGE] [NAME...]`.

Run the benchmarks (all, or those named), print their tables and keep them in `bench-results/`. `--write` also replaces
the figures on a page of the docs. QUICK=1 in the environment makes them short. Exit 1 where a promise (`at_least`,
`at_most`, `at_most_mib`) is not held or a benchmark failed.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.rows import OURS

RESULTS = Path("bench-results")
PEERS = ("lightning", "mlflow", "numpy", "pyarrow", "tensorboard", "torch")
TITLES = {
    "logger_cost": "Logging a row",
    "scan": "Finding runs",
    "reading": "Reading run directories",
    "tensorboard_points": "Many points into TensorBoard",
    "mlflow_points": "Many points into MLflow",
    "small_runs": "Many small runs",
    "nothing_new": "Nothing new",
    "growth": "Growth and memory",
    "live_view": "The live view",
}


def main() -> int:
    """Run the benchmarks, print and write their tables, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TITLES))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the figures on this page of the docs")
    asked = parser.parse_args()
    if unknown := set(asked.names) - TITLES.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are: {', '.join(TITLES)}")
    quick = os.environ.get("QUICK", "") not in ("", "0")
    failures: list[str] = []
    text = ""
    for name in asked.names or TITLES:
        print(f"# {name}", file=sys.stderr, flush=True)
        try:
            rows = judged(importlib.import_module(f"tests.benchmarks.{name}").run(quick))
        except Exception:  # noqa: BLE001 - a benchmark that fails is told and does not cost the figures of the others
            traceback.print_exc()
            failures.append(f"failed: {name}")
            continue
        section = f"### {TITLES[name]}\n\n{table(rows)}\n"
        print(section, flush=True)
        text += f"\n{section}"
        failures += [f"MISSED: {row['work']}, {row['who']}" for row in rows if not row["held"]]
    figures = f"{_circumstances(quick)}\n{text}"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}{'-quick' if quick else ''}.md"
    path.write_text("\n".join([figures, *failures]))
    if asked.write:
        asked.write.write_text(with_figures(asked.write.read_text(), figures))
    print(f"Written to {path}", file=sys.stderr)
    print("\n".join(failures))
    return 1 if failures else 0


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `ratio` (a peer's time per unit over ours) and `held` (whether the promise is kept) to the rows."""
    ours = {row["work"]: row["seconds"] / row["amount"] for row in rows if row["who"] == OURS}
    for row in rows:
        each = ours.get(row["work"])
        row["ratio"] = None if each is None or row["who"] == OURS else row["seconds"] / row["amount"] / each
        fast = "at_least" not in row or (row["ratio"] is not None and row["ratio"] >= row["at_least"])
        small = row.get("mib", 0.0) <= row.get("at_most_mib", math.inf)
        row["held"] = fast and small and row["seconds"] <= row.get("at_most", math.inf)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return judged rows as a Markdown table with a line for each."""
    lines = ["| work | who | seconds | a second | times ours | |", "| --- | --- | ---: | ---: | ---: | --- |"]
    work = None
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:,.3g}"
        remarks = [f"promised {row['at_least']:.3g}"] if "at_least" in row else []
        remarks += [f"promised {row['at_most']:.3g} s at most"] if "at_most" in row else []
        remarks += [f"{row['mib']:.0f} MiB, promised {row['at_most_mib']:g} at most"] if "mib" in row else []
        remarks += [] if row["held"] else ["**missed**"]
        remarks += [row["note"]] if row.get("note") else []
        cells = ["" if row["work"] == work else row["work"], row["who"], f"{row['seconds']:,.3f}"]
        rate = row["amount"] / row["seconds"]
        cells += [f"{rate:,.{0 if rate >= 100 else 2}f} {row['unit']}", ratio, "; ".join(remarks)]
        lines.append(f"| {' | '.join(cells)} |")
        work = row["work"]
    return "\n".join(lines) + "\n"


def with_figures(page: str, figures: str) -> str:
    """Return the page with `figures` in place of its section of that name."""
    return re.sub(
        r"(?<=^## The figures\n\n).*?(?=^## )", lambda _: f"{figures}\n", page, flags=re.MULTILINE | re.DOTALL
    )


def _circumstances(quick: bool) -> str:
    """Return a sentence with machine, versions and commit; it ends in `-dirty` where the sources differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    kind = " with QUICK=1" if quick else ""
    return (
        f"Measured{kind} at commit {commit} on {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}; {versions}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
