"""The MLflow exporter: run directories as MLflow runs that look as if they had been logged live."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import msgspec
from msgspec.structs import replace

from bridge.errors import RunError, UsageError
from bridge.exporters.contract import Capabilities, Exporter, Interface, TargetState
from bridge.exporters.mlflow.address import require_mlflow, sqlite_fingerprint
from bridge.exporters.mlflow.delta_writer import ADJUSTED_OPTIONS
from bridge.exporters.mlflow.facts import STATUSES, Tag, facts_of, sweep_of
from bridge.exporters.mlflow.media import checkpoint_signatures, due_files, is_sent
from bridge.exporters.mlflow.saved_view import VIEW_KEY, VIEW_TAG, update_view
from bridge.exporters.mlflow.store import ENDED_OTHERWISE, Candidates, ExperimentName, MlflowStore
from bridge.exporters.mlflow.sweeps import Sweep
from bridge.exporters.mlflow.target import MlflowTarget
from bridge.files import cache_dir
from bridge.model import digest
from bridge.view import host_names, page_address, serve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bridge.live import LiveOptions, LiveRuns
    from bridge.model import Cursor, Notice, Run
    from bridge.options import ContentOptions

_API = Capabilities(
    threads=True,
    points_a_delta=20_000,
    infinities=False,
    statuses=STATUSES,
    clears_end=False,
    adjusts=frozenset(ADJUSTED_OPTIONS),
    media_converted=frozenset({"jpeg", "gif", "bmp"}),
)
_DATABASE = replace(_API, threads=False, batch_runs=50, replaces_points=True, points_a_delta=1_000_000, clears_end=True)
_MOST_OPTIONS = 2000
"""Characters. A cursor holds as many more, and a server may cut a longer tag without an error."""

_SQLITE = replace(_DATABASE, single_writer=True, points_a_delta=30_000)


class MlflowExporter(Exporter):
    """Exports runs to the MLflow at `tracking_uri`, by default where MLflow itself would write.

    `experiment` names the experiment and may hold placeholders. `experiment_default` is for runs without a value for
    them. `database_uri` is the database behind a server, for points at full speed. Raise UsageError and
    TargetRefusedError for options that make no sense. Nothing is opened before it is needed.
    """

    name = "mlflow"
    default_port = 5000
    can_edit = True

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        experiment_default: str | None = None,
        database_uri: str | None = None,
    ) -> None:
        self._experiment = (experiment, experiment_default)
        self._given = (tracking_uri, database_uri)
        if any(self._given):
            _ = self._store
        self._found: dict[str, Candidates] = {}
        """What MLflow holds of each run, by identity, for the targets that were not opened yet."""
        self._at_start: dict[str, Candidates] = {}
        """What MLflow held when the export began."""

    def __getstate__(self) -> dict[str, Any]:
        _ = self._store  # its address may depend on the working directory
        return {**self.__dict__, "_found": {}, "_at_start": {}}

    @cached_property
    def _store(self) -> MlflowStore:
        """Return MLflow itself. A live view needs none, so the default may be one that cannot be written to."""
        tracking_uri, database_uri = self._given
        return MlflowStore(tracking_uri, ExperimentName.of(*self._experiment), database_uri)

    @property
    def capabilities(self) -> Capabilities:
        """Return what MLflow can hold: more if its database can be written to."""
        if self._store.is_absent:
            return _SQLITE
        database = self._store.database
        if database is None:
            return _API
        return _SQLITE if database.is_sqlite else _DATABASE

    def prepare(self, runs: Sequence[Run], content: ContentOptions) -> None:
        """Open MLflow, so that its errors are reported once and not for each run.

        The first write creates a new SQLite file, so a dry run creates none. Raise UsageError for content options that
        do not fit into a cursor, which is a tag.
        """
        length = len(json.dumps(content.differences()))
        if length > _MOST_OPTIONS:
            raise UsageError(
                f"The options for the content take {length:,} characters; MLflow keeps {_MOST_OPTIONS:,} with a run.",
                hint="Name metrics by globs: --exclude-metrics 'grad/*' instead of one option for each of them.",
            )
        if self._store.is_absent:
            require_mlflow()
        else:
            _ = self._store.database or self._store.api.client

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """Return what MLflow knows of each run: one select in a database, else a search for each 1,000 runs."""
        # The database comes first: MLflow's client would try for minutes to reach one that is down.
        if not self._store.is_absent:
            _ = self._store.database
        states: dict[str, TargetState] = {}
        with_experiment: list[Run] = []
        for run in runs:
            try:
                self._store.naming.of_run(run)
                with_experiment.append(run)
            except RunError as error:
                states[run.identity] = TargetState(error=error)
        found = self._store.find(with_experiment)
        self._found.update(found)
        self._at_start.update(found)
        shown = self._store.address.shown
        return states | {run.identity: found[run.identity].state(shown, run) for run in with_experiment}

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """Return the names of the facts and files of `run` that differ from what was last sent."""
        sent = facts_of(run, content, ignores_case=self._store.ignores_case).sent
        stale = [key for key, value in sent.items() if cursor.sent.get(key) != value]
        if "start" in stale and self._store.database is None and "start" in cursor.sent:
            stale.remove("start")  # MLflow's API cannot move it
        if cursor.extra.get(ENDED_OTHERWISE):
            stale += [name for name in ("status", "end") if name not in stale]
        options = content.differences()
        stale += [name for name in ADJUSTED_OPTIONS if cursor.content.get(name) != options.get(name)]
        files = cursor.extra.get("files", {})
        stale += [name for name, file in due_files(run, content).items() if not is_sent(file, files.get(name))]
        if pending := cursor.extra.get("pending"):
            why = "could not be stored" if pending is True else "another export may have replaced"
            stale.append(f"files that {why}")
        sent_checkpoints = cursor.extra.get("checkpoints", {})
        if content.checkpoints and "checkpoints" not in stale and sent_checkpoints != checkpoint_signatures(run):
            stale.append("checkpoints")
        return stale

    def fingerprint(self, where: str) -> str | None:
        """Return what differs after each write into the SQLite file, which holds all runs. Others have to be asked."""
        file = self._store.address.sqlite_file
        return None if file is None else sqlite_fingerprint(file)

    def open(self, run: Run, content: ContentOptions) -> MlflowTarget:
        """Return the target of `run`."""
        return MlflowTarget(self._store, run, content, self._found.pop(run.identity, None))

    def batch(self) -> contextlib.AbstractContextManager[None]:
        """Let the new runs of the block get into the database in one transaction."""
        return self._store.batch()

    def finish(self, runs: Sequence[Run], content: ContentOptions) -> Sequence[Notice]:
        """Delete duplicate runs and abandoned rebuilds. Update the sweeps and saved views of runs that have changed."""
        for candidates in self._at_start.values():
            if candidates.target is not None:
                for extra in candidates.extras:
                    self._store.runs.soft_delete(extra.run_id, {Tag.DUPLICATE_OF: candidates.target.run_id})
                for unfinished in candidates.building:
                    if unfinished.tags[Tag.BUILDING] != candidates.target.run_id:  # it was to replace another run
                        self._store.runs.delete_unfinished(unfinished.run_id)
        looked_at = [run for run in runs if run.identity in self._at_start]
        if self._store.is_absent or not looked_at:
            return ()
        now = self._store.find(looked_at)
        changed = [
            (run, target)
            for run in looked_at
            if (target := now[run.identity].target) is not None
            and _version(self._at_start[run.identity]) != _version(now[run.identity])
        ]
        members = {
            (target.experiment_id, name)
            for run, target in changed
            if not content.flat and (name := sweep_of(run.tags)) is not None
        }
        notices = [Sweep(self._store, home, name).settle() for home, name in sorted(members)]
        notices += [update_view(self._store, home) for home in sorted({target.experiment_id for _, target in changed})]
        return [notice for notice in notices if notice is not None]

    @property
    def place(self) -> tuple[str, str]:
        """Return --tracking-uri and its value; a SQLite file by its path from the working directory."""
        address = self._store.address
        file = address.sqlite_file
        return "--tracking-uri", address.shown if file is None else f"sqlite:///{os.path.relpath(file)}"

    def interface(self, port: int) -> Interface:
        """Return how to show MLflow's page: on the server that runs already, or on one that is to be started."""
        naming, address = self._store.naming, self._store.address
        found = None if naming.varies else self._store.experiment(naming.template)
        page = "" if found is None else f"/{found.id}/runs?workflowType=machine_learning"
        if found is not None and VIEW_TAG in self._store.runs.experiment_tags(found.id):
            page += f"&viewStateShareKey={VIEW_KEY}"
        if address.is_server:
            return Interface(address=address.page(page), probe=f"{address.uri}/health")
        # The address of the database is not on the command line, which everybody on this machine can read.
        return Interface(
            address=f"http://127.0.0.1:{port}/#/experiments{page}",
            probe=f"http://127.0.0.1:{port}/health",
            argv=_server_command("127.0.0.1", port),
            environment={**_SERVER_ENVIRONMENT, "MLFLOW_BACKEND_STORE_URI": address.uri},
        )

    @contextlib.contextmanager
    def serve_live(self, live: LiveRuns, *, host: str, port: int) -> Iterator[str]:
        """Serve MLflow on run directories while the block runs. Yield its address."""
        require_mlflow()
        experiment, default = self._experiment
        naming = ExperimentName.of(experiment or live.roots[0].name or "runs", default)
        options = msgspec.structs.replace(
            live.options, roots=list(map(str, live.roots)), experiment=naming.template, experiment_default=default
        )
        own = cache_dir().absolute() / "view"
        page = "#/experiments"
        if not naming.varies:
            page += f"/{live_experiment_id(naming.template)}/runs?workflowType=machine_learning"
            page += f"&viewStateShareKey={VIEW_KEY}"
        interface = Interface(
            address=f"{page_address(host, port)}{page}",
            probe=f"{page_address(host, port)}health",
            argv=_server_command(host, port),
            environment={**_SERVER_ENVIRONMENT, **_live_environment(options, host, port, own)},
            # Not that of a project: the server would import its modules, a logger.py for example, in place of ours.
            folder=str(own),
        )
        own.mkdir(parents=True, exist_ok=True)
        (own / f"mlflow-{port}.json").write_text(options.to_json())
        with serve(interface, own / f"mlflow-{port}.log"):
            yield interface.address

    def close(self) -> None:
        """Close all connections, and forget what was found."""
        self._found.clear()
        self._at_start.clear()
        if "_store" in self.__dict__:
            self._store.close()


# The job runner of the server's GenAI pages starts processes that these pages do not need.
_SERVER_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _server_command(host: str, port: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1")


def _version(candidates: Candidates) -> tuple[str | None, ...]:
    """Return what changes with every export that changes the target."""
    target = candidates.target
    return () if target is None else (target.run_id, target.tags.get(Tag.CURSOR))


# ---------------------------------------------------------------------------------------------------------------------
# The way of a live view's options from `bridge view` to the process of MLflow's server, which loads `bridge.plugins`

LIVE_VARIABLE = "BRIDGE_VIEW"
"""The environment variable with the path of a file that holds the LiveOptions as JSON: a thousand paths do not fit into
the variable itself. Without it the address of the store says what is shown."""

LIVE_PATH = "/.live/"
"""Separates the folder of runs from the id of a run and the path of a file, in the address of an artifact."""


def split_live_address(address: str) -> tuple[str, str]:
    """Return the folder of runs that an address of a store or an artifact names, and the path behind LIVE_PATH."""
    root, _, path = f"{unquote(urlsplit(address).path)}/".partition(LIVE_PATH)
    return root.rstrip("/") or "/", path.strip("/")


def _live_environment(options: LiveOptions, host: str, port: int, own: Path) -> dict[str, str]:
    """Return the environment in which MLflow's server shows the run directories of `options` at `host` and `port`.

    `own` is the absolute path of the view's own folder.
    """
    store = f"registry://{quote(options.roots[0])}"
    names = [f"[{name}]" if ":" in name else name for name in sorted(host_names(host))]
    return {
        LIVE_VARIABLE: str(own / f"mlflow-{port}.json"),
        "BRIDGE_CACHE_DIR": str(own.parent),
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_REGISTRY_STORE_URI": store,
        "MLFLOW_ARTIFACTS_DESTINATION": store,
        "MLFLOW_SERVE_ARTIFACTS": "true",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlflow-artifacts:/",
        # MLflow's server copies files that it makes or passes on into a temporary folder.
        "TMPDIR": str(own),
        # From 3.5 on MLflow refuses requests for other names than these. In a pattern, `[[]` is an opening bracket.
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{name},{name.replace('[', '[[]')}:*" for name in names),
        # A browser names the page as the origin of what it sends. MLflow takes any origin but localhost for foreign.
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{port}" for name in names),
    }


def live_experiment_id(name: str) -> str:
    """Return the id of an experiment in a live view, which follows from its name alone."""
    return str(int(digest(name, 15), 16))
