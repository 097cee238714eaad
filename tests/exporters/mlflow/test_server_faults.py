"""Through a real MLflow server and a failing network, everything arrives once."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bridge.errors import TargetRefusedError, TargetUnavailableError
from bridge.exporters.contract import find_exporter
from bridge.exporters.mlflow import client
from bridge.exporters.mlflow.client import Address
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows
from bridge.exporters.mlflow.write_api import ApiRuns, batches_for_requests, body_of, fields_for_requests
from bridge.exporters.mlflow.write_db import RunUpdate
from bridge.model import Status
from bridge.sync.export import Options, export_runs
from bridge.sync.parallel import Workers
from bridge.sync.verify import verify_runs
from tests.exporters.mlflow.by_hand import delta_of, run_of
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.database_help import NEW, START_MS, rows, table, wide_rows
from tests.exporters.mlflow.test_database import awkward_points, log_with_client
from tests.fixtures.proxy import Fault
from tests.run_dirs import make_run as make_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlflow.entities import Run as MlflowRun

    from tests.fixtures.mlflow_server import MlflowServer
    from tests.fixtures.proxy import FaultyProxy

ROWS = [{"step": step, "loss": 1.0 / (step + 1), "val/acc": step / 700} for step in range(700)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits between retries of MLflow's client and ours, and keep their number."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setattr(client, "RETRY_PAUSES_S", (0.01, 0.02, 0.04))


def make_run(api: ApiRuns) -> str:
    return api.create(NEW).run_id


def test_points_equal_log_batch(mlflow_server: MlflowServer) -> None:
    """Requests written from columns leave the rows of MLflow's client in both tables."""
    api = ApiRuns(Address.of(mlflow_server.uri))
    points = awkward_points(seed=3, count=1400)
    twin = log_with_client(api.client, points)
    ours = make_run(api)
    part = rows(points)
    change = RunUpdate(expected_cursor=None, rows=part, tags={"mlflow.bridge.cursor": "c1"})
    api.write(ours, change)
    assert len(table(mlflow_server.backend, "metrics", ours)) > 1100
    assert table(mlflow_server.backend, "metrics", ours) == table(mlflow_server.backend, "metrics", twin)
    latest = [table(mlflow_server.backend, "latest_metrics", run_id) for run_id in (ours, twin)]
    assert latest[0] == latest[1]


def test_without_the_fast_road_the_client_is_asked(
    mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without MLflow's known request function points go through MlflowClient.log_batch."""
    monkeypatch.setattr("bridge.exporters.mlflow.write_api._post_batch", lambda: None)
    api = ApiRuns(Address.of(mlflow_server.uri))
    ours = make_run(api)
    part = rows([("m", 1, 0.5, 2.0), ("m", 2, 0.75, float("nan"))])
    api.write(ours, RunUpdate(expected_cursor=None, rows=part))
    assert table(mlflow_server.backend, "metrics", ours) == [
        {"key": "m", "value": 2.0, "timestamp": START_MS + 500, "step": 1, "is_nan": 0},
        {"key": "m", "value": 0.0, "timestamp": START_MS + 750, "step": 2, "is_nan": 1},
    ]


@pytest.mark.parametrize(("pairs", "size"), [(0, 0), (90, 1), (250, 5000)])
@pytest.mark.parametrize("key", ["", "\N{GREEK SMALL LETTER ALPHA}" * 240])
def test_requests_keep_to_the_limits(pairs: int, size: int, key: str) -> None:
    """A request holds at most 100 params, 100 tags, 1000 of all and a million bytes, and the cursor is in the last."""
    params = {f"p{number}": "\N{GREEK SMALL LETTER ALPHA}" * size for number in range(pairs)}
    fields = fields_for_requests(params, params | {Tag.CURSOR: "c" * 4000})
    points = [replace(part, key=part.key + key) for part in wide_rows(12, 500)]
    requests = [(list[KeyRows](), *some) for some in fields[:-1]]
    requests += [(batch, *fields[-1]) for batch in batches_for_requests(points, fields[-1])]
    for batch, some_params, some_tags in requests:
        assert sum(map(len, batch)) + len(some_params) + len(some_tags) <= 1000
        assert max(len(some_params), len(some_tags)) <= 100
        assert len(body_of("0" * 32, batch, some_params, some_tags)) < 1_000_000
    assert sum(len(part) for batch, *_ in requests for part in batch) == 6000
    assert dict(pair for some, _ in fields for pair in some.items()) == params
    assert [Tag.CURSOR in some for _, some in fields] == [False] * (len(fields) - 1) + [True]


@pytest.mark.parametrize("fault", list(Fault))
def test_a_request_that_fails_is_sent_again(
    faulty_proxy: FaultyProxy, mlflow_server: MlflowServer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any failure of a request, carried out or not, every point arrives once."""
    if fault is Fault.SILENT:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    api = ApiRuns(Address.of(faulty_proxy.uri))
    ours = make_run(api)
    part = wide_rows(1, 40)
    faulty_proxy.plan(fault, path="runs/log-batch", times=2)
    api.write(ours, RunUpdate(expected_cursor=None, rows=part))
    assert faulty_proxy.failed == [fault, fault]
    assert len(table(mlflow_server.backend, "metrics", ours)) == 40


def facts_of(store: Store, run: MlflowRun) -> Mapping[str, object]:
    """Return what two exports of one run directory must share."""
    tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
    return {
        "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "tags": tags,
        "metrics": run.data.metrics,
        "points": {key: store.points(key, run.info.run_id) for key in run.data.metrics},
        "files": store.files(run_id=run.info.run_id),
    }


@pytest.mark.parametrize("status", [429, 503])
def test_every_first_try_fails(
    faulty_proxy: FaultyProxy, mlflow_server: MlflowServer, tmp_path: Path, status: int
) -> None:
    """With each kind of request failing at first, an export ends equal to one over a good network."""
    run = run_of(tmp_path / "run", params={"lr": 0.1}, tags=("project:x",), notes="notes", status=Status.COMPLETED)
    clean = Store(mlflow_server.uri, experiment=f"clean-{status}")
    clean.export(run, ROWS)
    store = Store(faulty_proxy.uri, experiment=f"faulty-{status}")
    paths = (
        "experiments/create",
        "experiments/get-by-name",
        "runs/search",
        "runs/create",
        "runs/get",
        "runs/log-batch",
    )
    for path in (*paths, "runs/update", "runs/set-tag", "mlflow-artifacts"):
        faulty_proxy.plan(Fault.STATUS, path=path, status=status)
    store.export(run, ROWS)
    faulty_proxy.heal()
    assert facts_of(store, store.run()) == facts_of(clean, clean.run())


@pytest.mark.parametrize("fault", [Fault.RESET_AFTER, Fault.STATUS_AFTER, Fault.CUT])
def test_answers_that_are_lost(
    faulty_proxy: FaultyProxy, mlflow_server: MlflowServer, tmp_path: Path, fault: Fault
) -> None:
    """Requests that were carried out and whose answers are lost leave one run, equal to a clean export."""
    run = run_of(tmp_path / "run", params={"lr": 0.1}, tags=("project:x",), notes="notes")
    clean = Store(mlflow_server.uri, experiment=f"clean-{fault.name}")
    clean.export(run, ROWS)
    store = Store(faulty_proxy.uri, experiment=f"faulty-{fault.name}")
    for path in ("experiments/create", "runs/create", "runs/log-batch", "runs/update", "mlflow-artifacts"):
        faulty_proxy.plan(fault, path=path)
    store.export(run, ROWS)
    faulty_proxy.heal()
    assert facts_of(store, store.run()) == facts_of(clean, clean.run())


@pytest.mark.parametrize("count", [3, 700])
def test_the_status_comes_last(faulty_proxy: FaultyProxy, tmp_path: Path, count: int) -> None:
    """A run that says finished is complete: after a stop it runs with all points, and the next export ends it."""
    store, folder = Store(faulty_proxy.uri, experiment=tmp_path.name), make_directory(tmp_path / "run", ROWS[:count])
    faulty_proxy.plan(Fault.STATUS, path="runs/update", times=10_000)
    assert export_runs([folder], store.exporter()).failed
    assert (store.run().info.status, len(store.points("loss"))) == ("RUNNING", count)
    faulty_proxy.heal()
    (line,) = export_runs([folder], store.exporter()).runs
    assert (str(line.action), line.reason) == ("changed", "changed: status, end")
    assert store.run().info.status == "FINISHED"
    (line,) = export_runs([folder], store.exporter()).runs
    assert str(line.action) == "unchanged"


@pytest.mark.parametrize("skip", [0, 5, 8, 11])
def test_an_outage_at_any_request(
    faulty_proxy: FaultyProxy, mlflow_server: MlflowServer, tmp_path: Path, skip: int
) -> None:
    """After an outage longer than the retries the next export ends equal to a clean one."""
    run = run_of(tmp_path / "run", params={"lr": 0.1}, notes="notes")
    clean = Store(mlflow_server.uri, experiment="clean-outage")
    if clean.client.get_experiment_by_name("clean-outage") is None:
        clean.export(run, ROWS)
    store = Store(faulty_proxy.uri, experiment=f"outage-{skip}")
    faulty_proxy.plan(Fault.STATUS, path="/mlflow", times=10_000, skip=skip)
    with pytest.raises(TargetUnavailableError):
        store.export(run, ROWS)
    faulty_proxy.heal()
    store.export(run, ROWS)
    there, wanted = facts_of(store, store.run()), facts_of(clean, clean.run())
    assert {key: value for key, value in there.items() if key != "tags"} == {
        key: value for key, value in wanted.items() if key != "tags"
    }


def test_several_runs_at_once_over_a_faulty_network(
    faulty_proxy: FaultyProxy, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """Four runs exported at once arrive complete although every fourth request fails."""
    for number in range(9):
        make_directory(
            tmp_path / "runs" / f"run-{number}", [{**row, "step": row["step"] + number} for row in ROWS[:60]]
        )
    for at, fault in enumerate([Fault.STATUS, Fault.RESET_AFTER, Fault.CUT, Fault.STATUS_AFTER, Fault.RESET] * 3):
        faulty_proxy.plan(fault, path="runs/", skip=4 * at)
    exporter = find_exporter("mlflow")(tracking_uri=faulty_proxy.uri, experiment="several")
    report = export_runs([tmp_path / "runs"], exporter, Options(workers=Workers(threads=4)))
    assert sorted(str(line.action) for line in report.runs) == ["new"] * 9
    assert len(faulty_proxy.failed) >= 5
    faulty_proxy.heal()
    checked = verify_runs([tmp_path / "runs"], exporter)
    assert [str(line.verdict) for line in checked.runs] == ["="] * 9
    assert faulty_proxy.seen["experiments/get-by-name"] < 12


def test_a_rebuild_is_complete_before_it_counts(faulty_proxy: FaultyProxy, tmp_path: Path) -> None:
    """A rebuild through a server that stops at the last moment has what people did, and names the run it replaces."""
    store, run = Store(faulty_proxy.uri, experiment=tmp_path.name), run_of()
    store.export(run, ROWS)
    old = store.run().info.run_id
    store.client.set_tag(old, "own", "theirs")
    faulty_proxy.plan(Fault.STATUS, path="runs/delete-tag", times=10_000)
    with pytest.raises(TargetUnavailableError):
        store.rebuild(run, [delta_of(run, ROWS[:1])])
    faulty_proxy.heal()
    (new,) = [run for run in store.runs() if run.info.run_id != old]
    assert (new.data.tags[Tag.BUILDING], new.data.tags[Tag.REPLACES], new.data.tags["own"]) == (old, old, "theirs")


def test_a_finished_rebuild_is_not_deleted_for_a_moment(faulty_proxy: FaultyProxy, tmp_path: Path) -> None:
    """A stop between deleting and restoring it would leave the run deleted for good."""
    store = Store(faulty_proxy.uri, experiment=tmp_path.name)
    store.export(run_of(), ROWS)
    before = faulty_proxy.seen["runs/delete"]
    ApiRuns(Address.of(faulty_proxy.uri)).delete_unfinished(store.run().info.run_id)
    assert faulty_proxy.seen["runs/delete"] == before


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_stops_at_once(faulty_proxy: FaultyProxy, tmp_path: Path, status: int) -> None:
    """A refusal and a wrong path are not retried, and the error says what to check."""
    faulty_proxy.plan(Fault.STATUS, times=10_000, status=status)
    began = time.monotonic()
    with pytest.raises(TargetRefusedError) as caught:
        Store(faulty_proxy.uri, experiment="refused").export(run_of(tmp_path / "run"), ROWS)
    assert caught.value.hint is not None
    assert sum(faulty_proxy.seen.values()) == 1
    assert time.monotonic() - began < 5


def test_a_missing_server_is_reported_at_once(tmp_path: Path) -> None:
    """If nobody listens at the address, the error comes without minutes of retries."""
    began = time.monotonic()
    with pytest.raises(TargetUnavailableError, match="No server answers"):
        Store("http://127.0.0.1:9").export(run_of(tmp_path / "run"), ROWS)
    assert time.monotonic() - began < 5
