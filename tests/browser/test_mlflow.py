"""Look at MLflow in a real Chromium: at run directories themselves, and at an export of them in a stock server.

A stock server answers as the live view does (test_versions.py), so what only its answers decide is looked at live.
Screenshots are left in pytest's temporary folder for people to look at.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from playwright.sync_api import expect

from bridge.exporters.mlflow import MlflowExporter
from bridge.options import ContentOptions
from bridge.sync.export import Options, export_runs
from tests.environments import installed
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.live.test_mlflow import plugin_folder
from tests.live.test_versions import IN_OLD_MLFLOW, MLFLOWS
from tests.pictures import encoded, film, log_image, png
from tests.run_dirs import CREATED_S, make_run, write_metrics
from tests.rundir.event_writing import START, age, append, picture, write_events
from tests.servers import viewing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page, Response

EXPECTED_404 = "users/current"
"""MLflow's own page asks for it, and no server without accounts answers."""

BEST = "val/acc:max"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a finished run with everything, a failed one, a sweep, one of event files, and one that is running."""
    folder = tmp_path_factory.mktemp("mlflow-pages") / "runs"
    rows = [{"step": step, "train/loss": 1 / (step + 1), "val/acc": step / 20} for step in range(20)]
    first = make_run(
        folder / "baseline",
        rows,
        hparams={"lr": 0.1, "optimizer.name": "adam", "password": "hunter2"},
        notes="# Baseline\n\nThe **first** try, see `train.py`.",
        tags=["project:digits", "keeper"],
        sessions=[
            {"user": "ada", "command": "train.py --api-key hunter2", "git_commit": "0123456789abcdef", "rows": 0}
        ],
    )
    (first / "hparams.yaml").write_text("lr: 0.1\npassword: hunter2\n")
    for step in (0, 10):
        for index, colour in enumerate(("red", "green")):
            data = encoded("png", colour, size=(32, 32))
            log_image(first, step, f"{step}-{index}.png", data, caption=f"caption {step} {index}")
    log_image(first, 0, "moves.gif", encoded("gif", "red", "green", "blue", size=(300, 20)), tag="moves")
    log_image(first, 10, "film.mp4", film(10, codec="libx264", size=(64, 48)), tag="rollout", type="video")
    make_run(folder / "broken", rows[:3], status="failed")
    for number in (1, 2):
        make_run(folder / f"lr-{number}", rows[: 4 * number], tags=["sweep:lr-scan"])
    events = folder / "events"
    first = write_events(events, 0, [("loss", step, 8.0, START + step) for step in range(10)])
    append(first, picture("samples", 0, START, png(200)), picture("samples", 4, START + 4, png(100), is_tensor=True))
    write_events(events, 1, [("loss", step, 4.0, START + 100 + step) for step in range(5, 12)])
    age(events)
    growing = make_run(folder / "growing", [{"step": step, "loss": 4.0} for step in range(5)], status="running")
    (growing / "heartbeat").touch()
    return folder


@dataclass
class Site:
    """A server that shows runs: their ids by name, and the failed requests of its pages."""

    address: str
    shots: Path
    is_old: bool = False  # MLflow 2
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        client = mlflow.MlflowClient(self.address)
        found = client.get_experiment_by_name("runs")
        assert found is not None
        self.experiment = found.experiment_id
        self.runs = {run.info.run_name: run.info.run_id for run in client.search_runs([self.experiment])}
        self.shots.mkdir(exist_ok=True)

    def open(self, page: Page, place: str, more: str = "") -> None:
        """Go to a page of the experiment; a run's begins with its name."""
        name, _, rest = place.partition("/")
        if name in self.runs:
            place = f"runs/{self.runs[name]}/{rest}".rstrip("/")
        self.go(page, f"experiments/{self.experiment}/{place}?workflowType=machine_learning{more}")

    def go(self, page: Page, place: str) -> None:
        """Go to a page, and remember its requests that fail."""
        page.goto("about:blank")  # a page of MLflow looks at its address only when it is loaded
        page.on("response", self._remember)
        page.goto(f"{self.address}/#/{place}")

    def _remember(self, response: Response) -> None:
        if response.status >= 400 and EXPECTED_404 not in response.url:
            self.failed.append(f"{response.status} {response.request.method} {response.url}")

    def finish(self, page: Page, name: str) -> None:
        """Check that no request failed and no error is shown, and leave a screenshot."""
        page.screenshot(path=self.shots / f"{name}.png")
        assert self.failed == []
        assert page.get_by_text(re.compile("something went wrong|error_code", re.IGNORECASE)).count() == 0


@contextlib.contextmanager
def view(
    runs: Path, *options: str, python: Path | str = sys.executable, version: str = "", **environment: str
) -> Iterator[Site]:
    """Yield the site that `bridge view` shows."""
    with viewing(runs.parent, runs, "--to", "mlflow", *options, python=python, **environment) as (link, _):
        yield Site(link.partition("/#/")[0], runs.parent / f"shots{version}", is_old=version.startswith("2."))


@contextlib.contextmanager
def exported(runs: Path, template: Path) -> Iterator[Site]:
    """Yield the site of a stock server on an export."""
    uri = f"sqlite:///{shutil.copy(template, runs.parent / 'mlflow.db')}"
    options = Options(content=ContentOptions(best=(BEST,)))
    assert not export_runs([runs], MlflowExporter(uri, "runs"), options).failed
    server = start_mlflow_server(uri, runs.parent / "server")
    try:
        yield Site(server.uri, runs.parent / "shots-exported")
    finally:
        server.stop()


@pytest.fixture(scope="module")
def live(runs: Path) -> Iterator[Site]:
    """Start a view that writes edits to the sidecar."""
    with view(runs, "--best", BEST, "--edit") as site:
        yield site


@pytest.fixture(scope="module", params=["live", IN_OLD_MLFLOW[0]])
def server(request: pytest.FixtureRequest, runs: Path, sqlite_template: Path) -> Iterator[Site]:
    """Return the view of the run directories, a server on their export, or the view by an older MLflow."""
    if request.param == "live":
        yield request.getfixturevalue("live")
    elif request.param == "exported":
        with exported(runs, sqlite_template) as site:
            yield site
    else:
        python = installed(f"mlflow-{request.param}", MLFLOWS[request.param]) / "python"
        path = f"{Path(__file__).parents[2]}:{plugin_folder(runs.parent)}"
        with view(runs, "--best", BEST, python=python, version=request.param, PYTHONPATH=path) as site:
            yield site


@pytest.fixture
def site(server: Site) -> Site:
    """Return a site, with no failed requests yet."""
    server.failed.clear()
    return server


def test_the_list_of_experiments(site: Site, page: Page) -> None:
    """The home page and the list name the experiment, and their empty parts show no error."""
    site.go(page, "" if site.is_old else "experiments")
    expect(page.get_by_role("link", name="runs", exact=True).first).to_be_visible(timeout=60_000)
    site.finish(page, "experiments")


def test_the_table_of_runs(site: Site, page: Page) -> None:
    """The table shows each run with its duration, nests a sweep's children, and filters by the search box."""
    site.open(page, "runs")
    expect(page.get_by_role("link", name="baseline", exact=True)).to_be_visible(timeout=60_000)
    expect(page.get_by_text("1.0h", exact=True).first).to_be_visible()
    assert _shown(page, site) == ["baseline", "broken", "events", "growing", "lr-scan"]
    sweep = page.get_by_role("row").filter(has=page.get_by_role("link", name="lr-scan", exact=True)).first
    sweep.get_by_role("button").first.click()
    expect(page.get_by_role("link", name="lr-1", exact=True)).to_be_visible()
    assert _shown(page, site) == ["baseline", "broken", "events", "growing", "lr-1", "lr-2", "lr-scan"]
    box = page.get_by_placeholder(re.compile("metrics.rmse"))
    box.fill("metrics.`val/acc` > 0.9 and tags.project = 'digits'")
    box.press("Enter")
    expect(page.get_by_role("link", name="broken", exact=True)).to_have_count(0)
    assert _shown(page, site) == ["baseline"]
    site.finish(page, "table")


def _shown(page: Page, site: Site) -> list[str]:
    """Return the names of the runs that the table shows."""
    return sorted(name for name in site.runs if page.get_by_role("link", name=name, exact=True).count())


@pytest.mark.parametrize("server", ["live", *IN_OLD_MLFLOW], indirect=True)
def test_the_saved_view_of_an_experiment(site: Site, page: Page) -> None:
    """The saved view shows the best metric and the params as columns, sorts the best run first, and has charts."""
    page.set_viewport_size({"width": 1800, "height": 900})
    site.open(page, "runs", "&viewStateShareKey=bridge")
    expect(page.get_by_role("link", name="baseline", exact=True)).to_be_visible(timeout=60_000)
    heads = page.get_by_role("columnheader")
    for column in ("val/acc.best", "val/acc"):
        expect(heads.filter(has_text=column).first).to_be_visible()
    rows = [text for text in page.get_by_role("row").all_inner_texts() if any(name in text for name in site.runs)]
    assert "baseline" in rows[0]
    site.finish(page, "saved-view")
    # Charts below the lower edge of the page are not drawn.
    page.set_viewport_size({"width": 1800, "height": 4200})
    site.open(page, "runs", "&viewStateShareKey=bridge&compareRunsMode=CHART")
    expect(page.locator(".js-plotly-plot").first).to_be_visible(timeout=60_000)
    site.finish(page, "saved-view-charts")


def test_the_page_of_a_sweep(site: Site, page: Page) -> None:
    """A sweep's description is a table with a link to its best child."""
    site.open(page, "lr-scan")
    notes = page.get_by_test_id("note-editor-preview-content")
    expect(notes.locator("table")).to_be_visible(timeout=60_000)
    assert "mean ± std" in notes.inner_text()
    expect(notes.get_by_role("link", name="lr-2")).to_be_visible()
    site.finish(page, "sweep")


def test_the_page_of_a_run(site: Site, page: Page) -> None:
    """The page shows user, source and times of the training, Markdown notes, tags, and params with secrets masked."""
    site.open(page, "baseline")
    notes = page.get_by_test_id("note-editor-preview-content")
    expect(notes.locator("h1")).to_have_text("Baseline", timeout=60_000)
    expect(notes.locator("strong")).to_have_text("first")
    text = page.locator("body").inner_text()
    wanted = (
        "04/10/2026",
        "ada",
        "Finished",
        "1.0h",
        "train.py",
        "0123456",
        "project",
        "optimizer.name",
        "adam",
        "***",
    )
    assert [part for part in wanted if part not in text] == []
    assert "hunter2" not in text
    site.finish(page, "run")


@pytest.mark.parametrize("server", ["live", "exported", IN_OLD_MLFLOW[0]], indirect=True)
def test_the_curves_and_images_of_a_run(site: Site, page: Page) -> None:
    """Each metric's chart draws its points, and `.best` metrics have their own chart.

    Each image index has a card whose slider goes through the steps.
    """
    page.set_viewport_size({"width": 1600, "height": 4200})
    site.open(page, "baseline/model-metrics")
    val = 2 if site.is_old else 1  # MLflow 2 shows the section `val` twice
    expect(page.locator(".js-plotly-plot")).to_have_count(1 + 2 * val, timeout=60_000)
    lines = [[1 / (step + 1) for step in range(20)], *[[step / 20 for step in range(20)]] * val]
    assert [line for line in drawn(page) if len(line) > 1] == lines
    titles = page.locator("body").inner_text().replace("\n", " ")
    groups = ("train (1)", "val (2)", "val/samples (2)", "moves (1)")
    for group in ("moves~0", "val~samples~0", "val~samples~1") if site.is_old else groups:
        assert group in titles
    pictures = page.locator('img[src*="get-artifact"]')
    expect(pictures).to_have_count(3)
    keys = sorted(str(pictures.nth(number).get_attribute("src")).partition("%2B")[0] for number in range(3))
    folder = "get-artifact?path=images%2F"
    assert keys == [f"{folder}{key}" for key in ("moves~0", "val~samples~0", "val~samples~1")]
    sizes = {key: page.locator(f'img[src^="{key}"]').evaluate("image => image.naturalWidth") for key in keys}
    assert set(sizes.values()) == {256}
    assert _frames(page.locator('img[src*="moves"]')) == 3
    slider = page.get_by_role("slider").nth(1)
    slider.focus()
    slider.press("ArrowRight")
    expect(page.locator('img[src*="samples~0%2Bstep%2B10%2B"]')).to_be_visible()
    site.finish(page, "curves-and-images")


def drawn(page: Page) -> list[list[float]]:
    """Return the values that each chart draws, those that begin with the greatest first."""
    page.wait_for_function(
        "[...document.querySelectorAll('.js-plotly-plot')].every(chart => chart.data?.some(line => line.y?.length))"
    )
    charts: Any = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(chart => Array.from(chart.data[0].y))"
    )
    return sorted(charts, reverse=True)


def _frames(moving: Locator) -> int:
    """Return the number of frames that the browser finds in an image."""
    return int(
        moving.evaluate(
            """async image => {
                const data = await (await fetch(image.src)).arrayBuffer();
                const decoder = new ImageDecoder({data, type: "image/webp"});
                await decoder.tracks.ready;
                return decoder.tracks.selectedTrack.frameCount;
            }"""
        )
    )


def test_the_files_of_a_run(site: Site, page: Page) -> None:
    """A video plays, captions form a table with their images, and settings show no secret."""
    if site.is_old:  # MLflow 2 plays no video
        site.open(page, "baseline/artifacts/bridge/captions.json")
    else:
        site.open(page, "baseline/artifacts/media/rollout/00000010_0.mp4")
        expect(page.locator("video")).to_be_visible(timeout=60_000)
        page.wait_for_function("document.querySelector('video').videoWidth === 64")
        page.get_by_text("bridge", exact=True).first.click()
        page.get_by_text("captions.json", exact=True).first.click()
    expect(page.get_by_text("caption 10 1")).to_be_visible()
    expect(page.locator('img[src*="samples"]').first).to_be_visible()
    site.finish(page, "captions")
    page.get_by_text("hparams.yaml", exact=True).first.click()
    page.wait_for_function("document.body.innerText.includes('***')")
    text = page.locator("body").inner_text()
    assert ("lr: 0.1" in text, "hunter2" in text) == (True, False)
    site.finish(page, "files")


def test_runs_are_compared(site: Site, page: Page) -> None:
    """The comparison shows the params and metrics of both runs."""
    ids = json.dumps([site.runs["baseline"], site.runs["broken"]])
    site.go(page, f"compare-runs?runs={ids}&experiments={json.dumps([site.experiment])}")
    expect(page.get_by_text("optimizer.name").first).to_be_visible(timeout=60_000)
    text = page.locator("body").inner_text()
    assert [part for part in ("baseline", "broken", "adam") if part not in text] == []
    site.finish(page, "compare")


def test_pages_without_content_are_empty(site: Site, page: Page) -> None:
    """The pages for traces and models are empty and show no error."""
    site.open(page, "traces")
    expect(page.get_by_text(re.compile("traces", re.IGNORECASE)).first).to_be_visible(timeout=60_000)
    site.go(page, "models")
    expect(page.get_by_text(re.compile("models", re.IGNORECASE)).first).to_be_visible(timeout=60_000)
    site.finish(page, "models")


def test_a_run_grows_and_is_requeued_while_its_page_is_open(live: Site, page: Page, runs: Path) -> None:
    """An open chart follows the file; after a requeue it shows the second values without a zigzag."""
    live.failed.clear()
    live.open(page, "growing/model-metrics")
    expect(page.locator(".js-plotly-plot")).to_have_count(1, timeout=60_000)
    assert drawn(page) == [[4.0] * 5]
    path = runs / "growing"
    write_metrics(path, ["loss", "step", "wall_time"], [(3.0, 5, CREATED_S + 5)], append=True)
    requeued = [(2.0, step, CREATED_S + 60 + step) for step in range(3, 8)]
    write_metrics(path, ["loss", "step", "wall_time"], requeued, append=True)
    (path / "heartbeat").touch()
    page.reload()
    expect(page.locator(".js-plotly-plot")).to_have_count(1, timeout=60_000)
    assert drawn(page) == [[4.0] * 3 + [2.0] * 5]
    live.finish(page, "requeued")


def test_a_run_of_event_files(live: Site, page: Page) -> None:
    """A TensorBoardLogger's run shows one curve without a zigzag, and the slider steps through its images."""
    live.failed.clear()
    page.set_viewport_size({"width": 1600, "height": 2600})
    live.open(page, "events/model-metrics")
    expect(page.locator(".js-plotly-plot")).to_have_count(1, timeout=60_000)
    assert drawn(page) == [[8.0] * 5 + [4.0] * 7]
    expect(page.locator('img[src*="get-artifact"]')).to_have_count(1)
    slider = page.get_by_role("slider").first
    slider.focus()
    for step in (4, 0):
        slider.press("ArrowRight" if step else "ArrowLeft")
        expect(page.locator(f'img[src*="samples~0%2Bstep%2B{step}%2B"]')).to_be_visible()
    live.finish(page, "event-files")


def test_edits_are_refused_in_words(live: Site, page: Page) -> None:
    """The page gives the reason why a description is refused, here that of a sweep, which has no directory."""
    live.failed.clear()
    live.open(page, "lr-scan")
    edit_description(page, "mine")
    expect(page.get_by_text(re.compile("has no run directory to edit")).first).to_be_visible()
    assert [line.partition(" ")[0] for line in live.failed] == ["403"] * len(live.failed) != []


def test_edits_land_in_the_sidecar(live: Site, page: Page, runs: Path) -> None:
    """With --edit a description typed on the page is written to sidecar.json."""
    live.failed.clear()
    live.open(page, "broken")
    edit_description(page, "typed **here**")
    expect(page.get_by_test_id("note-editor-preview-content").locator("strong")).to_have_text("here")
    live.finish(page, "edited")
    assert json.loads((runs / "broken" / "sidecar.json").read_text())["notes"] == "typed **here**"


def edit_description(page: Page, text: str) -> None:
    """Enter a description on the page of a run, and save it."""
    expect(page.get_by_text("Description").first).to_be_visible(timeout=60_000)
    add = page.get_by_role("button", name=re.compile("edit description|add description|edit", re.IGNORECASE)).first
    add.click()
    page.locator("textarea").first.fill(text)
    page.get_by_role("button", name="Save", exact=True).click()
