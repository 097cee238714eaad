"""Provide an exporter on a SQLite store of one test, and MLflow's client to look at the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import ConflictError
from bridge.exporters.contract import Applied
from bridge.exporters.mlflow import MlflowExporter
from bridge.options import ContentOptions
from tests.deltas import delta_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from bridge.exporters.contract import TargetContent, TargetState
    from bridge.model import Delta, Run
    from tests.fixtures.mlflow_server import MlflowServer


@dataclass
class Store:
    """One MLflow at `uri`, and exports into its experiment `experiment`."""

    uri: str
    experiment: str = "trials"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_server(self) -> bool:
        """Return True for a server, through which nothing can be taken back."""
        return self.uri.startswith("http")

    @property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def exporter(self) -> MlflowExporter:
        return MlflowExporter(**{"tracking_uri": self.uri, "experiment": self.experiment} | self.options)

    def export(
        self,
        run: Run,
        rows: Sequence[Mapping[str, float]] = (),
        *,
        content: ContentOptions | None = None,
        **fields: Any,
    ) -> Applied:
        """Export `run`: ask for its state, send what is new, finish. After one conflict begin again."""
        content = content or ContentOptions()
        with self.exporter() as exporter:
            exporter.prepare([run], content)

            def send() -> Applied:
                known = exporter.cursors([run])[run.identity]
                delta = delta_of(run, rows, before=known.cursor, content=content, **fields)
                return exporter.open(run, content).apply(delta)

            try:
                applied = send()
            except ConflictError:
                applied = send()
            return applied + Applied(notices=tuple(exporter.finish([run], content)))

    def rebuild(self, run: Run, deltas: Iterable[Delta], content: ContentOptions | None = None) -> Applied:
        """Replace the target of `run`."""
        with self.exporter() as exporter:
            exporter.cursors([run])
            return exporter.open(run, content or ContentOptions()).rebuild(deltas)

    def known(self, run: Run) -> TargetState:
        """Return what an exporter finds of `run`."""
        with self.exporter() as exporter:
            return exporter.cursors([run])[run.identity]

    def stale(self, run: Run, content: ContentOptions | None = None) -> list[str]:
        """Return the facts and files of the run that an exporter would send."""
        with self.exporter() as exporter:
            cursor = exporter.cursors([run])[run.identity].cursor
            assert cursor is not None
            return list(exporter.stale(run, cursor, content or ContentOptions()))

    def read(self, run: Run, content: ContentOptions | None = None) -> TargetContent:
        """Return what an exporter reads back of `run`."""
        with self.exporter() as exporter:
            return exporter.open(run, content or ContentOptions()).read()

    def runs(self, *, deleted: bool = False, experiment: str | None = None) -> list[MlflowRun]:
        """Return the runs of the experiment, by id; with `deleted` the deleted ones instead."""
        from mlflow.entities import ViewType

        found = self.client.get_experiment_by_name(experiment or self.experiment)
        assert found is not None
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        runs = self.client.search_runs([found.experiment_id], run_view_type=view, order_by=["attributes.run_id"])
        return list(runs)

    def run(self) -> MlflowRun:
        """Return the one run of the experiment."""
        (run,) = self.runs()
        return run

    def points(self, key: str, run_id: str | None = None) -> list[tuple[int, float, int]]:
        """Return the points of a key as (step, value, milliseconds), by step and time."""
        history = self.client.get_metric_history(run_id or self.run().info.run_id, key)
        return sorted((point.step, point.value, point.timestamp) for point in history)

    def facts(self) -> list[dict[str, Any]]:
        """Return what a search says of all runs, by name, and what all exports of one run directory share."""
        unlike = ("mlflow.bridge.cursor", "mlflow.bridge.replaces", "mlflow.parentRunId")
        found = [
            {
                "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
                "params": run.data.params,
                "tags": {key: value for key, value in run.data.tags.items() if key not in unlike},
                "metrics": {key: str(value) for key, value in run.data.metrics.items()},
            }
            for run in self.runs()
        ]
        return sorted(found, key=str)

    def content(self, run: MlflowRun | None = None) -> dict[str, Any]:
        """Return the points and files of a run, by default of the only one: all that exports share beside the facts."""
        run = run or self.run()
        run_id = run.info.run_id
        return {
            "points": {key: list(map(str, self.points(key, run_id))) for key in run.data.metrics},
            "files": {path: self.artifact(path, run_id) for path in self.files(run_id=run_id)},
        }

    def files(self, folder: str = "", run_id: str | None = None) -> list[str]:
        """Return the paths of all artifacts below `folder`."""
        run_id = run_id or self.run().info.run_id
        found: list[str] = []
        for file in self.client.list_artifacts(run_id, folder or None):
            found += self.files(file.path, run_id) if file.is_dir else [file.path]
        return sorted(found)

    def artifact(self, path: str, run_id: str | None = None) -> bytes:
        """Return the bytes of an artifact."""
        from mlflow.artifacts import download_artifacts

        uri = self.client.get_run(run_id or self.run().info.run_id).info.artifact_uri
        return Path(download_artifacts(artifact_uri=f"{uri}/{path}", tracking_uri=self.uri)).read_bytes()


@pytest.fixture
def store(sqlite_uri: str) -> Store:
    """Return an empty SQLite store."""
    return Store(sqlite_uri)


@pytest.fixture
def server(mlflow_server: MlflowServer, tmp_path: Path) -> Store:
    """Return the session's server with an experiment of this test."""
    return Store(mlflow_server.uri, experiment=tmp_path.name)


@pytest.fixture(params=["store", "server"])
def any_store(request: pytest.FixtureRequest) -> Store:
    """Return a store through its database, or an experiment of this test through a server."""
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest) -> str:
    """Return an empty database of each kind that is written to directly."""
    return str(request.getfixturevalue("sqlite_uri" if request.param == "sqlite" else "postgres_uri"))
