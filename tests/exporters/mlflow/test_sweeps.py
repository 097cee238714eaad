"""Sweeps: a parent for each, its children below it, and what they came to."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.exporters.mlflow.facts import Tag
from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from tests.exporters.mlflow.by_hand import START, delta_of, run_of

if TYPE_CHECKING:
    from bridge.model import Run
    from tests.exporters.mlflow.conftest import Store

BEST = ContentOptions(best=("acc:max",))


def _child(number: int, **fields: object) -> Run:
    return run_of(Path(f"/sweep/trial-{number}"), tags=("sweep:lr-scan",), start=START + number, **fields)


def _rows(value: float) -> list[dict[str, float]]:
    return [{"step": 0, "acc": value}, {"step": 1, "acc": value - 0.5}]


def test_children_are_nested_below_one_parent_with_what_they_came_to(store: Store) -> None:
    """The parent has neither params nor metrics; its tags count by status and tell mean, std and the best child."""
    store.export(_child(1), _rows(0.6), content=BEST)
    store.export(_child(2, status=Status.FAILED), _rows(0.9), content=BEST)
    store.export(_child(3), [], content=BEST)
    (parent,) = [run for run in store.runs() if Tag.SWEEP in run.data.tags]
    children = {run.info.run_name: run for run in store.runs() if run is not parent and Tag.UID in run.data.tags}
    assert {run.data.tags[Tag.PARENT] for run in children.values()} == {parent.info.run_id}
    assert (parent.info.run_name, parent.data.params, parent.data.metrics) == ("lr-scan", {}, {})
    assert (parent.info.status, parent.info.start_time, parent.info.end_time) == (
        "FINISHED",
        1775822401000,
        1775826000000,
    )
    tags = {key: value for key, value in parent.data.tags.items() if key.startswith("mlflow.bridge.sweep.")}
    assert tags == {
        "mlflow.bridge.sweep.runs": "3",
        "mlflow.bridge.sweep.completed": "2",
        "mlflow.bridge.sweep.failed": "1",
        "mlflow.bridge.sweep.acc.mean": "0.75",
        "mlflow.bridge.sweep.acc.std": repr(statistics.stdev([0.6, 0.9])),
        "mlflow.bridge.sweep.acc.best": "0.9",
        "mlflow.bridge.sweep.acc.best_run": children["trial-2"].info.run_id,
    }


def test_what_the_children_came_to_does_not_depend_on_who_is_exported_last(store: Store) -> None:
    """A child that is made anew without `--best` leaves the others theirs, and counts with its last value."""
    for number, value in ((1, 0.6), (2, 0.9), (3, 0.7)):
        store.export(_child(number), _rows(value), content=BEST)
    with store.exporter() as exporter:
        exporter.prepare([_child(3)], ContentOptions())
        exporter.cursors([_child(3)])
        exporter.open(_child(3), ContentOptions()).rebuild([delta_of(_child(3), _rows(0.7))])
        exporter.finish([_child(3)], ContentOptions())
    (parent,) = [run for run in store.runs() if Tag.SWEEP in run.data.tags]
    names = {run.info.run_id: run.info.run_name for run in store.runs()}
    tags = {key.removeprefix("mlflow.bridge.sweep."): value for key, value in parent.data.tags.items()}
    assert names[tags["acc.best_run"]] == "trial-2"
    assert (tags["runs"], tags["acc.best"], tags["acc.mean"]) == (
        "3",
        "0.9",
        repr(statistics.fmean([0.6, 0.9, 0.7 - 0.5])),
    )


def test_a_sweep_runs_as_long_as_a_child_does(store: Store) -> None:
    """And ends with its last one; a status that no child has any more is no tag any more."""
    store.export(_child(1), _rows(0.6))
    store.export(_child(2, status=Status.RUNNING, end=None), _rows(0.9))
    (parent,) = [run for run in store.runs() if Tag.SWEEP in run.data.tags]
    assert (parent.info.status, parent.info.end_time, parent.data.tags["mlflow.bridge.sweep.running"]) == (
        "RUNNING",
        None,
        "1",
    )
    store.export(_child(2))
    (parent,) = [run for run in store.runs() if Tag.SWEEP in run.data.tags]
    assert (parent.info.status, "mlflow.bridge.sweep.running" in parent.data.tags) == ("FINISHED", False)


def test_flat_leaves_sweeps_out(store: Store) -> None:
    """No parent is made, nothing is nested; the tag stays a tag."""
    store.export(_child(1), _rows(0.6), content=ContentOptions(flat=True))
    tags = store.run().data.tags
    assert (Tag.PARENT in tags, tags["sweep"]) == (False, "lr-scan")


def test_a_rebuild_with_flat_takes_a_run_out_of_its_sweep(store: Store) -> None:
    """What the bridge nested is not carried over; what a person nested is."""
    store.export(_child(1), _rows(0.6))
    mine = store.client.create_run(store.runs()[0].info.experiment_id)
    other = run_of(Path("/sweep/other"))
    store.export(other, _rows(0.6))
    nested = next(run for run in store.runs() if run.info.run_name == "other")
    store.client.set_tag(nested.info.run_id, Tag.PARENT, mine.info.run_id)
    for run in (_child(1), other):
        store.rebuild(run, [delta_of(run, _rows(0.6))], ContentOptions(flat=True))
    parents = {run.info.run_name: run.data.tags.get(Tag.PARENT) for run in store.runs() if Tag.UID in run.data.tags}
    assert parents == {"trial-1": None, "other": mine.info.run_id}


def test_a_parent_that_a_person_deleted_stays_deleted(store: Store) -> None:
    """Its children go on without one, and it is said."""
    store.export(_child(1), _rows(0.6))
    (parent,) = [run for run in store.runs() if Tag.SWEEP in run.data.tags]
    store.client.delete_run(parent.info.run_id)
    applied = store.export(_child(2), _rows(0.7))
    assert [(notice.kind, notice.what) for notice in applied.notices] == [(NoticeKind.LEFT_OUT, "sweep lr-scan")]
    assert sorted(run.info.run_name for run in store.runs()) == ["trial-1", "trial-2"]
