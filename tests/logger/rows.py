"""Open runs, in other processes too, and read the writer's files back with nothing but the standard library."""

from __future__ import annotations

import csv
import json
import multiprocessing
from typing import TYPE_CHECKING, Any

from logger import RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def start(run_dir: Path, **options: Any) -> RunWriter:
    """Return the writer of a new start of the run in `run_dir`."""
    return RunWriter.open(run_dir, **{"run_id": "r"} | options)


def in_child(function: Callable[..., object], *arguments: object, method: str = "fork") -> None:
    """Call `function` in a child process, which must end well."""
    child = multiprocessing.get_context(method).Process(target=function, args=arguments)  # type: ignore[attr-defined]
    child.start()
    child.join()
    assert child.exitcode == 0


def read_rows(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv, without empty cells."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file, strict=True)]


def steps(run_dir: Path) -> list[int]:
    """Return the step of each row."""
    return [int(row["step"]) for row in read_rows(run_dir)]


def without_time(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name != "wall_time"} for row in rows]


def sidecar(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "sidecar.json").read_text(), parse_constant=_no_constant)


def edit_sidecar(run_dir: Path, **fields: Any) -> None:
    """Change fields of the sidecar, as a person does; a field that becomes None is removed."""
    edited = {name: value for name, value in (sidecar(run_dir) | fields).items() if fields.get(name, ...) is not None}
    (run_dir / "sidecar.json").write_text(json.dumps(edited))


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text(), parse_constant=_no_constant)


def media(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "media.jsonl").read_text().splitlines()]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")
