"""What people see of a TensorBoardLogger's run in MLflow, exported and live, in a real Chromium."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import mlflow
import pytest
from playwright.sync_api import expect

from bridge.exporters.mlflow import MlflowExporter
from bridge.sync.export import export_runs
from tests.browser.test_live_mlflow import Site, drawn, view
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.rundir.event_writing import START, age, append, picture, png, write_events

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Write a run that was requeued, with two images."""
    folder = tmp_path / "runs" / "resnet"
    first = write_events(folder, 0, [("loss", step, 8.0, START + step) for step in range(10)])
    append(first, picture("samples", 0, START, png(200)), picture("samples", 4, START + 4, png(100), is_tensor=True))
    write_events(folder, 1, [("loss", step, 4.0, START + 100 + step) for step in range(5, 12)])
    age(tmp_path)
    return tmp_path / "runs"


def look(site: Site, page: Page) -> None:
    """Check the curve and both images on the page of the run."""
    page.set_viewport_size({"width": 1600, "height": 2600})
    (name,) = site.runs
    site.open(page, f"{name}/model-metrics")
    expect(page.locator(".js-plotly-plot")).to_have_count(1, timeout=60_000)
    assert drawn(page) == [[8.0] * 5 + [4.0] * 7]
    shown = page.locator('img[src*="get-artifact"]')
    expect(shown).to_have_count(1)
    slider = page.get_by_role("slider").first
    slider.focus()
    for step in (4, 0):
        slider.press("ArrowRight" if step else "ArrowLeft")
        expect(page.locator(f'img[src*="samples~0%2Bstep%2B{step}%2B"]')).to_be_visible()
    site.finish(page, "event-files")


def test_a_run_of_event_files_in_the_live_view(runs: Path, page: Page) -> None:
    """The live view shows one curve without a zigzag, and the slider steps through the images."""
    with view(runs) as site:
        look(site, page)


def test_an_exported_run_of_event_files(runs: Path, sqlite_template: Path, tmp_path: Path, page: Page) -> None:
    """MLflow shows the same after an export."""
    uri = f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'mlflow.db')}"
    server = start_mlflow_server(uri, tmp_path)
    try:
        assert export_runs([runs], MlflowExporter(server.uri, "digits")).exit_code == 0
        client = mlflow.MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("digits").experiment_id
        names = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
        look(Site(server.uri, experiment, names, tmp_path), page)
    finally:
        server.stop()
