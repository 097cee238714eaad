"""Export through a real MLflow server, and compare with a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import astuple

from bridge.errors import RebuildNeededError, TargetUnavailableError
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.write_api import ApiRuns
from bridge.model import DeltaKind, MediaType, NoticeKind, Status
from bridge.options import ContentOptions
from logger.sidecar import SessionEntry
from tests.exporters.mlflow.by_hand import delta_of, file_of, run_of
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.pictures import encoded, event_of
from tests.fixtures.proxy import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.contract import TargetContent
    from bridge.model import Run
    from tests.fixtures.mlflow_server import MlflowServer
    from tests.fixtures.proxy import FaultyProxy

ROWS = [{"step": 0, "loss": 1.0, "acc@5": 0.1}, {"step": 1, "loss": float("nan"), "acc@5": float("inf")}]
MANY = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(2500)]


@pytest.fixture
def server(mlflow_server: MlflowServer, request: pytest.FixtureRequest) -> Store:
    """Return the session's server with an experiment of this test."""
    return Store(mlflow_server.uri, experiment=request.node.name)


def test_a_server_ends_with_the_same_as_a_database(server: Store, store: Store, tmp_path: Path) -> None:
    """A server holds the same points, params, tags, media and files as a database."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "hparams.yaml").write_text("lr: 0.1\n")
    run = run_of(
        folder,
        params={"lr": 0.1, "f(x)": "y" * 7000, "password": "p"},
        tags=("project:x", "word"),
        notes="# Notes\n" + "n" * 9000,
        sessions=(SessionEntry(user="ada", host="n1", command="t.py", git_commit="abc"),),
        files={"hparams.yaml": file_of(folder / "hparams.yaml")},
    )
    media = (
        event_of(tmp_path, encoded("png"), "png", caption="a cat"),
        event_of(tmp_path, b"\0\0\0\x18ftypmp42", "mp4", tag="v", step=3, type=MediaType.VIDEO),
    )
    content = ContentOptions(best=("acc@5:max",))
    for one in (server, store):
        one.export(run, ROWS, media=media, content=content)
    ours, theirs = server.read(run, content), store.read(run, content)
    points = [
        {
            name: [series.step.tolist(), series.time.tolist(), repr(series.value.tolist())]
            for name, series in held.items()
        }
        for held in (ours.series, theirs.series)
    ]
    assert points[0] == points[1]
    assert [astuple(item) for item in ours.media] == [astuple(item) for item in theirs.media]
    assert vars_of(ours) == vars_of(theirs)
    assert server.files() == store.files()
    unlike = {Tag.CURSOR}
    tags = [
        {key: one.run().data.tags[key] for key in one.run().data.tags if key not in unlike} for one in (server, store)
    ]
    assert tags[0] == tags[1]
    assert server.run().data.metrics.keys() == store.run().data.metrics.keys()


def vars_of(held: TargetContent) -> dict[str, object]:
    """Return what is read back beside points and media."""
    names = ("params", "tags", "notes", "name", "status", "start", "end", "truncated", "unsupported")
    return {name: getattr(held, name) for name in names}


def test_mlflow_prints_no_addresses(
    server: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output belongs to our results, also with an MLflow that knows no setting for that."""
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    server.export(run_of(), ROWS)
    assert server.run().info.status == "FINISHED"
    assert capsys.readouterr().out == ""


def test_a_second_export_has_nothing_to_do(server: Store) -> None:
    """A second export finds nothing stale, and applying the same again changes nothing."""
    run = run_of(params={"lr": 1}, tags=("a:b",), notes="n")
    server.export(run, MANY[:3])
    before = server.run().to_dictionary()
    assert (server.stale(run), server.known(run).edited) == ([], ())
    server.export(run)
    assert server.run().to_dictionary() == before


def test_a_requeued_run_is_running_with_its_old_end(server: Store) -> None:
    """The API cannot clear an end or move a start; the next end is right again."""
    server.export(run_of(status=Status.KILLED), ROWS)
    running = run_of(status=Status.RUNNING, end=None, start=1.0)
    server.export(running, [{"step": 2, "loss": 0.1}])
    info = server.run().info
    assert (info.status, info.start_time, info.end_time) == ("RUNNING", 1775822400000, 1775826000000)
    assert server.stale(running) == []
    server.export(run_of(end=1775829600.0))
    info = server.run().info
    assert (info.status, info.end_time) == ("FINISHED", 1775829600000)


def test_a_param_that_changed_needs_a_rebuild(server: Store) -> None:
    """A changed param is refused before anything is written, and a new one is added."""
    server.export(run_of(params={"lr": 0.1}), ROWS)
    server.export(run_of(params={"lr": 0.1, "new": 1}))
    with pytest.raises(RebuildNeededError, match="lr"):
        server.export(run_of(params={"lr": 0.2, "new": 1}, notes="changed"))
    assert server.run().data.params == {"lr": "0.1", "new": "1"}
    assert "mlflow.note.content" not in server.run().data.tags


def test_a_rebuild_through_a_server_replaces_the_run(server: Store) -> None:
    """The old run is soft-deleted and names the new one."""
    run = run_of()
    server.export(run, ROWS)
    old = server.run().info.run_id
    server.rebuild(run, [delta_of(run, [{"step": 0, "loss": 9.0}])])
    (gone,) = server.runs(deleted=True)
    assert (gone.info.run_id, gone.data.tags[Tag.REPLACED_BY]) == (old, server.run().info.run_id)
    assert [value for _, value, _ in server.points("loss")] == [9.0]


def _stopped(server: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Export MANY, and stop after one of three requests with points."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("bridge.exporters.mlflow.client.RETRY_PAUSES_S", ())
    through = Store(proxy.uri, experiment=server.experiment)
    # The first request to log-batch tells that points are on their way, the second carries points.
    proxy.plan(Fault.STATUS, path="runs/log-batch", times=1000, skip=2)
    with pytest.raises(TargetUnavailableError):
        through.export(run_of(), MANY)
    proxy.heal()
    return through


def test_points_that_were_sent_before_a_stop_are_not_sent_again(
    server: Store, faulty_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run marked as holding points past its cursor is read first, and only missing points are sent."""
    through = _stopped(server, faulty_proxy, monkeypatch)
    assert (0 < len(server.points("loss")) <= 1000, Tag.PENDING in server.run().data.tags) == (True, True)
    faulty_proxy.seen.clear()
    through.export(run_of(), MANY)
    # Two with the points that were missing; tags and the cursor go with the second.
    assert faulty_proxy.seen["runs/log-batch"] == 2
    assert [point[:2] for point in server.points("loss")] == [(row["step"], row["loss"]) for row in MANY]
    assert Tag.PENDING not in server.run().data.tags


def test_a_rewind_after_a_stop_needs_a_rebuild(
    server: Store, faulty_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent points that no longer count need a rebuild, because the API cannot delete them."""
    _stopped(server, faulty_proxy, monkeypatch)
    with pytest.raises(RebuildNeededError, match="no longer count"):
        server.export(run_of(), [{**row, "loss": -1.0} if row["step"] == 7 else row for row in MANY])


def test_points_and_bests_of_one_request_come_with_the_cursor(server: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that stops before or between its requests leaves no point that a requeue would have to take back."""
    content = ContentOptions(best=("loss:min",))
    send, stops_at = ApiRuns._log_batch, 0

    def send_some(api: ApiRuns, *request: Any) -> None:
        nonlocal count
        count += 1
        if count > stops_at:
            raise TargetUnavailableError("stopped")
        send(api, *request)

    monkeypatch.setattr(ApiRuns, "_log_batch", send_some)
    while True:
        count, run = 0, run_of(identity=f"stops at {stops_at}", params={f"p{number}": 1 for number in range(150)})
        try:
            server.export(run, [{"step": 0, "loss": -5.0}], content=content)
        except TargetUnavailableError:
            (found,) = [one for one in server.runs() if one.data.tags[Tag.UID] == run.identity]
            assert found.data.metrics == {}
            stops_at += 1
        else:
            break
    assert stops_at == 2


def test_a_run_made_elsewhere_at_the_same_moment_wins_by_its_id(server: Store, mlflow_server: MlflowServer) -> None:
    """Of two runs made at once without a common lock the smaller id stays, and the other names it."""
    run = run_of()
    with server.exporter() as exporter:
        exporter.prepare([run], ContentOptions())
        exporter.cursors([run])
        target = exporter.open(run, ContentOptions())
        first = delta_of(run, MANY[:10], more=True)
        target.apply(first)
        mine = server.run()
        twins = [server.client.create_run(mine.info.experiment_id, tags=_twin_tags(run)) for _ in range(6)]
        smallest = min([mine.info.run_id, *(twin.info.run_id for twin in twins)])
        rest = delta_of(run, MANY[10:20], before=first.after)
        if smallest == mine.info.run_id:
            target.apply(rest)
        else:
            with pytest.raises(TargetUnavailableError):
                target.apply(rest)
        exporter.cursors([run])
        exporter.finish([run], ContentOptions())
    assert [found.info.run_id for found in server.runs()] == [smallest]
    assert {gone.data.tags[Tag.DUPLICATE_OF] for gone in server.runs(deleted=True)} == {smallest}


def _twin_tags(run: Run) -> dict[str, str]:
    return {Tag.UID: run.identity, Tag.CURSOR: '{"format":1,"identity":"uid-first","path":"/elsewhere"}'}


def test_a_file_that_is_too_large_for_the_server_is_a_notice(
    server: Store, faulty_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """A file that the server refuses as too large is a notice, and everything else arrives."""
    folder = tmp_path / "first"
    folder.mkdir()
    for name in ("metrics.csv", "summary.json"):
        (folder / name).write_text("{}")
    run = run_of(folder, files={name: file_of(folder / name) for name in ("metrics.csv", "summary.json")})
    faulty_proxy.plan(Fault.STATUS, path="metrics.csv", times=10, status=413)
    through = Store(faulty_proxy.uri, experiment=server.experiment)
    applied = through.export(run, ROWS[:1])
    assert [(notice.kind, notice.what) for notice in applied.notices if notice.kind is not NoticeKind.RENAMED] == [
        (NoticeKind.TOO_LARGE, "metrics.csv")
    ]
    assert server.files() == [".bridge-target", "bridge/names.json", "summary.json"]
    assert through.stale(run) == []


def test_points_past_the_server_into_its_database(server: Store, mlflow_server: MlflowServer, tmp_path: Path) -> None:
    """With --database-uri points and tags go into the database, and points can be deleted there."""
    server.options = {"database_uri": mlflow_server.backend}
    with server.exporter() as exporter:
        assert exporter.capabilities.replaces_points
    run = run_of(tags=("a:b",))
    server.export(run, ROWS, media=(event_of(tmp_path, encoded("png"), "png"),))
    held = server.read(run)
    assert (sorted(held.series), len(held.media), held.tags) == (["acc@5", "loss"], 1, ("a:b",))
    known = server.known(run)
    assert known.cursor is not None
    assert known.cursor.rows == 2


def test_checkpoints_arrive_under_their_names(server: Store, tmp_path: Path) -> None:
    """A checkpoint whose name a URL would change is left out with a notice, and all others arrive as they are."""
    folder = tmp_path / "first" / "checkpoints"
    folder.mkdir(parents=True)
    kept = ["epoch=1-val", "aAb.ckpt", "ü &;'~.ckpt", "epoch=1-step=40.ckpt"]
    refused = ["a%41b.ckpt", "val#50.ckpt", "50?"]
    for name in (*kept, *refused):
        (folder / name).write_text(name)
    content = ContentOptions(checkpoints=True)
    applied = server.export(run_of(folder.parent), ROWS[:1], content=content)
    assert {path: server.artifact(path).decode() for path in server.files("checkpoints")} == {
        f"checkpoints/{name}": name for name in kept
    }
    told = {notice.what for notice in applied.notices if notice.kind is NoticeKind.REFUSED_PATH}
    assert told == {f"checkpoints/{name}" for name in refused}
    assert server.stale(run_of(folder.parent), content) == []


def test_many_points_arrive_in_parts(server: Store) -> None:
    """A cursor follows each part of a large delta."""
    run = run_of()
    with server.exporter() as exporter:
        exporter.cursors([run])
        target = exporter.open(run, ContentOptions())
        first = delta_of(run, MANY[:1500], more=True)
        target.apply(first)
        cursor = server.run().data.tags[Tag.CURSOR]
        assert '"rows":1500' in cursor
        assert server.run().info.status == "RUNNING"
        target.apply(delta_of(run, MANY[1500:], before=first.after, kind=DeltaKind.APPEND))
    assert (len(server.points("loss")), server.run().info.status) == (2500, "FINISHED")


def test_many_runs_are_found_page_by_page(server: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are found beyond one page of answers, also by an identity that no filter can name."""
    monkeypatch.setattr("bridge.exporters.mlflow.client._PAGE", 2)
    runs = [run_of(identity=f"uid-{number}") for number in range(5)] + [run_of(identity='it\'s "both"')]
    experiment = server.client.create_experiment(server.experiment)
    cursor = '{"format":1,"identity":"x","path":"/x","rows":3,"digest":"d"}'
    for run in runs:
        server.client.create_run(experiment, tags={Tag.UID: run.identity, Tag.CURSOR: cursor})
    with server.exporter() as exporter:
        known = exporter.cursors(runs)
    assert [known[run.identity].exists for run in runs] == [True] * 6
