"""The exporters that the contract's suite is run with: add yours here, and every test of the folder holds it to account."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bridge.exporters import find_exporter
from bridge.exporters.memory import MEMORY, MemoryExporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bridge.exporters.contract import Abilities, Exporter

__all__ = ["SUBJECTS", "Subject"]


@dataclass(frozen=True)
class Subject:
    """One exporter under test. `make` gets a folder of the test's own and files that are ready to be copied.

    `needs` names the optional package that it cannot do without.
    """

    name: str
    make: Callable[[Path, Mapping[str, Path]], Exporter]
    needs: str | None = None
    templates: Mapping[str, Path] = field(default_factory=dict)


def _memory(**abilities: object) -> Callable[[Path, Mapping[str, Path]], Exporter]:
    chosen: Abilities = replace(MEMORY, **abilities)  # type: ignore[arg-type]
    return lambda folder, templates: MemoryExporter(folder / "boxes", abilities=chosen)


def _tensorboard(folder: Path, templates: Mapping[str, Path]) -> Exporter:
    return find_exporter("tensorboard")(logdir=folder / "tb")


def _mlflow(folder: Path, templates: Mapping[str, Path]) -> Exporter:
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    if not database.exists():
        shutil.copy(templates["sqlite"], database)
    return find_exporter("mlflow")(tracking_uri=f"sqlite:///{database}", experiment="contract")


SUBJECTS = (
    Subject("memory", _memory()),
    Subject("memory-ordered", _memory(ordered_steps=True, removes_points=False, keeps_overlap=False, texts=False)),
    Subject("memory-plain", _memory(removes_points=False, removes_media=False, value_bits=32, infinities=False)),
    Subject("memory-small-deltas", _memory(points_a_delta=3, holds_back=True, time_step=0.001, removes_points=False)),
    Subject("tensorboard", _tensorboard, needs="tensorboard"),
    Subject("mlflow-sqlite", _mlflow, needs="mlflow"),
)
