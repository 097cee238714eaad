"""MLflow's tracking store and model registry on run directories, with the names and facts of an export.

MLflow's search works on `Searched`, which takes from a run's record only what a filter asks for. The runs that are
shown are read from their directories, as by an export. Every write is refused with status 403, except edits of
names, descriptions and tags where these are allowed.
"""

from __future__ import annotations

import inspect
import math
import time
from collections import defaultdict
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import numpy as np
from mlflow import entities
from mlflow.entities import Metric
from mlflow.entities.metric import MetricWithRunId
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry.abstract_store import AbstractStore as AbstractModelRegistry
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchUtils

from bridge.errors import BridgeError, RunError
from bridge.exporters.mlflow import facts
from bridge.exporters.mlflow.facts import Tag, milliseconds
from bridge.exporters.mlflow.live_options import live_experiment_id
from bridge.exporters.mlflow.media import has_picture, table_tag
from bridge.exporters.mlflow.runs import FoundRun
from bridge.exporters.mlflow.saved_view import VIEW_TAG, saved_view, shown_bests
from bridge.exporters.mlflow.sweeps import ParentSummary
from bridge.live import READ_SECONDS, LiveRun, digest_id
from bridge.model import Series, Status
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.exporters.mlflow.store import ExperimentName
    from bridge.live import LiveRuns, RunSet

_VIEW_RUNS = 100
"""How many of the newest runs of an experiment its saved view is made of: those that the table shows first."""

_IS_MLFLOW_2 = "run_uuid" in inspect.signature(entities.RunInfo.__init__).parameters
_NO_POINTS = Series("", np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
_LARGEST_FLOAT = 1.7976931348623157e308


def refuse(*_args: Any, **_keywords: Any) -> NoReturn:
    """Raise the error for everything that would write. MLflow's server answers it with status 403."""
    allowed = "the names, descriptions and tags of runs, and these only if it was started with --edit"
    raise MlflowException(f"A live view of run directories changes nothing but {allowed}.", PERMISSION_DENIED)


class Searched:
    """A run as MLflow's search sees it, which asks `info` for attributes, and `data` for one value by its key.

    Values come from the run's record when the search asks for them, so a search over thousands of runs is fast.
    """

    inputs = entities.RunInputs([])

    def __init__(self, store: LiveStore, run: LiveRun) -> None:
        self.run = run
        self._store = store
        # By these two, every search sorts the runs.
        self.run_id = run.id
        self.start_time = milliseconds(run.record.start)

    @property
    def info(self) -> Searched:
        """Return this object, which has the attributes of the run."""
        return self

    data = info

    def __getattr__(self, name: str) -> Any:
        if name in ("metrics", "params", "tags"):
            return SimpleNamespace(get=partial(getattr(self._store, f"find_{name.removesuffix('s')}"), self.run))
        return getattr(self._store.info(self.run), name)


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
        self._keys = lru_cache(1_000)(self._make_keys)  # the runs of a sweep share their names
        self._read_until = 0.0  # the time of the monotonic clock until which a search reads points

    # Experiments

    def _experiments(self) -> Mapping[str, Sequence[LiveRun]]:
        """Return the runs of each experiment, parents of sweeps too, by its id, which follows from its name alone."""
        runs = self.live.runs()
        return runs.keep("experiments", lambda: self._group(runs))

    def _group(self, runs: RunSet) -> Mapping[str, list[LiveRun]]:
        found: dict[str, list[LiveRun]] = defaultdict(list)
        sweeps: dict[str, list[LiveRun]] = defaultdict(list)
        for run in runs.values():
            name = run.keep("experiment", partial(self._experiment_name, run))
            sweep = None if self._content.flat else facts.sweep_of(run.record.tags)
            if name is not None:
                found[live_experiment_id(name)].append(run)
                if sweep is not None:
                    run.kept["parent"] = digest_id(f"{live_experiment_id(name)}\nsweep\n{sweep}")
                    sweeps[run.kept["parent"]].append(run)
        for parent_id, children in sweeps.items():
            found[_experiment_id(children[0])].append(_parent(parent_id, children))
        return dict(found)

    def _experiment_name(self, run: LiveRun) -> str | None:
        """Return the name of the run's experiment; None if it lacks a value that the name needs."""
        try:
            return self._naming.of_run(run.record.to_run())
        except RunError:
            return None

    def search_experiments(
        self,
        view_type: int = entities.ViewType.ACTIVE_ONLY,
        max_results: int = 1000,
        filter_string: str | None = None,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[entities.Experiment]:
        """Return the experiments that MLflow's own search finds."""
        known = [] if view_type == entities.ViewType.DELETED_ONLY else self._experiments().values()
        found = SearchExperimentsUtils.filter([self._experiment_entity(each, {}) for each in known], filter_string)
        found = SearchExperimentsUtils.sort(found, order_by or ["creation_time DESC", "experiment_id ASC"])
        page, token = SearchUtils.paginate(found, page_token, max_results)
        if _IS_MLFLOW_2:  # its page takes the saved view from here
            until = time.monotonic() + READ_SECONDS
            page = [self._with_view(found.experiment_id, until) for found in page]
        return PagedList(page, token)

    def get_experiment(self, experiment_id: str) -> entities.Experiment:
        """Return one experiment with its saved view."""
        return self._with_view(experiment_id, time.monotonic() + READ_SECONDS)

    def _with_view(self, experiment_id: str, until: float) -> entities.Experiment:
        runs = self._experiments().get(str(experiment_id))
        if runs is None:
            raise MlflowException(f"No Experiment with id={experiment_id} exists", RESOURCE_DOES_NOT_EXIST)
        view = self.live.runs().keep(f"view {experiment_id}", lambda: self._view(runs, until), within=READ_SECONDS)
        return self._experiment_entity(runs, {VIEW_TAG: view})

    def get_experiment_by_name(self, experiment_name: str) -> entities.Experiment | None:
        """Return the experiment with this name, if there is one, with its saved view."""
        experiment_id = live_experiment_id(experiment_name)
        return self.get_experiment(experiment_id) if experiment_id in self._experiments() else None

    def _view(self, runs: Sequence[LiveRun], until: float) -> str:
        newest = sorted((run for run in runs if not _is_parent(run)), key=lambda run: -run.record.start)
        return saved_view(
            list(map(FoundRun.of, self._entities(newest[:_VIEW_RUNS], until))), shown_bests(self._content)
        )

    def _experiment_entity(self, runs: Sequence[LiveRun], tags: Mapping[str, str]) -> entities.Experiment:
        tags = facts.EXPERIMENT_KIND | tags
        return entities.Experiment(
            experiment_id=_experiment_id(runs[0]),
            name=runs[0].kept["experiment"],
            artifact_location=f"mlflow-artifacts:/{_experiment_id(runs[0])}",
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
        known = self._experiments()
        found = [
            run.keep("searched", partial(Searched, self, run))
            for each in map(str, experiment_ids)
            for run in known.get(each, ())
        ]
        found = SearchUtils.sort(SearchUtils.filter(found, filter_string), order_by)
        page, token = SearchUtils.paginate(found, page_token, max_results)
        return self._entities([searched.run for searched in page], time.monotonic() + READ_SECONDS), token

    def find_metric(self, run: LiveRun, key: str, default: float | None = None) -> float | None:
        """Return the last value of a metric, for a search."""
        record = run.record
        # A run that is running, or was started again, may have gone back to earlier steps, and of these the values at
        # the highest count. So it is read.
        if not record.covered or record.alive or record.sessions > 1:
            point = self._last_points(run, self._read_until).get(key)
            return default if point is None else point.value
        known = self._keys_of_record(run).get(key)
        value = None if known is None else record.metric(*known)
        return default if value is None else _finite(value)

    def find_param(self, run: LiveRun, key: str, default: str | None = None) -> str | None:
        """Return the text of a param, for a search."""
        hparams = run.record.hparams
        name = _names_by_key(tuple(hparams)).get(key)
        if name is None:
            return default
        return facts.param_text(name, hparams[name], self._redaction)[: facts.PARAM_LIMIT]

    def find_tag(self, run: LiveRun, key: str, default: str | None = None) -> str | None:
        """Return the value of a tag, for a search."""
        tags: Mapping[str, str]
        if key.startswith(("mlflow.", "bridge.")):
            tags = run.keep("all tags", lambda: self._params_and_tags(run)[1])
        else:
            tags = run.keep("tags", lambda: facts.user_tags(run.record.tags, self._redaction, []).values)
        return tags.get(key, default)

    # Runs

    def find_run(self, run_id: str) -> LiveRun:
        """Return a run, or the parent of a sweep. Raise MlflowException."""
        experiments = self._experiments().values()
        known = self.live.runs().keep("known", lambda: {run.id: run for runs in experiments for run in runs})
        if run_id not in known:
            raise MlflowException(f"Run with id={run_id} not found", RESOURCE_DOES_NOT_EXIST)
        return known[run_id]

    def get_run(self, run_id: str) -> entities.Run:
        """Return one run as its directory is now."""
        return self._entity(self.find_run(run_id))

    def _entities(self, runs: Sequence[LiveRun], until: float) -> list[entities.Run]:
        """Return runs for a table: after `until`, a time of the monotonic clock, the rest is as the records say."""
        return self.live.map(lambda run: self._entity(run, until), runs)

    def _entity(self, run: LiveRun, until: float = math.inf) -> entities.Run:
        """Return a run as MLflow's entity. After `until`, a time of the monotonic clock, no points are read."""
        points, media = self._last_points(run, until), () if _is_parent(run) else self.live.media(run)
        made: tuple[object, object, entities.Run] | None = run.kept.get("entity")
        if made is not None and made[0] is points and made[1] is media:
            return made[2]
        params, tags = self._params_and_tags(run)
        if has_picture(media):
            tags[Tag.IMAGES] = "True"
        if any(event.caption for event in media):
            tags |= table_tag({})
        data = entities.RunData(
            list(points.values()),
            [entities.Param(*param) for param in params.items()],
            [entities.RunTag(*tag) for tag in tags.items()],
        )
        entity = entities.Run(self.info(run), data, entities.RunInputs([]))
        run.kept["entity"] = points, media, entity
        return entity

    def _params_and_tags(self, run: LiveRun) -> tuple[Mapping[str, str], dict[str, str]]:
        """Return the params of a run, and its tags without those for media."""
        if _is_parent(run):
            notes = self._summary(run).description(_experiment_id(run))
            return {}, {Tag.NAME: self.info(run).run_name, Tag.SWEEP: run.record.name, Tag.NOTES: notes}
        source = self.live.facts(run)
        shown = facts.facts_of(source, self._content)
        tags = {**shown.user_tags, **shown.own_tags, Tag.UID: source.identity, Tag.NAME: shown.name}
        tags |= {Tag.NOTES: shown.notes} if shown.notes else {}
        return shown.params.values, tags | ({Tag.PARENT: run.kept["parent"]} if "parent" in run.kept else {})

    def _summary(self, run: LiveRun) -> ParentSummary:
        """Return the summary of a sweep's children that an export gives their parent."""

        def summary() -> ParentSummary:
            children = list(map(FoundRun.of, self._entities(run.kept["children"], time.monotonic() + READ_SECONDS)))
            return ParentSummary.of(children, shown_bests(self._content))

        return run.keep("summary", summary, within=READ_SECONDS)

    def info(self, run: LiveRun) -> entities.RunInfo:
        """Return MLflow's facts of a run, as of its record."""
        return run.keep("info", partial(self._make_info, run))

    def _make_info(self, run: LiveRun) -> entities.RunInfo:
        record = run.record
        more = {"run_uuid": run.id} if _IS_MLFLOW_2 else {}
        return entities.RunInfo(
            run_id=run.id,
            experiment_id=_experiment_id(run),
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
            facts.clean(f"{keys[name]}.best"): (name, "max" if sign > 0 else "min")
            for name, sign in self._content.bests.items()
            if name in keys
        }
        # A metric of the run's own wins over a best one of this name.
        return bests | {key: (name, "last") for name, key in keys.items()}

    def _keys_of_record(self, run: LiveRun) -> Mapping[str, tuple[str, str]]:
        return self._keys(tuple(dict.fromkeys((*run.record.stats, *run.record.summary))))

    def _series(self, run: LiveRun) -> dict[str, Series]:
        """Return the points of a run by MLflow's key: one for a best metric, and for those of a sweep's parent."""
        if _is_parent(run):
            step, time_ = np.zeros(1, np.int64), np.array([run.record.last_alive])
            return {key: Series(key, step, time_, np.array([one])) for key, one in self._summary(run).metrics().items()}
        series, found = self.live.series(run), {}
        for key, (name, stat) in self._keys(tuple(series)).items():
            one = found[key] = series[name]
            if stat != "last":
                value = one.value if stat == "max" else -one.value
                at = slice(0) if np.isnan(value).all() else slice(best := int(np.nanargmax(value)), best + 1)
                found[key] = Series(key, one.step[at], one.time[at], one.value[at])
        return found

    def _last_points(self, run: LiveRun, until: float) -> Mapping[str, Metric]:
        """Return the last point of each metric by key. After `until` they are those of the run's record.

        It holds values alone, so they are shown at the last sign of life, and at some step.
        """
        kept: tuple[object, dict[str, Metric]] | None = run.kept.get("points")
        if time.monotonic() <= until:
            stamp = self.live.stamp(run)
            if kept is None or kept[0] != stamp:
                series = self._series(run).items()
                kept = stamp, {key: _last_metric(key, one) for key, one in series if len(one.step)}
        elif kept is None:
            record, found = run.record, {}
            for key, (name, stat) in self._keys_of_record(run).items():
                value, stats = record.metric(name, stat), record.stats.get(name, {})
                if value is not None:
                    step = stats.get(f"{stat}_step") or stats.get("max_step") or 1  # MLflow draws a bar at 0
                    found[key] = Metric(key, _finite(value), milliseconds(record.last_alive), step)
            kept = None, found
        run.kept["points"] = kept
        return kept[1]

    def _one_series(self, run_id: str, key: str) -> Series:
        return self._series(self.find_run(run_id)).get(key, _NO_POINTS)

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[Metric]:
        """Return the points of one metric by time, as its file holds them now."""
        series = self._one_series(run_id, metric_key)
        total = len(series.step)
        begin = SearchUtils.parse_start_offset_from_page_token(page_token)
        end = min(total, begin + (max_results or total))  # some versions give 0 for all
        order = np.lexsort((series.step, np.rint(series.time * 1000.0)))
        points = _metrics_at(metric_key, series, order[begin:end])
        return PagedList(points, SearchUtils.create_page_token(end) if end < total else None)

    if hasattr(AbstractStore, "_evenly_spaced_indices"):  # an older MLflow samples by itself, by another rule

        def get_metric_history_bulk_interval(
            self,
            run_ids: Sequence[str],
            metric_key: str,
            max_results: int,
            start_step: int | None,
            end_step: int | None,
        ) -> list[MetricWithRunId]:
            """Return points of one metric of several runs for a chart, at most `max_results` of each run.

            They are sampled as by MLflow's SQL store: the first of each of `max_results` equal parts, and the last.
            """
            found: list[MetricWithRunId] = []
            for run_id in run_ids:
                series = self._one_series(run_id, metric_key)
                places = np.arange(len(series.step))
                if start_step is not None and end_step is not None:  # steps increase, each is there once
                    places = places[slice(*np.searchsorted(series.step, (start_step, end_step + 1)))]
                parts = np.array_split(places, max(1, min(max_results, len(places))))
                at = [*(part[0] for part in parts[:-1]), *places[-1:]]
                found += _sampled(run_id, metric_key, series, at)
            return found

    def get_metric_history_bulk_interval_from_steps(
        self, run_id: str, metric_key: str, steps: Iterable[int], max_results: int
    ) -> list[MetricWithRunId]:
        """Return the points at these steps, which an older MLflow looks up one by one otherwise."""
        series = self._one_series(run_id, metric_key)
        at = np.flatnonzero(np.isin(series.step, list(steps)))[:max_results]
        return _sampled(run_id, metric_key, series, at)

    # Edits

    def set_tag(self, run_id: str, tag: entities.RunTag) -> None:
        """Set the name, the description or a tag of a run in its sidecar, if edits are allowed."""
        self._change(run_id, tag.key, tag.value)

    def delete_tag(self, run_id: str, key: str) -> None:
        """Remove the description or a tag of a run from its sidecar, if edits are allowed."""
        self._change(run_id, key, None)

    def update_run_info(self, run_id: str, run_status: Any, end_time: Any, run_name: str | None) -> entities.RunInfo:
        """Change the name of a run in its sidecar, if edits are allowed; refuse to change its status or end."""
        if end_time is not None:
            refuse()
        self._change(run_id, Tag.NAME, run_name)
        return self.get_run(run_id).info

    def _change(self, run_id: str, key: str, value: str | None) -> None:
        """Change what MLflow shows under a tag's key to `value`; None removes it."""
        run = self.find_run(run_id)
        changes: dict[str, Any]
        if key == Tag.NOTES:
            changes = {"notes": value or ""}
        elif key == Tag.NAME and value is not None:
            changes = {"name": value}
        elif key.startswith(("mlflow.", "bridge.")):
            refuse()
        else:
            tags, shown = run.record.tags, facts.UserTags.of(run.record.tags)
            new = [] if value is None else [key if value == "true" else f"{key}:{value}"]
            old = [tag for tag in tags if shown.key(tag) == key and tag not in new]
            changes = {"add_tags": new, "remove_tags": old}
        if self._edit is None:
            refuse()
        if _is_parent(run):
            why = "The parent of a sweep has no run directory, so it cannot be edited."
            raise MlflowException(why, PERMISSION_DENIED)
        try:
            self._edit(Path(run.record.run_dir), **changes)
        except BridgeError as error:
            raise MlflowException(error.message, PERMISSION_DENIED) from error
        self.live.refresh()


def _parent(run_id: str, children: list[LiveRun]) -> LiveRun:
    """Return the parent of a sweep, with a record that says what the children's records say together."""
    records = [child.record for child in children]
    ends = [record.end for record in records if record.end is not None]
    start, running = min(record.start for record in records), any(record.alive for record in records)
    record = msgspec.structs.replace(
        records[0],
        run_id=run_id,
        name=facts.sweep_of(records[0].tags) or "",
        status=Status.RUNNING if running else Status.COMPLETED,
        start=start,
        end=None if running or not ends else max(ends),
        last_alive=max(ends, default=start),
        **{"tags": (), "hparams": {}, "session": {}, "stats": {}, "summary": {}, "covered": False},
    )
    parent = LiveRun(run_id, record)
    parent.kept |= {"children": children, "experiment": children[0].kept["experiment"]}
    return parent


def _is_parent(run: LiveRun) -> bool:
    return "children" in run.kept


def _experiment_id(run: LiveRun) -> str:
    return live_experiment_id(run.kept["experiment"])


@lru_cache(1_000)
def _names_by_key(names: tuple[str, ...]) -> Mapping[str, str]:
    return {key: name for name, key in facts.keys_of(names).items()}


def _finite(value: float) -> float:
    """Return a value as MLflow's databases hold it: the largest float for an infinity."""
    return math.copysign(_LARGEST_FLOAT, value) if math.isinf(value) else float(value)


def _last_metric(key: str, series: Series) -> Metric:
    """Return the last point of a series, in a tenth of the time of `_metrics_at`."""
    return Metric(key, _finite(series.value[-1]), milliseconds(float(series.time[-1])), int(series.step[-1]))


def _metrics_at(key: str, series: Series, at: Any) -> list[Metric]:
    """Return the points at the places `at` of a series."""
    at = np.asarray(at, dtype=np.intp)
    times = np.rint(series.time[at] * 1000.0).astype(np.int64).tolist()
    columns = (map(_finite, series.value[at].tolist()), times, series.step[at].tolist())
    return [Metric(key, *point) for point in zip(*columns, strict=True)]


def _sampled(run_id: str, key: str, series: Series, at: Any) -> list[MetricWithRunId]:
    return [MetricWithRunId(run_id=run_id, metric=point) for point in _metrics_at(key, series, at)]


_READING = {
    *("search_runs", "supports_workspaces", "supports_trace_archival", "filter_active_experiment_ids"),
    *("end_async_logging", "flush_async_logging", "shut_down_async_logging", "get_metric_history_bulk_interval"),
}
"""Methods of MLflow's base classes that write nothing, and are right as they are."""

_EMPTY = ("search_", "list_", "query_", "_search_datasets", "get_latest_versions")
"""With what the names of methods begin that find what is not here: MLflow's pages ask for it, and get nothing."""


def refuse_all_others(store: type, base: type) -> None:
    """Let `store` refuse every public method of `base` that it does not define, whatever a newer MLflow adds."""
    for name in {*dir(base), "_search_datasets"} - {*vars(store), *_READING}:
        if name.startswith(_EMPTY):
            nothing: Any = ([], None) if name == "search_traces" else PagedList([], None)
            setattr(store, name, lambda *_args, _nothing=nothing, **_keywords: _nothing)
        elif not name.startswith("_") and callable(getattr(base, name)):
            setattr(store, name, refuse)


class LiveModelRegistry(AbstractModelRegistry):
    """A model registry without models."""


refuse_all_others(LiveStore, AbstractStore)
refuse_all_others(LiveModelRegistry, AbstractModelRegistry)
