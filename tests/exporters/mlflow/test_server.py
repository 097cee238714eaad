"""Through a real MLflow server, also over a failing network, everything arrives once, as in a database."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import astuple

from bridge.errors import RebuildNeededError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.contract import find_exporter
from bridge.exporters.mlflow import errors
from bridge.exporters.mlflow.address import Address
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows
from bridge.exporters.mlflow.runs import RunUpdate
from bridge.exporters.mlflow.write_api import (
    POINTS_A_REQUEST,
    ApiRuns,
    batches_for_requests,
    body_of,
    fields_for_requests,
)
from bridge.model import NoticeKind
from bridge.options import ContentOptions
from bridge.sync.export import Options, export_runs
from bridge.sync.parallel import Workers
from bridge.sync.verify import verify_runs
from logger.sidecar import SessionEntry
from tests.deltas import delta_of, file_of, make_model_run
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.database_help import NEW, table, wide_rows
from tests.fixtures.proxy import Fault
from tests.pictures import encoded, media_event
from tests.run_dirs import make_run as make_directory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bridge.model import Run
    from tests.fixtures.mlflow_server import MlflowServer
    from tests.fixtures.proxy import FaultyProxy


ROWS = [{"step": 0, "loss": 1.0, "acc@5": 0.1}, {"step": 1, "loss": float("nan"), "acc@5": float("inf")}]
MANY = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(100)]
EARLIER = [{"step": step, "loss": 1.0} for step in range(-10, 0)]


@pytest.fixture
def _small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few points take several requests."""
    monkeypatch.setattr("bridge.exporters.mlflow.write_api.POINTS_A_REQUEST", 50)


def test_a_server_ends_with_the_same_as_a_database(server: Store, store: Store, tmp_path: Path) -> None:
    """A server holds the same points, params, tags, media and files as a database, and they are read back alike.

    `.bridge-target` says what each of the other files is.
    """
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "hparams.yaml").write_text("lr: 0.1\n")
    run = make_model_run(
        folder,
        params={"lr": 0.1, "f(x)": "y" * 7000, "password": "p"},
        tags=("project:x", "word"),
        notes="# Notes\n" + "n" * 9000,
        sessions=(SessionEntry(user="ada", host="n1", command="t.py", git_commit="abc"),),
        files={"hparams.yaml": file_of(folder / "hparams.yaml")},
    )
    media = (
        media_event(tmp_path / "a.png", encoded("png"), caption="a cat"),
        media_event(tmp_path / "b.mp4", b"\0\0\0\x18ftypmp42", tag="v", step=3),
    )
    content = ContentOptions(best=("acc@5:max",))
    rows = [*ROWS, *({"step": step, "loss": 1.0 / step} for step in range(2, POINTS_A_REQUEST + 100))]
    for one in (server, store):
        one.export(run, rows, media=media, content=content)
    assert (server.facts(), server.content()) == (store.facts(), store.content())
    ours, theirs = server.read(run, content), store.read(run, content)
    assert [astuple(item) for item in ours.media] == [astuple(item) for item in theirs.media]
    for name in ("params", "tags", "notes", "name", "status", "start", "end", "truncated", "unsupported"):
        assert getattr(ours, name) == getattr(theirs, name)
    own = [path for path in server.files() if not path.startswith(("images/", "media/"))]
    explained = server.artifact(".bridge-target").decode()
    assert [path for path in own if path in explained] == [
        "bridge/captions.json",
        "hparams.yaml",
    ]
    assert len(own) == 3


def test_mlflow_prints_no_addresses(
    server: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output belongs to our results, also with an MLflow that knows no setting for that."""
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    server.export(make_model_run(), ROWS)
    assert server.run().info.status == "FINISHED"
    assert capsys.readouterr().out == ""


def _stopped(server: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, *, grown: bool) -> Store:
    """Export MANY, behind rows that are there already if it has `grown`, and stop after one request with points."""
    if grown:
        server.export(make_model_run(), EARLIER)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("bridge.exporters.mlflow.errors.RETRY_PAUSES_S", ())
    through = Store(proxy.uri, experiment=server.experiment)
    # In a run that grows a request to log-batch tells that points are on their way, before the first with points.
    proxy.plan(Fault.STATUS, path="runs/log-batch", times=1000, skip=1 + grown)
    with pytest.raises(TargetUnavailableError):
        through.export(make_model_run(), MANY)
    proxy.heal()
    return through


@pytest.mark.usefixtures("_small_requests")
@pytest.mark.parametrize("grown", [False, True])
def test_points_that_were_sent_before_a_stop_are_not_sent_again(
    server: Store, faulty_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, *, grown: bool
) -> None:
    """A run that may hold points past its cursor is read first, and only missing points are sent."""
    through = _stopped(server, faulty_proxy, monkeypatch, grown=grown)
    held = len(EARLIER) if grown else 0
    assert (held < len(server.points("loss")) <= held + 50, Tag.PENDING in server.run().data.tags) == (True, grown)
    faulty_proxy.seen.clear()
    through.export(make_model_run(), MANY)
    # Two with the points that were missing; tags and the cursor go with the second.
    assert faulty_proxy.seen["runs/log-batch"] == 2
    rows = [*EARLIER[:held], *MANY]
    assert [point[:2] for point in server.points("loss")] == [(row["step"], row["loss"]) for row in rows]
    assert Tag.PENDING not in server.run().data.tags


@pytest.mark.usefixtures("_small_requests")
@pytest.mark.parametrize("grown", [False, True])
def test_a_rewind_after_a_stop_needs_a_rebuild(
    server: Store, faulty_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, *, grown: bool
) -> None:
    """Sent points that no longer count need a rebuild, because the API cannot delete them."""
    _stopped(server, faulty_proxy, monkeypatch, grown=grown)
    with pytest.raises(RebuildNeededError, match="no longer count"):
        server.export(make_model_run(), [{**row, "loss": -1.0} if row["step"] == 7 else row for row in MANY])


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
        count, params = 0, {f"p{number}": 1 for number in range(150)}
        run = make_model_run(identity=f"stops at {stops_at}", params=params)
        try:
            server.export(run, [{"step": 0, "loss": -5.0}], content=content)
        except TargetUnavailableError:
            (found,) = [one for one in server.runs() if one.data.tags[Tag.UID] == run.identity]
            assert found.data.metrics == {}
            stops_at += 1
        else:
            break
    assert stops_at == 2


def test_a_run_made_elsewhere_at_the_same_moment_wins_by_its_id(server: Store) -> None:
    """Of two runs made at once without a common lock the smaller id stays, and the other names it."""
    run = make_model_run()
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
    run = make_model_run(folder, files={name: file_of(folder / name) for name in ("metrics.csv", "summary.json")})
    faulty_proxy.plan(Fault.STATUS, path="metrics.csv", times=10, status=413)
    through = Store(faulty_proxy.uri, experiment=server.experiment)
    applied = through.export(run, ROWS[:1])
    assert [(notice.kind, notice.what) for notice in applied.notices if notice.kind is not NoticeKind.RENAMED] == [
        (NoticeKind.TOO_LARGE, "metrics.csv")
    ]
    assert server.files() == [".bridge-target", "summary.json"]
    assert through.stale(run) == []


def test_points_past_the_server_into_its_database(server: Store, mlflow_server: MlflowServer, tmp_path: Path) -> None:
    """With --database-uri points and tags go into the database, and points can be deleted there."""
    server.options = {"database_uri": mlflow_server.backend}
    with server.exporter() as exporter:
        assert exporter.capabilities.replaces_points
    run = make_model_run(tags=("a:b",))
    server.export(run, ROWS, media=(media_event(tmp_path / "a.png", encoded("png")),))
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
    applied = server.export(make_model_run(folder.parent), ROWS[:1], content=content)
    assert {path: server.artifact(path).decode() for path in server.files("checkpoints")} == {
        f"checkpoints/{name}": name for name in kept
    }
    told = {notice.what for notice in applied.notices if notice.kind is NoticeKind.REFUSED_PATH}
    assert told == {f"checkpoints/{name}" for name in refused}
    assert server.stale(make_model_run(folder.parent), content) == []


def test_many_runs_are_found_page_by_page(server: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are found beyond one page of answers, also by an identity that no filter can name."""
    monkeypatch.setattr("bridge.exporters.mlflow.client._PAGE", 2)
    runs = [make_model_run(identity=f"uid-{number}") for number in range(5)] + [make_model_run(identity='it\'s "both"')]
    experiment = server.client.create_experiment(server.experiment)
    cursor = '{"format":1,"identity":"x","path":"/x","rows":3,"digest":"d"}'
    for run in runs:
        server.client.create_run(experiment, tags={Tag.UID: run.identity, Tag.CURSOR: cursor})
    with server.exporter() as exporter:
        known = exporter.cursors(runs)
    assert [known[run.identity].exists for run in runs] == [True] * 6


# ---------------------------------------------------------------------------------------------------------------------
# Over a failing network


LONG = [{"step": step, "loss": 1.0 / (step + 1), "val/acc": step / 30} for step in range(30)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits between retries of MLflow's client and ours, and keep their number."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setattr(errors, "RETRY_PAUSES_S", (0.01, 0.02, 0.04))


def write(api: ApiRuns, points: Sequence[KeyRows]) -> str:
    """Write points into a new run and return its id."""
    run_id = api.create(NEW).run_id
    api.write(run_id, RunUpdate(expected_cursor=None, rows=points))
    return run_id


@pytest.mark.parametrize(("pairs", "size"), [(0, 0), (90, 1), (250, 5000)])
@pytest.mark.parametrize("key", ["", "\N{GREEK SMALL LETTER ALPHA}" * 240])
def test_requests_keep_to_the_limits(pairs: int, size: int, key: str) -> None:
    """A request holds at most 100 params, 100 tags, 1000 of all and a million bytes, and the cursor is in the last."""
    params = {f"p{number}": "\N{GREEK SMALL LETTER ALPHA}" * size for number in range(pairs)}
    fields = fields_for_requests(params, params | {Tag.CURSOR: "c" * 4000})
    points = [replace(part, key=part.key + key) for part in wide_rows(12, 500)]
    requests = [(list[KeyRows](), some) for some in fields[:-1]]
    requests += [(batch, fields[-1]) for batch in batches_for_requests(points, fields[-1])]
    for batch, some in requests:
        assert sum(map(len, (*batch, *some))) <= 1000
        assert max(map(len, some)) <= 100
        assert len(body_of("0" * 32, batch, some)) < 1_000_000
    assert sum(len(part) for batch, *_ in requests for part in batch) == 6000
    assert dict(pair for some, _ in fields for pair in some.items()) == params
    assert [Tag.CURSOR in some for _, some in fields] == [False] * (len(fields) - 1) + [True]


@pytest.mark.parametrize("fault", list(Fault))
def test_a_request_that_fails_is_sent_again(
    faulty_proxy: FaultyProxy, mlflow_server: MlflowServer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any failure of a request, carried out or not, every point arrives once."""
    if fault is Fault.SILENT:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    faulty_proxy.plan(fault, path="runs/log-batch", times=2)
    ours = write(ApiRuns(Address.of(faulty_proxy.uri)), wide_rows(1, 40))
    assert faulty_proxy.failed == [fault, fault]
    assert len(table(mlflow_server.backend, "metrics", ours)) == 40


@dataclass(frozen=True)
class Scene:
    """A run, and what a server holds of it after an export over a good network."""

    run: Run
    facts: list[dict[str, Any]]
    content: dict[str, Any]

    @classmethod
    def make(cls, server: MlflowServer, folder: Path) -> Scene:
        """Export LONG once, for all tests to compare with."""
        run = make_model_run(folder / "run", params={"lr": 0.1}, tags=("project:x",), notes="notes")
        clean = Store(server.uri, experiment=f"clean-{folder.name}")
        clean.export(run, LONG)
        return cls(run, clean.facts(), clean.content())

    def assert_held_by(self, store: Store) -> None:
        """Assert that `store` holds the same."""
        assert (store.facts(), store.content()) == (self.facts, self.content)


@pytest.fixture(scope="module")
def scene(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.make(mlflow_server, tmp_path_factory.mktemp("scene"))


@pytest.fixture
def faulty(faulty_proxy: FaultyProxy, tmp_path: Path, _small_requests: None) -> Store:
    """Return a store behind a faulty network, which takes several requests for LONG."""
    return Store(faulty_proxy.uri, experiment=tmp_path.name)


CREATES = ("experiments/create", "runs/create")
WRITES = ("runs/log-batch", "runs/update", "mlflow-artifacts")
READS = ("experiments/get-by-name", "runs/search", "runs/get", "runs/set-tag")


@pytest.mark.parametrize(
    ("fault", "status", "paths"),
    [
        (Fault.STATUS, 429, (*CREATES, *READS, *WRITES)),
        (Fault.STATUS, 503, (*CREATES, *READS, *WRITES)),
        (Fault.RESET_AFTER, 503, (*CREATES, *WRITES)),
        (Fault.STATUS_AFTER, 503, (*CREATES, *WRITES)),
        (Fault.CUT, 503, (*CREATES, *WRITES)),
    ],
)
def test_every_first_try_fails(
    faulty_proxy: FaultyProxy, faulty: Store, scene: Scene, fault: Fault, status: int, paths: tuple[str, ...]
) -> None:
    """If each kind of request fails at first, carried out or not, one run is left, equal to one over a good network."""
    for path in paths:
        faulty_proxy.plan(fault, path=path, status=status)
    faulty.export(scene.run, LONG)
    faulty_proxy.heal()
    scene.assert_held_by(faulty)


@pytest.mark.parametrize("count", [3, len(LONG)])
def test_the_status_comes_last(faulty_proxy: FaultyProxy, faulty: Store, tmp_path: Path, count: int) -> None:
    """A run that says finished is complete: after a stop it runs with all points, and the next export ends it."""
    folder = make_directory(tmp_path / "run", LONG[:count])
    faulty_proxy.plan(Fault.STATUS, path="runs/update", times=10_000)
    assert export_runs([folder], faulty.exporter()).failed
    assert (faulty.run().info.status, len(faulty.points("loss"))) == ("RUNNING", count)
    faulty_proxy.heal()
    (line,) = export_runs([folder], faulty.exporter()).runs
    assert (str(line.action), line.reason) == ("changed", "changed: status, end")
    assert faulty.run().info.status == "FINISHED"
    (line,) = export_runs([folder], faulty.exporter()).runs
    assert str(line.action) == "unchanged"


@pytest.mark.parametrize("skip", [0, 5, 8, 10])
def test_an_outage_at_any_request(faulty_proxy: FaultyProxy, faulty: Store, scene: Scene, skip: int) -> None:
    """After an outage longer than the retries the next export ends equal to a clean one."""
    faulty_proxy.plan(Fault.STATUS, path="/mlflow", times=10_000, skip=skip)
    with pytest.raises(TargetUnavailableError):
        faulty.export(scene.run, LONG)
    faulty_proxy.heal()
    faulty.export(scene.run, LONG)
    scene.assert_held_by(faulty)


def test_several_runs_at_once_over_a_faulty_network(faulty_proxy: FaultyProxy, tmp_path: Path) -> None:
    """Four runs exported at once arrive complete although every fourth request fails."""
    for number in range(6):
        make_directory(tmp_path / "runs" / f"run-{number}", [{**row, "step": row["step"] + number} for row in LONG])
    faults = [Fault.STATUS, Fault.RESET_AFTER, Fault.CUT, Fault.STATUS_AFTER, Fault.RESET] * 2
    for fault in faults:
        faulty_proxy.plan(fault, path="runs/", skip=3)
    exporter = find_exporter("mlflow")(tracking_uri=faulty_proxy.uri, experiment="several")
    report = export_runs([tmp_path / "runs"], exporter, Options(workers=Workers(threads=4)))
    assert sorted(str(line.action) for line in report.runs) == ["new"] * 6
    assert faulty_proxy.failed == faults
    faulty_proxy.heal()
    checked = verify_runs([tmp_path / "runs"], exporter)
    assert [str(line.verdict) for line in checked.runs] == ["="] * 6
    assert faulty_proxy.seen["experiments/get-by-name"] < 8


def test_a_rebuild_is_complete_before_it_counts(faulty_proxy: FaultyProxy, faulty: Store) -> None:
    """A rebuild through a server that stops at the last moment has what people did, and names the run it replaces."""
    store, run = faulty, make_model_run()
    store.export(run, LONG)
    old = store.run().info.run_id
    store.client.set_tag(old, "own", "theirs")
    faulty_proxy.plan(Fault.STATUS, path="runs/delete-tag", times=10_000)
    with pytest.raises(TargetUnavailableError):
        store.rebuild(run, [delta_of(run, LONG[:1])])
    faulty_proxy.heal()
    (new,) = [run for run in store.runs() if run.info.run_id != old]
    assert (new.data.tags[Tag.BUILDING], new.data.tags[Tag.REPLACES], new.data.tags["own"]) == (old, old, "theirs")


def test_a_finished_rebuild_is_not_deleted_for_a_moment(faulty_proxy: FaultyProxy, faulty: Store) -> None:
    """A stop between deleting and restoring it would leave the run deleted for good."""
    faulty.export(make_model_run(), ROWS)
    before = faulty_proxy.seen["runs/delete"]
    ApiRuns(Address.of(faulty_proxy.uri)).delete_unfinished(faulty.run().info.run_id)
    assert faulty_proxy.seen["runs/delete"] == before


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_stops_at_once(faulty_proxy: FaultyProxy, tmp_path: Path, status: int) -> None:
    """A refusal and a wrong path are not retried, and the error says what to check."""
    faulty_proxy.plan(Fault.STATUS, times=10_000, status=status)
    with pytest.raises(TargetRefusedError) as caught:
        Store(faulty_proxy.uri, experiment="refused").export(make_model_run(tmp_path / "run"), LONG)
    assert caught.value.hint is not None
    assert sum(faulty_proxy.seen.values()) == 1
