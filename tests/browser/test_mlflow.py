"""Export to a real MLflow and look at it in a real Chromium: runs, curves, images, notes, files and sweeps.

Screenshots are left in pytest's temporary folder for people to look at.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from bridge.model import MediaType, Status
from bridge.options import ContentOptions
from logger.sidecar import SessionEntry
from tests.exporters.mlflow.by_hand import START, file_of, run_of
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.pictures import encoded, event_of, film, moving_gif
from tests.fixtures.mlflow_server import start_mlflow_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Locator, Page

    from bridge.model import MediaEvent, Run

BEST = ContentOptions(best=("val/acc:max",))
NOTES = "# Baseline\n\nThe **first** try, see `train.py`."


@dataclass(frozen=True)
class Site:
    """A server with exported runs; `runs` are the ids of MLflow's runs by name."""

    uri: str
    experiment: str
    runs: dict[str, str]
    shots: Path

    def open(self, page: Page, place: str) -> None:
        """Go to a page of the experiment; a run's begins with its name."""
        name, _, rest = place.partition("/")
        if name in self.runs:
            place = f"runs/{self.runs[name]}/{rest}".rstrip("/")
        page.goto(f"{self.uri}/#/experiments/{self.experiment}/{place}?workflowType=machine_learning")

    def shoot(self, page: Page, name: str) -> None:
        """Leave a screenshot."""
        page.screenshot(path=self.shots / f"{name}.png")


def _baseline(folder: Path) -> Run:
    folder.mkdir()
    (folder / "hparams.yaml").write_text("lr: 0.1\npassword: hunter2\n")
    return run_of(
        folder,
        name="baseline",
        params={"lr": 0.1, "optimizer.name": "adam", "password": "hunter2"},
        tags=("project:digits", "keeper"),
        notes=NOTES,
        sessions=(SessionEntry(user="ada", command="train.py --lr 0.1", git_commit="0123456789abcdef"),),
        files={"hparams.yaml": file_of(folder / "hparams.yaml")},
    )


def _media(folder: Path) -> tuple[MediaEvent, ...]:
    colours = ("red", "green", "blue", "orange")
    pictures = [
        event_of(
            folder, encoded("png", size=(32, 32), colour=colours[2 * number + index]), "png", step=step, index=index
        )
        for number, step in enumerate((0, 10))
        for index in (0, 1)
    ]
    return (
        *pictures,
        event_of(folder, encoded("png", size=(40, 20)), "png", tag="confusion", step=0, caption="row: is"),
        event_of(folder, moving_gif(), "gif", tag="moves", step=0),
        event_of(folder, film(), "mp4", tag="rollout", step=10, type=MediaType.VIDEO),
    )


@pytest.fixture(scope="module")
def site(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Export six runs, one of them with everything and two in a sweep."""
    folder = tmp_path_factory.mktemp("mlflow-site")
    store = Store(f"sqlite:///{shutil.copy(sqlite_template, folder / 'mlflow.db')}", experiment="digits")
    rows = [{"step": step, "val/acc": 1 - 1 / (step + 1), "train/loss": 1 / (step + 1)} for step in range(20)]
    store.export(_baseline(folder / "baseline"), rows, content=BEST, media=_media(folder / "media"))
    store.export(run_of(folder / "broken", status=Status.FAILED, start=START - 60), rows[:3], content=BEST)
    store.export(run_of(folder / "gone", status=Status.KILLED, start=START - 120), rows[:5], content=BEST)
    for number in (1, 2):
        tags = ("sweep:lr-scan",)
        store.export(
            run_of(folder / f"trial-{number}", tags=tags, start=START - 200 * number), rows[: 4 * number], content=BEST
        )
    runs = {run.info.run_name: run.info.run_id for run in store.runs()}
    experiment = store.runs()[0].info.experiment_id
    server = start_mlflow_server(store.uri, folder / "server")
    try:
        yield Site(server.uri, experiment, runs, tmp_path_factory.mktemp("mlflow-shots"))
    finally:
        server.stop()


def test_the_table_of_runs(site: Site, page: Page) -> None:
    """The table shows each run's own duration, and a sweep's children when it is opened."""
    site.open(page, "runs")
    expect(page.get_by_role("link", name="baseline", exact=True)).to_be_visible(timeout=60_000)
    expect(page.get_by_text("1.0h", exact=True).first).to_be_visible()
    assert _shown(page, site) == ["baseline", "broken", "gone", "lr-scan"]
    sweep = page.get_by_role("row").filter(has=page.get_by_role("link", name="lr-scan", exact=True)).first
    sweep.get_by_role("button").first.click()
    expect(page.get_by_role("link", name="trial-1", exact=True)).to_be_visible()
    assert _shown(page, site) == ["baseline", "broken", "gone", "lr-scan", "trial-1", "trial-2"]
    site.shoot(page, "table")


def test_the_saved_view_of_an_experiment(site: Site, page: Page) -> None:
    """The saved view shows the best metric and the params as columns, sorts the best run first, and has charts."""
    page.set_viewport_size({"width": 1800, "height": 900})
    address = f"{site.uri}/#/experiments/{site.experiment}/runs"
    page.goto(f"{address}?workflowType=machine_learning&viewStateShareKey=bridge")
    expect(page.get_by_role("link", name="baseline", exact=True)).to_be_visible(timeout=60_000)
    heads = page.get_by_role("columnheader")
    for column in ("val/acc.best", "val/acc"):
        expect(heads.filter(has_text=column).first).to_be_visible()
    site.shoot(page, "saved-view")
    names = [name for name in page.get_by_role("row").all_inner_texts() if any(run in name for run in site.runs)]
    first = next(run for run in site.runs if run in names[0])
    assert first == "baseline"
    # Charts below the lower edge of the page are not drawn.
    page.set_viewport_size({"width": 1800, "height": 4200})
    page.goto("about:blank")
    page.goto(f"{address}?workflowType=machine_learning&viewStateShareKey=bridge&compareRunsMode=CHART")
    expect(page.locator(".js-plotly-plot").first).to_be_visible(timeout=60_000)
    site.shoot(page, "saved-view-charts")


def test_the_page_of_a_sweep(site: Site, page: Page) -> None:
    """A sweep's description is a table with a link to its best child."""
    site.open(page, "lr-scan")
    notes = page.get_by_test_id("note-editor-preview-content")
    expect(notes.locator("table")).to_be_visible(timeout=60_000)
    assert "mean ± std" in notes.inner_text()
    expect(notes.get_by_role("link", name="trial-2")).to_be_visible()
    site.shoot(page, "sweep")


def _shown(page: Page, site: Site) -> list[str]:
    """Return the names of the runs that the table shows."""
    return sorted(name for name in site.runs if page.get_by_role("link", name=name, exact=True).count())


def test_the_page_of_a_run(site: Site, page: Page) -> None:
    """The page shows user, source and times of the training, Markdown notes, tags, and params with secrets masked."""
    site.open(page, "baseline")
    notes = page.get_by_test_id("note-editor-preview-content")
    expect(notes.locator("h1")).to_have_text("Baseline", timeout=60_000)
    expect(notes.locator("strong")).to_have_text("first")
    text = page.locator("main").inner_text()
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
    )
    assert [part for part in wanted if part not in text] == []
    assert ("***" in text, "hunter2" in text) == (True, False)
    site.shoot(page, "run")


def test_the_curves_and_images_of_a_run(site: Site, page: Page) -> None:
    """Each metric has a chart, and `.best` metrics have their own section.

    Each image index has a card whose slider goes through the steps.
    """
    page.set_viewport_size({"width": 1600, "height": 4200})
    site.open(page, "baseline/model-metrics")
    charts = page.locator(".js-plotly-plot")
    expect(charts).to_have_count(3, timeout=60_000)
    expect(charts.first.locator(".scatterlayer .js-line").first).to_be_attached()
    titles = page.locator("main").inner_text().replace("\n", " ")
    for group in ("train (1)", "val (2)", "val/samples (2)", "confusion (1)"):
        assert group in titles
    pictures = page.locator('img[src*="get-artifact"]')
    expect(pictures).to_have_count(4)
    keys = sorted(str(pictures.nth(number).get_attribute("src")).partition("%2B")[0] for number in range(4))
    folder = "get-artifact?path=images%2F"
    assert keys == [f"{folder}{key}" for key in ("confusion~0", "moves~0", "val~samples~0", "val~samples~1")]
    sizes = {key: page.locator(f'img[src^="{key}"]').evaluate("image => image.naturalWidth") for key in keys}
    assert set(sizes.values()) == {256}
    assert _frames(page.locator('img[src*="moves"]')) == 3
    site.shoot(page, "curves-and-images")
    slider = page.get_by_role("slider").nth(2)
    slider.focus()
    slider.press("ArrowRight")
    expect(page.locator('img[src*="samples~0%2Bstep%2B10%2B"]')).to_be_visible()
    site.shoot(page, "next-step")


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
    """A video plays, captions form a table with their image, and settings show no secret."""
    site.open(page, "baseline/artifacts/media/rollout/00000010_0.mp4")
    expect(page.locator("video")).to_be_visible(timeout=60_000)
    page.wait_for_function("document.querySelector('video').videoWidth === 64")
    page.goto("about:blank")  # the viewer looks at its address only when the page is loaded
    site.open(page, "baseline/artifacts/bridge/captions.json")
    expect(page.get_by_text("row: is")).to_be_visible()
    expect(page.locator('img[src*="confusion"]')).to_be_visible()
    site.shoot(page, "captions")
    page.goto("about:blank")
    site.open(page, "baseline/artifacts/hparams.yaml")
    expect(page.get_by_text("hparams.yaml").first).to_be_visible()
    page.wait_for_function("document.querySelector('main').innerText.includes('***')")
    text = page.locator("main").inner_text()
    assert ("lr: 0.1" in text, "hunter2" in text) == (True, False)
    site.shoot(page, "files")
