"""Sweeps: a parent run for each, with its children below it and a summary."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.exporters.mlflow.facts import Tag
from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from tests.deltas import delta_of, make_model_run
from tests.run_dirs import CREATED_S as START

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from bridge.model import Run
    from tests.exporters.mlflow.conftest import Store

BEST = ContentOptions(best=("acc:max",))


def _child(number: int, **fields: object) -> Run:
    return make_model_run(Path(f"/sweep/trial-{number}"), tags=("sweep:lr-scan",), start=START + number, **fields)


def _rows(value: float) -> list[dict[str, float]]:
    return [{"step": 0, "acc": value}, {"step": 1, "acc": value - 0.5}]


def _parent(store: Store) -> MlflowRun:
    (parent,) = [run for run in store.runs() if Tag.SWEEP in run.data.tags]
    return parent


def test_children_are_nested_below_one_parent_with_a_summary(store: Store) -> None:
    """A parent's description and metrics have counts by status, mean, min, max and the best child."""
    store.export(_child(1), _rows(0.6), content=BEST)
    store.export(_child(2, status=Status.FAILED), _rows(0.9), content=BEST)
    store.export(_child(3), [], content=BEST)
    parent = _parent(store)
    children = {run.info.run_name: run for run in store.runs() if Tag.UID in run.data.tags}
    assert {run.data.tags[Tag.PARENT] for run in children.values()} == {parent.info.run_id}
    assert (parent.info.run_name, parent.data.params) == ("lr-scan", {})
    assert (parent.info.status, parent.info.start_time, parent.info.end_time) == (
        "FINISHED",
        1775822401000,
        1775826000000,
    )
    assert parent.data.metrics == {"acc": 0.75, "acc.best": 0.9}
    best = children["trial-2"].info
    assert parent.data.tags["mlflow.note.content"] == (
        "3 runs: 2 completed, 1 failed\n\n"
        "| metric | mean ± std | min | max | best run |\n"
        "| --- | --- | --- | --- | --- |\n"
        f"| acc | 0.75 ± 0.2121 | 0.6 | 0.9 | [trial-2](#/experiments/{best.experiment_id}/runs/{best.run_id}) |"
    )


def test_a_renamed_best_is_summarized_under_its_new_name(store: Store) -> None:
    """With `--rename` the parent's metrics and its table have the metric's new name, and its best value."""
    content = ContentOptions(best=("acc:max",), rename=(("acc", "score"),))
    for number, value in ((1, 0.6), (2, 0.9)):
        store.export(_child(number), _rows(value), content=content)
    parent = _parent(store)
    assert parent.data.metrics == {"score": 0.75, "score.best": 0.9}
    assert "\n| score | 0.75 ± 0.2121 | 0.6 | 0.9 | [trial-2]" in parent.data.tags["mlflow.note.content"]


def test_a_summary_follows_its_children(any_store: Store) -> None:
    """A summary follows its children, downwards too; an edited description stays."""
    store = any_store
    store.export(_child(1), _rows(0.9))
    assert _parent(store).data.metrics == {"acc": 0.4, "acc.best": 0.4}
    store.export(_child(2), _rows(0.7))
    assert _parent(store).data.metrics == {"acc": statistics.fmean([0.4, 0.7 - 0.5]), "acc.best": 0.4}
    store.client.set_tag(_parent(store).info.run_id, "mlflow.note.content", "mine")
    store.export(_child(3), _rows(0.8))
    assert _parent(store).data.tags["mlflow.note.content"] == "mine"


def test_runs_that_differ_in_the_seed_alone_are_grouped(store: Store) -> None:
    """Runs that differ only in the seed are grouped with mean and standard deviation."""
    for number, (lr, seed, value) in enumerate([(0.1, 1, 0.6), (0.1, 2, 0.8), (0.2, 1, 0.9)]):
        child = _child(number, params={"opt.lr": lr, "data.seed": seed})
        store.export(child, _rows(value), content=BEST)
    notes = _parent(store).data.tags["mlflow.note.content"]
    assert notes.partition("together:\n\n")[2] == (
        "| opt.lr | runs | acc |\n| --- | --- | --- |\n| 0.1 | 2 | 0.7 ± 0.1414 |\n| 0.2 | 1 | 0.9 |"
    )


def test_a_summary_does_not_depend_on_who_is_exported_last(store: Store) -> None:
    """A child rebuilt without `--best` counts with its last value and leaves the others their best."""
    for number, value in ((1, 0.6), (2, 0.9), (3, 0.7)):
        store.export(_child(number), _rows(value), content=BEST)
    with store.exporter() as exporter:
        exporter.prepare([_child(3)], ContentOptions())
        exporter.cursors([_child(3)])
        exporter.open(_child(3), ContentOptions()).rebuild([delta_of(_child(3), _rows(0.7))])
        exporter.finish([_child(3)], ContentOptions())
    parent = _parent(store)
    assert parent.data.metrics == {"acc": statistics.fmean([0.6, 0.9, 0.7 - 0.5]), "acc.best": 0.9}
    assert "[trial-2]" in parent.data.tags["mlflow.note.content"]


def test_a_sweep_runs_as_long_as_a_child_does(store: Store) -> None:
    """A sweep ends with its last child, and the tag of a status disappears with its last child."""
    store.export(_child(1), _rows(0.6))
    store.export(_child(2, status=Status.RUNNING), _rows(0.9))
    parent = _parent(store)
    assert (parent.info.status, parent.info.end_time) == ("RUNNING", None)
    assert "1 running" in parent.data.tags["mlflow.note.content"]
    store.export(_child(2))
    parent = _parent(store)
    assert (parent.info.status, "running" in parent.data.tags["mlflow.note.content"]) == ("FINISHED", False)


def test_flat_leaves_sweeps_out(store: Store) -> None:
    """--flat makes no parent and nests nothing; the tag stays."""
    store.export(_child(1), _rows(0.6), content=ContentOptions(flat=True))
    tags = store.run().data.tags
    assert (Tag.PARENT in tags, tags["sweep"]) == (False, "lr-scan")


def test_a_rebuild_with_flat_takes_a_run_out_of_its_sweep(store: Store) -> None:
    """A rebuild with --flat drops the bridge's nesting and keeps a person's."""
    store.export(_child(1), _rows(0.6))
    mine = store.client.create_run(store.runs()[0].info.experiment_id)
    other = make_model_run(Path("/sweep/other"))
    store.export(other, _rows(0.6))
    nested = next(run for run in store.runs() if run.info.run_name == "other")
    store.client.set_tag(nested.info.run_id, Tag.PARENT, mine.info.run_id)
    for run in (_child(1), other):
        store.rebuild(run, [delta_of(run, _rows(0.6))], ContentOptions(flat=True))
    parents = {run.info.run_name: run.data.tags.get(Tag.PARENT) for run in store.runs() if Tag.UID in run.data.tags}
    assert parents == {"trial-1": None, "other": mine.info.run_id}


def test_a_parent_that_a_person_deleted_stays_deleted(store: Store) -> None:
    """Children of a deleted parent continue without one, with a notice."""
    store.export(_child(1), _rows(0.6))
    store.client.delete_run(_parent(store).info.run_id)
    applied = store.export(_child(2), _rows(0.7))
    assert [(notice.kind, notice.what) for notice in applied.notices] == [(NoticeKind.LEFT_OUT, "sweep lr-scan")]
    assert sorted(run.info.run_name for run in store.runs()) == ["trial-1", "trial-2"]
