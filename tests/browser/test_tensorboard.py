"""Export five runs to a real TensorBoard and look at each dashboard in a real Chromium.

Screenshots are left in pytest's temporary folder for people to look at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.model import Status
from bridge.options import ContentOptions
from tests.deltas import make_block, make_delta, make_model_run
from tests.fixtures.tensorboard_server import start_tensorboard
from tests.pictures import draw, film, media_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Locator, Page

    from bridge.model import Block, Delta
    from tests.fixtures.tensorboard_server import TensorBoardServer

RUNS = {
    "20260410/120000/abc": ({"lr": 0.1, "opt": "adam", "model.layers": 3, "none": None}, Status.COMPLETED),
    "20260410/120000/def": ({"lr": 0.01, "opt": "sgd", "bias": True}, Status.FAILED),
    "20260411/090000/xyz": ({"lr": 0.001, "seed": 42, "bad": float("nan")}, Status.RUNNING),
    "solo": ({"name": "a|b *c* <i>"}, Status.KILLED),
    "sweep/a/b/c": ({"lr": 0.5, "bias": False}, Status.INTERRUPTED),
}


def first_run(path: Path, files: Path) -> Delta:
    """Make a run with scalars, images at three steps, several formats, a video, and clashing names."""
    run = make_model_run(
        path,
        run_id="20260410/120000/abc",
        name="20260410/120000/abc",
        params=RUNS["20260410/120000/abc"][0],
        notes="# Baseline\n\nThe *first* try.",
        tags=("base|line", "v_1_2"),
    )
    colors = ["red", "green", "blue", "navy", "teal", "gray"]
    media = [
        media_event(
            draw(files / f"{step}-{index}.png", colors.pop()),
            step=step,
            index=index,
            caption=f"step {step}, no. {index}",
        )
        for step in (0, 10, 19)
        for index in (0, 1)
    ]
    media += [
        *(media_event(draw(files / f"a.{form}"), tag=f"format/{form}", step=5) for form in ("jpg", "gif", "webp")),
        media_event(files / "a.mp4", film(), tag="film", step=7),
        media_event(draw(files / "clash.png"), tag="loss", step=3),
    ]
    return make_delta(run, [curves(1.0)], media=media)


def curves(factor: float) -> Block:
    steps = list(range(20))
    columns = {
        "loss": [factor / (step + 1) for step in steps],
        "loss/0": [2.0] * 20,
        "val/acc": [None if step % 2 else step / 20 for step in steps],
    }
    return make_block(steps, columns)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorBoardServer]:
    """Start TensorBoard on five runs with different hyperparameters in nested folders."""
    folder = tmp_path_factory.mktemp("board")
    exporter = TensorBoardExporter(folder / "logs")
    for number, (run_id, (params, status)) in enumerate(RUNS.items()):
        path = folder / "runs" / str(number)
        run = make_model_run(path, run_id=run_id, name=run_id, params=params, status=status)
        delta = make_delta(run, [curves(1.0 + number)]) if number else first_run(path, folder)
        exporter.open(run, ContentOptions()).apply(delta)
    server = start_tensorboard(folder / "logs", folder)
    try:
        assert server.until(lambda: server.get("runs"), sorted(RUNS)) == sorted(RUNS)
        yield server
    finally:
        server.stop()


@pytest.fixture
def show(board: TensorBoardServer, page: Page, tmp_path: Path) -> Iterator[Callable[[str], Page]]:
    """Open a dashboard by its name in the address, and take a screenshot after the test."""

    def opened(name: str) -> Page:
        page.goto(f"{board.uri}/?darkMode=false#{name}")
        return page

    yield opened
    page.screenshot(path=tmp_path / "screenshot.png")


# What stands in an element as people see it: within its components too, which keep their content to themselves.
SEEN = """
all => {
  const text = node => {
    if (node.nodeType === Node.TEXT_NODE) return node.textContent + ' ';
    const hidden = ['STYLE', 'SCRIPT', 'TEMPLATE', 'DOM-IF'];
    if (node.nodeType !== Node.ELEMENT_NODE || hidden.includes(node.tagName)) return '';
    if (getComputedStyle(node).display === 'none') return '';
    const inside = node.tagName === 'SLOT' ? node.assignedNodes() : (node.shadowRoot || node).childNodes;
    return Array.from(inside).map(text).join('');
  };
  return all.map(node => text(node).replace(/\\s+/g, ' ').trim());
}
"""


def texts(found: Locator) -> list[str]:
    """Return the texts of all elements with runs of blanks collapsed."""
    seen: list[str] = found.evaluate_all(SEEN)
    return seen


def matching_cards(dashboard: Locator, card: str) -> Locator:
    """Return the cards of one dashboard; the filter shows them in a first group that is not folded."""
    dashboard.locator("tf-tag-filterer input").fill(".")
    return dashboard.locator("tf-category-paginated-view").first.locator(card)


def test_scalars(show: Callable[[str], Page]) -> None:
    """SCALARS has a chart for each metric, a curve for each run, and shows the values under the pointer."""
    page = show("scalars")
    cards = matching_cards(page.locator("tf-scalar-dashboard"), "tf-scalar-card")
    expect(cards).to_have_count(3)
    assert [re.sub(r".* tag: ", "", text) for text in texts(cards.locator("tf-card-heading"))] == [
        "loss",
        "loss/0",
        "val/acc",
    ]
    chart = cards.first.locator("vz-line-chart2")
    tooltip = page.locator("vz-line-chart-tooltip tbody tr")
    expect(chart.locator(".ghost, .main").first).to_be_attached()
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + box["height"] / 2)
    expect(tooltip).to_have_count(5)
    assert [(row.split()[0], row.split()[2:4]) for row in texts(tooltip)] == [
        ("20260410/120000/abc", ["0.05", "19"]),
        ("20260410/120000/def", ["0.1", "19"]),
        ("20260411/090000/xyz", ["0.15", "19"]),
        ("solo", ["0.2", "19"]),
        ("sweep/a/b/c", ["0.25", "19"]),
    ]


def test_time_series(show: Callable[[str], Page]) -> None:
    """TIME SERIES shows each run's last value, step and true duration, and images beside the curves."""
    page = show("timeseries")
    page.locator("metrics-tag-filter input").fill("^loss$")
    table = page.locator("scalar-card tb-data-table-content-row")
    expect(table).to_have_count(5)
    assert [row.split() for row in table.all_inner_texts()] == [
        ["20260410/120000/abc", "0.0549", "0.05", "19", "19", "sec"],
        ["20260410/120000/def", "0.1098", "0.1", "19", "19", "sec"],
        ["20260411/090000/xyz", "0.1648", "0.15", "19", "19", "sec"],
        ["solo", "0.2197", "0.2", "19", "19", "sec"],
        ["sweep/a/b/c", "0.2746", "0.25", "19", "19", "sec"],
    ]
    page.locator("metrics-tag-filter input").fill("^(val/samples/0|film/0|loss/0 .image.)$")
    expect(page.locator("metrics-filtered-view image-card img")).to_have_count(3)


def test_images(show: Callable[[str], Page]) -> None:
    """IMAGES has one card for each index of a tag, with a slider over its steps, and draws every format."""
    page = show("images")
    cards = matching_cards(page.locator("tf-image-dashboard"), "tf-image-loader")
    expect(cards).to_have_count(7)
    pictures = cards.locator("img")
    expect(pictures).to_have_count(7)
    page.wait_for_function("all => all.every(one => one.complete && one.naturalWidth)", arg=pictures.element_handles())
    headings = texts(cards.locator("tf-card-heading"))
    assert [re.sub(r".* tag: (.*?) step .*", r"\1", heading) for heading in headings] == [
        "film/0",
        "format/gif/0",
        "format/jpg/0",
        "format/webp/0",
        "loss/0 (image)",
        "val/samples/0",
        "val/samples/1",
    ]
    sizes = pictures.evaluate_all("all => all.map(one => [one.naturalWidth, one.naturalHeight])")
    assert sizes == [[96, 64], *[[64, 48]] * 6]
    slider = cards.nth(5).locator("paper-slider")
    assert slider.evaluate("one => [one.min, one.max, one.value]") == [0, 2, 2]
    assert "step 19 " in texts(cards)[5]
    slider.evaluate("one => { one.value = 0; one.dispatchEvent(new CustomEvent('change')); }")
    expect(cards.nth(5).get_by_text("0", exact=True)).to_be_visible()
    assert "step 0 " in texts(cards)[5]


def test_hparams(show: Callable[[str], Page]) -> None:
    """HPARAMS has a typed session for each run under its folder's name, with the union of keys and the last metrics."""
    page = show("hparams")
    cells = page.locator("tf-hparams-dashboard vaadin-grid-cell-content")
    page.get_by_text("sweep/a/b/c").first.wait_for()
    found = texts(cells)
    columns = ["bias", "lr", "opt", "model.layers", "name", "loss", "loss/0", "val/acc"]
    assert found[:10] == ["Trial ID", "Show Metrics", *columns]
    rows = {name: found[found.index(name) + 2 :][:9] for name in RUNS}
    assert {name: [cell for cell in row if cell] for name, row in rows.items()} == {
        "20260410/120000/abc": ["0.10000", "adam", "3.0000", "0.050000", "2.0000", "0.90000"],
        "20260410/120000/def": ["true", "0.010000", "sgd", "0.10000", "2.0000", "0.90000"],
        "20260411/090000/xyz": ["0.0010000", "0.15000", "2.0000", "0.90000"],
        "solo": ["a|b *c* <i>", "0.20000", "2.0000", "0.90000"],
        "sweep/a/b/c": ["false", "0.50000", "0.25000", "2.0000", "0.90000"],
    }


def test_text(show: Callable[[str], Page]) -> None:
    """TEXT shows notes as Markdown, hyperparameters as a table, tags, and captions at their steps."""
    page = show("text")
    dashboard = page.locator("tf-text-dashboard")
    dashboard.locator("tf-tag-filterer input").fill("^(run/.*|val/.*)$")
    cards = dashboard.locator("tf-category-paginated-view").first.locator("tf-text-loader")
    expect(cards.nth(7)).to_be_attached()
    # Each card fetches its texts by itself, so the last to come says nothing of the others.
    for part in ("Baseline", "v_1_2", "model.layers", "a|b", "step 19, no. 1"):
        expect(cards.get_by_text(part).first).to_be_attached()
    found = texts(cards)
    (table,) = [text for text in found if "run/hparams 20260410/120000/abc" in text]
    assert table.endswith("hparam value lr 0.1 opt adam model.layers 3 none None")
    (solo,) = [text for text in found if "run/hparams solo" in text]
    assert solo.endswith("hparam value name a|b *c* <i>")
    (tags,) = [text for text in found if "tag: run/tags" in text]
    assert tags.endswith("base|line v_1_2")
    (captions,) = [text for text in found if "tag: val/samples/caption (1)" in text]
    assert [step in captions for step in ("step 0, no. 1", "step 10, no. 1", "step 19, no. 1")] == [True] * 3
