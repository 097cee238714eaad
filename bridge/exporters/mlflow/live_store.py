"""MLflow's tracking store and model registry on run directories: they answer what they can, and refuse all else.

Whatever would write is refused with status 403, but for edits of names, descriptions and tags, if they are allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from mlflow.entities import Experiment, Metric, RunInfo, RunTag, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.entities.metric import MetricWithRunId
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry.abstract_store import AbstractStore as AbstractModelRegistry
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchUtils

from bridge.errors import BridgeError
from bridge.exporters.mlflow.facts import Tag as Key
from bridge.exporters.mlflow.facts import UserTags
from bridge.exporters.mlflow.live import metrics_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.exporters.mlflow.live import LiveView
    from bridge.live import LiveRun

_REFUSAL = (
    "A live view of run directories changes nothing but the names, descriptions and tags of runs, and these only if it "
    "was started with --edit."
)


def refuse(*_args: Any, **_keywords: Any) -> NoReturn:
    """Raise the error for everything that would write. MLflow's server answers it with status 403."""
    raise MlflowException(_REFUSAL, error_code=PERMISSION_DENIED)


def _no_page() -> PagedList[Any]:
    return PagedList([], None)


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
        known = [] if view_type == ViewType.DELETED_ONLY else self._view.experiments().values()
        found = list(map(self._view.experiment_entity, known))
        found = SearchExperimentsUtils.filter(found, filter_string)
        found = SearchExperimentsUtils.sort(found, order_by or ["creation_time DESC", "experiment_id ASC"])
        return PagedList(*SearchUtils.paginate(found, page_token, max_results))

    def get_experiment(self, experiment_id: str) -> Experiment:
        """Return one experiment with its saved view."""
        return self._view.experiment_entity(self._view.experiment(experiment_id), with_view=True)

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        """Return the experiment with this name, if there is one, with its saved view."""
        found = next((each for each in self._view.experiments().values() if each.name == experiment_name), None)
        return None if found is None else self._view.experiment_entity(found, with_view=True)

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
        known = self._view.experiments()
        experiments = [known[each] for each in map(str, experiment_ids) if each in known]
        if "metric" in f"{filter_string or ''} {order_by or ''}".lower():
            for each in experiments:
                self._view.live.complete(each.runs)
        runs = [run for each in experiments for run in self._view.searched(each)]
        runs = SearchUtils.sort(SearchUtils.filter(runs, filter_string), order_by)
        page, token = SearchUtils.paginate(runs, page_token, max_results)
        return self._view.rows(page), token

    # Points

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[Metric]:
        """Return the points of one metric by time, as its file holds them now."""
        series = self._view.one_series(run_id, metric_key)
        total = 0 if series is None else len(series.step)
        begin = SearchUtils.parse_start_offset_from_page_token(page_token)
        end = total if max_results is None else min(total, begin + int(max_results))
        order = np.arange(0) if series is None else np.lexsort((series.step, np.rint(series.time * 1000.0)))
        points = [] if series is None else metrics_at(metric_key, series, order[begin:end])
        return PagedList(points, SearchUtils.create_page_token(end) if end < total else None)

    if hasattr(AbstractStore, "_evenly_spaced_indices"):  # an older MLflow samples by itself

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
            if (start_step is None) != (end_step is None):
                raise MlflowException(
                    "Both start_step and end_step must be provided together, or neither should be provided.",
                    INVALID_PARAMETER_VALUE,
                )
            found: list[MetricWithRunId] = []
            for run_id in run_ids:
                series = self._view.one_series(run_id, metric_key)
                steps = np.arange(0) if series is None else series.step  # increasing, each once
                low, high = 0, len(steps)
                if start_step is not None and end_step is not None:
                    low, high = np.searchsorted(steps, (start_step, end_step + 1)).tolist()
                count = high - low
                if series is None or count == 0:
                    continue
                parts = min(max(1, max_results), count)
                size, rest = divmod(count, parts)
                # The first `rest` parts have one point more than `size`; the last place is that of the last point.
                places = low + np.arange(parts) * size + np.minimum(np.arange(parts), rest)
                places[-1] = high - 1
                points = metrics_at(metric_key, series, places)
                found += [MetricWithRunId(run_id=run_id, metric=point) for point in points]
            return found

    def get_metric_history_bulk_interval_from_steps(
        self, run_id: str, metric_key: str, steps: Iterable[int], max_results: int
    ) -> list[MetricWithRunId]:
        """Return the points at these steps, which an older MLflow samples by itself and then looks up one by one."""
        series = self._view.one_series(run_id, metric_key)
        if series is None:
            return []
        at = np.flatnonzero(np.isin(series.step, np.fromiter(steps, dtype=np.int64)))[:max_results]
        return [MetricWithRunId(run_id=run_id, metric=point) for point in metrics_at(metric_key, series, at)]

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
            refuse()
        self._edit(run, name=run_name)
        return self._view.entity(run_id).info

    def _editable(self, run_id: str) -> LiveRun:
        _, run = self._view.of_run(run_id)
        if self._view.edit is None:
            refuse()
        if run is None:
            raise MlflowException(
                "The parent of a sweep has no run directory, so it cannot be edited.", PERMISSION_DENIED
            )
        return run

    def _edit(self, run: LiveRun, **changes: Any) -> None:
        reserved = [tag for tag in (*changes.get("add_tags", ()), *changes.get("remove_tags", ())) if _is_reserved(tag)]
        if reserved or not changes:
            refuse()
        assert self._view.edit is not None
        try:
            self._view.edit(Path(run.record.run_dir), **changes)
        except BridgeError as error:
            raise MlflowException(error.message, PERMISSION_DENIED) from error
        self._view.live.refresh()


def _tags_of(run: LiveRun, key: str) -> list[str]:
    """Return the run's tags that MLflow shows under `key`."""
    tags = UserTags.of(run.record.tags)
    return [tag for tag in run.record.tags if tags.key(tag) == key]


def _is_reserved(tag: str) -> bool:
    return tag.startswith(("mlflow.", "bridge."))


_READING = {
    *("search_runs", "supports_workspaces", "supports_trace_archival", "filter_active_experiment_ids"),
    *("end_async_logging", "flush_async_logging", "shut_down_async_logging", "list_scorers_across_experiments"),
    "get_metric_history_bulk_interval",
}
"""Methods of MLflow's base classes that write nothing, and are right as they are."""

_NOTHING: Mapping[str, Callable[[], Any]] = {
    **dict.fromkeys(("search_logged_models", "search_datasets", "query_trace_metrics", "search_issues"), _no_page),
    **dict.fromkeys(("_search_datasets", "list_scorers", "get_latest_versions"), list),
    **dict.fromkeys(("search_registered_models", "search_model_versions", "list_webhooks", "search_prompts"), _no_page),
    "search_traces": lambda: ([], None),
}
"""What is not here: MLflow's pages ask for it, and get nothing."""


def refuse_all_others(store: type, base: type) -> None:
    """Let `store` refuse every public method of `base` that it does not define, whatever a newer MLflow adds."""
    for name, nothing in _NOTHING.items():
        if hasattr(base, name) or name == "_search_datasets":
            setattr(store, name, lambda *_args, _nothing=nothing, **_keywords: _nothing())
    for name in dir(base):
        is_method = not name.startswith("_") and callable(getattr(base, name))
        if is_method and name not in vars(store) and name not in _READING:
            setattr(store, name, refuse)


class LiveModelRegistry(AbstractModelRegistry):
    """A model registry without models."""


refuse_all_others(LiveStore, AbstractStore)
refuse_all_others(LiveModelRegistry, AbstractModelRegistry)
