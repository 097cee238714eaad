"""Write the run directories that are measured."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from tests.run_dirs import CREATED_S, write_sidecar

if TYPE_CHECKING:
    from pathlib import Path

METRICS = 10
NAMES = tuple(f"train/metric_{number}" for number in range(METRICS))
REWIND = "0.5," * METRICS + f"0,{CREATED_S + 1e8}\n"
"""A row that goes back to step 0, and so supersedes everything before it."""
SUMMARY_WRITER = """
import csv, pathlib, sys
from torch.utils.tensorboard import SummaryWriter
for run in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    with SummaryWriter(f"{sys.argv[2]}/{run.name}") as writer, open(run / "metrics.csv", newline="") as file:
        for each in csv.DictReader(file):
            step, seconds = int(each.pop("step")), float(each.pop("wall_time"))
            for name, value in each.items():
                writer.add_scalar(name, float(value), step, seconds)
"""
"""What somebody would write who brings the runs of a folder (the first argument) into TensorBoard by hand."""


def make_run(path: Path, rows: int, *, number: int = 0, digits: int = 16) -> Path:
    """Write a finished run of METRICS metrics in every row; it began `number` hours after the first one."""
    start = CREATED_S + 3600 * number
    times = {"created_at": start, "ended_at": start + rows, "updated_at": start + rows}
    hparams = {"lr": 0.1, "batch": 32, "model.name": "m"}
    write_sidecar(path, hparams=hparams, tags=["project:x"], **times)
    (path / "hparams.yaml").write_text("lr: 0.1\nbatch: 32\nmodel:\n  name: m\n")
    chance = np.random.default_rng(number)
    types = [*((name, pa.float64()) for name in NAMES), ("step", pa.int64()), ("wall_time", pa.float64())]
    schema = pa.schema(types)
    with pacsv.CSVWriter(path / "metrics.csv", schema, write_options=pacsv.WriteOptions(quoting_header="none")) as file:
        for first in range(0, rows, 500_000):
            step = np.arange(first, min(rows, first + 500_000))
            values = [np.round(chance.standard_normal(len(step)), digits) for _ in NAMES]
            file.write_table(pa.table([*values, step, start + step], schema=schema))
    return path


def make_runs(folder: Path, count: int, rows: int) -> Path:
    """Write `count` runs into `folder` and return it.

    Their files are back-dated, since files of the last two seconds are not believed to be unchanged.
    """
    for number in range(count):
        path = make_run(folder / f"run-{number:05}", rows, number=number)
        for file in path.iterdir():
            then = file.stat().st_mtime - 70
            os.utime(file, (then, then))
    return folder
