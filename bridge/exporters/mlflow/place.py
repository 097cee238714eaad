"""One MLflow with its experiments: where runs are looked for, made and written, whichever way it is reached."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bridge.errors import TargetRefusedError
from bridge.exporters.mlflow.address import Address, AddressKind, keep_secrets
from bridge.exporters.mlflow.api import Api, Experiment, record_of
from bridge.exporters.mlflow.experiments import artifact_folder
from bridge.exporters.mlflow.pairing import Pairing, database_of
from bridge.exporters.mlflow.people import LIST_TAGS, people_tags
from bridge.exporters.mlflow.records import Choice, Record, choose
from bridge.exporters.mlflow.seam import translated
from bridge.exporters.mlflow.tags import Tag
from bridge.exporters.mlflow.writer import ApiWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.exporters.mlflow.database import Database, HeldRun
    from bridge.exporters.mlflow.experiments import ExperimentName
    from bridge.exporters.mlflow.writer import Writer
    from bridge.model import Run

__all__ = ["Place"]

_NAMED = 200
"""Up to this many runs a select names one by one; more of them are picked from all of ours."""

_ASKED = (
    Tag.UID,
    Tag.CURSOR,
    Tag.NAME,
    Tag.NOTES,
    *LIST_TAGS,
    Tag.PENDING,
    Tag.BUILDING,
    Tag.REPLACES,
    Tag.REPLACED_BY,
    Tag.DUPLICATE_OF,
    Tag.EXPERIMENT,
    Tag.SWEEP,
    Tag.PARENT,
)


class Place:
    """An MLflow at `tracking_uri`; points and tags go past a server into `database_uri`, where that is given.

    Can be pickled: what is open or remembered stays behind. Safe to use from several threads.
    """

    def __init__(self, tracking_uri: str | None, naming: ExperimentName, database_uri: str | None = None) -> None:
        self.address = Address.of(tracking_uri)
        self.naming = naming
        self._database_uri = database_uri
        if database_uri:
            database_of(database_uri)
        self._forget()

    def _forget(self) -> None:
        keep_secrets(self.address.uri, self._database_uri)
        self.api = Api(self.address)
        self.notes: list[str] = []
        self._database: Database | None = None
        self._pairing: Pairing | None = None
        self._looked = False
        self._experiments: dict[str, Experiment] = {}
        self.parents: dict[tuple[str, str], str | None] = {}
        """The parents of sweeps that were found, by experiment and sweep."""
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "naming": self.naming, "_database_uri": self._database_uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def take_notes(self) -> tuple[str, ...]:
        """What there is to say about how this MLflow is reached; said once."""
        with self._lock:
            notes, self.notes = tuple(self.notes), []
            return notes

    def close(self) -> None:
        """Let go of connections."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._forget()

    @property
    def database_address(self) -> Address | None:
        """The database that points could go into directly."""
        address = database_of(self._database_uri) if self._database_uri else self.address
        return address if address.kind in (AddressKind.SQLITE, AddressKind.POSTGRESQL) else None

    @property
    def absent(self) -> bool:
        """Whether it is a SQLite file that is not there yet. What only looks finds nothing and does not make it."""
        return self.api.absent

    @property
    def database(self) -> Database | None:
        """The database writer; None where everything goes through the API."""
        with self._lock:
            if not self._looked:
                self._database = self._open_database()
                self._looked = True
            return self._database

    def _open_database(self) -> Database | None:
        from bridge.exporters.mlflow.database import Database
        from bridge.exporters.mlflow.schema import outdated

        address = self.database_address
        if address is None:
            if self._database_uri:
                kind = self._database_uri.partition(":")[0].partition("+")[0]
                self.notes.append(f"Points go through MLflow's API: a {kind} database cannot be written to directly.")
            return None
        if address == self.address:
            with translated(address.shown):
                reason = outdated(address.uri)
            if reason is not None:
                raise TargetRefusedError(
                    f"{address.shown} is not touched: {reason}.",
                    hint=f"mlflow db upgrade {address.shown} (make a copy first), or use the MLflow that made it.",
                )
            _ = self.api.client  # makes the tables of a new file
        if address.sqlite_file is not None and not address.sqlite_file.exists():
            raise TargetRefusedError(f"There is no database {address.shown}.", hint="Check --database-uri.")
        database = Database.open(address.uri, note=self.notes.append)
        if database is not None and address != self.address:
            self._pairing = Pairing(self.api, database, address.shown)
            try:
                self._pairing.check_first()
            except BaseException:
                database.close()
                raise
        return database

    def check_run(self, run_id: str, cursor: str | None, *, made: bool = False) -> None:
        """Before data goes past a server into a run: see that the server and the database belong together.

        Raises TargetRefusedError, with a run that was `made` for it taken away again.
        """
        if self._pairing is not None:
            self._pairing.check_run(run_id, cursor, made=made)

    def _checked(self, experiment: Experiment) -> Experiment:
        if self._database_uri and self.database is not None and self._pairing is not None:
            self._pairing.check_experiment(experiment)
        return experiment

    @property
    def writer(self) -> Writer:
        """What writes runs here."""
        return self.database or ApiWriter(self.api)

    def experiment(self, name: str, *, make: bool = False) -> Experiment | None:
        """The experiment of this name, deleted or not; with `make` it is made where there is none."""
        with self._lock:
            if not make and self.absent:
                return None
            found = self._experiments.get(name) or self.api.experiment(name)
            if found is None and make:
                found = self.api.make_experiment(name, self._artifacts_of(name))
            if found is not None:
                self._experiments[name] = self._checked(found)
            return found

    def experiment_of(self, experiment_id: str) -> Experiment:
        """The experiment with this id."""
        with self._lock:
            known = next((one for one in self._experiments.values() if one.id == experiment_id), None)
            if known is None:
                known = self._checked(self.api.experiment_of(experiment_id))
                self._experiments[known.name] = known
            return known

    def revive(self, experiment: Experiment) -> Experiment:
        """Restore a deleted experiment, with its runs."""
        self.api.call("restore_experiment", experiment.id)
        with self._lock:
            self._experiments[experiment.name] = replace(experiment, deleted=False)
            return self._experiments[experiment.name]

    def takes_files(self, experiment: Experiment) -> bool:
        """Whether artifacts can be stored: not by a database alone where a server keeps them."""
        return self.address.is_server or not experiment.artifacts.startswith("mlflow-artifacts:")

    def find(self, runs: Sequence[Run]) -> dict[str, Choice]:
        """For each run's identity what MLflow holds of it. Raises RunError for a run that has no experiment."""
        names = {run.identity: self.naming.of_run(run) for run in runs}
        experiments = {name: self.experiment(name) for name in dict.fromkeys(names.values())}
        homes = {identity: experiments[name] for identity, name in names.items()}
        records = self._records(runs, [home.id for home in homes.values() if home is not None])
        by_identity: dict[str, list[Record]] = {}
        for record in records:
            by_identity.setdefault(record.tags.get(Tag.UID, ""), []).append(record)
        found: dict[str, Choice] = {}
        for identity, home in homes.items():
            ours = [record for record in by_identity.get(identity, ()) if self._counts(record, home)]
            choice = choose(ours)
            if home is not None and home.deleted and choice.record is None:
                choice = replace(choice, deleted=choice.deleted or _in_deleted(home))
            found[identity] = choice
        return found

    def _counts(self, record: Record, home: Experiment | None) -> bool:
        """Whether a run of MLflow's counts for a run that belongs to `home`: a run stays where it was first put."""
        if home is not None and record.experiment_id == home.id:
            return True
        return self.naming.varies and record.tags.get(Tag.EXPERIMENT) == self.naming.template

    def _records(self, runs: Sequence[Run], homes: Sequence[str]) -> list[Record]:
        experiment_ids = None if self.naming.varies else sorted(set(homes))
        if experiment_ids == [] or self.absent:
            return []
        database = self.database
        if database is None:
            return self.api.runs_of([run.identity for run in runs], experiment_ids)
        people = {key for run in runs for key in people_tags(run.tags).values}
        keys = frozenset(_ASKED) | people
        few = [run.identity for run in runs] if len(runs) <= _NAMED else None
        found = database.runs(
            sorted(keys), experiment_ids=experiment_ids, having=None if few is None else (Tag.UID, few)
        )
        return [_record_held(held, keys) for held in found]

    def tagged(self, key: str, value: str, experiment_id: str) -> list[Record]:
        """All runs of an experiment, deleted ones too, whose tag `key` is `value`."""
        database = self.database
        if database is None:
            return self.api.runs_of([value], [experiment_id], key=key)
        found = database.runs([key], experiment_ids=[experiment_id])
        return [record_of(self.api.get(held.run_uuid)) for held in found if held.tags.get(key) == value]

    def whole(self, run_id: str) -> tuple[Record, dict[str, str]]:
        """One run with all of its tags, and its params."""
        run = self.api.get(run_id)
        return record_of(run), dict(run.data.params)

    def _artifacts_of(self, name: str) -> str | None:
        """Where a new experiment keeps its files: beside a SQLite file, else where MLflow says."""
        file = self.address.sqlite_file
        if file is None:
            return None
        return (file.parent / "mlartifacts" / artifact_folder(name)).as_uri()


def _record_held(held: HeldRun, asked: frozenset[str]) -> Record:
    return Record(
        run_id=held.run_uuid,
        experiment_id=held.experiment_id,
        status=held.status,
        deleted=held.lifecycle_stage == "deleted",
        start=held.start_ms,
        end=held.end_ms,
        tags=held.tags,
        asked=asked,
    )


def _in_deleted(experiment: Experiment) -> Record:
    """A stand-in for a run in a deleted experiment, which has none of its own yet."""
    return Record("", experiment.id, "", deleted=True, start=None, end=None, tags={})
