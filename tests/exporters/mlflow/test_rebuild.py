"""A rebuild replaces a run by a complete new one and keeps what people did to it; exports at once end with one run."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from bridge.errors import ConflictError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.mlflow.delta_writer import DeltaWriter
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.runs import FoundRun
from bridge.exporters.mlflow.store import Candidates
from bridge.options import ContentOptions
from bridge.rundir import read_run
from bridge.sync.export import ExportTask, export_run, export_runs
from bridge.sync.verify import verify_runs
from tests.deltas import delta_of, make_model_run
from tests.pictures import log_image, png
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bridge.model import Delta
    from tests.exporters.mlflow.conftest import Store


ROWS = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]
NEWER = [{"step": 0, "loss": 9.0}]


def test_a_rebuilt_run_is_a_new_run_and_the_old_one_says_what_replaced_it(any_store: Store) -> None:
    """After each of several rebuilds only the new run is active, it and the old one name each other."""
    store, run = any_store, make_model_run()
    store.export(run, ROWS)
    for _ in range(2):
        old = store.run().info.run_id
        with store.exporter() as exporter:
            exporter.cursors([run])
            target = exporter.open(run, ContentOptions())
            target.rebuild([delta_of(run, NEWER)])
            assert store.run().info.run_id in target.where()
        new = store.run()
        (gone,) = (found for found in store.runs(deleted=True) if found.info.run_id == old)
        assert new.data.tags["mlflow.bridge.replaces"] == old
        assert gone.data.tags["mlflow.bridge.replaced_by"] == new.info.run_id
        assert store.points("loss") == [(0, 9.0, 1775822400000)]
        assert "mlflow.bridge.building" not in new.data.tags
        assert (store.known(run).exists, store.known(run).extras, store.stale(run)) == (True, (), [])


def test_what_people_did_is_carried_over(store: Store) -> None:
    """A rebuild keeps edited name, description and tags, and added files, and they still count as edited."""
    run = make_model_run(notes="mine", tags=("project:x", "gone:1", "stays:1"))
    store.export(run, ROWS)
    old = store.run().info.run_id
    client = store.client
    client.update_run(old, name="best of all")
    client.set_tag(old, "mlflow.note.content", "theirs")
    client.set_tag(old, "project", "theirs")
    client.set_tag(old, "own", "theirs")
    client.delete_tag(old, "gone")
    client.log_text(old, "a figure", "figures/mine.txt")
    store.rebuild(run, [delta_of(run, NEWER)])
    new = store.run()
    tags = new.data.tags
    assert (new.info.run_name, tags["mlflow.note.content"]) == ("best of all", "theirs")
    assert [tags.get(key) for key in ("project", "own", "gone", "stays")] == ["theirs", "theirs", None, "1"]
    assert store.artifact("figures/mine.txt") == b"a figure"
    assert sorted(store.known(run).edited) == ["name", "notes", "tags.gone", "tags.project"]


def test_children_of_the_old_run_become_those_of_the_new(store: Store) -> None:
    """Runs that people nested below the old run move below the new one."""
    run = make_model_run()
    store.export(run, ROWS)
    old = store.run()
    child = store.client.create_run(old.info.experiment_id, tags={Tag.PARENT: old.info.run_id})
    store.rebuild(run, [delta_of(run, NEWER)])
    new = next(found for found in store.runs() if Tag.UID in found.data.tags)
    assert store.client.get_run(child.info.run_id).data.tags[Tag.PARENT] == new.info.run_id


def test_a_parent_that_is_gone_for_good_stops_no_rebuild(any_store: Store) -> None:
    """As after `mlflow gc`; the tag stays, since a person may have set it."""
    run = make_model_run()
    any_store.export(run, ROWS)
    any_store.client.set_tag(any_store.run().info.run_id, Tag.PARENT, "ab" * 16)
    any_store.rebuild(run, [delta_of(run, NEWER)])
    assert any_store.run().data.tags[Tag.PARENT] == "ab" * 16
    assert [value for _, value, _ in any_store.points("loss")] == [9.0]


def test_a_rebuild_that_stops_leaves_the_old_run_and_the_next_one_clears_up(store: Store) -> None:
    """A half-filled run is neither the target nor a second one."""
    run = make_model_run()
    store.export(run, ROWS)
    old = store.run().info.run_id

    def stopping() -> Iterator[Delta]:
        first = delta_of(run, NEWER, more=True)
        yield first
        raise TargetUnavailableError("the source went away")

    with pytest.raises(TargetUnavailableError), store.exporter() as exporter:
        exporter.open(run, ContentOptions()).rebuild(stopping())
    with store.exporter() as exporter:
        assert exporter.cursors([run])[run.identity].extras == ()
        assert exporter.open(run, ContentOptions()).read().series["loss"].value.tolist() == [1.0, 0.5]
    assert len(store.runs()) == 2
    store.rebuild(run, [delta_of(run, NEWER)])
    assert [found.info.run_id != old for found in store.runs()] == [True]
    assert store.points("loss") == [(0, 9.0, 1775822400000)]


def test_of_two_rebuilds_at_once_the_second_leaves_nothing_behind(any_store: Store) -> None:
    """Of two simultaneous rebuilds the slower one deletes its own run."""
    store, run = any_store, make_model_run()
    store.export(run, ROWS)
    first_began, second_made_its_run = threading.Event(), threading.Event()

    def of_the_first() -> Iterator[Delta]:
        first_began.set()
        assert second_made_its_run.wait(60)
        yield delta_of(run, NEWER)

    first = threading.Thread(target=store.rebuild, args=(run, of_the_first()))
    first.start()
    assert first_began.wait(60)

    def of_the_second() -> Iterator[Delta]:
        second_made_its_run.set()
        first.join()
        yield delta_of(run, NEWER)

    with pytest.raises(ConflictError):
        store.rebuild(run, of_the_second())
    assert Tag.BUILDING not in store.run().data.tags
    assert store.points("loss") == [(0, 9.0, 1775822400000)]


def test_a_rebuild_that_another_overtook_begins_again(any_store: Store) -> None:
    """A rebuild that another one overtook is a conflict, and the export starts over."""
    store, run = any_store, make_model_run()
    store.export(run, ROWS)

    def overtaken() -> Iterator[Delta]:
        store.rebuild(run, [delta_of(run, NEWER)])
        yield delta_of(run, NEWER)

    with pytest.raises(ConflictError):
        store.rebuild(run, overtaken())
    assert Tag.BUILDING not in store.run().data.tags
    assert store.points("loss") == [(0, 9.0, 1775822400000)]


def test_a_rebuild_that_was_killed_is_put_away_once_another_took_the_place(store: Store, tmp_path: Path) -> None:
    """Any later export deletes a killed rebuild's run, unless it may still be at work."""
    path = make_run(tmp_path / "runs" / "a", ROWS)
    assert not export_runs([path], store.exporter()).failed
    target = store.run()
    dead, at_work = (
        store.client.create_run(
            target.info.experiment_id, tags={Tag.UID: target.data.tags[Tag.UID], Tag.BUILDING: replaces}
        ).info.run_id
        for replaces in ("a run that is no longer there", target.info.run_id)
    )
    (line,) = export_runs([path], store.exporter()).runs
    assert str(line.action) == "unchanged"
    assert {run.info.run_id for run in store.runs()} == {target.info.run_id, at_work}
    assert [run.info.run_id for run in store.runs(deleted=True)] == [dead]


def test_a_run_that_a_person_deletes_in_mid_export_stays_deleted(any_store: Store, tmp_path: Path) -> None:
    """A run deleted between look-up and first write is no failure and gets no second run."""
    path = make_run(tmp_path / "runs" / "a", ROWS)
    assert not export_runs([path], any_store.exporter()).failed
    write_metrics(path, (), [[0.25, 2, 1775822402.0]], append=True)
    run = read_run(path)
    with any_store.exporter() as exporter:
        exporter.prepare([run], ContentOptions())
        task = ExportTask(run, exporter.cursors([run])[run.identity], ContentOptions())
        any_store.client.delete_run(any_store.run().info.run_id)
        report = export_run(task, exporter)
    assert (str(report.action), any_store.runs()) == ("deleted", [])


def test_a_deleted_run_is_rebuilt_on_request(store: Store) -> None:
    """--rebuild makes a new run for a deleted one, which stays deleted."""
    run = make_model_run()
    store.export(run, ROWS)
    old = store.run().info.run_id
    store.client.delete_run(old)
    assert (store.known(run).deleted, store.known(run).cursor) == (True, None)
    store.rebuild(run, [delta_of(run, NEWER)])
    assert [found.info.run_id for found in store.runs(deleted=True)] == [old]
    assert store.run().info.run_id != old
    assert (store.known(run).deleted, store.known(run).exists) == (False, True)


def test_a_deleted_experiment_does_not_come_back_by_a_rebuild(any_store: Store) -> None:
    """A rebuild does not restore a deleted experiment, and the error says what to do."""
    run = make_model_run()
    any_store.export(run, ROWS)
    experiment = any_store.client.get_experiment_by_name(any_store.experiment)
    assert experiment is not None
    any_store.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(TargetRefusedError, match="was deleted") as caught:
        any_store.rebuild(run, [delta_of(run, NEWER)])
    assert "mlflow experiments restore" in str(caught.value.hint)
    assert any_store.client.get_experiment(experiment.experiment_id).lifecycle_stage == "deleted"


def test_a_second_active_run_of_one_identity_is_named_and_put_away(store: Store) -> None:
    """Of two active runs of one identity the smaller id stays, and the other is deleted with a notice."""
    run = make_model_run()
    store.export(run, ROWS)
    one = store.run()
    other = store.client.create_run(one.info.experiment_id, tags={Tag.UID: run.identity})
    smaller, larger = sorted([one.info.run_id, other.info.run_id])
    (extra,) = store.known(run).extras
    assert extra.endswith(larger)
    with store.exporter() as exporter:
        exporter.cursors([run])
        exporter.finish([run], ContentOptions())
    assert store.run().info.run_id == smaller
    (gone,) = store.runs(deleted=True)
    assert gone.data.tags[Tag.DUPLICATE_OF] == smaller


def test_superseded_images_of_a_stopped_export_are_removed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image sent before a stop is removed if a requeue logged another in its place."""
    run = make_run(tmp_path / "run", [{"step": 0, "loss": 1.0}])
    for _ in range(2):
        log_picture(run, step=3, session=0)
    with monkeypatch.context() as broken:
        broken.setattr(DeltaWriter, "_write", stop)
        assert [line.failed for line in export_runs([run], store.exporter()).runs] == [True]
    assert len(store.files("images")) == 4
    log_picture(run, step=3, session=1)
    (line,) = export_runs([run], store.exporter()).runs
    told = "media that no longer count were sent by an export that was stopped"
    assert (str(line.action), line.reason, line.media) == ("rebuild", told, 1)
    assert len(store.files("images")) == 2
    assert Tag.PENDING_MEDIA not in store.run().data.tags
    assert [str(each.verdict) for each in verify_runs([run], store.exporter()).runs] == ["="]


def test_images_of_a_stopped_export_are_kept(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all images sent before a stop still count, the next export continues in the same run."""
    run = make_run(tmp_path / "run", [{"step": 0, "loss": 1.0}])
    log_picture(run, step=3, session=0)
    with monkeypatch.context() as broken:
        broken.setattr(DeltaWriter, "_write", stop)
        export_runs([run], store.exporter())
    begun = store.run().info.run_id
    log_picture(run, step=4, session=0)
    (line,) = export_runs([run], store.exporter()).runs
    assert (str(line.action), line.media, store.run().info.run_id) == ("new", 2, begun)
    assert Tag.PENDING_MEDIA not in store.run().data.tags
    assert [str(each.verdict) for each in verify_runs([run], store.exporter()).runs] == ["="]


def stop(*_: object) -> None:
    raise RuntimeError("stopped")


def log_picture(run: Path, *, step: int, session: int, **fields: str) -> None:
    """Write a unique image at `step`, as the writer logs it."""
    log_image(run, step, f"{session}-{step}.png", png(9 * step + session), tag="samples", session=session, **fields)


# ---------------------------------------------------------------------------------------------------------------------
# Exports that overlap: the second one goes on from what the first has done


@pytest.mark.parametrize("is_known", [False, True])
def test_who_comes_second_goes_on_from_what_the_first_has_done(
    any_store: Store, tmp_path: Path, *, is_known: bool
) -> None:
    """An export that another one overtook sends what is left, of a new run and of one that has grown."""
    store = any_store
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
    store, run = any_store, make_model_run()
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
