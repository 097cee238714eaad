"""Look at TensorBoard on run directories in a real Chromium while a run grows and is requeued."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.pictures import log_image, png
from tests.run_dirs import CREATED_S, make_run, write_metrics
from tests.servers import viewing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make three runs, one of them running."""
    folder = tmp_path_factory.mktemp("live") / "runs"
    first = make_run(
        folder / "one",
        [{"step": step, "loss": 1.0 / (step + 1), "val/acc": step / 20} for step in range(20)],
        hparams={"lr": 0.1, "opt": "adam"},
        notes="# Baseline",
        tags=["base|line"],
        summary={"loss": 0.05, "val/acc": 0.95},
    )
    for step in (0, 10):
        log_image(first, step, f"{step}.png", png(step), caption=f"step {step}")
    make_run(
        folder / "two",
        [{"step": step, "loss": 2.0 / (step + 1)} for step in range(20)],
        status="failed",
        hparams={"lr": 0.01, "opt": "sgd"},
        summary={"loss": 0.1},
    )
    growing = make_run(
        folder / "growing",
        [{"step": step, "loss": 4.0} for step in range(5)],
        status="running",
        hparams={"lr": 0.5, "opt": "sgd"},
        summary={"loss": 4.0},
    )
    (growing / "heartbeat").touch()
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """Yield the address that `bridge view` prints."""
    with viewing(runs.parent, runs, "--to", "tensorboard") as (address, _):
        yield address


@pytest.fixture
def failures(page: Page) -> list[str]:
    """Return the list of the page's failed requests, which grows."""
    failed: list[str] = []
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    return failed


def test_curves_grow_with_the_run(page: Page, address: str, runs: Path, failures: list[str]) -> None:
    """TIME SERIES shows each run's last value and step, and still does after it grows and is requeued."""
    page.goto(f"{address}?darkMode=false#timeseries")
    page.locator("metrics-tag-filter input").fill("^loss$")
    table = page.locator("metrics-filtered-view scalar-card tb-data-table-content-row")
    expect(table).to_have_count(3)

    def last() -> dict[str, list[str]]:
        return {row.split()[0]: row.split()[2:4] for row in table.all_inner_texts()}

    def reload_until(expected: list[str]) -> None:
        for _ in range(20):
            page.locator("app-header-reload button").click()
            page.wait_for_timeout(500)
            if last()["growing"] == expected:
                return
        assert last()["growing"] == expected

    assert last() == {"one": ["0.05", "19"], "two": ["0.1", "19"], "growing": ["4", "4"]}
    growing = runs / "growing"
    write_metrics(
        growing, ["loss", "step", "wall_time"], [(3.0, 5, CREATED_S + 5), (2.0, 6, CREATED_S + 6)], append=True
    )
    reload_until(["2", "6"])
    write_metrics(
        growing, ["loss", "step", "wall_time"], [(9.0, 3, CREATED_S + 7), (8.0, 4, CREATED_S + 8)], append=True
    )
    reload_until(["2", "6"])
    assert failures == []


def test_images_texts_and_hyperparameters(page: Page, address: str, runs: Path, failures: list[str]) -> None:
    """Each dashboard shows what the files hold, and no request fails."""
    page.goto(f"{address}?darkMode=false#images")
    images = page.locator("tf-image-dashboard tf-image-loader img")
    expect(images).to_have_count(1)
    page.wait_for_function("all => all.every(one => one.complete && one.naturalWidth)", arg=images.element_handles())
    page.goto(f"{address}?darkMode=false#text")
    dashboard = page.locator("tf-text-dashboard")
    for part in ("Baseline", "base|line", "adam"):
        expect(dashboard.get_by_text(re.compile(re.escape(part))).first).to_be_attached()
    page.goto(f"{address}?darkMode=false#hparams")
    cells = page.locator("tf-hparams-dashboard vaadin-grid-cell-content")
    for part in ("one", "two", "growing", "adam", "0.010000"):
        expect(cells.get_by_text(part, exact=True).first).to_be_attached()
    page.goto(f"{address}?darkMode=false#scalars")
    expect(page.locator("tf-scalar-card").first).to_be_attached()
    assert failures == []
