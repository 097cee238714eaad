"""MLflow on run directories answers like a stock MLflow on a clean export of them, and refuses writes."""

from __future__ import annotations

import base64
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.artifacts import list_artifacts
from mlflow.entities import RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.abstract_store import AbstractStore
from PIL import Image

from bridge import plugins
from bridge.errors import TargetRefusedError
from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.mlflow.exporter import LIVE_VARIABLE
from bridge.exporters.mlflow.live import LiveModelRegistry, LiveStore, refuse_all_others
from bridge.exporters.mlflow.saved_view import VIEW_TAG
from bridge.live import LiveOptions
from bridge.options import ContentOptions, SelectionOptions
from bridge.sync.export import Options, export_runs
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.pictures import encoded, log_image, png
from tests.run_dirs import CREATED_S, make_run, write_metrics, write_sidecar
from tests.rundir.event_writing import age, append, picture, write_events
from tests.security.harms import png_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities import Metric, Run

    from bridge.exporters.mlflow.live import LiveArtifacts

NOT_COMPARED = {
    "mlflow.bridge.sweep_notes",
    "mlflow.bridge.cursor",
    "mlflow.bridge.experiment",
    "mlflow.parentRunId",
    "mlflow.bridge.names.0000",
}
"""Tags that only an export needs, or that name another run by its id."""

ROOT = Path(__file__).resolve().parents[2]


def draw(run: Path, tag: str, step: int, form: str = "png", **fields: object) -> None:
    """Log an image of 40 x 20 pixels."""
    data = encoded(form, (40 * step, 90, 10), size=(40, 20))
    log_image(run, step, f"{tag.replace('/', '_')}-{step}.{form}", data, tag=tag, **fields)


def store_of(runs: Path) -> LiveStore:
    """Return the live store of `runs`, which sees every change at once."""
    store: LiveStore = plugins.tracking_store(f"registry://{runs}")
    return store


def table(store: LiveStore, filter_string: str = "") -> list[Run]:
    """Return all rows that the table of the only experiment shows."""
    (experiment,) = store.search_experiments()
    return list(store.search_runs([experiment.experiment_id], filter_string, ViewType.ALL, 100))


def id_of(runs: Path, name: str) -> str:
    """Return the id of the run whose name ends in `name`."""
    return next(run.info.run_id for run in table(store_of(runs)) if run.info.run_name.endswith(name))


def live_client(runs: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Return a client of the live store, through MLflow's registries instead of entry points."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    monkeypatch.setitem(_tracking_store_registry._registry, "registry", plugins.tracking_store)
    monkeypatch.setitem(_artifact_repository_registry._registry, "registry", plugins.artifact_repository)
    return mlflow.MlflowClient(f"registry://{runs}", f"sqlite:///{runs.parent}/none.db")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return the folder of runs of every kind."""
    return make_all_runs(tmp_path / "runs")


def make_all_runs(runs: Path) -> Path:
    """Make runs of every kind: ended, failed, killed, in a sweep, with secrets, odd names, images, and of each kind."""
    rows = [{"step": step, "val/acc": 0.5 + step / 100, "loss": 1 / (step + 1)} for step in range(40)]
    for number in range(2):
        make_run(
            runs / "sweep" / f"lr-{number}",
            rows[: 20 + number],
            hparams={"lr": 0.1 * (number + 1), "db.password": "s3cret"},
            tags=["sweep:12", "team:red", "good"],
            notes="*first*",
            summary={"val/acc": 0.7},
            sessions=[{"user": "ada", "host": "n1", "command": "train.py --api-key s3cret --lr 1", "rows": 0}],
        )
    odd = make_run(runs / "odd", [{"step": 3, "acc@5": 0.5, "big": math.inf, "nan": math.nan}], status="failed")
    (odd / "hparams.yaml").write_text("opts: {api_key: s3cret, depth: 3}\n")
    killed = make_run(runs / "killed", rows[:5], status="running", heartbeat_age=9000)
    os.utime(killed / "metrics.csv", (CREATED_S + 60, CREATED_S + 60))
    pictures = make_run(runs / "pictures", rows[:3], hparams={"n": 1})
    for step in range(3):
        draw(pictures, "val/samples", step, caption=f"step {step}")
    draw(pictures, "val/samples", 3, caption="broken")
    (pictures / "media" / "val_samples-3.png").write_bytes(png(1)[:40])
    draw(pictures, "val/samples", 4, caption="no pixels")
    (pictures / "media" / "val_samples-4.png").write_bytes(png_of(40, 20, b"right checksums"))
    broken = make_run(runs / "broken", rows[:3])
    draw(broken, "val/samples", 0)
    (broken / "media" / "val_samples-0.png").write_bytes(png(1)[:40])
    sessions = [{"user": "ada", "rows": 0}, {"user": "ada", "rows": 3}]
    back = make_run(
        runs / "back",
        [{"step": step, "loss": 9.0 - step} for step in (0, 5, 9, 2)],
        sessions=sessions,
        summary={"loss": 7.0},
    )
    stats = {"loss": {"last": 7.0, "min": 0.0, "max": 9.0, "min_step": 9, "max_step": 0, "count": 4}}
    (back / "summary.json").write_text(json.dumps({"rows": 4, "metrics": stats}))
    stock = runs / "csv" / "version_0"
    stock.mkdir(parents=True)
    (stock / "metrics.csv").write_text("loss,step\n0.5,0\n0.25,1\n")
    os.utime(stock / "metrics.csv", (CREATED_S + 5, CREATED_S + 5))
    events = write_events(runs / "events", 0, [("loss", step, 1 + 0.1 * step, CREATED_S + step) for step in range(9)])
    append(events, picture("val/samples", 3, CREATED_S + 3, png(1), png(2), is_tensor=True))
    write_events(runs / "events", 1, [("loss", step, 0.2 * step, CREATED_S + 90 + step) for step in range(5, 7)])
    age(runs / "events")
    return runs


def exported(runs: Path, template: Path, content: ContentOptions | None = None) -> mlflow.MlflowClient:
    """Return a client of a fresh database to which `runs` were exported."""
    file = runs.parent / f"mlflow-{random.randrange(1 << 30)}.db"
    shutil.copy(template, file)
    report = export_runs(
        [runs], MlflowExporter(f"sqlite:///{file}", "runs"), Options(content=content or ContentOptions())
    )
    assert report.exit_code == 0, report.failed
    return mlflow.MlflowClient(f"sqlite:///{file}")


def told(client: mlflow.MlflowClient, **search: Any) -> list[dict[str, Any]]:
    """Return what a client returns for all runs of the experiment `runs`, without fields that are not compared."""
    experiment = client.get_experiment_by_name("runs")
    found = client.search_runs([experiment.experiment_id], **search)
    names = {run.info.run_id: run.info.run_name for run in client.search_runs([experiment.experiment_id])}
    return [describe(client, client.get_run(run.info.run_id), names) | {"row": row(run)} for run in found]


def row(run: Run) -> dict[str, Any]:
    """Return what the table shows of a run, with time and step of the last values."""
    last = sorted(
        (metric.key, repr(metric.value), metric.timestamp, metric.step) for metric in run.data.to_proto().metrics
    )
    return {
        "name": run.info.run_name,
        "last": last,
        "params": run.data.params,
        "images": "mlflow.loggedImages" in run.data.tags,
    }


def describe(client: mlflow.MlflowClient, run: Run, names: dict[str, str]) -> dict[str, Any]:
    run_id, uri = run.info.run_id, client._tracking_client.tracking_uri
    tags = {key: value for key, value in run.data.tags.items() if key not in NOT_COMPARED}
    tags = {key: re.sub(r"\b(?:\d+/runs/)?[0-9a-f]{32}\b", "(id)", value) for key, value in tags.items()}
    return {
        "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time, run.info.user_id),
        "params": run.data.params,
        "tags": {key: value for key, value in tags.items() if not value.startswith("registry:")},
        "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
        "latest": {key: repr(value) for key, value in sorted(run.data.metrics.items())},
        "points": {
            key: [(repr(point.value), point.step, point.timestamp) for point in points(client, run_id, key)]
            for key in sorted(run.data.metrics)
        },
        "files": sorted(path for path in tree(run.info.artifact_uri, uri) if path != ".bridge-target"),
    }


def points(client: mlflow.MlflowClient, run_id: str, key: str) -> list[Metric]:
    """Return the points of a metric; of a best one only the last, which alone is promised."""
    found: list[Metric] = client.get_metric_history(run_id, key)
    return found[-1:] if key.endswith(".best") else found


def tree(address: str, uri: str, folder: str = "") -> Iterator[str]:
    """Yield the paths of a run's files, from the address of its artifacts: an old server has none by a run's id."""
    for file in list_artifacts(artifact_uri=f"{address}/{folder}".rstrip("/"), tracking_uri=uri):
        path = f"{folder}/{file.path.rpartition('/')[2]}".lstrip("/")
        yield from tree(address, uri, path) if file.is_dir else [path]


OPTIONS = {
    "default": ContentOptions(),
    "other": ContentOptions(
        best=("loss:min",), rename=(("val/acc", "acc"), ("loss", "l@ss")), exclude_metrics=("big",), redact=("lr",)
    ),
    "flat": ContentOptions(media=False, flat=True, artifacts="none"),
}
BY_NAME = ["attributes.run_name ASC"]
SEARCHES: list[dict[str, Any]] = [
    {"filter_string": "metrics.`val/acc` > 0.6 and tags.team = 'red'", "order_by": ["metrics.loss ASC", *BY_NAME]},
    {"filter_string": "attributes.status = 'KILLED'"},
    {"filter_string": "params.lr = '0.1'"},
    {"filter_string": "attributes.run_name LIKE '%lr%'", "order_by": ["metrics.loss ASC", *BY_NAME]},
    {"filter_string": "tags.`mlflow.user` = 'ada'", "order_by": ["params.lr DESC", *BY_NAME]},
    {
        "filter_string": "metrics.`l_ss.best` < 0.1 and tags.team = 'red'",
        "order_by": ["metrics.`l_ss.best` ASC", *BY_NAME],
    },
    {"filter_string": "metrics.loss <= 0.0", "order_by": BY_NAME},
    {"order_by": BY_NAME, "max_results": 3},
    {"run_view_type": ViewType.DELETED_ONLY},
]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("default", [2, 1, 1, 2, 3, 0, 1, 3, 0]),
        ("other", [0, 1, 0, 2, 3, 2, 0, 3, 0]),
        ("flat", [2, 1, 1, 2, 3, 0, 1, 3, 0]),
    ],
)
def test_it_answers_as_a_clean_export(
    runs: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch, options: str, found: list[int]
) -> None:
    """Names, statuses, times, params, tags, points, parents, files, searches and the saved view are an export's."""
    content = OPTIONS[options]
    show(LiveOptions(roots=[str(runs)], content=content), runs, monkeypatch)
    clients = live_client(runs, monkeypatch), exported(runs, sqlite_template, content)
    live, stock = (sorted(told(client), key=str) for client in clients)
    assert len(live) == (9 if content.flat else 10)
    for one, other in zip(live, stock, strict=True):
        assert one["tags"] == other["tags"]
        assert one == other
    experiments = [client.get_experiment_by_name("runs") for client in clients]
    views = [json.loads(experiment.tags[VIEW_TAG])["state"].removeprefix("deflate;") for experiment in experiments]
    states = [json.loads(zlib.decompress(base64.b64decode(view))) for view in views]
    assert states[0] == states[1]
    assert states[0]["orderByKey"] == ("metrics.`l_ss.best`" if content.best else "attributes.start_time")
    names = [
        [[run.info.run_name for run in client.search_runs([experiment.experiment_id], **search)] for search in SEARCHES]
        for client, experiment in zip(clients, experiments, strict=True)
    ]
    assert names[0] == names[1]
    assert list(map(len, names[0])) == found


def test_pages_hold_every_run_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of a table hold each run once, in order."""
    client = live_client(runs, monkeypatch)
    experiment = [client.get_experiment_by_name("runs").experiment_id]
    whole = [run.info.run_id for run in client.search_runs(experiment)]
    pages = [client.search_runs(experiment, max_results=2)]
    while pages[-1].token:
        pages.append(client.search_runs(experiment, max_results=2, page_token=pages[-1].token))
    assert [run.info.run_id for page in pages for run in page] == whole
    assert len(set(whole)) == 10


def test_charts_are_sampled_as_by_mlflow(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The points of a chart are those that MLflow's SQL store chooses from an export."""
    runs = tmp_path / "runs"
    rows = [{"step": 3 * step, "loss": math.sin(step)} for step in range(500)]
    make_run(runs / "long", rows)
    make_run(runs / "short", rows[100:107])
    asked = [(20, None, None), (1, None, None), (50, 300, 900), (5, 0, 0), (50, 5000, 6000), (10_000, None, None)]
    shown = []
    for client in (live_client(runs, monkeypatch), exported(runs, sqlite_template)):
        found = client.search_runs([client.get_experiment_by_name("runs").experiment_id])
        names = {run.info.run_id: run.info.run_name for run in found}
        ask = partial(client._tracking_client.store.get_metric_history_bulk_interval, list(names), "loss")
        charts = [
            sorted((names[one.run_id], one.step, one.value, one.timestamp) for one in ask(*chart)) for chart in asked
        ]
        shown.append(charts)
    assert shown[0] == shown[1]
    assert [bool(chart) for chart in shown[0]] == [chart[1] != 5000 for chart in asked]


def test_points_at_some_steps_cost_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow up to 3.4 asks for the steps of its own sample; looking each point up there would take seconds."""
    make_run(tmp_path / "runs" / "a", [{"step": 3 * step, "loss": float(step)} for step in range(500)])
    client = live_client(tmp_path / "runs", monkeypatch)
    (run,) = client.search_runs([client.get_experiment_by_name("runs").experiment_id])
    store = client._tracking_client.store
    monkeypatch.setattr(type(store), "get_metric_history", None)
    points = store.get_metric_history_bulk_interval_from_steps(run.info.run_id, "loss", [0, 4, 9, 12, 1497], 3)
    assert [(one.run_id, one.step, one.value) for one in points] == [
        (run.info.run_id, step, step / 3) for step in (0, 9, 12)
    ]
    assert store.get_metric_history_bulk_interval_from_steps(run.info.run_id, "none", [0], 3) == []


def test_growth_and_requeues_are_shown_at_once(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any rows, requeues, edits and ends the answers equal those of a clean export."""
    rng, runs = random.Random(7), tmp_path / "runs"
    path = make_run(runs / "a", [{"step": 0, "loss": 1.0}], hparams={"lr": 1}, summary={"loss": 1.0})
    client, step = live_client(runs, monkeypatch), 0
    for number in range(8):
        choice = rng.choice(["rows", "rows", "requeue", "notes", "copy"])
        if choice in ("rows", "requeue"):
            step = step + 1 if choice == "rows" else rng.randrange(step + 1)
            rows = [(rng.random(), step + each, CREATED_S + 100 * number + each) for each in range(rng.randrange(1, 5))]
            step += len(rows) - 1
            write_metrics(path, ["loss", "step", "wall_time"], rows, append=True)
        elif choice == "notes":
            write_sidecar(path, hparams={"lr": 1}, notes=f"note {number}", tags=[f"t:{number}"], summary={"loss": 1.0})
        else:
            make_run(runs / f"copy-{number}", [{"step": 0, "loss": 2.0}])
        live, stock = told(client), told(exported(runs, sqlite_template))
        assert sorted(live, key=str) == sorted(stock, key=str)


def test_ids_follow_from_the_content(runs: Path) -> None:
    """Links survive a restart of the server and a move of the directories."""
    ids = [{(run.info.run_name, run.info.run_id, run.info.experiment_id) for run in table(store_of(runs))}]
    plugins.shared_store.cache_clear()
    (runs / "odd").rename(runs / "moved")
    assert {(run.info.run_name, run.info.run_id, run.info.experiment_id) for run in table(store_of(runs))} in ids


def test_files_are_masked_and_contained(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only files that an export would send are listed, secrets are masked, and no path leaves the run."""
    (runs / "odd" / "private.txt").write_text("s3cret")
    (runs / "odd" / "summary.json").symlink_to("/etc/hostname")
    live_client(runs, monkeypatch)
    artifacts: LiveArtifacts = plugins.artifact_repository(f"registry://{runs}")
    for run in table(store_of(runs)):
        for path in tree(run.info.artifact_uri, f"registry://{runs}"):
            data = Path(artifacts.download_artifacts(f"{run.info.run_id}/{path}", str(runs.parent))).read_bytes()
            assert b"s3cret" not in data
            assert data or path in ("hparams.yaml", "metrics.csv")
    run_id = id_of(runs, "odd")
    assert "summary.json" not in [Path(file.path).name for file in artifacts.list_artifacts(run_id)]
    for path in ("private.txt", "../odd/private.txt", "/etc/passwd", "summary.json", ""):
        with pytest.raises(MlflowException, match="No such artifact"):
            artifacts.get_local_path(f"{run_id}/{path}")


def test_a_file_that_has_grown_is_served_as_it_is_now(runs: Path) -> None:
    """A file without secrets is not kept in memory: what is downloaded is what the run directory holds then."""
    artifacts: LiveArtifacts = plugins.artifact_repository(f"registry://{runs}")
    path = f"{id_of(runs, 'odd')}/metrics.csv"
    (source,) = runs.rglob("odd/metrics.csv")
    assert artifacts.get_local_path(path) == str(source.resolve())
    with source.open("a") as file:
        file.write("more\n")
    assert Path(artifacts.download_artifacts(path)).read_bytes() == source.read_bytes()


def test_pictures_have_small_previews(runs: Path) -> None:
    """The step slider finds each image in full and small size; a JPEG becomes a PNG, as in an export."""
    draw(runs / "pictures", "photo", 1, "jpeg")
    artifacts: LiveArtifacts = plugins.artifact_repository(f"registry://{runs}")
    run_id = id_of(runs, "pictures")
    names = [file.path for file in artifacts.list_artifacts(f"{run_id}/images")]
    assert len(names) == 10
    for name in names:  # the fifth one's pixels are broken
        with Image.open(artifacts.download_artifacts(name, str(runs.parent))) as image:
            assert image.format == ("WEBP" if name.endswith("webp") else "PNG")
    captions = Path(artifacts.download_artifacts(f"{run_id}/bridge/captions.json", str(runs.parent)))
    assert [line[3] for line in json.loads(captions.read_text())["data"]] == [
        *(f"step {step}" for step in range(3)),
        "broken",
        "no pixels",
    ]


def test_everything_that_writes_is_refused(runs: Path) -> None:
    """Every writing method, known or new in a later MLflow, is refused with one sentence."""
    store = store_of(runs)
    run_id = id_of(runs, "odd")
    refused = [
        lambda: store.create_experiment("e", None, []),
        lambda: store.delete_run(run_id),
        lambda: store.log_batch(run_id, [], [], []),
        lambda: store.set_experiment_tag("1", None),
        lambda: store.set_tag(run_id, RunTag("a", "b")),
        lambda: store.update_run_info(run_id, None, None, "name"),
        lambda: LiveModelRegistry().create_registered_model("m"),
        lambda: plugins.artifact_repository(f"registry://{runs}").log_artifact("x"),
    ]
    for call in refused:
        with pytest.raises(MlflowException, match="changes nothing but") as caught:
            call()
        assert caught.value.get_http_status_code() == 403
    own = {name for name in vars(LiveStore) if not name.startswith("_")}
    for name in dir(AbstractStore):
        if not name.startswith("_") and callable(getattr(AbstractStore, name)):
            reads = name.startswith(("search_runs", "supports", "filter", "list", "get_metric"))
            assert name in own or "async" in name or reads, name


def test_methods_of_a_newer_mlflow_are_refused() -> None:
    """A method that a release adds to MLflow's base class is refused without a change of ours."""

    class Newer(AbstractStore):
        def create_thing(self) -> None:
            """Write something."""

    class Live(Newer):
        pass

    refuse_all_others(Live, Newer)
    with pytest.raises(MlflowException, match="changes nothing but") as caught:
        Live.create_thing(None)  # type: ignore[arg-type]
    assert caught.value.get_http_status_code() == 403


def show(options: LiveOptions, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store of `runs` have these options, as `bridge view` does."""
    file = runs.with_name("options.json")
    file.write_text(options.to_json())
    monkeypatch.setenv(LIVE_VARIABLE, str(file))


def edits(runs: Path, monkeypatch: pytest.MonkeyPatch) -> LiveStore:
    show(LiveOptions(roots=[str(runs)], edit=True), runs, monkeypatch)
    return store_of(runs)


def test_edits_land_in_the_sidecar(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, description and tags are edited as by `bridge set`, and nothing else is."""
    store = edits(runs, monkeypatch)
    run_id, path = id_of(runs, "lr-0"), runs / "sweep" / "lr-0" / "sidecar.json"
    store.set_tag(run_id, RunTag("mlflow.note.content", "better"))
    store.set_tag(run_id, RunTag("team", "blue"))
    store.set_tag(run_id, RunTag("new", "true"))
    store.delete_tag(run_id, "good")
    store.update_run_info(run_id, None, None, "mine")
    said = json.loads(path.read_text())
    assert (said["notes"], said["tags"], said["display_name"]) == ("better", ["sweep:12", "team:blue", "new"], "mine")
    run = store.get_run(run_id)
    assert (run.info.run_name, run.data.tags["team"], run.data.tags["mlflow.note.content"]) == (
        "mine",
        "blue",
        "better",
    )
    for call in (
        lambda: store.set_tag(run_id, RunTag("mlflow.user", "eve")),
        lambda: store.set_tag(run_id, RunTag("bridge.host", "eve")),
        lambda: store.update_run_info(run_id, 3, 5, None),
        lambda: store.delete_run(run_id),
    ):
        with pytest.raises(MlflowException) as caught:
            call()
        assert caught.value.get_http_status_code() == 403


def test_edits_of_others_runs_are_refused_in_words(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without a sidecar and the parent of a sweep cannot be edited, and the error says why."""
    store = edits(runs, monkeypatch)
    run_id = id_of(runs, "version_0")
    with pytest.raises(MlflowException, match=r"has no sidecar\.json"):
        store.set_tag(run_id, RunTag("a", "b"))
    parent = next(run.info.run_id for run in table(store) if "mlflow.bridge.sweep" in run.data.tags)
    with pytest.raises(MlflowException, match="parent of a sweep"):
        store.set_tag(parent, RunTag("a", "b"))


def test_unknown_things_are_not_found(runs: Path) -> None:
    """Unknown runs and experiments give MLflow's own error, and pages without content are empty."""
    store = store_of(runs)
    for call in (lambda: store.get_run("nobody"), lambda: store.get_experiment("7")):
        with pytest.raises(MlflowException, match=r"not found|exists") as caught:
            call()
        assert caught.value.get_http_status_code() == 404
    assert store.get_experiment_by_name("nothing") is None
    assert (store.search_traces(), store.list_scorers("1"), list(store.search_logged_models())) == (([], None), [], [])
    assert list(LiveModelRegistry().search_registered_models()) == []


def test_selection_and_the_names_of_experiments(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are selected, and experiments named, as in an export with the same options."""
    options = LiveOptions(roots=[str(runs)], experiment="{parent}", selection=SelectionOptions(tags=("team:red",)))
    show(options, runs, monkeypatch)
    store = store_of(runs)
    (experiment,) = store.search_experiments()
    assert experiment.name == "sweep"
    assert len(store.search_runs([experiment.experiment_id], "", ViewType.ALL, 100)) == 3


def test_a_tracking_uri_that_cannot_be_written_to_stops_no_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live view needs no target, so a file store, the default of MLflow 2, is refused at the first export only."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with MlflowExporter() as exporter, pytest.raises(TargetRefusedError, match="file store"):
        _ = exporter.capabilities
    with pytest.raises(TargetRefusedError, match="file store"):
        MlflowExporter("./mlruns")


def test_a_file_that_became_a_link_is_not_served(runs: Path, tmp_path: Path) -> None:
    """Neither a listed file that is a link by now, nor one below a folder that is, leads out of the run."""
    draw(runs / "odd", "x", 1)
    (tmp_path / "secret.png").write_text("s3cret")
    artifacts: LiveArtifacts = plugins.artifact_repository(f"registry://{runs}")
    run_id = id_of(runs, "odd")
    path = next(file.path for file in artifacts.list_artifacts(f"{run_id}/images") if file.path.endswith(".png"))
    assert artifacts.get_local_path(path)
    (tmp_path / "media").mkdir()
    shutil.copy(tmp_path / "secret.png", tmp_path / "media" / "x-1.png")
    shutil.rmtree(runs / "odd" / "media")
    (runs / "odd" / "media").symlink_to(tmp_path / "media")
    for ask in (artifacts.get_local_path, artifacts.download_artifacts):
        with pytest.raises(MlflowException, match="No such artifact"):
            ask(path)


def test_entry_points_are_declared() -> None:
    """MLflow finds the plug-ins by entry points, in a module without imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for kind in ("tracking_store", "model_registry_store", "artifact_repository"):
        module, _, function = project["entry-points"][f"mlflow.{kind}"]["registry"].partition(":")
        assert (module, callable(getattr(plugins, function))) == ("bridge.plugins", True)
    heavy = "('mlflow', 'numpy', 'msgspec', 'yaml')"
    program = f"import sys, bridge.plugins; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def plugin_folder(folder: Path) -> Path:
    """Return a folder for PYTHONPATH by which an MLflow elsewhere finds the plug-ins that pyproject.toml declares."""
    plugin = folder / "plugin" / "bridge_live-0.dist-info"
    plugin.mkdir(parents=True, exist_ok=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: bridge-live\nVersion: 0\n")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        line
        for name, group in groups.items()
        for line in (f"[{name}]", *(f"{key} = {of}" for key, of in group.items()))
    ]
    (plugin / "entry_points.txt").write_text("\n".join(lines))
    return plugin.parent


def test_a_server_by_hand_writes_no_database(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow server --backend-store-uri registry:///RUNS` serves the runs and writes only to the cache."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{plugin_folder(tmp_path)}")
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    uri, here = f"registry://{runs}", tmp_path / "here"
    server = start_mlflow_server(uri, here, options=("--artifacts-destination", uri), serves_artifacts=False)
    try:
        client = mlflow.MlflowClient(server.uri)
        found = client.search_runs([client.get_experiment_by_name("runs").experiment_id])
        assert len(found) == 10
        shown = next(run for run in found if run.info.run_name == "pictures")
        assert shown.info.artifact_uri == f"mlflow-artifacts:/{shown.info.run_id}"
        path = next(file.path for file in client.list_artifacts(shown.info.run_id, "images"))
        assert Path(client.download_artifacts(shown.info.run_id, path, str(tmp_path))).read_bytes()[:4] == b"RIFF"
        with pytest.raises(MlflowException, match="changes nothing but"):
            client.set_tag(shown.info.run_id, "a", "b")
    finally:
        server.stop()
    assert [path.name for path in here.iterdir()] == ["server.log"]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
