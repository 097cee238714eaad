"""List the exporters that the contract's suite tests.

Add yours here to run every test of the folder with it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bridge.exporters.contract import find_exporter
from bridge.exporters.tensorboard import TensorBoardExporter
from tests.memory_exporter import MEMORY, MemoryExporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bridge.exporters.contract import Capabilities, Exporter


@dataclass(frozen=True)
class Subject:
    """One exporter under test. `make` gets a folder of one test, and the values of `fixtures` by name.

    Two exporters made for one folder share its targets; another folder has none. `needs` names the optional package
    that it imports, and `slow` leaves it to `make torture`.
    """

    name: str
    make: Callable[[Path, Mapping[str, Any]], Exporter]
    needs: str | None = None
    fixtures: tuple[str, ...] = ()
    slow: bool = False


class InSmallPortions(TensorBoardExporter):
    """Gets few points at a time."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, points_a_delta=7)


def _memory(folder: Path, fixtures: Mapping[str, Any]) -> Exporter:
    return MemoryExporter(folder / "boxes", capabilities=replace(MEMORY, points_a_delta=3, replaces_points=False))


def _example(folder: Path, fixtures: Mapping[str, Any]) -> Exporter:
    return find_exporter("tests.example_exporter:JsonExporter")(logdir=folder / "json")


def _tensorboard(folder: Path, fixtures: Mapping[str, Any]) -> Exporter:
    return InSmallPortions(folder / "tb")


def _sqlite(folder: Path, fixtures: Mapping[str, Any]) -> Exporter:
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    if not database.exists():
        # Whole or not at all: an export that makes it here may be killed, and two may do so at once.
        beside = folder / f"{os.getpid()}.copy"
        shutil.copy(fixtures["sqlite_template"], beside)
        with suppress(FileExistsError):
            os.link(beside, database)
        beside.unlink()
    return find_exporter("mlflow")(tracking_uri=f"sqlite:///{database}", experiment="contract")


def _postgres(folder: Path, fixtures: Mapping[str, Any]) -> Exporter:
    return find_exporter("mlflow")(tracking_uri=fixtures["contract_database"], experiment=f"contract {folder}")


def _server(folder: Path, fixtures: Mapping[str, Any]) -> Exporter:
    return find_exporter("mlflow")(tracking_uri=fixtures["mlflow_server"].uri, experiment=f"contract {folder}")


def _server_and_database(folder: Path, fixtures: Mapping[str, Any]) -> Exporter:
    server = fixtures["mlflow_server"]
    return find_exporter("mlflow")(
        tracking_uri=server.uri, database_uri=server.backend, experiment=f"contract {folder}"
    )


SUBJECTS = (
    Subject("memory", _memory),
    Subject("example", _example),
    Subject("tensorboard", _tensorboard, needs="tensorboard"),
    Subject("mlflow-sqlite", _sqlite, needs="mlflow", fixtures=("sqlite_template",)),
    Subject("mlflow-postgresql", _postgres, needs="mlflow", fixtures=("contract_database",), slow=True),
    Subject("mlflow-server", _server, needs="mlflow", fixtures=("mlflow_server",), slow=True),
    Subject("mlflow-server-database", _server_and_database, needs="mlflow", fixtures=("mlflow_server",), slow=True),
)
