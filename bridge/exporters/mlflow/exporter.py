"""The MLflow exporter: run directories as MLflow runs that look as if they had been logged live."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from bridge.errors import RunError
from bridge.exporters.contract import Capabilities, TargetState
from bridge.exporters.mlflow import ui
from bridge.exporters.mlflow.address import require_mlflow
from bridge.exporters.mlflow.artifacts import checkpoint_signatures, due_files, signature
from bridge.exporters.mlflow.database import points_a_change
from bridge.exporters.mlflow.database_sqlite import SqliteBulk
from bridge.exporters.mlflow.experiments import ExperimentName
from bridge.exporters.mlflow.facts import facts_of
from bridge.exporters.mlflow.place import Place
from bridge.exporters.mlflow.status import STATUSES
from bridge.exporters.mlflow.sweeps import Sweep
from bridge.exporters.mlflow.tags import Tag, sweep_of
from bridge.exporters.mlflow.target import MlflowTarget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from bridge.cursor import ContentOptions, Cursor
    from bridge.exporters.contract import Interface
    from bridge.exporters.mlflow.records import Choice
    from bridge.model import Notice, Run

__all__ = ["MlflowExporter"]

_API = Capabilities(
    holds_back=True,
    threads=True,
    points_a_delta=20_000,
    infinities=False,
    statuses=STATUSES,
    clears_end=False,
    media_converted=frozenset({"jpeg", "gif", "bmp", "tiff"}),
)
_DATABASE = replace(
    _API, holds_back=False, threads=False, removes_points=True, points_a_delta=1_000_000, clears_end=True
)


class MlflowExporter:
    """Replays runs into the MLflow at `tracking_uri`, by default where MLflow itself would write.

    `experiment` names the experiment and may hold placeholders, which `experiment_default` stands in for where a run
    lacks a value. `database_uri` is the database behind a server, for points at full speed. Raises UsageError and
    TargetRefusedError for options that cannot be meant; nothing is asked or opened before it is needed.
    """

    name = "mlflow"
    default_port = ui.DEFAULT_PORT

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        experiment_default: str | None = None,
        database_uri: str | None = None,
    ) -> None:
        self._place = Place(tracking_uri, ExperimentName.of(experiment, experiment_default), database_uri)
        self._memory: dict[str, Choice] = {}
        self._found: dict[str, Choice] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_place": self._place, "_memory": {}, "_found": {}}

    @property
    def capabilities(self) -> Capabilities:
        """What MLflow can hold: more where its database can be written to."""
        if self._place.absent:
            return replace(_DATABASE, single_writer=True, points_a_delta=points_a_change(SqliteBulk.limit))
        database = self._place.database
        if database is None:
            return _API
        return replace(_DATABASE, single_writer=database.is_sqlite, points_a_delta=database.points_a_change)

    def prepare(self, runs: Sequence[Run], content: ContentOptions) -> None:
        """Open MLflow, so that what is wrong with it is said once and not for each run.

        A SQLite file that is not there yet is made by the first write, so that a dry run makes none.
        """
        if self._place.absent:
            require_mlflow()
        else:
            _ = self._place.database or self._place.api.client

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """What MLflow knows of each run: one select in a database, a page of search results for each 1,000 runs else."""
        # First of all: MLflow's own client would try for minutes to reach a database that is away.
        if not self._place.absent:
            _ = self._place.database
        known: dict[str, TargetState] = {}
        homed: list[Run] = []
        for run in runs:
            try:
                self._place.naming.of_run(run)
                homed.append(run)
            except RunError as error:
                known[run.identity] = TargetState(error=error)
        found = self._place.find(homed)
        self._memory.update(found)
        self._found.update(found)
        return known | {identity: choice.known(self._place.address.shown) for identity, choice in found.items()}

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """The facts and files of `run` that are not as last sent."""
        sent = facts_of(run, content).sent
        stale = [key for key, value in sent.items() if cursor.sent.get(key) != value]
        if "start" in stale and self._place.database is None and "start" in cursor.sent:
            stale.remove("start")  # MLflow's API cannot move it
        if cursor.extra.get("no_files") and not self._place.address.is_server:
            return stale
        files = cursor.extra.get("files", {})
        stale += [name for name, file in due_files(run, content).items() if files.get(name) != signature(file)]
        if content.checkpoints and cursor.extra.get("checkpoints", {}) != checkpoint_signatures(run):
            stale.append("checkpoints")
        return stale

    def open(self, run: Run, content: ContentOptions) -> MlflowTarget:
        """The target of `run`."""
        return MlflowTarget(self._place, run, content, self._memory)

    def finish(self, runs: Sequence[Run], content: ContentOptions) -> Sequence[Notice]:
        """Put second targets away that an export left behind, and settle the sweeps that have changed."""
        for choice in self._found.values():
            if choice.record is not None:
                for extra in (*choice.extras, *choice.dead_ends):
                    why = {} if extra.superseded else {Tag.DUPLICATE_OF: choice.record.run_id}
                    self._place.api.put_away(extra.run_id, why)
        members = [] if content.flat else [run for run in runs if sweep_of(run) and run.identity in self._found]
        if not members:
            return ()
        now = self._place.find(members)
        changed = {
            (choice.record.experiment_id, str(sweep_of(run)))
            for run in members
            if (choice := now[run.identity]).record is not None and not self._is_as_found(run.identity, choice)
        }
        settled = [Sweep(self._place, experiment, name).settle() for experiment, name in sorted(changed)]
        return [notice for notice in settled if notice is not None]

    def _is_as_found(self, identity: str, now: Choice) -> bool:
        before = self._found[identity].record
        if before is None or now.record is None:
            return before is now.record
        return before.run_id == now.record.run_id and before.tags.get(Tag.CURSOR) == now.record.tags.get(Tag.CURSOR)

    def interface(self, port: int) -> Interface:
        """MLflow's page on the runs."""
        return ui.interface(self._place, port)

    def close(self) -> None:
        """Let go of connections and of what was remembered."""
        self._memory.clear()
        self._found.clear()
        self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
