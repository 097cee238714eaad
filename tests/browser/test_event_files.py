"""What people see of a TensorBoardLogger's run in MLflow, exported and live, in a real Chromium."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.test_mlflow import drawn, exported, view
from tests.pictures import png
from tests.rundir.event_writing import START, age, append, picture, write_events

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


@pytest.mark.parametrize("show", [view, exported])
def test_a_run_of_event_files(runs: Path, sqlite_template: Path, page: Page, show: Any) -> None:
    """The live view and an export show one curve without a zigzag, and the slider steps through the images."""
    page.set_viewport_size({"width": 1600, "height": 2600})
    with show(runs) if show is view else show(runs, sqlite_template) as site:
        (name,) = site.runs
        site.open(page, f"{name}/model-metrics")
        expect(page.locator(".js-plotly-plot")).to_have_count(1, timeout=60_000)
        assert drawn(page) == [[8.0] * 5 + [4.0] * 7]
        expect(page.locator('img[src*="get-artifact"]')).to_have_count(1)
        slider = page.get_by_role("slider").first
        slider.focus()
        for step in (4, 0):
            slider.press("ArrowRight" if step else "ArrowLeft")
            expect(page.locator(f'img[src*="samples~0%2Bstep%2B{step}%2B"]')).to_be_visible()
        site.finish(page, "event-files")
