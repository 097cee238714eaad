"""Find experiments and runs in one MLflow, choose the target of each run directory, and tell what people edited.

`MlflowStore` finds a run by its tag `mlflow.bridge.uid`, within one experiment. It reaches the runs in a database
(`write_db`), or else through MLflow's client (`write_api`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from bridge.errors import NewerFormatError, RunError, TargetError, TargetRefusedError, UsageError
from bridge.exporters.contract import TargetState
from bridge.exporters.mlflow.address import Address, hide_credentials
from bridge.exporters.mlflow.facts import (
    EXPERIMENT_KIND,
    STATUSES,
    TAG_LIMIT,
    Tag,
    UserTags,
    milliseconds,
    read_list_tag,
    storable,
)
from bridge.exporters.mlflow.write_api import ApiRuns
from bridge.exporters.mlflow.write_db import Database
from bridge.model import Notice, NoticeKind, Status, digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from bridge.exporters.mlflow.runs import Experiment, FoundRun
    from bridge.model import Cursor, Run

# ---------------------------------------------------------------------------------------------------------------------
# Experiments

EXPERIMENT_NAME_LIMIT = 256
"""Characters in an experiment's name. MLflow accepts 500, and its tables hold no more than this."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class ExperimentName:
    """The name of an experiment, which may hold placeholders. `default` is for runs without a value for them.

    With `id` the experiment is named by $MLFLOW_EXPERIMENT_ID, and the store must look its name up (`resolved`).
    """

    template: str
    default: str | None = None
    id: str | None = None

    @classmethod
    def of(cls, given: str | None, default: str | None) -> ExperimentName:
        """Return the name that the options give, else what MLflow's environment variables say, else its default.

        `given` may be $MLFLOW_EXPERIMENT_NAME itself, which must agree with $MLFLOW_EXPERIMENT_ID. Raise UsageError for
        a placeholder that does not exist.
        """
        named = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if given in (None, "", named) and (experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip()):
            return cls(named or "", default, experiment_id)
        template = given or named or "Default"
        for placeholder in _PLACEHOLDER.findall(template):
            kind, _, key = placeholder.partition(".")
            if placeholder != "parent" and (kind not in ("tags", "hparams") or not key):
                raise UsageError(
                    f"--experiment: there is no placeholder {{{placeholder}}}.",
                    hint="There are {tags.NAME}, {hparams.NAME}, {parent}.",
                )
        return cls(template, default)

    def resolved(self, experiment: Experiment | None) -> ExperimentName:
        """Return the name of `experiment`, which MLflow has for `id`. Raise UsageError as MLflow does."""
        if experiment is None:
            raise UsageError(
                f"MLFLOW_EXPERIMENT_ID is {self.id}, and there is no such experiment.",
                hint="Unset it, or name the experiment with --experiment.",
            )
        if self.template and self.template != experiment.name:
            raise UsageError(
                f"MLFLOW_EXPERIMENT_ID {self.id} is the experiment {experiment.name!r}, and MLFLOW_EXPERIMENT_NAME is "
                f"{self.template!r}.",
                hint="Unset one of them, or name the experiment with --experiment.",
            )
        return ExperimentName(experiment.name, self.default)

    @property
    def varies(self) -> bool:
        """Return True if runs may go into different experiments."""
        return self.id is None and _PLACEHOLDER.search(self.template) is not None

    def of_run(self, run: Run) -> str:
        """Return the name for `run`, within MLflow's limit. Raise RunError if it lacks a value without a default."""
        name = self._whole(run)
        if len(name) <= EXPERIMENT_NAME_LIMIT:
            return name
        return f"{name[: EXPERIMENT_NAME_LIMIT - 9]}-{digest(name, 8)}"

    def notices(self, run: Run) -> list[Notice]:
        """Return a notice if the name for `run` is longer than MLflow allows."""
        name = self._whole(run)
        if len(name) <= EXPERIMENT_NAME_LIMIT:
            return []
        detail = f"name of {len(name)} characters; the first {EXPERIMENT_NAME_LIMIT - 9} and a digest are kept"
        return [Notice(NoticeKind.CUT, f"experiment {name[:40]}...", detail)]

    def _whole(self, run: Run) -> str:
        missing: list[str] = []

        def fill(placeholder: re.Match[str]) -> str:
            value = _placeholder_value(run, placeholder[1])
            if not value:
                missing.append(placeholder[0])
            return value or ""

        name = storable(_PLACEHOLDER.sub(fill, self.template))
        if not missing:
            return name
        if self.default is not None:
            return self.default
        raise RunError(
            f"{run.path} has no value for {', '.join(missing)} of --experiment {self.template!r}.",
            hint="Name an experiment for such runs with --experiment-default NAME.",
        )


def _placeholder_value(run: Run, placeholder: str) -> str | None:
    kind, _, key = placeholder.partition(".")
    if kind == "parent":
        return run.parent or None
    if kind == "tags":
        return next((tag.partition(":")[2] for tag in run.tags if tag.startswith(f"{key}:")), None)
    value = run.params.get(key)
    return None if value is None else str(value)


def _artifact_folder(name: str) -> str:
    """Return a folder name for the artifacts of the experiment `name`, safe in any file system and unique."""
    plain = re.sub(r"[^A-Za-z0-9_.\-]", "_", name).strip(".")[:60]
    return plain if plain == name else f"{plain}-{digest(name, 8)}"


@functools.cache
def _local_folder(location: str) -> Path | None:
    """Return the folder of an artifact location in this file system, None for any other location."""
    parts = urlsplit(location)
    path = unquote(parts.path) if parts.scheme == "file" else parts.path
    is_local = parts.scheme in ("", "file") and not parts.netloc and path.startswith("/")
    return Path(path) if is_local else None


# ---------------------------------------------------------------------------------------------------------------------
# The target among several runs of one identity


@dataclass(frozen=True, slots=True)
class Candidates:
    """All runs of one identity: the target, other active ones, and unfinished rebuilds.

    `deleted` is the run that a person deleted, if there is no target. `home` is the run's experiment if it was deleted.
    """

    target: FoundRun | None = None
    extras: tuple[FoundRun, ...] = ()
    building: tuple[FoundRun, ...] = ()
    deleted: FoundRun | None = None
    home: Experiment | None = None

    @classmethod
    def among(cls, runs: Iterable[FoundRun]) -> Candidates:
        """Choose the target among the runs of one identity.

        It is the one with the longest chain of replaced runs before it, of equal ones that with the smallest id. This
        order never changes. So of runs that exports delete in favour of a better one, the best is never deleted.
        """
        found = {run.run_id: run for run in sorted(runs, key=lambda run: run.run_id)}

        def replaced(run: FoundRun) -> int:
            chain: set[str] = set()
            run_id: str | None = run.run_id
            while run_id is not None and run_id not in chain:
                chain.add(run_id)
                run_id = found[run_id].tags.get(Tag.REPLACES) if run_id in found else None
            return len(chain)

        active = [run for run in found.values() if not run.deleted and not run.superseded]
        target = max(active, key=replaced, default=None)
        leftover = [run for run in found.values() if not run.deleted and run.superseded and not run.is_building]
        deleted = next((run for run in found.values() if run.deleted and not run.superseded), None)
        return cls(
            target=target,
            extras=tuple(run for run in [*active, *leftover] if run is not target),
            building=tuple(run for run in found.values() if not run.deleted and run.is_building),
            deleted=deleted if target is None else None,
        )

    def state(self, store: str, run: Run) -> TargetState:
        """Return what the contract asks for of `run`. `store` names the MLflow in errors."""
        extras = tuple(f"{store} run {extra.run_id}" for extra in self.extras)
        if self.home is not None:
            return TargetState(exists=True, error=deleted_experiment(self.home))
        if self.target is None:
            return TargetState(deleted=self.deleted is not None, extras=extras)
        try:
            cursor = self.target.read_cursor()
        except NewerFormatError as error:
            return TargetState(exists=True, error=error, extras=extras)
        if cursor is not None and not cursor.rows and not cursor.media_lines and not cursor.digest:
            # The run was created and not filled. If it holds points already, sending them again changes nothing,
            # unless their times were estimated from other anchors.
            return TargetState(exists=bool(cursor.anchors), extras=extras)
        edited = user_edits(self.target, cursor, asked_for=run)
        if cursor is not None and not _is_ended_as_sent(self.target, cursor):
            cursor = cursor.with_(extra=cursor.extra | {ENDED_OTHERWISE: True})
        return TargetState(cursor=cursor, exists=True, edited=edited, extras=extras)


ENDED_OTHERWISE = "ended_otherwise"
"""The entry in the `extra` of a cursor, while an export lasts, if the run has another status or end than it says."""


def _is_ended_as_sent(run: FoundRun, cursor: Cursor) -> bool:
    """Return False if the run has another status or end than the cursor says, after a stop or an edit."""
    status, end = cursor.sent.get("status"), cursor.sent.get("end")
    return (status is None or run.status == STATUSES[Status(status)]) and (
        not end or run.end == milliseconds(float(end))
    )


def deleted_experiment(experiment: Experiment) -> TargetRefusedError:
    """Return the error for runs whose experiment a person deleted."""
    return TargetRefusedError(
        f"The MLflow experiment {experiment.name!r} was deleted.",
        hint=f"Restore it (mlflow experiments restore --experiment-id {experiment.id}), give another --experiment, or "
        "delete it for good (mlflow gc).",
    )


# ---------------------------------------------------------------------------------------------------------------------
# User edits


def user_edits(run: FoundRun, cursor: Cursor | None, *, asked_for: Run | None = None) -> tuple[str, ...]:
    """Return what people changed since the last export: `name`, `notes`, `tags.KEY`.

    With `asked_for` only the tags of this run were read.
    """
    if cursor is None or not cursor.sent:
        return ()
    now = {"name": run.name, "notes": run.tags.get(Tag.NOTES, "")}
    edited = [field for field, text in now.items() if digest(text) != cursor.sent.get(field, digest(text))]
    tags = edited_tags(run)
    if tags and asked_for is not None:
        read = UserTags.of(asked_for.tags).values
        tags = tuple(key for key in tags if key in read)
    return (*edited, *(f"tags.{key}" for key in tags))


def sent_tags(run: FoundRun) -> Mapping[str, str]:
    """Return the user tags of `run` as they were last sent."""
    return UserTags.of(read_list_tag(run.tags)).values


def edited_tags(run: FoundRun) -> tuple[str, ...]:
    """Return the keys of the user tags that are no longer as they were sent, missing ones too."""
    return tuple(key for key, value in sent_tags(run).items() if run.tags.get(key) != value[:TAG_LIMIT])


# ---------------------------------------------------------------------------------------------------------------------
# One MLflow


_STATE_TAGS = frozenset(
    {
        Tag.UID,
        Tag.CURSOR,
        Tag.NAME,
        Tag.NOTES,
        Tag.TAGS,
        Tag.BUILDING,
        Tag.REPLACES,
        Tag.REPLACED_BY,
        Tag.DUPLICATE_OF,
        Tag.EXPERIMENT,
    }
)
"""The tags by which `Candidates` decides, beside the user tags of each run."""


class MlflowStore:
    """The MLflow at `tracking_uri`. With `database_uri`, points and tags go into the database behind the server.

    Can be pickled: connections and found experiments stay behind. Safe to use from several threads.
    """

    def __init__(self, tracking_uri: str | None, naming: ExperimentName, database_uri: str | None = None) -> None:
        self.address = Address.of(tracking_uri)
        self._given_name = naming
        self._database_uri = database_uri
        if database_uri:
            Address.of_database(database_uri)
        self._reset()

    def _reset(self) -> None:
        hide_credentials(self.address.uri, self._database_uri)
        self.api = ApiRuns(self.address)
        self.notes: list[str] = []
        self.artifact_failure: TargetError | None = None
        """The error of an artifact store that failed once. It is not tried again before the next export."""
        self.parents: dict[tuple[str, str], str | None] = {}
        """The parents of sweeps that were found, by experiment and sweep."""
        self._runs: Database | ApiRuns | None = None
        self._batch: contextlib.ExitStack | None = None
        """The open batch, which the database joins once it is open; None outside of a batch."""
        self._naming: ExperimentName | None = None
        self._experiments: dict[str, Experiment] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "_given_name": self._given_name, "_database_uri": self._database_uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def take_notes(self) -> tuple[str, ...]:
        """Return the notes on how this MLflow is reached, and forget them, so that each is reported once."""
        with self._lock:
            notes, self.notes = tuple(self.notes), []
            return notes

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            if isinstance(self._runs, Database):
                self._runs.close()
            self._reset()

    @property
    def ignores_case(self) -> bool:
        """Return True if the database takes `Loss` and `loss` for one key, as MySQL does."""
        return (self._database_uri or self.address.uri).lower().startswith("mysql")

    @property
    def is_absent(self) -> bool:
        """Return True for a SQLite file that does not exist yet. Only a write creates it."""
        return self._runs is None and self.api.is_absent

    @property
    def runs(self) -> Database | ApiRuns:
        """Return the runs: in the database if it can be written to directly, else behind MLflow's client.

        Both have the same methods to find, create, write and delete runs.
        """
        with self._lock:
            if self._runs is None:
                self._runs = self._open_database() or self.api
                if self._batch is not None and isinstance(self._runs, Database):
                    self._batch.enter_context(self._runs.batch())
            return self._runs

    @property
    def database(self) -> Database | None:
        """Return the database, None if everything goes through MLflow's client, which cannot take anything back."""
        return self.runs if isinstance(self.runs, Database) else None

    def _open_database(self) -> Database | None:
        address = Address.of_database(self._database_uri) if self._database_uri else self.address
        if address.kind not in ("sqlite", "postgresql"):
            if self._database_uri:
                kind = address.uri.partition(":")[0].partition("+")[0]
                self.notes.append(f"Points go through MLflow's API: a {kind} database cannot be written to directly.")
            return None
        is_own = address == self.address
        if is_own and self.is_absent:
            _ = self.api.client  # creates the tables of a new file
        if address.sqlite_file is not None and not address.sqlite_file.exists():
            raise TargetRefusedError(f"There is no database {address.shown}.", hint="Check --database-uri.")
        database = Database.open(address.uri, note=self.notes.append, check_version=is_own)
        if database is not None and not is_own:
            # Every MLflow has an experiment 0, created at another moment than any other's, unless somebody deleted it.
            first = None
            with contextlib.suppress(TargetRefusedError):
                first = self.api.experiment_by_id("0")
            if first is not None:
                self._check_pair(database, first)
        return database

    def _check_pair(self, database: Database, experiment: Experiment) -> None:
        """Raise TargetRefusedError if `database` is not the one behind the tracking URI.

        Its experiment is another one.
        """
        there = database.experiment_by_id(experiment.id)
        if there is not None and (there.name, there.created) == (experiment.name, experiment.created):
            return
        assert self._database_uri is not None
        why = "does not exist there" if there is None else f"is another one there ({there.name!r})"
        raise TargetRefusedError(
            f"{Address.of_database(self._database_uri).shown} is not the database behind {self.address.shown}: "
            f"experiment {experiment.id} ({experiment.name!r}) {why}.",
            hint="--database-uri is what the server was started with as --backend-store-uri. Without it everything "
            "goes through the tracking URI.",
        )

    def _checked(self, experiment: Experiment) -> Experiment:
        if self._database_uri and self.database is not None:
            self._check_pair(self.database, experiment)
        return experiment

    # Experiments

    @property
    def naming(self) -> ExperimentName:
        """Return the name of the experiment. Raise UsageError for a wrong $MLFLOW_EXPERIMENT_ID."""
        with self._lock:
            if self._naming is None:
                name = self._given_name
                if name.id is not None:
                    experiment = None
                    if not self.is_absent and name.id.isdigit():
                        with contextlib.suppress(TargetRefusedError):
                            experiment = self._experiment_source.experiment_by_id(name.id)
                    name = name.resolved(experiment)
                self._naming = name
            return self._naming

    def identity_tags(self, run: Run) -> dict[str, str]:
        """Return the tags that make an MLflow run the target of `run`."""
        tags = {Tag.UID: run.identity}
        return tags | ({Tag.EXPERIMENT: self.naming.template} if self.naming.varies else {})

    def experiment(self, name: str, *, create: bool = False) -> Experiment | None:
        """Return the experiment of this name, deleted or not. Create it if it is missing and `create` is True.

        If people renamed an experiment that the bridge created, it is found by the tag with its first name.
        """
        with self._lock:
            if not create and self.is_absent:
                return None
            found = self._experiments.get(name) or self._experiment_source.experiment(name)
            if found is None:
                found = self._experiment_source.experiment_with_tag(Tag.EXPERIMENT, name)
                if found is not None:
                    self.notes.append(f"The experiment {name!r} is now called {found.name!r}.")
            if found is None and create:
                artifacts = self._artifact_location(name)
                found = self.api.create_experiment(name, artifacts, tags={Tag.EXPERIMENT: name, **EXPERIMENT_KIND})
            if found is not None and name not in self._experiments:
                self._experiments[name] = self._checked(found)
            return found

    def experiment_by_id(self, experiment_id: str) -> Experiment:
        """Return the experiment with this id."""
        with self._lock:
            known = next((one for one in self._experiments.values() if one.id == experiment_id), None)
            if known is None:
                found = self._experiment_source.experiment_by_id(experiment_id)
                if found is None:
                    raise TargetRefusedError(f"{self.address.shown} has no experiment {experiment_id}.")
                known = self._experiments[found.name] = self._checked(found)
            return known

    @property
    def _experiment_source(self) -> Database | ApiRuns:
        """Return the place of experiments: the database of the tracking URI itself, or else MLflow's client."""
        return self.api if self._database_uri else self.runs

    def artifact_folder(self, experiment: Experiment, run_id: str) -> Path | None:
        """Return the local folder of a run's artifacts, None if they are stored elsewhere or by a server."""
        folder = None if self.address.is_server else _local_folder(experiment.artifacts)
        return None if folder is None else folder / run_id / "artifacts"

    def reaches_files(self, experiment: Experiment) -> bool:
        """Return False if a server keeps the artifacts, and only its database is given."""
        return self.address.is_server or not experiment.artifacts.startswith("mlflow-artifacts:")

    def _artifact_location(self, name: str) -> str | None:
        """Return where a new experiment keeps its files: beside a SQLite file, else where MLflow decides."""
        file = self.address.sqlite_file
        return None if file is None else (file.parent / "mlartifacts" / _artifact_folder(name)).as_uri()

    # Runs

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Write the new runs of the block together, if there is a database, or the block creates one."""
        with contextlib.ExitStack() as stack:
            if isinstance(self._runs, Database):
                stack.enter_context(self._runs.batch())
            elif self._runs is None:
                self._batch = stack
            try:
                yield
            finally:
                self._batch = None

    def find(self, runs: Sequence[Run]) -> dict[str, Candidates]:
        """Return for each run's identity what MLflow holds of it. Raise RunError for a run without an experiment."""
        names = {run.identity: self.naming.of_run(run) for run in runs}
        experiments = {name: self.experiment(name) for name in dict.fromkeys(names.values())}
        homes = {identity: experiments[name] for identity, name in names.items()}
        by_identity: dict[str, list[FoundRun]] = {}
        for found in self._bridge_runs(runs, {home.id for home in homes.values() if home is not None}):
            by_identity.setdefault(found.tags.get(Tag.UID, ""), []).append(found)
        result: dict[str, Candidates] = {}
        for identity, home in homes.items():
            # A run stays in the experiment that it was first put into, also when its placeholders change.
            candidates = Candidates.among(
                found
                for found in by_identity.get(identity, ())
                if (home is not None and found.experiment_id == home.id)
                or (self.naming.varies and found.tags.get(Tag.EXPERIMENT) == self.naming.template)
            )
            if home is not None and home.deleted and candidates.target is None:
                candidates = Candidates(home=home)
            result[identity] = candidates
        return result

    def _bridge_runs(self, runs: Sequence[Run], homes: Collection[str]) -> list[FoundRun]:
        experiment_ids = None if self.naming.varies else sorted(homes)
        if experiment_ids == [] or self.is_absent:
            return []
        keys = _STATE_TAGS.union(key for run in runs for key in UserTags.of(run.tags).values)
        return self.runs.runs_with_tag(Tag.UID, [run.identity for run in runs], experiment_ids, only=keys)
