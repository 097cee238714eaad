"""Exports that overlap: the second one goes on from what the first has done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.exporters.mlflow.client import FoundRun
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.store import Candidates
from bridge.options import ContentOptions
from bridge.rundir import read_run
from bridge.sync.export import ExportTask, export_run, export_runs
from tests.exporters.mlflow.by_hand import run_of
from tests.exporters.mlflow.conftest import Store
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("kind", ["sqlite", "server"])
@pytest.mark.parametrize("is_known", [False, True])
def test_who_comes_second_goes_on_from_what_the_first_has_done(
    kind: str, is_known: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An export that another one overtook sends what is left, of a new run and of one that has grown."""
    uri = request.getfixturevalue("mlflow_server").uri if kind == "server" else request.getfixturevalue("sqlite_uri")
    store = Store(uri, experiment=tmp_path.name)
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0, "wall_time": CREATED_S}])

    def grow(step: int) -> None:
        write_metrics(path, (), [[1 / (step + 1), step, CREATED_S + step]], append=True)

    if is_known:
        export_runs([path], store.exporter())
        grow(1)
    run = read_run(path)
    with store.exporter() as exporter:
        task = ExportTask(run, exporter.cursors([run])[run.identity], ContentOptions())
        export_runs([path], store.exporter())
        grow(2)
        report = export_run(task, exporter)
    assert (str(report.action), report.points) == ("changed", 1)
    assert [step for step, _, _ in store.points("loss")] == ([0, 1, 2] if is_known else [0, 2])


def test_a_rebuild_that_ends_meanwhile_is_not_put_away(any_store: Store) -> None:
    """An export that saw an unfinished rebuild does not delete it once it has become the target."""
    store, run = any_store, run_of()
    store.export(run, ROWS)
    old = store.run()
    tags = {key: value for key, value in old.data.tags.items() if key.startswith("mlflow.bridge.")}
    tags |= {Tag.REPLACES: old.info.run_id, Tag.BUILDING: old.info.run_id}
    made = [store.client.create_run(old.info.experiment_id, tags=tags).info.run_id for _ in range(2)]
    slower, faster = sorted(made)  # in this order one is preferred when both are complete
    store.client.delete_tag(faster, Tag.BUILDING)
    store.client.delete_run(old.info.run_id)
    with store.exporter() as first, store.exporter() as second:
        first.cursors([run])
        store.client.delete_tag(slower, Tag.BUILDING)
        for exporter in (second, first):
            if exporter is second:
                exporter.cursors([run])
            exporter.finish([run], ContentOptions())
    assert store.run().info.run_id == slower
    assert (store.known(run).deleted, store.known(run).exists) == (False, True)


def test_the_longest_chain_of_replacements_is_the_target() -> None:
    """A double of the old run never wins against what replaced the old run, whatever their ids are."""
    runs = [found("a", uid="x"), found("b", uid="x"), found("c", uid="x", replaces="a")]
    runs += [found("d", uid="x", replaces="c", building="c")]
    for seen in (runs, runs[1:], [runs[0], runs[2]]):
        candidates = Candidates.among(seen)
        assert candidates.target is runs[2]
        assert [extra.run_id for extra in candidates.extras] == [run.run_id for run in seen if run in runs[:2]]
    assert Candidates.among(runs[:2]).target is runs[0]


def test_a_chain_of_replacements_that_bites_its_tail_ends() -> None:
    """People can set every tag, so the runs of a chain may name each other."""
    one, other = found("a", replaces="b"), found("b", replaces="a")
    assert Candidates.among([one, other]).target is one


def found(run_id: str, **tags: str) -> FoundRun:
    hidden = {f"mlflow.bridge.{key}": value for key, value in tags.items()}
    return FoundRun(run_id, "0", "FINISHED", deleted=False, start=0, end=0, tags=hidden)
