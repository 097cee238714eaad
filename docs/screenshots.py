"""Take the pictures of the README and the docs: the demo's runs on the real pages, as a newcomer sees them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import expect, sync_playwright

from tests.fixtures.browser import FLAGS
from tests.servers import viewing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

PICTURES = Path(__file__).parent / "pictures"
EXPERIMENT = "digits"
LAST_STEP = "276"


def bridge(*arguments: str, folder: Path, **environment: str) -> str:
    """Return what a command prints."""
    command = [sys.executable, "-m", "bridge", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


@contextmanager
def page_of(browser: Browser, width: int, height: int) -> Iterator[Page]:
    """Yield a fresh page of that size in pixels."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def keep(page: Page, name: str) -> None:
    """Save the page as a picture, once nothing moves any more."""
    page.wait_for_timeout(4000)
    page.screenshot(path=PICTURES / f"{name}.png")
    print(PICTURES / f"{name}.png")


def shoot_terminal(browser: Browser, folder: Path) -> None:
    """Take a picture of `bridge ls` on a terminal of 80 columns."""
    from rich.console import Console
    from rich.text import Text

    shown = bridge("ls", "demo-runs", folder=folder, COLUMNS="80", FORCE_COLOR="1")
    console = Console(record=True, width=80, file=Path(os.devnull).open("w"))  # noqa: SIM115 - rich keeps it
    console.print(Text("$ bridge ls demo-runs"))
    console.print(Text.from_ansi(shown))
    svg = folder / "ls.html"
    svg.write_text(f"<body style='margin:0'>{console.export_svg(title='bridge ls')}</body>")
    with page_of(browser, 900, 420) as page:
        page.goto(svg.as_uri())
        page.locator("svg").screenshot(path=PICTURES / "ls.png")
        print(PICTURES / "ls.png")


def shoot_tensorboard(browser: Browser, address: str) -> None:
    """Take pictures of TIME SERIES, IMAGES and HPARAMS."""
    with page_of(browser, 1240, 1010) as page:
        page.goto(f"{address}?darkMode=false&tagFilter=%28val%7Ctrain%29%2F%28acc%7Closs%29#timeseries")
        expect(page.locator("scalar-card").first).to_be_visible()
        page.get_by_role("button", name="Close side pane").click()
        keep(page, "tensorboard-scalars")
    with page_of(browser, 1500, 900) as page:
        page.goto(f"{address}?darkMode=false#images")
        dashboard = page.locator("tf-image-dashboard")
        expect(dashboard.locator("tf-image-loader img").first).to_be_visible()
        keep(page, "tensorboard-images")
        page.goto(f"{address}?darkMode=false#hparams")
        expect(page.get_by_role("gridcell", name="preempted").locator("visible=true").first).to_be_visible()
        keep(page, "tensorboard-hparams")


def shoot_mlflow(browser: Browser, address: str, runs: dict[str, str]) -> None:
    """Take pictures of the table of runs, the charts, and one run's step images."""
    with page_of(browser, 1500, 700) as page:
        page.goto(address)
        expect(page.get_by_role("link", name="preempted", exact=True)).to_be_visible()
        # The assistant takes a third of the page; its pane is closed by the last button of its head.
        for close in page.get_by_role("button", name="Close", exact=False).all():
            close.click()
        page.get_by_role("heading", name="Runs").click()
        keep(page, "mlflow-runs")
        shoot_mlflow_charts(page, address)
        shoot_mlflow_images(page, f"{address.partition('/runs?')[0]}/runs/{runs['preempted']}")


def shoot_mlflow_charts(page: Page, address: str) -> None:
    """Take a picture of the charts without the run that diverged: its loss of 1e35 would flatten all other curves."""
    page.set_viewport_size({"width": 1500, "height": 1110})
    page.goto(f"{address}&compareRunsMode=CHART")
    page.get_by_role("searchbox", name="Search metric charts").fill("^(train|val)/(acc|loss)")
    diverged = page.get_by_role("row").filter(has=page.get_by_role("link", name="diverged", exact=True)).first
    diverged.get_by_text("Hide run").locator("..").click()
    page.get_by_role("heading", name="Runs").click()
    expect(page.locator(".js-plotly-plot")).to_have_count(5)
    keep(page, "mlflow-charts")


def shoot_mlflow_images(page: Page, run: str) -> None:
    """Take a picture of the step images of a run at their last step."""
    page.set_viewport_size({"width": 1500, "height": 1080})
    page.goto(f"{run}/model-metrics?workflowType=machine_learning")
    expect(page.get_by_role("heading", name="acc", exact=True).first).to_be_visible()
    # The search hides charts, never pictures.
    page.get_by_role("searchbox", name="Search metric charts").fill("val/samples")
    steps = page.get_by_role("spinbutton")
    expect(steps).to_have_count(5)
    for step in steps.all():
        step.fill(LAST_STEP)
        step.blur()
    for picture in page.locator('img[src*="get-artifact"]').all():
        expect(picture).not_to_have_js_property("naturalWidth", 0)
    page.mouse.move(750, 700)
    page.mouse.wheel(0, -10_000)
    page.mouse.move(0, 0)
    keep(page, "mlflow-images")


def plot_curves(folder: Path) -> None:
    """Draw the curves of the demo's sweep as the page on notebooks does."""
    import matplotlib.pyplot as plt
    import pandas as pd

    from bridge import open_registry, read_points

    sweep = open_registry(folder / "demo-runs").query(tag="sweep:digits-lr")
    curves = pd.concat([read_points(run, "val/acc").assign(run=run.run_id) for run in sweep])
    axes = curves.pivot(index="step", columns="run", values="value").plot(ylabel="val/acc", figsize=(8, 4))
    axes.figure.savefig(PICTURES / "notebook.png", dpi=110, bbox_inches="tight")
    plt.close(axes.figure)
    print(PICTURES / "notebook.png")


def main() -> None:
    """Train the demo's runs and take all pictures."""
    PICTURES.mkdir(exist_ok=True)
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("chromium is missing: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        bridge("demo", "demo-runs", folder=folder)
        mlflow = ("--to", "mlflow", "--experiment", EXPERIMENT, "--best", "val/acc:max")
        expect.set_options(timeout=60_000)
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))
        shoot_terminal(browser, folder)
        plot_curves(folder)
        with viewing(folder, "demo-runs", "--to", "tensorboard") as (address, _):
            shoot_tensorboard(browser, address)
        with viewing(folder, "demo-runs", *mlflow) as (address, _):
            shoot_mlflow(browser, address, run_ids(address))
        browser.close()


def run_ids(address: str) -> dict[str, str]:
    """Return MLflow's ids of the runs, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(address.partition("/#")[0])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}


if __name__ == "__main__":
    main()
