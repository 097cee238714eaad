"""Show run directories as MLflow's experiments and runs, with the names and facts of an export.

MLflow's search works on `SearchedRun`, which takes from a run's record only what a filter asks for. The runs on a page
are made from their records too, and from their points where a record may not say the last values. Only the page of one
run reads its directory.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.entities import (
    Experiment,
    ExperimentTag,
    LifecycleStage,
    Metric,
    Param,
    RunData,
    RunInfo,
    RunInputs,
    RunTag,
)
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from bridge.errors import RunDirectoryError, RunError
from bridge.exporters.mlflow.client import FoundRun
from bridge.exporters.mlflow.facts import (
    PARAM_LIMIT,
    STATUSES,
    clean,
    facts_of,
    keys_of,
    milliseconds,
    param_text,
    shown_name,
    status_beyond_mlflow,
    storable,
    sweep_of,
    user_tags,
)
from bridge.exporters.mlflow.facts import Tag as Key
from bridge.exporters.mlflow.live_options import live_digest, live_experiment_id
from bridge.exporters.mlflow.media import table_tag
from bridge.exporters.mlflow.saved_view import VIEW_TAG, saved_view, shown_bests
from bridge.exporters.mlflow.sweeps import ParentSummary
from bridge.model import MediaType, Series
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bridge.exporters.mlflow.store import ExperimentName
    from bridge.live import LiveRun, LiveRuns
    from bridge.model import MediaEvent, Run

_VIEW_RUNS = 1_000
"""How many of the newest runs of an experiment its saved view is made of."""

_IS_MLFLOW_2 = "run_uuid" in inspect.signature(RunInfo.__init__).parameters
_LARGEST_FLOAT = 1.7976931348623157e308
_LARGEST_READ = 16 << 20
"""Bytes of metrics.csv. In tables, the last values of a run with a larger file come from its record."""


@dataclass(slots=True)
class LiveExperiment:
    """One experiment: the runs that have its name, and the children of its sweeps by the run id of the parent.

    The rest is made when it is asked for, and kept until a run changes.
    """

    id: str
    name: str
    runs: list[LiveRun] = field(default_factory=list)
    children: dict[str, list[LiveRun]] = field(default_factory=dict)
    searched: list[SearchedRun | MlflowRun] | None = None
    parents: dict[str, MlflowRun] = field(default_factory=dict)
    view: str | None = None


class SearchedRun:
    """One run for MLflow's search, which asks for fields of `info`, and for metrics, params and tags of `data` by key.

    A value is taken from the run's record when the search asks for it, so a search over thousands of runs is fast.
    """

    inputs = RunInputs([])

    def __init__(self, view: LiveView, experiment_id: str, run: LiveRun) -> None:
        self.run = run
        self._view = view
        record = run.record
        end = None if record.end is None else milliseconds(record.end)
        name = shown_name(record.name, record.run_id)
        user = storable(str(record.session.get("user") or "unknown"))
        self.info = view.info(
            run.id, experiment_id, STATUSES[record.status], milliseconds(record.start), end, name, user
        )

    @property
    def data(self) -> SimpleNamespace:
        """Return what has metrics, params and tags, each with `get`."""
        params, tags = SimpleNamespace(get=self._param), SimpleNamespace(get=self._tag)
        return SimpleNamespace(metrics=SimpleNamespace(get=self._metric), params=params, tags=tags)

    def _metric(self, key: str, default: float | None = None) -> float | None:
        found = self._view.last_values(self.run).get(key)
        return default if found is None else found.value

    def _param(self, key: str, default: str | None = None) -> str | None:
        hparams = self.run.record.hparams
        name = _names_by_key(tuple(hparams)).get(key)
        return default if name is None else self._view.param(name, hparams[name])

    def _tag(self, key: str, default: str | None = None) -> str | None:
        if key.startswith(("mlflow.", "bridge.")):
            found: str | None = self._view.row(self).data.tags.get(key, default)
            return found
        tags: Mapping[str, str] | None = self.run.kept.get("user tags")
        if tags is None:
            tags = self.run.kept["user tags"] = user_tags(self.run.record.tags, self._view.redaction, []).values
        return tags.get(key, default)

    def found(self) -> FoundRun:
        """Return the run for the summary of its sweep and for the saved view, which need no tags but these."""
        record, info = self.run.record, self.info
        status = status_beyond_mlflow(record.status, record.status_word)
        names = _names_by_key(tuple(record.hparams))
        return FoundRun(
            run_id=info.run_id,
            experiment_id=info.experiment_id,
            status=info.status,
            deleted=False,
            start=info.start_time,
            end=info.end_time,
            tags={Key.NAME: info.run_name, **({Key.STATUS: status} if status else {})},
            params={key: self._view.param(name, record.hparams[name]) for key, name in names.items()},
            metrics={key: metric.value for key, metric in self._view.last_values(self.run).items()},
        )


class LiveView:
    """The runs of `live` as MLflow shows them, in experiments named as in an export.

    `edit` changes name, notes and tags of the run in a directory; without it edits are refused. `artifact_root` is the
    address below which the artifacts of a run lie: with MLflow's server in between it is `mlflow-artifacts:/`.
    """

    def __init__(
        self,
        live: LiveRuns,
        *,
        naming: ExperimentName,
        artifact_root: str,
        edit: Callable[..., None] | None = None,
    ) -> None:
        self.live = live
        self.edit = edit
        self.redaction = Redaction(live.content.redact)
        self._naming = naming
        self._artifact_root = artifact_root
        self._lock = threading.Lock()
        self._seen: Mapping[str, LiveRun] | None = None
        self._experiments: dict[str, LiveExperiment] = {}
        self._of_run: dict[str, LiveExperiment] = {}
        self._metric_keys = functools.lru_cache(1_000)(self._find_metric_keys)

    # Experiments and runs

    def experiments(self) -> Mapping[str, LiveExperiment]:
        """Return the experiments by id, which follows from the name alone."""
        runs = self.live.runs()
        with self._lock:
            if runs is not self._seen:
                self._experiments, self._of_run = self._group(runs), {}
                for experiment in self._experiments.values():
                    self._of_run |= dict.fromkeys((run.id for run in experiment.runs), experiment)
                    self._of_run |= dict.fromkeys(experiment.children, experiment)
                self._seen = runs
            return self._experiments

    def _group(self, runs: Mapping[str, LiveRun]) -> dict[str, LiveExperiment]:
        found: dict[str, LiveExperiment] = {}
        for run in runs.values():
            if "experiment" not in run.kept:
                run.kept["experiment"] = self._experiment_name(run)
            name = run.kept["experiment"]
            if name is None:
                continue
            experiment_id = live_experiment_id(name)
            experiment = found.setdefault(experiment_id, LiveExperiment(experiment_id, name))
            experiment.runs.append(run)
            parent = self._parent_id(experiment_id, run)
            if parent is not None:
                experiment.children.setdefault(parent, []).append(run)
        return found

    def _experiment_name(self, run: LiveRun) -> str | None:
        """Return the name of the run's experiment; None if it lacks a value that the name needs."""
        try:
            return self._naming.of_run(run.record.to_run())
        except RunError:
            return None

    def _parent_id(self, experiment_id: str, run: LiveRun) -> str | None:
        sweep = None if self.live.content.flat else sweep_of(run.record.tags)
        return None if sweep is None else live_digest(f"{experiment_id}\nsweep\n{sweep}")

    def experiment(self, experiment_id: str) -> LiveExperiment:
        """Return one experiment. Raise MlflowException if there is none with this id."""
        found = self.experiments().get(str(experiment_id))
        if found is None:
            raise MlflowException(f"No Experiment with id={experiment_id} exists", RESOURCE_DOES_NOT_EXIST)
        return found

    def of_run(self, run_id: str) -> tuple[LiveExperiment, LiveRun | None]:
        """Return the experiment of a run, and the run: None for the parent of a sweep. Raise MlflowException."""
        self.experiments()
        experiment = self._of_run.get(run_id)
        if experiment is None:
            raise MlflowException(f"Run with id={run_id} not found", RESOURCE_DOES_NOT_EXIST)
        return experiment, self.live.runs().get(run_id)

    def searched(self, experiment: LiveExperiment) -> list[SearchedRun | MlflowRun]:
        """Return all runs of an experiment for MLflow's search, and the parents of its sweeps."""
        if experiment.searched is None:
            runs = [self._searched(experiment, run) for run in experiment.runs]
            experiment.searched = [*runs, *(self._parent(experiment, run_id) for run_id in experiment.children)]
        return experiment.searched

    def _searched(self, experiment: LiveExperiment, run: LiveRun) -> SearchedRun:
        found: SearchedRun | None = run.kept.get("searched")
        if found is None:
            found = run.kept["searched"] = SearchedRun(self, experiment.id, run)
        return found

    def experiment_entity(self, experiment: LiveExperiment, *, with_view: bool = False) -> Experiment:
        """Return an experiment as MLflow's entity, on request with its saved view."""
        records = [run.record for run in experiment.runs]
        tags = {"mlflow.experimentKind": "custom_model_development"}
        if with_view:
            if experiment.view is None:
                newest = sorted(experiment.runs, key=lambda run: -run.record.start)[:_VIEW_RUNS]
                self.live.complete(newest)
                runs = [self._searched(experiment, run).found() for run in newest]
                experiment.view = saved_view(runs, shown_bests(self.live.content))
            tags[VIEW_TAG] = experiment.view
        return Experiment(
            experiment_id=experiment.id,
            name=experiment.name,
            artifact_location=f"mlflow-artifacts:/{experiment.id}",
            lifecycle_stage=LifecycleStage.ACTIVE,
            tags=[ExperimentTag(*tag) for tag in tags.items()],
            creation_time=min(milliseconds(record.start) for record in records),
            last_update_time=max(milliseconds(record.last_alive) for record in records),
        )

    # Runs as MLflow's entities

    def entity(self, run_id: str) -> MlflowRun:
        """Return a run as MLflow's entity, as its directory is now. Raise MlflowException if it is gone."""
        experiment, run = self.of_run(run_id)
        if run is None:
            return self._parent(experiment, run_id)
        try:
            source = self.live.run(run)
        except RunDirectoryError as error:
            raise MlflowException(error.message, RESOURCE_DOES_NOT_EXIST) from error
        return self._entity(experiment.id, run, source, self._last_points(run), self.live.media(run))

    def rows(self, page: Sequence[SearchedRun | MlflowRun]) -> list[MlflowRun]:
        """Return runs that the search found as a table shows them."""
        media = self.live.media_of([found.run for found in page if isinstance(found, SearchedRun)])
        return [self.row(found, media[found.run.id]) if isinstance(found, SearchedRun) else found for found in page]

    def row(self, found: SearchedRun, events: Sequence[MediaEvent] = ()) -> MlflowRun:
        """Return a run with these media as a table shows it: made from its record, and from its points if needed.

        A run of one start has ended with the last values that its record holds. Another one may have gone back to
        earlier steps, and of these MLflow shows the values at the highest.
        """
        run, record = found.run, found.run.record
        kept: tuple[object, MlflowRun] = run.kept.get("row", (None, None))
        if kept[0] is events:
            return kept[1]
        is_final = record.covered and not record.alive and record.sessions == 1
        is_large = not is_final and self.live.size(run) > _LARGEST_READ
        metrics = self.last_values(run) if is_final or is_large else self._last_points(run)
        row = self._entity(found.info.experiment_id, run, record.to_run(), metrics, events)
        if is_final:
            run.kept["row"] = (events, row)
        return row

    def _entity(
        self,
        experiment_id: str,
        run: LiveRun,
        source: Run,
        metrics: Mapping[str, Metric],
        events: Sequence[MediaEvent],
    ) -> MlflowRun:
        facts = facts_of(source, self.live.content)
        tags = {**facts.user_tags, **facts.own_tags, Key.UID: source.identity, Key.NAME: facts.name}
        if facts.notes:
            tags[Key.NOTES] = facts.notes
        parent = self._parent_id(experiment_id, run)
        if parent is not None:
            tags[Key.PARENT] = parent
        if any(event.type is MediaType.IMAGE for event in events):
            tags[Key.IMAGES] = "True"
        if any(event.caption for event in events):
            tags |= table_tag({})
        info = self.info(run.id, experiment_id, facts.status, facts.start, facts.end, facts.name, facts.user)
        params = [Param(key, value) for key, value in facts.params.values.items()]
        data = RunData(list(metrics.values()), params, [RunTag(*tag) for tag in tags.items()])
        return MlflowRun(info, data, RunInputs([]))

    def info(
        self, run_id: str, experiment_id: str, status: str, start: int, end: int | None, name: str, user: str
    ) -> RunInfo:
        """Return MLflow's entity with the columns of a run."""
        more = {"run_uuid": run_id} if _IS_MLFLOW_2 else {}
        return RunInfo(
            run_id=run_id,
            experiment_id=experiment_id,
            user_id=user,
            status=status,
            start_time=start,
            end_time=end,
            lifecycle_stage=LifecycleStage.ACTIVE,
            artifact_uri=f"{self._artifact_root}{run_id}",
            run_name=name,
            **more,
        )

    def _parent(self, experiment: LiveExperiment, run_id: str) -> MlflowRun:
        """Return the parent of a sweep, with the summary of its children that an export gives it."""
        if run_id in experiment.parents:
            return experiment.parents[run_id]
        runs = experiment.children[run_id]
        self.live.complete(runs)
        children = [self._searched(experiment, run).found() for run in runs]
        running = any(child.status == "RUNNING" for child in children)
        ends = [child.end for child in children if child.end is not None]
        sweep = sweep_of(runs[0].record.tags) or ""
        name = shown_name(sweep, run_id)
        start = min(child.start or 0 for child in children)
        end = None if running or not ends else max(ends)
        info = self.info(run_id, experiment.id, "RUNNING" if running else "FINISHED", start, end, name, "unknown")
        summary = ParentSummary.of(children, shown_bests(self.live.content))
        tags = {Key.NAME: name, Key.SWEEP: sweep, Key.NOTES: summary.description(experiment.id)}
        metrics = [Metric(key, value, max(ends, default=start), 0) for key, value in summary.metrics().items()]
        made = MlflowRun(info, RunData(metrics, [], [RunTag(*tag) for tag in tags.items()]), RunInputs([]))
        experiment.parents[run_id] = made
        return made

    # Params and metrics

    def param(self, name: str, value: Any) -> str:
        """Return a param as MLflow holds it."""
        return param_text(name, value, self.redaction)[:PARAM_LIMIT]

    def one_series(self, run_id: str, key: str) -> Series | None:
        """Return the points of one metric of a run; a best one, and one of a sweep's parent, has its latest alone."""
        experiment, run = self.of_run(run_id)
        if run is not None:
            series = self.live.series(run)
            names = {found: name for name, found in keys_of(series, dict(self.live.content.rename)).items()}
            if key in names:
                return series[names[key]]
        last = self._parent(experiment, run_id).data._metric_objs if run is None else self._last_points(run).values()
        point = next((metric for metric in last if metric.key == key), None)
        if point is None:
            return None
        return Series(key, np.array([point.step]), np.array([point.timestamp / 1000.0]), np.array([point.value]))

    def _last_points(self, run: LiveRun) -> Mapping[str, Metric]:
        """Return the last point of each metric by key, and the best one so far of those that --best names."""
        series = self.live.series(run)
        found = {}
        for key, (name, stat) in self._metric_keys(tuple(series)).items():
            value = series[name].value
            if stat == "last" and len(value):
                (found[key],) = metrics_at(key, series[name], [-1])
            elif stat != "last" and not np.isnan(value).all():
                best = np.nanargmax(value) if stat == "max" else np.nanargmin(value)
                (found[key],) = metrics_at(key, series[name], [int(best)])
        return found

    def last_values(self, run: LiveRun) -> Mapping[str, Metric]:
        """Return the last values in the run's record by key, and the best ones of the metrics that --best names.

        Their steps are those of the extreme values, or of neither. A run whose record names no metric, or that goes on
        with an incomplete one, is read.
        """
        record = run.record
        if not (record.stats or record.summary) or (record.alive and not record.covered):
            return self._last_points(run)
        if "values" not in run.kept:
            time, found = milliseconds(record.last_alive), {}
            for key, (name, stat) in self._metric_keys((*record.stats, *record.summary)).items():
                value = record.metric(name, stat)
                if value is not None:
                    stats = record.stats.get(name, {})
                    # MLflow draws a bar for a metric whose last step is 0, so a run of several points must not have it.
                    steps = (stats.get("min_step") or 0, stats.get("max_step") or 0, (stats.get("count") or 0) > 1)
                    step = stats.get(f"{stat}_step") if stat != "last" else max(map(int, steps))
                    found[key] = Metric(key, _finite(value), time, step or 0)
            run.kept["values"] = found
        values: Mapping[str, Metric] = run.kept["values"]
        return values

    def _find_metric_keys(self, names: tuple[str, ...]) -> Mapping[str, tuple[str, str]]:
        """Return the metrics that are shown by MLflow's key: the name and which statistic, `last`, `max` or `min`."""
        content = self.live.content
        keys = keys_of(filter(content.wants, names), dict(content.rename))
        bests = {
            clean(f"{keys[name]}.best"): (name, "max" if sign > 0 else "min")
            for name, sign in content.bests.items()
            if name in keys
        }
        # A metric of the run's own wins over a best one of this name.
        return bests | {key: (name, "last") for name, key in keys.items()}


@functools.lru_cache(1_000)
def _names_by_key(names: tuple[str, ...]) -> Mapping[str, str]:
    return {key: name for name, key in keys_of(names).items()}


def _finite(value: float) -> float:
    """Return a value as MLflow's databases hold it: the largest float for an infinity."""
    return math.copysign(_LARGEST_FLOAT, value) if math.isinf(value) else float(value)


def metrics_at(key: str, series: Series, at: np.ndarray[Any, Any] | Sequence[int]) -> list[Metric]:
    """Return the points at the places `at` of a series."""
    times = np.rint(series.time[at] * 1000.0).astype(np.int64).tolist()
    values = np.nan_to_num(series.value[at], nan=np.nan, posinf=_LARGEST_FLOAT, neginf=-_LARGEST_FLOAT).tolist()
    return [Metric(key, *point) for point in zip(values, times, series.step[at].tolist(), strict=True)]
