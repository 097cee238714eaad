"""MLflow's tracking store, model registry and artifact repository on run directories, as after an export.

MLflow's search works on `Searched`, which takes from a run's record only what a filter asks for. The runs that are
shown are read from their directories, as by an export. Every write is refused with status 403, except edits of
names, descriptions and tags where these are allowed.

The artifacts are the files that an export would send, masked alike. Pictures have the names that MLflow's slider of
pictures expects, and are converted when they are asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import posixpath
import shutil
import time
from collections import defaultdict
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import msgspec
import numpy as np
from mlflow import entities
from mlflow.entities.metric import MetricWithRunId
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry.abstract_store import AbstractStore as AbstractModelRegistry
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchUtils

from bridge.errors import BridgeError, RunDirectoryError, RunError
from bridge.exporters.mlflow import facts, media, pictures
from bridge.exporters.mlflow.exporter import live_experiment_id, split_live_address
from bridge.exporters.mlflow.facts import Tag, milliseconds
from bridge.exporters.mlflow.rows import GREATEST, KeyRows
from bridge.exporters.mlflow.runs import FoundRun
from bridge.exporters.mlflow.saved_view import VIEW_TAG, saved_view, shown_bests
from bridge.exporters.mlflow.sweeps import ParentSummary
from bridge.exporters.mlflow.write_api import NO_FIELDS, entities_of
from bridge.files import open_file, read_limited
from bridge.live import READ_SECONDS, LiveRun
from bridge.model import RunFile, Series, Status, digest
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.exporters.mlflow.store import ExperimentName
    from bridge.live import LiveRuns, RunSet
    from bridge.model import MediaEvent

_VIEW_RUNS = 100
"""How many of the newest runs of an experiment its saved view is made of: those that the table shows first."""

_NO_POINTS = Series("", np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def refuse(*_args: Any, **_keywords: Any) -> NoReturn:
    """Raise the error for everything that would write. MLflow's server answers it with status 403."""
    allowed = "the names, descriptions and tags of runs, and these only if it was started with --edit"
    raise MlflowException(f"A live view of run directories changes nothing but {allowed}.", PERMISSION_DENIED)


class Searched:
    """A run as MLflow's search sees it, which asks `info` for attributes, and `data` for one value by its key.

    Values come from the run's record when the search asks for them, so a search over thousands of runs is fast.
    """

    inputs = entities.RunInputs([])
    info = data = property(lambda self: self)

    def __init__(self, store: LiveStore, run: LiveRun) -> None:
        self.run, self._store = run, store
        # By these two, every search sorts the runs.
        self.run_id = run.id
        self.start_time = milliseconds(run.record.start)

    def __getattr__(self, name: str) -> Any:
        if name in ("metrics", "params", "tags"):
            find = getattr(self._store, f"find_{name.removesuffix('s')}")
            return SimpleNamespace(get=lambda key, _default=None: find(self.run, key))
        return getattr(self.run.keep("info", lambda: self._store.info(self.run)), name)


class LiveStore(AbstractStore):
    """A tracking store that reads the run directories of `live` when it is asked, in experiments named as in an export.

    `edit` changes name, notes and tags of the run in a directory; without it edits are refused. `artifact_root` is the
    address below which the artifacts of a run lie: with MLflow's server in between it is `mlflow-artifacts:/`.
    """

    def __init__(
        self, live: LiveRuns, *, naming: ExperimentName, artifact_root: str, edit: Callable[..., None] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = live
        self._content = live.options.content
        self._redaction = Redaction(self._content.redact)
        self._naming = naming
        self._artifact_root = artifact_root
        self._edit = edit
        # The runs of a sweep share their names.
        self._keys = lru_cache(1_000)(self._make_keys)
        self._params = lru_cache(1_000)(lambda names: {key: name for name, key in facts.keys_of(names).items()})
        self._read_until = 0.0  # the time of the monotonic clock until which a search reads points

    # Experiments

    def _index(self) -> tuple[Mapping[str, Sequence[LiveRun]], Mapping[str, LiveRun]]:
        """Return the runs by the id of their experiment, and each by its own. Parents of sweeps are among them."""
        runs = self.live.runs()
        return runs.keep("index", lambda: self._group(runs))

    def _group(self, runs: RunSet) -> tuple[Mapping[str, Sequence[LiveRun]], Mapping[str, LiveRun]]:
        found: dict[str, list[LiveRun]] = defaultdict(list)
        sweeps: dict[str, list[LiveRun]] = defaultdict(list)
        for run in runs.values():
            with contextlib.suppress(RunError):  # it lacks a value that the name of its experiment needs
                if "experiment" not in run.kept:
                    name = self._naming.of_run(run.record.to_run())
                    run.kept |= {"experiment": name, "experiment id": live_experiment_id(name)}
                found[run.kept["experiment id"]].append(run)
                sweep = None if self._content.flat else facts.sweep_of(run.record.tags)
                if sweep is not None:
                    run.kept["parent"] = digest(f"{run.kept['experiment id']}\nsweep\n{sweep}", 32)
                    sweeps[run.kept["parent"]].append(run)
        for parent_id, children in sweeps.items():
            found[children[0].kept["experiment id"]].append(_parent(parent_id, children))
        return dict(found), {run.id: run for each in found.values() for run in each}

    def search_experiments(
        self,
        view_type: int = entities.ViewType.ACTIVE_ONLY,
        max_results: int = 1000,
        filter_string: str | None = None,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[entities.Experiment]:
        """Return the experiments that MLflow's own search finds."""
        known = {} if view_type == entities.ViewType.DELETED_ONLY else self._index()[0]
        found = SearchExperimentsUtils.filter(list(map(self._experiment, known.values())), filter_string)
        found = SearchExperimentsUtils.sort(found, order_by or ["creation_time DESC", "experiment_id ASC"])
        page, token = SearchUtils.paginate(found, page_token, max_results)
        until = time.monotonic() + READ_SECONDS
        return PagedList([self._experiment(known[found.experiment_id], until) for found in page], token)

    def get_experiment(self, experiment_id: str) -> entities.Experiment:
        """Return one experiment."""
        runs = self._index()[0].get(str(experiment_id))
        if runs is None:
            raise MlflowException(f"No Experiment with id={experiment_id} exists", RESOURCE_DOES_NOT_EXIST)
        return self._experiment(runs, time.monotonic() + READ_SECONDS)

    def get_experiment_by_name(self, experiment_name: str) -> entities.Experiment | None:
        """Return the experiment with this name, if there is one."""
        runs = self._index()[0].get(live_experiment_id(experiment_name))
        return None if runs is None else self._experiment(runs, time.monotonic() + READ_SECONDS)

    def _experiment(self, runs: Sequence[LiveRun], until: float = 0.0) -> entities.Experiment:
        """Return the experiment of `runs`; with `until` with its saved view, for which points are read until then."""
        experiment_id, tags = runs[0].kept["experiment id"], dict(facts.EXPERIMENT_KIND)

        def view() -> str:
            newest = [run for run in runs if not _is_parent(run)][-_VIEW_RUNS:]
            found = list(map(FoundRun.of, self._entities(newest, until)))
            return saved_view(found, shown_bests(self._content))

        if until:
            key = f"view {experiment_id}"
            tags[VIEW_TAG] = self.live.runs().keep(key, view, version=runs, within=READ_SECONDS)
        return entities.Experiment(
            experiment_id=experiment_id,
            name=runs[0].kept["experiment"],
            artifact_location=f"mlflow-artifacts:/{experiment_id}",
            lifecycle_stage=entities.LifecycleStage.ACTIVE,
            tags=[entities.ExperimentTag(*tag) for tag in tags.items()],
            creation_time=min(milliseconds(run.record.start) for run in runs),
            last_update_time=max(milliseconds(run.record.last_alive) for run in runs),
        )

    # Search

    def _search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str | None,
        run_view_type: int,
        max_results: int,
        order_by: list[str] | None,
        page_token: str | None,
    ) -> tuple[list[entities.Run], str | None]:
        """Return a page of the runs that MLflow's own search finds. Only the runs of the page are read."""
        if run_view_type == entities.ViewType.DELETED_ONLY:
            return [], None
        self._read_until = time.monotonic() + READ_SECONDS
        known = self._index()[0]
        runs = (run for each in experiment_ids for run in known.get(str(each), ()))
        found = [run.keep("searched", partial(Searched, self, run)) for run in runs]
        found = SearchUtils.sort(SearchUtils.filter(found, filter_string), order_by)
        page, token = SearchUtils.paginate(found, page_token, max_results)
        return self._entities([searched.run for searched in page], time.monotonic() + READ_SECONDS), token

    def find_metric(self, run: LiveRun, key: str) -> float | None:
        """Return the last value of a metric, for a search."""
        record = run.record
        # A run that is running, or was started again, may have gone back to earlier steps, and of these the values at
        # the highest count. So it is read.
        if time.monotonic() < self._read_until and (not record.covered or record.alive or record.sessions > 1):
            point = self._last_points(run, self._read_until).get(key)
            return None if point is None else float(point.shown[0])
        return self._recalled(run, key)[0]

    def find_param(self, run: LiveRun, key: str) -> str | None:
        """Return the text of a param, for a search."""
        hparams = run.record.hparams
        name = self._params(tuple(hparams)).get(key)
        return None if name is None else facts.param_text(name, hparams[name], self._redaction)[: facts.PARAM_LIMIT]

    def find_tag(self, run: LiveRun, key: str) -> str | None:
        """Return the value of a tag, for a search."""
        if key.startswith(facts.RESERVED):
            return run.keep("all tags", lambda: self._params_and_tags(run)[1]).get(key)
        return run.keep("tags", lambda: facts.user_tags(run.record.tags, self._redaction, [])[0]).get(key)

    # Runs

    def find_run(self, run_id: str) -> LiveRun:
        """Return a run, or the parent of a sweep. Raise MlflowException."""
        run = self._index()[1].get(run_id)
        if run is None:
            raise MlflowException(f"Run with id={run_id} not found", RESOURCE_DOES_NOT_EXIST)
        return run

    def get_run(self, run_id: str) -> entities.Run:
        """Return one run as its directory is now."""
        return self._entity(self.find_run(run_id))

    def _entities(self, runs: Sequence[LiveRun], until: float) -> list[entities.Run]:
        return self.live.look_at_each(partial(self._entity, until=until), runs)

    def _entity(self, run: LiveRun, until: float = math.inf) -> entities.Run:
        """Return a run as MLflow's entity. After `until`, a time of the monotonic clock, it is as its record says."""
        points, events = self._last_points(run, until), self.live.media(run)

        def make() -> entities.Run:
            params, tags = self._params_and_tags(run)
            if pictures.has_picture(events):
                tags[Tag.IMAGES] = "True"
            if any(event.caption for event in events):
                tags |= media.table_tag({})
            data = entities.RunData(**entities_of(list(points.values()), (params, tags)))
            return entities.Run(self.info(run), data, entities.RunInputs([]))

        return run.keep("entity", make, version=(points, events))

    def _params_and_tags(self, run: LiveRun) -> tuple[dict[str, str], dict[str, str]]:
        """Return the params of a run, and its tags without those for media."""
        if _is_parent(run):
            notes = self._summary(run).description(run.kept["experiment id"])
            return {}, {Tag.NAME: self.info(run).run_name, Tag.SWEEP: run.record.name, Tag.NOTES: notes}
        source = self.live.facts(run)
        shown = facts.facts_of(source, self._content)
        tags = {**shown.user_tags, **shown.own_tags, Tag.UID: source.identity, Tag.NAME: shown.name}
        tags |= {Tag.NOTES: shown.notes} if shown.notes else {}
        return dict(shown.params.values), tags | ({Tag.PARENT: run.kept["parent"]} if "parent" in run.kept else {})

    def _summary(self, run: LiveRun) -> ParentSummary:
        """Return the summary of a sweep's children that an export gives their parent."""

        def make() -> ParentSummary:
            children = self._entities(run.kept["children"], time.monotonic() + READ_SECONDS)
            return ParentSummary.of(list(map(FoundRun.of, children)), shown_bests(self._content))

        return run.keep("summary", make, within=READ_SECONDS)

    def info(self, run: LiveRun) -> entities.RunInfo:
        """Return MLflow's facts of a run, as of its record."""
        record = run.record
        more = {"run_uuid": run.id} if hasattr(entities.RunInfo, "run_uuid") else {}  # its name in MLflow 2
        return entities.RunInfo(
            run_id=run.id,
            experiment_id=run.kept["experiment id"],
            user_id=facts.storable(str(record.session.get("user") or "unknown")),
            status=facts.STATUSES[record.status],
            start_time=milliseconds(record.start),
            end_time=None if record.end is None else milliseconds(record.end),
            lifecycle_stage=entities.LifecycleStage.ACTIVE,
            artifact_uri=f"{self._artifact_root}{run.id}",
            run_name=facts.shown_name(record.name, record.run_id),
            **more,
        )

    # Points

    def _make_keys(self, names: tuple[str, ...]) -> Mapping[str, tuple[str, str]]:
        """Return the metrics that are shown by MLflow's key: the name and which statistic, `last`, `max` or `min`."""
        keys = facts.keys_of(filter(self._content.wants, names), dict(self._content.rename))
        bests = {
            facts.key_of_best(keys[name]): (name, "max" if sign > 0 else "min")
            for name, sign in self._content.bests.items()
            if name in keys
        }
        # A metric of the run's own wins over a best one of this name.
        return bests | {key: (name, "last") for name, key in keys.items()}

    def _series(self, run: LiveRun) -> dict[str, Series]:
        """Return the points of a run by MLflow's key: one for a best metric, and for those of a sweep's parent."""
        if _is_parent(run):
            point, values = ([0], [run.record.last_alive]), self._summary(run).metrics()
            return {key: Series(key, *map(np.array, (*point, [value]))) for key, value in values.items()}
        series, found = self.live.series(run), {}
        for key, (name, stat) in self._keys(tuple(series)).items():
            one = found[key] = series[name]
            if stat != "last":
                value = one.value if stat == "max" else -one.value
                at = slice(0) if np.isnan(value).all() else slice(best := int(np.nanargmax(value)), best + 1)
                found[key] = Series(key, one.step[at], one.time[at], one.value[at])
        return found

    def _last_points(self, run: LiveRun, until: float) -> Mapping[str, KeyRows]:
        """Return the last point of each metric by key; after `until` that of the record, at the last sign of life."""

        def read() -> Mapping[str, KeyRows]:
            return {key: _rows_at(key, one, [-1]) for key, one in self._series(run).items() if len(one.step)}

        if time.monotonic() <= until:
            return run.keep("points", read, version=self.live.stamp(run))
        if "points" not in run.kept:
            now, keys = milliseconds(run.record.last_alive), self._keys(run.record.metric_names)
            points = ((key, *self._recalled(run, key)) for key in keys)
            found = {key: KeyRows.of(key, [now], [step], [value]) for key, value, step in points if value is not None}
            run.kept["points"] = found
        return cast("Mapping[str, KeyRows]", run.kept["points"])

    def _recalled(self, run: LiveRun, key: str) -> tuple[float | None, int]:
        """Return the last value of a metric as far as the run's record knows it, and some step: it holds no steps."""
        name, stat = self._keys(run.record.metric_names).get(key, (key, ""))
        value, stats = run.record.metric(name, stat), run.record.stats.get(name, {})
        step = stats.get(f"{stat}_step") or stats.get("max_step") or 1  # MLflow draws a bar at 0
        return None if value is None else min(max(value, -GREATEST), GREATEST), step

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[entities.Metric]:
        """Return the points of one metric by time, as its file holds them now."""
        series = self._series(self.find_run(run_id)).get(metric_key, _NO_POINTS)
        order = np.lexsort((series.step, np.rint(series.time * 1000.0)))
        page, token = SearchUtils.paginate(order, page_token, max_results or len(order))  # some versions give 0 for all
        return PagedList(entities_of([_rows_at(metric_key, series, page)], NO_FIELDS)["metrics"], token)

    def _chart(self, run_id: str, key: str, choose: Callable[[Any], Any]) -> list[MetricWithRunId]:
        """Return the points of a metric at the places that `choose` returns for the array of its steps."""
        series = self._series(self.find_run(run_id)).get(key, _NO_POINTS)
        points = entities_of([_rows_at(key, series, choose(series.step))], NO_FIELDS)
        return [MetricWithRunId(run_id=run_id, metric=point) for point in points["metrics"]]

    def get_metric_history_bulk_interval(
        self, run_ids: Sequence[str], metric_key: str, max_results: int, start_step: int | None, end_step: int | None
    ) -> list[MetricWithRunId]:
        """Return points of one metric of several runs for a chart, at most `max_results` of each run.

        They are sampled as by MLflow's SQL store: the first of each of `max_results` equal parts, and the last.
        """

        def sample(steps: Any) -> list[int]:
            places = np.arange(len(steps))
            if start_step is not None and end_step is not None:  # steps increase, each is there once
                places = places[slice(*np.searchsorted(steps, (start_step, end_step + 1)))]
            parts = np.array_split(places, max(1, min(max_results, len(places))))
            return [*(part[0] for part in parts[:-1]), *places[-1:]]

        return [point for run_id in run_ids for point in self._chart(run_id, metric_key, sample)]

    if not hasattr(AbstractStore, "_evenly_spaced_indices"):  # an older MLflow samples by itself, by another rule
        del get_metric_history_bulk_interval

    def get_metric_history_bulk_interval_from_steps(
        self, run_id: str, metric_key: str, steps: Iterable[int], max_results: int
    ) -> list[MetricWithRunId]:
        """Return the points at these steps, which an older MLflow looks up one by one otherwise."""
        wanted = list(steps)
        return self._chart(run_id, metric_key, lambda known: np.flatnonzero(np.isin(known, wanted))[:max_results])

    # Edits

    def set_tag(self, run_id: str, tag: entities.RunTag) -> None:
        """Set the name, the description or a tag of a run in its sidecar, if edits are allowed."""
        self._change(run_id, tag.key, tag.value)

    def update_run_info(self, run_id: str, run_status: Any, end_time: Any, run_name: str | None) -> entities.RunInfo:
        """Change the name of a run in its sidecar, if edits are allowed; refuse to change its status or end."""
        if end_time is not None:
            refuse()
        self._change(run_id, Tag.NAME, run_name)
        return self.get_run(run_id).info

    def delete_tag(self, run_id: str, key: str) -> None:
        """Remove the description or a tag of a run from its sidecar, if edits are allowed."""
        self._change(run_id, key, None)

    def _change(self, run_id: str, key: str, value: str | None) -> None:
        """Change what MLflow shows under a tag's key to `value`, in the sidecar; None removes it."""
        run = self.find_run(run_id)
        shown = facts.UserTags.of(run.record.tags)
        new = [] if value is None else [key if value == "true" else f"{key}:{value}"]
        old = [tag for tag in run.record.tags if shown.key(tag) == key and tag not in new]
        changes: dict[str, Any] = {"add_tags": new, "remove_tags": old}
        if key == Tag.NOTES:
            changes = {"notes": value or ""}
        elif key == Tag.NAME and value is not None:
            changes = {"name": value}
        elif key.startswith(facts.RESERVED):
            refuse()
        if self._edit is None:
            refuse()
        if _is_parent(run):
            raise MlflowException("The parent of a sweep has no run directory to edit.", PERMISSION_DENIED)
        try:
            self._edit(Path(run.record.run_dir), **changes)
        except BridgeError as error:
            raise MlflowException(error.message, PERMISSION_DENIED) from error
        self.live.scan()


def _parent(run_id: str, children: list[LiveRun]) -> LiveRun:
    """Return the parent of a sweep, with a record that says what the children's records say together."""
    records = [child.record for child in children]
    ends = [record.end for record in records if record.end is not None]
    start, running = min(record.start for record in records), any(record.alive for record in records)
    record = msgspec.structs.replace(
        records[0],
        run_id=run_id,
        run_dir=os.devnull,  # in which there are no files
        name=facts.sweep_of(records[0].tags) or "",
        status=Status.RUNNING if running else Status.COMPLETED,
        start=start,
        end=None if running or not ends else max(ends),
        last_alive=max(ends, default=start),
        **{"kind": "", "tags": (), "hparams": {}, "session": {}, "stats": {}, "summary": {}, "covered": False},
    )
    parent = LiveRun(run_id, record)
    parent.kept |= {"children": children, "experiment id": children[0].kept["experiment id"]}
    return parent


def _is_parent(run: LiveRun) -> bool:
    return "children" in run.kept


def _rows_at(key: str, series: Series, at: Any) -> KeyRows:
    """Return the points at the places `at` of a series as MLflow's databases hold them."""
    return KeyRows.of(key, np.rint(series.time[at] * 1000.0), series.step[at], series.value[at])


_READING = ("search_runs", "get_metric_history", "supports_", "filter_", "end_async", "flush_async", "shut_down_async")
"""With what the names of methods begin that write nothing, and are right as they are."""

_EMPTY = ("search_", "list_", "query_", "_search_datasets", "get_latest_versions")
"""With what the names of methods begin that find what is not here: MLflow's pages ask for it, and get nothing."""


def refuse_all_others(store: type, base: type) -> None:
    """Let `store` refuse every public method of `base` that it does not define, whatever a newer MLflow adds."""
    for name in {*dir(base), "_search_datasets"} - vars(store).keys():
        if name.startswith(_EMPTY) and name not in _READING:
            nothing: Any = ([], None) if name == "search_traces" else PagedList([], None)
            setattr(store, name, lambda *_args, _nothing=nothing, **_keywords: _nothing)
        elif not name.startswith(("_", *_READING)) and callable(getattr(base, name)):
            setattr(store, name, refuse)


class LiveModelRegistry(AbstractModelRegistry):
    """A model registry without models."""


refuse_all_others(LiveStore, AbstractStore)
refuse_all_others(LiveModelRegistry, AbstractModelRegistry)

# Artifacts

Content: TypeAlias = "bytes | RunFile | Callable[[], bytes]"
"""An artifact: its bytes, a file of the run directory, or what makes a picture on demand."""


class Listing(media.ArtifactUpload):
    """Collects artifacts by path instead of uploading them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Content] = {}

    def add(self, path: str, data: bytes) -> None:
        """Add a file with this content."""
        self.found[path] = data

    def add_file(self, path: str, file: RunFile, *, data: bytes | None = None, what: str | None = None) -> bool:
        """Add a file of the run directory, which is read when it is asked for."""
        self.found[path] = file
        return True

    def add_picture(self, event: MediaEvent, identity: str) -> tuple[str, str] | None:
        """Add a picture, which is converted when it is asked for. Return its two paths, None if it cannot be shown."""
        extension = pictures.picture_extension(event.file, event.format)
        if extension is None:
            return None
        full, small = media.grid_paths(identity, event, extension)

        def converted() -> tuple[str, bytes, bytes]:
            return pictures.full_and_small(read_limited(event.file, pictures.LARGEST_PICTURE) or b"", event.format)

        self.found[full] = event.file if event.format in ("png", "webp") else lambda: converted()[1]
        self.found[small] = lambda: converted()[2]
        return full, small


class LiveArtifacts(ArtifactRepository):
    """The artifacts of all runs: `<run id>/<path>`, or a part of that if the address has the rest behind LIVE_PATH."""

    def __init__(self, artifact_uri: str, store: LiveStore) -> None:
        super().__init__(artifact_uri)
        self._store, self._prefix = store, split_live_address(artifact_uri)[1]

    def _split(self, path: str | None) -> tuple[Mapping[str, Content], str]:
        """Return the files of a run by path, and the path below the run."""
        run_id, _, rest = f"{self._prefix}/{path or ''}".strip("/").partition("/")
        try:
            run = self._store.find_run(run_id)
            events = self._store.live.media(run)
            files = run.keep("files", lambda: self._list(run, events), version=events)
        except (MlflowException, RunDirectoryError):
            return {}, ""
        return files, rest.strip("/")

    def _list(self, run: LiveRun, events: Sequence[MediaEvent]) -> Mapping[str, Content]:
        live, files = self._store.live, Listing()
        source, content = live.run(run), live.options.content
        media.add_copies(files, media.due_files(source, content), content)
        added = media.add_media(files, source.identity, events)
        if added.captions:
            media.add_captions(files, added.captions, {})
        if added.names:
            files.add_json(media.MEDIA_FILE, added.names)
        if content.checkpoints:
            media.add_checkpoints(files, source, {})
        return files.found

    def list_artifacts(self, path: str | None = None) -> list[entities.FileInfo]:
        """Return the files and folders right below `path`."""
        files, folder = self._split(path)
        below = f"{folder}/" if folder else ""
        found: dict[str, entities.FileInfo] = {}
        for name, content in files.items():
            if name.startswith(below):
                first, slash, _ = name[len(below) :].partition("/")
                size = len(content) if isinstance(content, bytes) else getattr(content, "size", None)
                whole = posixpath.join((path or "").strip("/"), first)
                found[first] = entities.FileInfo(whole, bool(slash), None if slash else size)
        return [found[name] for name in sorted(found)]

    def get_local_path(self, artifact_path: str) -> str | None:
        """Return the path of a file that is served as it lies in its run directory; None for any other."""
        content = self._content(artifact_path)
        return os.fspath(content.path) if isinstance(content, RunFile) and content.offset is None else None

    def _content(self, path: str) -> Content:
        files, name = self._split(path)
        content = files.get(name)
        # A link that took the place of a file, or of a folder above it, is not followed.
        moved = isinstance(content, RunFile) and os.path.realpath(content.path) != os.fspath(content.path)
        if content is None or moved:
            raise MlflowException(f"No such artifact: {path}", RESOURCE_DOES_NOT_EXIST)
        return content

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        content = self._content(remote_file_path)
        if isinstance(content, RunFile):
            with open_file(content) as source, Path(local_path).open("wb") as target:
                shutil.copyfileobj(source, target)
            return
        try:
            Path(local_path).write_bytes(content if isinstance(content, bytes) else content())
        except pictures.UnreadablePictureError as error:  # the file has changed since it was listed
            raise MlflowException(f"No such artifact: {remote_file_path}", RESOURCE_DOES_NOT_EXIST) from error

    log_artifact = log_artifacts = delete_artifacts = refuse
