"""Look at MLflow on run directories in a real Chromium while a run grows and is requeued.

Screenshots are left in pytest's temporary folder for people to look at.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from playwright.sync_api import expect

from tests.contract.test_media import log_image, picture
from tests.environments import installed
from tests.live.test_mlflow import plugin_folder
from tests.live.test_versions import OLD_MLFLOW
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page, Response

EXPECTED_404 = "users/current"
"""MLflow's own page asks for it, and no server without accounts answers."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a finished run with everything, a failed one, a sweep of two, and one that is running."""
    folder = tmp_path_factory.mktemp("live-mlflow") / "runs"
    rows = [{"step": step, "loss": 1.0 / (step + 1), "val/acc": step / 20} for step in range(20)]
    first = make_run(
        folder / "baseline",
        rows,
        hparams={"lr": 0.1, "optimizer.name": "adam", "password": "hunter2"},
        notes="# Baseline\n\nThe **first** try.",
        tags=["project:digits", "keeper"],
        summary={"loss": 0.05, "val/acc": 0.95},
        sessions=[
            {"user": "ada", "command": "train.py --api-key hunter2", "git_commit": "0123456789abcdef", "rows": 0}
        ],
    )
    (first / "hparams.yaml").write_text("lr: 0.1\npassword: hunter2\n")
    for step in (0, 10):
        log_image(first, step, f"{step}.png", picture(60 + 10 * step), caption=f"caption {step}")
    make_run(folder / "broken", rows[:3], status="failed", summary={"loss": 0.3})
    for number in (1, 2):
        make_run(folder / f"lr-{number}", rows[: 4 * number], tags=["sweep:lr-scan"], summary={"loss": 0.2})
    growing = make_run(folder / "growing", [{"step": step, "loss": 4.0} for step in range(5)], status="running")
    (growing / "heartbeat").touch()
    return folder


@dataclass
class Site:
    """A live view: the ids of its runs by name, and the failed requests of its pages."""

    address: str
    experiment: str
    runs: dict[str, str]
    shots: Path
    failed: list[str] = field(default_factory=list)

    def open(self, page: Page, place: str) -> None:
        """Go to a page of the experiment; a run's begins with its name."""
        name, _, rest = place.partition("/")
        if name in self.runs:
            place = f"runs/{self.runs[name]}/{rest}".rstrip("/")
        self.watch(page)
        page.goto(f"{self.address}/#/experiments/{self.experiment}/{place}?workflowType=machine_learning")

    def watch(self, page: Page) -> None:
        """Remember the requests of `page` that fail."""
        page.on("response", self._remember)

    def _remember(self, response: Response) -> None:
        if response.status >= 400 and EXPECTED_404 not in response.url:
            self.failed.append(f"{response.status} {response.request.method} {response.url}")

    def finish(self, page: Page, name: str) -> None:
        """Check that no request failed and no error is shown, and leave a screenshot."""
        page.screenshot(path=self.shots / f"{name}.png")
        assert self.failed == []
        assert page.get_by_text(re.compile("something went wrong|error_code", re.IGNORECASE)).count() == 0


@contextlib.contextmanager
def view(runs: Path, *options: str, python: Path | str = sys.executable) -> Iterator[Site]:
    command = [str(python), "-m", "bridge", "view", str(runs), "--to", "mlflow", "--no-open", *options]
    environment = os.environ | {"BRIDGE_CACHE_DIR": str(runs.parent / "cache"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=runs.parent, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address, _, page = process.stdout.readline().strip().partition("/#/")
            client = mlflow.MlflowClient(address)
            experiment = page.split("/")[1]
            names = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
            shots = runs.parent / "shots"
            shots.mkdir(exist_ok=True)
            yield Site(address, experiment, names, shots)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


@pytest.fixture(scope="module")
def live(runs: Path) -> Iterator[Site]:
    """Start a view that can only be looked at."""
    with view(runs) as site:
        yield site


@pytest.fixture
def site(live: Site) -> Site:
    """Return the view, with no failed requests yet."""
    live.failed.clear()
    return live


def test_the_list_of_experiments(site: Site, page: Page) -> None:
    """The home page and the list name the folder of runs, and their empty parts show no error."""
    site.watch(page)
    page.goto(f"{site.address}/#/experiments")
    expect(page.get_by_role("link", name="runs", exact=True).first).to_be_visible(timeout=60_000)
    site.finish(page, "experiments")


def test_the_table_of_runs(site: Site, page: Page) -> None:
    """The table shows each run with its status, nests children under their sweep, and filters by the search box."""
    site.open(page, "runs")
    expect(page.get_by_role("link", name="baseline", exact=True)).to_be_visible(timeout=60_000)
    for name in ("broken", "growing", "lr-scan"):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    sweep = page.get_by_role("row").filter(has=page.get_by_role("link", name="lr-scan", exact=True)).first
    sweep.get_by_role("button").first.click()
    expect(page.get_by_role("link", name="lr-1", exact=True)).to_be_visible()
    box = page.get_by_placeholder(re.compile("metrics.rmse"))
    box.fill("metrics.`val/acc` > 0.9 and tags.project = 'digits'")
    box.press("Enter")
    expect(page.get_by_role("link", name="broken", exact=True)).to_have_count(0)
    expect(page.get_by_role("link", name="baseline", exact=True)).to_be_visible()
    site.finish(page, "table")


def test_the_page_of_a_run(site: Site, page: Page) -> None:
    """The page shows notes, user, source, tags and params, with secrets masked."""
    site.open(page, "baseline")
    notes = page.get_by_test_id("note-editor-preview-content")
    expect(notes.locator("h1")).to_have_text("Baseline", timeout=60_000)
    text = page.locator("main").inner_text()
    wanted = ("04/10/2026", "ada", "Finished", "1.0h", "train.py", "project", "keeper", "optimizer.name", "adam", "***")
    assert [part for part in wanted if part not in text] == []
    assert "hunter2" not in text
    site.finish(page, "run")


def test_the_curves_and_images_of_a_run(site: Site, page: Page) -> None:
    """Each metric's chart draws its points, and the slider steps through the images."""
    page.set_viewport_size({"width": 1600, "height": 2600})
    site.open(page, "baseline/model-metrics")
    charts = page.locator(".js-plotly-plot")
    expect(charts).to_have_count(2, timeout=60_000)
    assert drawn(page) == [[1.0 / (step + 1) for step in range(20)], [step / 20 for step in range(20)]]
    shown = page.locator('img[src*="get-artifact"]')
    expect(shown).to_have_count(1)
    assert shown.evaluate("image => image.naturalWidth") == 256
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    expect(page.locator('img[src*="samples~0%2Bstep%2B10%2B"]')).to_be_visible()
    site.finish(page, "curves-and-images")


def drawn(page: Page) -> list[list[float]]:
    """Return the values that each chart draws, in the order of the page."""
    page.wait_for_function(
        "[...document.querySelectorAll('.js-plotly-plot')].every(chart => chart.data?.some(line => line.y?.length > 1))"
    )
    charts: Any = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(chart => Array.from(chart.data[0].y))"
    )
    return sorted(charts, reverse=True)


def test_the_files_of_a_run(site: Site, page: Page) -> None:
    """Copies of files are masked, and captions form a table with their images."""
    site.open(page, "baseline/artifacts/hparams.yaml")
    expect(page.get_by_text("hparams.yaml").first).to_be_visible(timeout=60_000)
    page.wait_for_function("document.querySelector('main').innerText.includes('***')")
    text = page.locator("main").inner_text()
    assert ("lr: 0.1" in text, "hunter2" in text) == (True, False)
    page.goto("about:blank")
    site.open(page, "baseline/artifacts/bridge/captions.json")
    expect(page.get_by_text("caption 10")).to_be_visible()
    site.finish(page, "captions")


def test_runs_are_compared(site: Site, page: Page) -> None:
    """The comparison shows the params and metrics of both runs."""
    ids = json.dumps([site.runs["baseline"], site.runs["broken"]])
    site.watch(page)
    page.goto(f"{site.address}/#/compare-runs?runs={ids}&experiments={json.dumps([site.experiment])}")
    expect(page.get_by_text("optimizer.name").first).to_be_visible(timeout=60_000)
    text = page.locator("body").inner_text()
    assert [part for part in ("baseline", "broken", "adam") if part not in text] == []
    site.finish(page, "compare")


def test_pages_without_content_are_empty(site: Site, page: Page) -> None:
    """The pages for traces and models are empty and show no error."""
    site.open(page, "traces")
    expect(page.get_by_text(re.compile("traces", re.IGNORECASE)).first).to_be_visible(timeout=60_000)
    page.goto(f"{site.address}/#/models")
    expect(page.get_by_text(re.compile("models", re.IGNORECASE)).first).to_be_visible(timeout=60_000)
    site.finish(page, "models")


def test_a_run_grows_and_is_requeued_while_its_page_is_open(site: Site, page: Page, runs: Path) -> None:
    """An open chart follows the file; after a requeue it shows the second values without a zigzag."""
    site.open(page, "growing/model-metrics")
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
    site.finish(page, "requeued")


def test_edits_are_refused_in_words(site: Site, page: Page) -> None:
    """Without --edit the view refuses a new description, and the page gives the reason."""
    site.open(page, "broken")
    edit_description(page, "mine")
    expect(page.get_by_text(re.compile("changes nothing but")).first).to_be_visible()
    assert [line.partition(" ")[0] for line in site.failed] == ["403"] * len(site.failed) != []


def test_edits_land_in_the_sidecar(runs: Path, page: Page) -> None:
    """With --edit a description typed on the page is written to sidecar.json."""
    with view(runs, "--edit") as site:
        site.open(page, "broken")
        edit_description(page, "typed **here**")
        expect(page.get_by_test_id("note-editor-preview-content").locator("strong")).to_have_text("here")
        site.finish(page, "edited")
    assert json.loads((runs / "broken" / "sidecar.json").read_text())["notes"] == "typed **here**"


@pytest.mark.compat
@pytest.mark.timeout(1200)
def test_the_pages_of_mlflow_2(runs: Path, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest MLflow that is supported shows the table, a run, its curves, pictures and files without an error."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{plugin_folder(runs.parent)}")
    with view(runs, python=installed("mlflow-2.22", OLD_MLFLOW) / "python") as site:
        site.open(page, "runs")
        expect(page.get_by_role("link", name="baseline", exact=True)).to_be_visible(timeout=60_000)
        site.finish(page, "old-table")
        site.open(page, "baseline")
        expect(page.get_by_text("optimizer.name").first).to_be_visible()
        assert "hunter2" not in page.locator("body").inner_text()
        site.finish(page, "old-run")
        page.set_viewport_size({"width": 1600, "height": 2600})
        site.open(page, "baseline/model-metrics")
        expect(page.locator('img[src*="get-artifact"]').first).to_be_visible()
        expect(page.locator(".js-plotly-plot").nth(2)).to_be_visible()  # MLflow 2 shows the section `val` twice
        lines = drawn(page)
        assert lines == [[1.0 / (step + 1) for step in range(20)], *[[step / 20 for step in range(20)]] * 2]
        site.finish(page, "old-curves")
        site.open(page, "baseline/artifacts/hparams.yaml")
        page.wait_for_function("document.body.innerText.includes('***')")
        site.finish(page, "old-files")


def edit_description(page: Page, text: str) -> None:
    expect(page.get_by_text("Description").first).to_be_visible(timeout=60_000)
    add = page.get_by_role("button", name=re.compile("edit description|add description|edit", re.IGNORECASE)).first
    add.click()
    page.locator("textarea").first.fill(text)
    page.get_by_role("button", name="Save", exact=True).click()
