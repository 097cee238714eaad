"""A saved view in each experiment: the columns of MLflow's table of runs that tell the runs apart.

MLflow keeps a shared view as an experiment tag, in JSON. The pages of MLflow 3.15 and later read the field `state`, in
which the view is packed. Those of earlier versions read plain fields beside it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from bridge.errors import NewerFormatError, TargetRefusedError
from bridge.exporters.mlflow.facts import Tag, key_of_best, newest_tag
from bridge.model import Notice, NoticeKind, digest
from bridge.options import ContentOptions
from bridge.secrets import MASK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bridge.exporters.mlflow.runs import FoundRun
    from bridge.exporters.mlflow.store import MlflowStore

VIEW_KEY = "bridge"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
DIGEST_TAG = "mlflow.bridge.view"
"""The experiment tag with the digest of the view as the bridge wrote it. Another view is somebody's own."""

_PAGE_DEFAULTS = {
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "runsVisibilityMap": {},
    "runsHiddenMode": "FIRST_10_RUNS",
    "viewMaximized": False,
    "runListHidden": False,
    "isAccordionReordered": False,
    "useGroupedValuesInCharts": True,
    "hideEmptyCharts": True,
    "groupBy": None,
    "groupsExpanded": {},
    "autoRefreshEnabled": True,
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
}
"""What a view leaves as it is at first. Without any of these, the page of MLflow before 3.15 fails."""

_MOST_METRICS = 4
_MOST_PARAMS = 5


def update_view(store: MlflowStore, experiment_id: str) -> Notice | None:
    """Write the saved view of an experiment, unless it is up to date, or a person changed or deleted it."""
    tags = store.runs.experiment_tags(experiment_id)
    held, written = tags.get(VIEW_TAG), tags.get(DIGEST_TAG)
    if (held is None) != (written is None) or (held is not None and digest(held) != written):
        return None
    runs = [
        run
        for run in store.runs.runs_with_tag(Tag.UID, None, [experiment_id])
        if not run.deleted and not run.superseded
    ]
    if not runs:
        return None
    bests = bests_of(runs)
    if held is not None and page_state(runs, bests).items() <= json.loads(held).items():
        return None
    view = saved_view(runs, bests)
    try:
        store.runs.set_experiment_tags(experiment_id, {VIEW_TAG: view, DIGEST_TAG: digest(view)})
    except TargetRefusedError as error:
        return Notice(NoticeKind.LEFT_OUT, "saved view", error.message)
    return None


def saved_view(runs: Sequence[FoundRun], bests: Mapping[str, int]) -> str:
    """Return the saved view of an experiment with these runs, as MLflow keeps it in a tag."""
    starts = [run.start for run in runs if run.start is not None] or [0]
    state = page_state(runs, bests)
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    view = {"name": "bridge", "createdAt": min(starts), "updatedAt": max(starts), "state": f"deflate;{packed}"}
    return json.dumps(view | state)


def page_state(runs: Sequence[FoundRun], bests: Mapping[str, int]) -> dict[str, Any]:
    """Return the state of MLflow's page: the best metrics, the params that differ, and the status if it says more.

    `bests` are the metrics that `--best` names. The table is sorted by the first of them, else by the start.
    """
    keys = {key_of_best(metric): sign for metric, sign in bests.items()}
    bests = {key: sign for key, sign in keys.items() if any(key in run.metrics for run in runs)}
    metrics = [key for best in bests for key in (best, best.removesuffix(".best"))]
    if not metrics:
        metrics = typical_metrics(runs)
    columns = [f"metrics.`{key}`" for key in metrics[:_MOST_METRICS]]
    columns += [f"params.`{key}`" for key in _differing_params(runs)[:_MOST_PARAMS]]
    if any(Tag.STATUS in run.tags for run in runs):
        columns.append(f"tags.`{Tag.STATUS}`")
    first = next(iter(bests), None)
    return _PAGE_DEFAULTS | {
        "orderByKey": f"metrics.`{first}`" if first is not None else "attributes.start_time",
        "orderByAsc": first is not None and bests[first] < 0,
        "selectedColumns": columns,
        "searchFilter": "",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
    }


def bests_of(runs: Sequence[FoundRun]) -> dict[str, int]:
    """Return the metrics that any run was exported with a `--best` of, those of most runs first: 1 for max, -1 for min.

    If runs disagree, the majority decides.
    """
    said = Counter(best for run in runs for best in _bests_of_one(run))
    found: dict[str, int] = {}
    for metric, sign in sorted(said, key=lambda best: (-said[best], best)):
        found.setdefault(metric, sign)
    return found


def _bests_of_one(run: FoundRun) -> Iterable[tuple[str, int]]:
    try:
        cursor = run.read_cursor()
    except NewerFormatError:
        return ()
    return () if cursor is None else shown_bests(ContentOptions.kept(cursor.content)).items()


def shown_bests(content: ContentOptions) -> dict[str, int]:
    """Return the metrics that `--best` names, as `--rename` calls them: 1 for max, -1 for min."""
    names = dict(content.rename)
    return {names.get(metric, metric): sign for metric, sign in content.bests.items()}


def typical_metrics(runs: Sequence[FoundRun]) -> list[str]:
    """Return the two metrics to look at: of validation before test before others, then those of most runs."""
    counts = Counter(key for run in runs for key in run.metrics if key not in ("epoch", "step"))

    def rank(key: str) -> tuple[int, int, str]:
        kind = next((at for at, word in enumerate(("val", "test")) if word in key.lower()), 2)
        return kind, -counts[key], key

    return sorted(counts, key=rank)[:2]


def _differing_params(runs: Sequence[FoundRun]) -> list[str]:
    """Return the params that tell the runs apart. Those with the fewest values come first, job ids and paths last."""
    values: dict[str, set[str | None]] = {}
    for key in {key for run in runs for key in run.params}:
        if not any(newest_tag(key) in run.tags for run in runs):
            values[key] = {run.params.get(key) for run in runs}
    differing = [key for key, found in values.items() if len(found) > 1 and found - {None} != {MASK}]
    return sorted(differing, key=lambda key: (len(values[key]), key))
