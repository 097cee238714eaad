"""The saved view of an experiment has useful columns, and keeps people's changes."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from tests.deltas import make_model_run
from tests.exporters.mlflow.conftest import Store
from tests.fixtures.proxy import Fault
from tests.run_dirs import CREATED_S as START

if TYPE_CHECKING:
    from tests.fixtures.proxy import FaultyProxy

VIEW = "mlflow.sharedViewState.bridge"
BEST = ContentOptions(best=("val/acc:max",))


def tags_of(store: Store) -> dict[str, str]:
    """Return the experiment's tags."""
    experiment = store.client.get_experiment_by_name(store.experiment)
    assert experiment is not None
    return dict(experiment.tags)


def view_of(store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the view and its state, which it also holds unpacked, as older versions of MLflow read it."""
    view = json.loads(tags_of(store)[VIEW])
    packed = view.pop("state").removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert {key: view.pop(key) for key in state} == state
    return view, state


def export(store: Store, number: int, content: ContentOptions = BEST, **fields: Any) -> Any:
    """Export one new run."""
    params = {"lr": 0.1 * number, "depth": 3, "ckpt_path": f"/x/{number}"}
    run = make_model_run(Path(f"/runs/r{number}"), start=START + number, params=params, **fields)
    return store.export(run, [{"step": 1, "val/acc": 0.5 + number, "loss": 1.0}], content=content)


def test_columns_are_the_best_the_params_that_differ_and_the_status(any_store: Store) -> None:
    """The view shows the best metric, varying params and the status, sorted by the metric."""
    export(any_store, 1)
    export(any_store, 2, status=Status.INTERRUPTED)
    view, state = view_of(any_store)
    assert view == {"name": "bridge", "createdAt": 1775822401000, "updatedAt": 1775822402000}
    assert state == {
        "orderByKey": "metrics.`val/acc.best`",
        "orderByAsc": False,
        "selectedColumns": ["metrics.`val/acc.best`", "metrics.`val/acc`", "params.`lr`", "tags.`bridge.status`"],
        "searchFilter": "",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
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


def test_a_renamed_best_is_shown_under_its_new_name(any_store: Store) -> None:
    """With `--rename` the view has the best values and sorts by them."""
    export(any_store, 1, ContentOptions(best=("val/acc:max",), rename=(("val/acc", "score"),)))
    state = view_of(any_store)[1]
    best = "metrics.`score.best`"
    assert (state["orderByKey"], state["selectedColumns"]) == (best, [best, "metrics.`score`"])


def test_without_a_best_it_is_sorted_by_the_start(any_store: Store) -> None:
    """Without a best metric the view sorts by start and shows validation metrics first."""
    export(any_store, 1, ContentOptions())
    state = view_of(any_store)[1]
    assert (state["orderByKey"], state["selectedColumns"]) == (
        "attributes.start_time",
        ["metrics.`val/acc`", "metrics.`loss`"],
    )


def test_the_same_columns_are_not_written_again(any_store: Store) -> None:
    """Only a new column changes the view."""
    export(any_store, 1)
    export(any_store, 2)
    before = tags_of(any_store)
    export(any_store, 3)
    assert tags_of(any_store) == before


@pytest.mark.parametrize("kind", ["changed", "deleted", "their own"])
def test_what_people_do_to_it_stays(any_store: Store, kind: str) -> None:
    """A view that somebody overwrote, renamed or deleted is never written again."""
    experiment = any_store.client.get_experiment_by_name(any_store.experiment)
    experiment_id = any_store.client.create_experiment(any_store.experiment) if experiment is None else ""
    if kind != "their own":
        export(any_store, 1)
    if kind == "deleted":
        any_store.client.delete_experiment_tag(experiment_id, VIEW)
    else:
        any_store.client.set_experiment_tag(experiment_id, VIEW, '{"name": "mine"}')
    before = tags_of(any_store).get(VIEW)
    export(any_store, 2)
    assert tags_of(any_store).get(VIEW) == before


def test_an_account_that_may_not_set_it_gets_one_notice(faulty_proxy: FaultyProxy, tmp_path: Path) -> None:
    """An account without the right to set a view gets one notice, and all runs are exported."""
    store = Store(faulty_proxy.uri, experiment=f"forbidden-{tmp_path.name}")
    faulty_proxy.plan(Fault.STATUS, path="set-experiment-tag", times=100, status=403)
    applied = export(store, 1)
    assert [(notice.kind, notice.what) for notice in applied.notices] == [(NoticeKind.LEFT_OUT, "saved view")]


def test_links_open_the_view(any_store: Store) -> None:
    """`bridge view` and the last line of an export link to the view."""
    export(any_store, 1)
    with any_store.exporter() as exporter:
        assert exporter.interface(5000).address.endswith("/runs?workflowType=machine_learning&viewStateShareKey=bridge")
