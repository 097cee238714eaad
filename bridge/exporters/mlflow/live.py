"""Show run directories in MLflow itself, without an export: its server asks the stores in this file.

    LiveView            the run directories as MLflow's experiments and runs, with the names and facts of an export
    LiveStore           MLflow's tracking store: experiments, runs, points of metrics; edits if they are allowed
    LiveArtifacts       MLflow's artifact repository: the files that an export would send, masked alike
    LiveModelRegistry   MLflow's model registry, always empty

Lists and filters work on the registry's records, so no run directory is opened for them. The runs of one page are read
from their directories. Whatever would write is refused with status 403.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import threading
import urllib.parse
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
from mlflow.entities import (
    Experiment,
    ExperimentTag,
    FileInfo,
    LifecycleStage,
    Metric,
    Param,
    RunData,
    RunInfo,
    RunInputs,
    RunTag,
    ViewType,
)
from mlflow.entities import Run as MlflowRun
from mlflow.entities.metric import MetricWithRunId
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
)
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry.abstract_store import AbstractStore as AbstractModelRegistry
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchUtils

from bridge.errors import BridgeError, RunDirectoryError, RunError
from bridge.exporters.mlflow.client import FoundRun
from bridge.exporters.mlflow.facts import Tag as Key
from bridge.exporters.mlflow.facts import UserTags, clean, facts_of, keys_of, milliseconds, sweep_of
from bridge.exporters.mlflow.live_options import LIVE_PATH, live_digest, live_experiment_id
from bridge.exporters.mlflow.media import (
    CAPTIONS_FILE,
    MEDIA_FILE,
    TARGET_MARK,
    ArtifactUpload,
    UnreadablePictureError,
    add_captions,
    add_checkpoints,
    add_full_texts,
    add_run_files,
    clean_tag,
    full_and_small,
    full_extension,
    grid_paths,
    plain_media_path,
)
from bridge.exporters.mlflow.sweeps import ParentSummary
from bridge.files import open_plain
from bridge.model import MediaType, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.exporters.mlflow.find import ExperimentName
    from bridge.live import LiveRun, LiveRuns
    from bridge.model import MediaEvent, Run, RunFile

SCHEME = "registry"

_READ_ONLY = "This is a live view of run directories, which can only be looked at."
_EDITABLE = "Only the name, the description and the tags of a run can be edited in a live view."
_EDIT_HINT = " Start it with --edit to change names, descriptions and tags."

_IS_MLFLOW_2 = "run_uuid" in inspect.signature(RunInfo.__init__).parameters
_LARGEST_FLOAT = 1.7976931348623157e308
_LARGEST_READ = 16 << 20
"""Bytes of metrics.csv. In tables, the last values of a run with a larger file come from its record."""


def refuse(*_args: Any, **_keywords: Any) -> NoReturn:
    """Raise the error for everything that would write. MLflow's server answers it with status 403."""
    raise MlflowException(_READ_ONLY, error_code=PERMISSION_DENIED)


# ---------------------------------------------------------------------------------------------------------------------
# Run directories as MLflow's experiments and runs


@dataclass(slots=True)
class LiveExperiment:
    """One experiment: the runs that have its name, and the parents of its sweeps by run id."""

    id: str
    name: str
    runs: list[LiveRun] = field(default_factory=list)
    children: dict[str, list[LiveRun]] = field(default_factory=dict)


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
        self._naming = naming
        self._artifact_root = artifact_root
        self._lock = threading.Lock()
        self._seen: Mapping[str, LiveRun] | None = None
        self._experiments: dict[str, LiveExperiment] = {}
        self._of_run: dict[str, LiveExperiment] = {}
        self.previews = Previews()

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
            quick = run.record.to_run()
            try:
                name = self._naming.of_run(quick)
            except RunError:
                continue
            experiment_id = live_experiment_id(name)
            experiment = found.setdefault(experiment_id, LiveExperiment(experiment_id, name))
            experiment.runs.append(run)
            sweep = None if self.live.content.flat else sweep_of(quick)
            if sweep is not None:
                experiment.children.setdefault(live_digest(f"{experiment_id}\nsweep\n{sweep}"), []).append(run)
        return found

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

    def entity(self, run_id: str, *, in_table: bool = False) -> MlflowRun:
        """Return a run as MLflow's entity, as its directory is now. Raise MlflowException if it is gone."""
        experiment, run = self.of_run(run_id)
        if run is None:
            return self._parent(experiment, run_id)
        try:
            source = self.live.run(run)
        except RunDirectoryError as error:
            raise MlflowException(error.message, RESOURCE_DOES_NOT_EXIST) from error
        metrics_file = source.files.get("metrics.csv")
        if in_table and metrics_file is not None and metrics_file.size > _LARGEST_READ:
            metrics = self._recorded_metrics(run)
        else:
            metrics = [_metric(key, series, -1) for key, series in self.series(run).items() if len(series.step)]
        return self._entity(experiment, run, source, [*metrics, *self._best_metrics(run)])

    def quick_entity(self, experiment: LiveExperiment, run: LiveRun) -> MlflowRun:
        """Return a run as its record describes it, kept until that changes: for filters and sorting."""
        entity: MlflowRun | None = run.kept.get("mlflow")
        if entity is None:
            if run.record.covered or not run.record.alive:
                metrics = self._recorded_metrics(run)
            else:  # it goes on, and its summary does not say everything
                metrics = [_metric(key, series, -1) for key, series in self.series(run).items() if len(series.step)]
            entity = run.kept["mlflow"] = self._entity(experiment, run, run.record.to_run(), metrics, with_media=False)
        return entity

    def quick_entities(self, experiment: LiveExperiment) -> list[MlflowRun]:
        """Return all runs of an experiment as their records describe them, and the parents of its sweeps."""
        self.live.complete(experiment.runs)
        runs = [self.quick_entity(experiment, run) for run in experiment.runs]
        return runs + [self._parent(experiment, run_id) for run_id in experiment.children]

    def _entity(
        self, experiment: LiveExperiment, run: LiveRun, source: Run, metrics: list[Metric], *, with_media: bool = True
    ) -> MlflowRun:
        facts = facts_of(source, self.live.content)
        tags = {**facts.user_tags, **facts.own_tags, Key.UID: source.identity, Key.NAME: facts.name}
        if facts.notes:
            tags[Key.NOTES] = facts.notes
        sweep = None if self.live.content.flat else sweep_of(source)
        if sweep is not None:
            tags[Key.PARENT] = live_digest(f"{experiment.id}\nsweep\n{sweep}")
        events = self.live.media(run) if with_media else ()
        if any(event.type is MediaType.IMAGE for event in events):
            tags[Key.IMAGES] = "True"
        if any(event.caption for event in events):
            tags[Key.ARTIFACTS] = json.dumps([{"path": CAPTIONS_FILE, "type": "table"}])
        info = self._info(run.id, experiment.id, facts.status, facts.start, facts.end, facts.name, facts.user)
        params = [Param(key, value) for key, value in facts.params.values.items()]
        return MlflowRun(info, RunData(metrics, params, [RunTag(*tag) for tag in tags.items()]), RunInputs([]))

    def _info(
        self, run_id: str, experiment_id: str, status: str, start: int, end: int | None, name: str, user: str
    ) -> RunInfo:
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
        children = [FoundRun.of(self.quick_entity(experiment, run)) for run in experiment.children[run_id]]
        running = any(child.status == "RUNNING" for child in children)
        ends = [child.end for child in children if child.end is not None]
        sweep = sweep_of(experiment.children[run_id][0].record.to_run()) or ""
        start = min(child.start or 0 for child in children)
        end = None if running or not ends else max(ends)
        info = self._info(
            run_id, experiment.id, "RUNNING" if running else "FINISHED", start, end, sweep[:250], "unknown"
        )
        summary = ParentSummary.of(children)
        tags = {Key.NAME: sweep[:250], Key.SWEEP: sweep, Key.NOTES: summary.description(experiment.id)}
        time = max(ends, default=start)
        metrics = [Metric(key, value, time, 0) for key, value in summary.metrics().items()]
        return MlflowRun(info, RunData(metrics, [], [RunTag(*tag) for tag in tags.items()]), RunInputs([]))

    # Metrics

    def series(self, run: LiveRun) -> dict[str, Series]:
        """Return the run's points by MLflow's key."""
        series = self.live.series(run)
        keys = keys_of(series, dict(self.live.content.rename))
        return {keys[name]: of for name, of in series.items()}

    def _recorded_metrics(self, run: LiveRun) -> list[Metric]:
        """Return the last values in the run's record. Their steps are those of the extreme values, or of neither."""
        record = run.record
        names = self.live.metrics(run)
        keys = keys_of(names, dict(self.live.content.rename))
        time = milliseconds(record.last_alive)
        found = []
        for name in names:
            value = record.metric(name)
            if value is not None:
                stats = record.stats.get(name, {})
                # MLflow draws a bar for a metric whose last step is 0, so a run of several points must not have it.
                step = max(
                    int(stats.get("min_step") or 0), int(stats.get("max_step") or 0), int(stats.get("count") or 0) > 1
                )
                found.append(Metric(keys[name], _finite(value), time, step))
        return found

    def _best_metrics(self, run: LiveRun) -> list[Metric]:
        """Return the best value so far of each metric that --best names."""
        bests = self.live.content.bests
        if not bests:
            return []
        series = self.live.series(run)
        keys = keys_of(series, dict(self.live.content.rename))
        found = []
        for name, sign in bests.items():
            values = sign * series[name].value if name in series else np.empty(0)
            if len(values) and not np.isnan(values).all():
                found.append(_metric(clean(f"{keys[name]}.best"), series[name], int(np.nanargmax(values))))
        return found

    # Artifacts

    def files(self, run: LiveRun) -> dict[str, Content]:
        """Return the artifacts of a run by path: the files that an export would send, made on demand where needed."""
        try:
            source = self.live.run(run)
        except RunDirectoryError:
            return {}
        files = Listing()
        add_run_files(files, source, self.live.content, {}, [])
        files.found.pop(TARGET_MARK, None)
        facts = facts_of(source, self.live.content)
        add_full_texts(files, keys_of(self.live.metrics(run), dict(self.live.content.rename)), facts, "")
        names: dict[str, str] = {}
        captions: list[list[Any]] = []
        for event in self.live.media(run):
            tag = clean_tag(event.tag)
            if tag != event.tag:
                names[tag] = event.tag
            image: Any = plain_media_path(event)
            if event.type is MediaType.IMAGE:
                full, small = grid_paths(source.identity, event, full_extension(event))
                files.found[full] = event.file if event.format in ("png", "webp") else _Picture(event, 1)
                files.found[small] = _Picture(event, 2)
                image = {"type": "image", "filepath": full, "compressed_filepath": small}
            else:
                files.found[image] = event.file
            if event.caption:
                captions.append([event.tag, event.index, event.step, event.caption, image])
        if captions:
            add_captions(files, captions, None)
        if names:
            files.add_json(MEDIA_FILE, names)
        if self.live.content.checkpoints:
            add_checkpoints(files, source, {}, [])
        return files.found

    def read(self, content: Content) -> bytes:
        """Return the bytes of an artifact that is no file of its own."""
        if isinstance(content, bytes):
            return content
        assert isinstance(content, _Picture)
        return self.previews.get(content)


def _finite(value: float) -> float:
    """Return a value as MLflow's databases hold it: the largest float for an infinity."""
    return math.copysign(_LARGEST_FLOAT, value) if math.isinf(value) else float(value)


def _metric(key: str, series: Series, at: int) -> Metric:
    value, time, step = float(series.value[at]), float(series.time[at]), int(series.step[at])
    return Metric(key, _finite(value), milliseconds(time), step)


def _metrics(key: str, series: Series, at: np.ndarray[Any, Any]) -> list[Metric]:
    """Return the points at the places `at` of a series."""
    times = np.rint(series.time[at] * 1000.0).astype(np.int64).tolist()
    values = np.nan_to_num(series.value[at], nan=np.nan, posinf=_LARGEST_FLOAT, neginf=-_LARGEST_FLOAT).tolist()
    return [Metric(key, *point) for point in zip(values, times, series.step[at].tolist(), strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# MLflow's tracking store


class LiveStore(AbstractStore):
    """A tracking store that reads run directories when it is asked."""

    def __init__(self, view: LiveView) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._view = view

    # Experiments

    def search_experiments(
        self,
        view_type: int = ViewType.ACTIVE_ONLY,
        max_results: int = 1000,
        filter_string: str | None = None,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[Experiment]:
        """Return the experiments that MLflow's own search finds."""
        found = [] if view_type == ViewType.DELETED_ONLY else list(map(_experiment, self._view.experiments().values()))
        found = SearchExperimentsUtils.filter(found, filter_string)
        found = SearchExperimentsUtils.sort(found, order_by or ["creation_time DESC", "experiment_id ASC"])
        return PagedList(*SearchUtils.paginate(found, page_token, max_results))

    def get_experiment(self, experiment_id: str) -> Experiment:
        """Return one experiment."""
        return _experiment(self._view.experiment(experiment_id))

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        """Return the experiment with this name, if there is one."""
        found = (each for each in self._view.experiments().values() if each.name == experiment_name)
        return next(map(_experiment, found), None)

    # Runs

    def get_run(self, run_id: str) -> MlflowRun:
        """Return one run as its directory is now."""
        return self._view.entity(run_id)

    def _search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str | None,
        run_view_type: int,
        max_results: int,
        order_by: list[str] | None,
        page_token: str | None,
    ) -> tuple[list[MlflowRun], str | None]:
        """Return a page of the runs that MLflow's own search finds. Only the runs of the page are read."""
        if run_view_type == ViewType.DELETED_ONLY:
            return [], None
        found = self._view.experiments()
        experiments = [found[each] for each in map(str, experiment_ids) if each in found]
        newest_first = not order_by or order_by in (["attributes.start_time DESC"], ["attribute.start_time DESC"])
        if not filter_string and newest_first and not any(each.children for each in experiments):
            runs = [run for each in experiments for run in each.runs]
            runs.sort(key=lambda run: (-milliseconds(run.record.start), run.id))
            page, token = SearchUtils.paginate(runs, page_token, max_results)
            ids = [run.id for run in page]
        else:
            entities = [run for each in experiments for run in self._view.quick_entities(each)]
            entities = SearchUtils.sort(SearchUtils.filter(entities, filter_string), order_by)
            page, token = SearchUtils.paginate(entities, page_token, max_results)
            ids = [run.info.run_id for run in page]
        return [self._view.entity(run_id, in_table=True) for run_id in ids], token

    # Points

    def _series(self, run_id: str, key: str) -> Series | None:
        _, run = self._view.of_run(run_id)
        if run is not None:
            return self._view.series(run).get(key)
        # The parent of a sweep has one point of each metric.
        parent = self._view.entity(run_id)
        if key not in parent.data.metrics:
            return None
        end = (parent.info.end_time or parent.info.start_time) / 1000.0
        return Series(key, np.zeros(1, np.int64), np.array([end]), np.array([parent.data.metrics[key]]))

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[Metric]:
        """Return the points of one metric by step, as its file holds them now."""
        series = self._series(run_id, metric_key)
        total = 0 if series is None else len(series.step)
        begin = SearchUtils.parse_start_offset_from_page_token(page_token)
        end = total if max_results is None else min(total, begin + int(max_results))
        points = [] if series is None else _metrics(metric_key, series, np.arange(begin, end))
        return PagedList(points, SearchUtils.create_page_token(end) if end < total else None)

    def get_metric_history_bulk(
        self, run_ids: Sequence[str], metric_key: str, max_results: int
    ) -> list[MetricWithRunId]:
        """Return the points of one metric of several runs, at most `max_results` together."""
        found: list[MetricWithRunId] = []
        for run_id in sorted(run_ids):
            points = self.get_metric_history(run_id, metric_key, max_results - len(found))
            found += [MetricWithRunId(run_id=run_id, metric=point) for point in points]
            if len(found) >= max_results:
                break
        return found

    def get_metric_history_bulk_interval(
        self,
        run_ids: Sequence[str],
        metric_key: str,
        max_results: int,
        start_step: int | None,
        end_step: int | None,
    ) -> list[MetricWithRunId]:
        """Return points of one metric of several runs for a chart, sampled by the rule of MLflow's own stores.

        Of the steps of all runs in the range, at most `max_results` evenly spaced ones are chosen, the last one, and
        the first and last of each run.
        """
        if (start_step is None) != (end_step is None):
            raise MlflowException(
                "Both start_step and end_step must be provided together, or neither should be provided.",
                INVALID_PARAMETER_VALUE,
            )
        series = {run_id: of for run_id in run_ids if (of := self._series(run_id, metric_key)) is not None}
        steps = np.unique(np.concatenate([each.step for each in series.values()] or [np.empty(0, np.int64)]))
        low, high = (0, int(steps[-1]) if len(steps) else 0) if start_step is None else (start_step, end_step)
        steps = steps[(steps >= low) & (steps <= high)]
        max_results = max(1, max_results)
        ends = [step for each in series.values() if len(each.step) for step in (each.step[0], each.step[-1])]
        if len(steps) > max_results:
            places = (np.arange(max_results) * (len(steps) / max_results)).astype(np.int64)
            ends += list(steps[[*places, -1]])
            steps = np.unique([step for step in ends if low <= step <= high])
        found: list[MetricWithRunId] = []
        for run_id in run_ids:
            if run_id in series:
                at = np.flatnonzero(np.isin(series[run_id].step, steps))
                points = _metrics(metric_key, series[run_id], at)
                found += [MetricWithRunId(run_id=run_id, metric=point) for point in points]
        return found

    def get_metric_history_bulk_interval_from_steps(
        self, run_id: str, metric_key: str, steps: Iterable[int], max_results: int
    ) -> list[MetricWithRunId]:
        """Return the points at these steps: MLflow 2 samples the steps by itself."""
        series = self._series(run_id, metric_key)
        if series is None:
            return []
        at = np.flatnonzero(np.isin(series.step, np.fromiter(steps, dtype=np.int64)))[:max_results]
        return [MetricWithRunId(run_id=run_id, metric=point) for point in _metrics(metric_key, series, at)]

    # Edits

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        """Set the name, the description or a tag of a run in its sidecar, if edits are allowed."""
        run = self._editable(run_id)
        if tag.key == Key.NAME:
            self._edit(run, name=tag.value)
        elif tag.key == Key.NOTES:
            self._edit(run, notes=tag.value)
        else:
            new = tag.key if tag.value == "true" else f"{tag.key}:{tag.value}"
            self._edit(run, add_tags=[new], remove_tags=[old for old in _tags_of(run, tag.key) if old != new])

    def delete_tag(self, run_id: str, key: str) -> None:
        """Remove the description or a tag of a run from its sidecar, if edits are allowed."""
        run = self._editable(run_id)
        if key == Key.NOTES:
            self._edit(run, notes="")
        else:
            self._edit(run, remove_tags=_tags_of(run, key))

    def update_run_info(self, run_id: str, run_status: Any, end_time: Any, run_name: str | None) -> RunInfo:
        """Change the name of a run in its sidecar, if edits are allowed; refuse to change its status or end."""
        run = self._editable(run_id)
        if run_name is None or end_time is not None:
            raise MlflowException(_EDITABLE, PERMISSION_DENIED)
        self._edit(run, name=run_name)
        return self._view.entity(run_id).info

    def _editable(self, run_id: str) -> LiveRun:
        _, run = self._view.of_run(run_id)
        if self._view.edit is None:
            raise MlflowException(_READ_ONLY + _EDIT_HINT, PERMISSION_DENIED)
        if run is None:
            raise MlflowException(
                "The parent of a sweep has no run directory, so it cannot be edited.", PERMISSION_DENIED
            )
        return run

    def _edit(self, run: LiveRun, **changes: Any) -> None:
        reserved = [tag for tag in (*changes.get("add_tags", ()), *changes.get("remove_tags", ())) if _is_reserved(tag)]
        if reserved or not changes:
            raise MlflowException(_EDITABLE, PERMISSION_DENIED)
        assert self._view.edit is not None
        try:
            self._view.edit(Path(run.record.run_dir), **changes)
        except BridgeError as error:
            raise MlflowException(error.message, PERMISSION_DENIED) from error
        self._view.live.refresh()

    # Nothing of the rest is here

    def search_logged_models(self, *_args: Any, **_keywords: Any) -> PagedList[Any]:
        """Return no logged models."""
        return PagedList([], None)

    def _search_datasets(self, _experiment_ids: Sequence[str]) -> list[Any]:
        return []

    def search_datasets(self, *_args: Any, **_keywords: Any) -> PagedList[Any]:
        """Return no datasets."""
        return PagedList([], None)

    def search_traces(self, *_args: Any, **_keywords: Any) -> tuple[list[Any], None]:
        """Return no traces."""
        return [], None

    def list_scorers(self, *_args: Any, **_keywords: Any) -> list[Any]:
        """Return no scorers."""
        return []

    def query_trace_metrics(self, *_args: Any, **_keywords: Any) -> PagedList[Any]:
        """Return no metrics of traces."""
        return PagedList([], None)

    def search_issues(self, *_args: Any, **_keywords: Any) -> PagedList[Any]:
        """Return no issues."""
        return PagedList([], None)


def _experiment(experiment: LiveExperiment) -> Experiment:
    records = [run.record for run in experiment.runs]
    return Experiment(
        experiment_id=experiment.id,
        name=experiment.name,
        artifact_location=f"mlflow-artifacts:/{experiment.id}",
        lifecycle_stage=LifecycleStage.ACTIVE,
        tags=[ExperimentTag("mlflow.experimentKind", "custom_model_development")],
        creation_time=min(milliseconds(record.start) for record in records),
        last_update_time=max(milliseconds(record.last_alive) for record in records),
    )


def _tags_of(run: LiveRun, key: str) -> list[str]:
    """Return the run's tags that MLflow shows under `key`."""
    tags = UserTags.of(run.record.tags)
    return [tag for tag in run.record.tags if tags.key(tag) == key]


def _is_reserved(tag: str) -> bool:
    return tag.startswith(("mlflow.", "bridge."))


_READING = {
    *("search_runs", "supports_workspaces", "supports_trace_archival", "filter_active_experiment_ids"),
    *("end_async_logging", "flush_async_logging", "shut_down_async_logging", "list_scorers_across_experiments"),
}
"""Methods of MLflow's base class that write nothing, and are right as they are."""


def _refuse_all_others(store: type, base: type, kept: Iterable[str] = ()) -> None:
    """Let `store` refuse every public method of `base` that it does not define, whatever a newer MLflow adds."""
    for name in dir(base):
        if not name.startswith("_") and name not in vars(store) and name not in kept and callable(getattr(base, name)):
            setattr(store, name, refuse)


_refuse_all_others(LiveStore, AbstractStore, _READING)


class LiveModelRegistry(AbstractModelRegistry):
    """A model registry without models."""

    def search_registered_models(self, *_args: Any, **_keywords: Any) -> PagedList[Any]:
        """Return no models."""
        return PagedList([], None)

    def search_model_versions(self, *_args: Any, **_keywords: Any) -> PagedList[Any]:
        """Return no versions of models."""
        return PagedList([], None)

    def get_latest_versions(self, *_args: Any, **_keywords: Any) -> list[Any]:
        """Return no versions of models."""
        return []

    def list_webhooks(self, *_args: Any, **_keywords: Any) -> PagedList[Any]:
        """Return no webhooks."""
        return PagedList([], None)

    def search_prompts(self, *_args: Any, **_keywords: Any) -> PagedList[Any]:
        """Return no prompts."""
        return PagedList([], None)


_refuse_all_others(LiveModelRegistry, AbstractModelRegistry, {"supports_workspaces"})


# ---------------------------------------------------------------------------------------------------------------------
# MLflow's artifact repository


class Listing(ArtifactUpload):
    """Collects artifacts by path instead of uploading them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Content] = {}

    def add(self, path: str, data: bytes) -> None:
        """Add a file with this content."""
        self.found[path] = data

    def add_json(self, path: str, data: object) -> None:
        """Add a JSON file."""
        self.found[path] = json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8", "replace")

    def add_file(self, path: str, file: RunFile) -> None:
        """Add a file of the run directory, which is read when it is asked for."""
        self.found[path] = file


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture made of a run's file on demand: the full one (`part` 1) or the small one (2) of `full_and_small`."""

    event: MediaEvent
    part: int


Content: TypeAlias = "bytes | RunFile | _Picture"


class Previews:
    """Pictures made on demand. The ones that were asked for last stay in memory."""

    LARGEST = 64 << 20
    """Bytes that they may take together, and that one picture's file may have."""

    def __init__(self) -> None:
        self._made: OrderedDict[object, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, picture: _Picture) -> bytes:
        """Return the picture; the file as it is if it cannot be decoded, and b"" if it cannot be read."""
        file = picture.event.file
        key = (file.path, file.size, file.mtime_ns, picture.part)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = self._make(picture)
        with self._lock:
            self._made[key] = made
            self._bytes += len(made)
            while self._bytes > self.LARGEST and len(self._made) > 1:
                self._bytes -= len(self._made.popitem(last=False)[1])
        return made

    def _make(self, picture: _Picture) -> bytes:
        try:
            with open_plain(picture.event.file.path) as stream:
                data = stream.read(self.LARGEST + 1)
        except OSError:
            return b""
        if len(data) > self.LARGEST:
            return b""
        try:
            _, full, small = full_and_small(data, picture.event.format)
        except UnreadablePictureError:
            return data
        return full if picture.part == 1 else small


class LiveArtifacts(ArtifactRepository):
    """The artifacts of all runs: `<run id>/<path>`, or a part of that if the address has the rest behind LIVE_PATH."""

    def __init__(self, artifact_uri: str, view: LiveView) -> None:
        super().__init__(artifact_uri)
        self._view = view
        _, _, self._prefix = urllib.parse.unquote(urllib.parse.urlsplit(artifact_uri).path).partition(LIVE_PATH)

    def _split(self, path: str | None) -> tuple[str, str]:
        """Return the run's id and the path of a file of the run."""
        run_id, _, rest = f"{self._prefix}/{path or ''}".strip("/").partition("/")
        return run_id, rest.strip("/")

    def _files(self, run_id: str) -> Mapping[str, Content]:
        try:
            _, run = self._view.of_run(run_id)
        except MlflowException:
            return {}
        return {} if run is None else self._view.files(run)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return the files and folders right below `path`."""
        run_id, folder = self._split(path)
        prefix = f"{path.strip('/')}/" if path and path.strip("/") else ""
        below = f"{folder}/" if folder else ""
        found: dict[str, FileInfo] = {}
        for name, content in self._files(run_id).items():
            if not name.startswith(below):
                continue
            first, slash, _ = name[len(below) :].partition("/")
            size = None if slash or isinstance(content, _Picture) else _size(content)
            found[first] = FileInfo(f"{prefix}{first}", bool(slash), size)
        return [found[name] for name in sorted(found)]

    def get_local_path(self, artifact_path: str) -> str | None:
        """Return the path of a file that is served as it lies in its run directory; None for any other."""
        content = self._content(artifact_path)
        return None if isinstance(content, bytes | _Picture) else os.fspath(content.path)

    def _content(self, path: str) -> Content:
        run_id, name = self._split(path)
        content = self._files(run_id).get(name)
        if content is None:
            raise MlflowException(f"No such artifact: {path}", RESOURCE_DOES_NOT_EXIST)
        return content

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        content = self._content(remote_file_path)
        if isinstance(content, bytes | _Picture):
            Path(local_path).write_bytes(self._view.read(content))
            return
        with open_plain(content.path) as source, Path(local_path).open("wb") as target:
            shutil.copyfileobj(source, target)

    log_artifact = log_artifacts = delete_artifacts = refuse


def _size(content: bytes | RunFile) -> int:
    return len(content) if isinstance(content, bytes) else content.size
