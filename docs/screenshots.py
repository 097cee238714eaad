"""Make the pictures of the README and the docs anew, from the demo's runs in real UIs: `make screenshots`."""

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

from bridge.exporters import find_exporter
from bridge.view import free_port, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

PICTURES = Path(__file__).parent / "pictures"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EXPERIMENT = "digits"


def bridge(*arguments: str, folder: Path, **environment: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "bridge", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


@contextmanager
def page_of(browser: Browser, width: int, height: int) -> Iterator[Page]:
    """A fresh page of that size in pixels."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def keep(page: Page, name: str) -> None:
    """Save what the page shows, once nothing moves any more."""
    page.wait_for_timeout(4000)
    page.screenshot(path=PICTURES / f"{name}.png")
    print(PICTURES / f"{name}.png")


def shoot_terminal(browser: Browser, folder: Path) -> None:
    """`bridge ls`, as a terminal of 118 columns shows it."""
    from rich.console import Console
    from rich.text import Text

    shown = bridge("ls", "demo-runs", folder=folder, COLUMNS="118", FORCE_COLOR="1")
    console = Console(record=True, width=118, file=Path(os.devnull).open("w"))  # noqa: SIM115 - rich keeps it
    console.print(Text("$ bridge ls demo-runs"))
    console.print(Text.from_ansi(shown))
    svg = folder / "ls.html"
    svg.write_text(f"<body style='margin:0'>{console.export_svg(title='bridge ls')}</body>")
    with page_of(browser, 1180, 420) as page:
        page.goto(svg.as_uri())
        page.locator("svg").screenshot(path=PICTURES / "ls.png")
        print(PICTURES / "ls.png")


def shoot_tensorboard(browser: Browser, address: str) -> None:
    """SCALARS, IMAGES and HPARAMS."""
    with page_of(browser, 1500, 900) as page:
        page.goto(f"{address}?darkMode=false&tagFilter=%28val%7Ctrain%29%2F%28acc%7Closs%29#timeseries")
        expect(page.locator("scalar-card").first).to_be_visible()
        keep(page, "tensorboard-scalars")
        page.goto(f"{address}?darkMode=false#images")
        dashboard = page.locator("tf-image-dashboard")
        expect(dashboard.locator("tf-image-loader img").first).to_be_visible()
        keep(page, "tensorboard-images")
        page.goto(f"{address}?darkMode=false#hparams")
        expect(page.get_by_role("gridcell", name="preempted").locator("visible=true").first).to_be_visible()
        keep(page, "tensorboard-hparams")


def shoot_mlflow(browser: Browser, address: str, runs: dict[str, str]) -> None:
    """The table of runs, the charts, and one run's step images."""
    base = address.partition("/runs?")[0]
    with page_of(browser, 1500, 800) as page:
        page.goto(address)
        expect(page.get_by_role("link", name="preempted", exact=True)).to_be_visible()
        sweep = page.get_by_role("row").filter(has=page.get_by_role("link", name="digits-lr", exact=True)).first
        sweep.get_by_role("button").first.click()
        # The assistant takes a third of the page; its pane is closed by the last button of its head.
        for close in page.get_by_role("button", name="Close", exact=False).all():
            close.click()
        keep(page, "mlflow-runs")
        page.goto(f"{address}&compareRunsMode=CHART")
        expect(page.locator(".js-plotly-plot").first).to_be_visible()
        keep(page, "mlflow-charts")
        page.goto(f"{base}/runs/{runs['preempted']}/model-metrics?workflowType=machine_learning")
        expect(page.get_by_text("val (", exact=False).first).to_be_visible()
        # Cards are drawn when they come into sight: make the page high enough for all of them first.
        page.set_viewport_size({"width": 1500, "height": 4000})
        sliders = page.get_by_role("slider")
        expect(sliders.first).to_be_visible()
        for slider in sliders.all():
            slider.press("End")
        picture = page.locator('img[src*="get-artifact"]').first
        expect(picture).to_be_visible()
        page.set_viewport_size({"width": 1500, "height": 900})
        page.get_by_text("val/samples (", exact=False).first.scroll_into_view_if_needed()
        picture.scroll_into_view_if_needed()
        keep(page, "mlflow-images")


def main() -> None:
    """Train the demo's runs, export them, and take all pictures."""
    PICTURES.mkdir(exist_ok=True)
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("chromium is missing: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        bridge("demo", "demo-runs", folder=folder)
        board = find_exporter("tensorboard")(logdir=folder / "tb")
        flow = find_exporter("mlflow")(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment=EXPERIMENT)
        bridge("export", "demo-runs", "--to", "tensorboard", "--logdir", "tb", folder=folder)
        bridge(
            "export", "demo-runs", "--to", "mlflow", "--best", "val/acc:max",
            "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}", "--experiment", EXPERIMENT, folder=folder,
        )  # fmt: skip
        expect.set_options(timeout=60_000)
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        shoot_terminal(browser, folder)
        shown = board.interface(free_port(None, usual=6006))  # type: ignore[attr-defined]
        with serve(shown, folder / "tensorboard.log"):
            shoot_tensorboard(browser, shown.address)
        shown = flow.interface(free_port(None, usual=5000))  # type: ignore[attr-defined]
        with serve(shown, folder / "mlflow.log"):
            shoot_mlflow(browser, shown.address, run_ids(folder))
        browser.close()


def run_ids(folder: Path) -> dict[str, str]:
    """MLflow's ids of the runs, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}


if __name__ == "__main__":
    main()
