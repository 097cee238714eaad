"""`python -m tests.benchmarks [NAME...]`.

Run the benchmarks (all, or those named), print them, keep them as JSON and as tables.
QUICK=1 in the environment makes them short. Exit 1 where a promise (`at_least`, `at_most`, `at_most_mib`) is not held
or a benchmark failed.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
import platform
import subprocess
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tests.benchmarks
from tests.benchmarks.markdown import markdown
from tests.benchmarks.rows import OURS

RESULTS = Path("bench-results")
PEERS = ("lightning", "mlflow", "numpy", "pyarrow", "tensorboard", "tensorboardX", "torch")


def main(names: list[str]) -> int:
    """Run the benchmarks, print and write their rows, and return the exit code."""
    quick = os.environ.get("QUICK", "") not in ("", "0")
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in _found(names):
        print(f"# {name}", file=sys.stderr, flush=True)
        try:
            made = importlib.import_module(f"tests.benchmarks.{name}").run(quick)
        except Exception:  # noqa: BLE001 - a benchmark that fails is told and does not cost the figures of the others
            traceback.print_exc()
            failed.append(name)
        else:
            rows += [{"benchmark": name} | row for row in made]
    judge(rows)
    print("\n".join(table(rows)))
    _keep(rows, quick=quick)
    for name in failed:
        print(f"failed: {name}")
    return 1 if failed or not all(row["held"] for row in rows) else 0


def judge(rows: list[dict[str, Any]]) -> None:
    """Add `ratio` (a peer's time per unit over ours) and `held` (whether the row keeps its promise) to each row."""
    ours = {(row["benchmark"], row["work"]): row["seconds"] / row["amount"] for row in rows if row["who"] == OURS}
    for row in rows:
        each = ours.get((row["benchmark"], row["work"]))
        row["ratio"] = None if each is None or row["who"] == OURS else row["seconds"] / row["amount"] / each
        fast = "at_least" not in row or (row["ratio"] is not None and row["ratio"] >= row["at_least"])
        small = row.get("mib", 0.0) <= row.get("at_most_mib", math.inf)
        row["held"] = fast and small and row["seconds"] <= row.get("at_most", math.inf)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return judged rows as text, with one paragraph for each `work`."""
    lines = []
    for work in dict.fromkeys(row["work"] for row in rows):
        lines += ["", work, *(_line(row) for row in rows if row["work"] == work)]
    return lines


def _line(row: dict[str, Any]) -> str:
    rate = f"{row['amount'] / row['seconds']:,.0f}"
    parts = [f"  {row['who']:<42}{row['seconds']:>10.3f} s {rate:>14} {row['unit']}/s"]
    if row["ratio"] is not None:
        parts.append(f"{row['ratio']:,.3g} x ours")
    if "at_least" in row:
        parts.append(f"(promised {row['at_least']:g} x: {'held' if row['held'] else 'MISSED'})")
    if "at_most" in row:
        parts.append(f"(promised {row['at_most']:g} s: {'held' if row['held'] else 'MISSED'})")
    if "mib" in row:
        parts.append(f"({row['mib']:.0f} MiB, promised {row['at_most_mib']:g}: {'held' if row['held'] else 'MISSED'})")
    if row.get("note"):
        parts.append(f"({row['note']})")
    return "  ".join(parts)


def _found(names: list[str]) -> list[str]:
    known = [module.name for module in pkgutil.iter_modules(tests.benchmarks.__path__)]
    known = [name for name in known if name not in ("__main__", "rows") and _is_benchmark(name)]
    unknown = set(names) - set(known)
    if unknown:
        sys.exit(f"No such benchmark: {', '.join(sorted(unknown))}. There are: {', '.join(known)}")
    return [name for name in known if not names or name in names]


def _is_benchmark(name: str) -> bool:
    """Return whether the module defines `run`, as helpers beside the benchmarks do not."""
    return "\ndef run(" in (Path(tests.benchmarks.__path__[0]) / f"{name}.py").read_text()


def _keep(rows: list[dict[str, Any]], *, quick: bool) -> None:
    RESULTS.mkdir(exist_ok=True)
    machine = {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    told = {
        "format": 1,
        "quick": quick,
        "machine": machine,
        "commit": _commit(),
        "versions": {name: version(name) for name in PEERS},
        "rows": rows,
    }
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}{'-quick' if quick else ''}.json"
    path.write_text(json.dumps(told, indent=2) + "\n")
    path.with_suffix(".md").write_text(markdown(rows))
    print(f"\nWritten to {path}, and as tables beside it", file=sys.stderr)


def _commit() -> str:
    """Return the commit that was measured, with `-dirty` where the sources differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
