"""After any exports the scalars' file equals that of one clean export, byte for byte."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.sync.export import export_runs
from tests.exporters.tensorboard.event_files import file_of, rows
from tests.run_dirs import CREATED_S, write_metrics, write_sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.contract import Capabilities

HEADER = ["acc", "epoch", "loss", "step", "wall_time"]


class InSmallPortions(TensorBoardExporter):
    """An exporter that receives few points at a time."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, points_a_delta=7)


def random_rows(chance: random.Random, count: int) -> list[list[object]]:
    """Return rows of a training that is requeued now and then: train and val rows, with repeated steps."""
    made: list[list[object]] = []
    step = 0
    for number in range(count):
        if chance.random() < 0.06:
            step = max(0, step - chance.randrange(1, 9))
        validated = chance.random() < 0.2
        notice = None if validated else round(chance.random(), 3)
        acc = chance.choice(["nan", "inf", "0.5", "1e300"]) if validated else None
        made.append([acc, step // 5, notice, step, CREATED_S + number])
        step += not validated
    return made


def export(path: Path, logdir: Path, kind: type[TensorBoardExporter] = TensorBoardExporter) -> None:
    (line,) = export_runs([path], kind(logdir)).runs
    assert not line.failed, line.reason


@pytest.mark.parametrize("seed", range(12))
def test_any_history_ends_as_a_clean_export(tmp_path: Path, seed: int) -> None:
    """A run exported in portions while it grows and is requeued ends as if exported once."""
    chance = random.Random(seed)
    made = random_rows(chance, 80)
    path = write_sidecar(tmp_path / "runs" / "abc", status="running")
    kind = InSmallPortions if seed % 2 else TensorBoardExporter
    cuts = sorted(chance.sample(range(1, 80), 5))
    for begin, end in zip([0, *cuts], [*cuts, 80], strict=True):
        write_metrics(path, HEADER, made[begin:end], append=begin > 0)
        if end == 80:
            write_sidecar(path, status="completed")
        export(path, tmp_path / "logs", kind)
    export(path, tmp_path / "clean")
    ours, theirs = (file_of(tmp_path / name / "abc", "scalars") for name in ("logs", "clean"))
    assert ours.read_bytes() == theirs.read_bytes()
    steps: dict[str, list[int]] = {}
    for step, _, values in rows(ours):
        for name in values:
            steps.setdefault(name, []).append(step)
    assert set(steps) == {"acc", "epoch", "loss"}
    assert all(one == sorted(set(one)) for one in steps.values())
