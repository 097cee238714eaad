"""A watching TensorBoard follows runs that grow, are requeued and end.

Both its Rust server and its Python loader are tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.errors import RebuildNeededError
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.model import Status
from bridge.options import ContentOptions
from bridge.sync.export import export_runs
from tests.deltas import make_block, make_delta, make_model_run
from tests.fixtures.tensorboard_server import start_tensorboard
from tests.pictures import draw, media_event
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.tensorboard.target import TensorBoardTarget
    from bridge.model import Run
    from tests.fixtures.tensorboard_server import TensorBoardServer

SHAPE = ContentOptions()
HEADER = ["loss", "step", "wall_time"]


def _target(run: Run, logdir: Path) -> TensorBoardTarget:
    return TensorBoardExporter(logdir).open(run, SHAPE)


def _steps(server: TensorBoardServer, run: str, tag: str) -> list[tuple[int, float]] | None:
    points = server.points(run, tag)
    return None if points is None else [(step, value) for step, _, value in points]


def test_a_watching_server_shows_the_right_curve_after_growth_and_after_a_rewind(
    tensorboard_server: TensorBoardServer, watched_logdir: Path, tmp_path: Path
) -> None:
    """The Rust server shows growth and a requeue at once, and the curve has no zigzag."""
    path = make_run(
        tmp_path / "runs" / "abc", [{"step": step, "loss": 5.0 - step} for step in range(3)], status="running"
    )
    name = f"{watched_logdir.name}/abc"
    expected = {0: 5.0, 1: 4.0, 2: 3.0}
    for action, rows in (
        ("new", []),
        ("changed", [(2.0, 3, CREATED_S + 3), (1.0, 4, CREATED_S + 4)]),
        ("rebuild", [(3.5, 2, CREATED_S + 50), (2.5, 3, CREATED_S + 51)]),
        ("rebuild", [(1.5, 4, CREATED_S + 52), (0.5, 5, CREATED_S + 53)]),
    ):
        write_metrics(path, HEADER, rows, append=True)
        (line,) = export_runs([path], TensorBoardExporter(watched_logdir)).runs
        assert line.action == action
        expected |= {step: value for value, step, _ in rows}
        shown = list(expected.items())
        assert tensorboard_server.until(lambda: _steps(tensorboard_server, name, "loss"), shown) == shown


def test_pictures_appear_while_a_server_watches(
    tensorboard_server: TensorBoardServer, watched_logdir: Path, tmp_path: Path
) -> None:
    """The server shows later images of a tag, and one at an earlier step, after a rebuild.

    Above them stands the first one's caption.
    """
    run = make_model_run(tmp_path / "abc", status=Status.RUNNING)
    target = _target(run, watched_logdir)
    name, tag, before = f"{watched_logdir.name}/abc", "val/samples/0", None
    picture = draw(tmp_path / "a.png")

    def shown() -> list[int]:
        found = tensorboard_server.get("plugin/images/images", run=name, tag=tag, sample="0")
        return [image["step"] for image in found or ()]

    logged = []
    for step, expected in ((10, [10]), (20, [10, 20]), (5, [5, 10, 20])):
        logged.append(media_event(picture, step=step, caption=f"epoch {step}"))
        delta = make_delta(run, media=logged[-1:], before=before)
        try:
            target.apply(delta)
        except RebuildNeededError:
            target.rebuild([make_delta(run, media=logged)])
        before = delta.after
        assert tensorboard_server.until(shown, expected) == expected
    above = {"displayName": "", "description": "<p>epoch 10</p>", "samples": 1}
    assert tensorboard_server.get("plugin/images/tags")[name][tag] == above


def test_times_steps_and_values_are_shown_as_they_are(
    tensorboard_server: TensorBoardServer, watched_logdir: Path, tmp_path: Path
) -> None:
    """Each point shows its own time and step and its float32 value, NaN and infinities too."""
    run = make_model_run(tmp_path / "abc")
    columns = {"train/loss": [0.1, float("inf"), float("-inf"), None], "val/acc@5 %": [None, 1e-45, None, float("nan")]}
    _target(run, watched_logdir).apply(make_delta(run, [make_block([-3, 0, 127, 2**40], columns)]))
    name = f"{watched_logdir.name}/abc"
    expected = [
        (-3, CREATED_S, 0.10000000149011612),
        (0, CREATED_S + 1, float("inf")),
        (127, CREATED_S + 2, float("-inf")),
    ]
    assert tensorboard_server.until(lambda: tensorboard_server.points(name, "train/loss"), expected) == expected
    points = tensorboard_server.points(name, "val/acc@5 %")
    assert points is not None
    assert repr(points) == repr([(0, CREATED_S + 1, 1.401298464324817e-45), (2**40, CREATED_S + 3, float("nan"))])


def test_the_python_loader_follows_growth_and_is_right_after_its_next_start(tmp_path: Path) -> None:
    """The Python loader follows growth, and after a rebuild is right once restarted."""
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    run = make_model_run(tmp_path / "abc", status=Status.RUNNING, params={"lr": 0.1}, notes="hello")
    logdir = tmp_path / "logs"
    target = _target(run, logdir)

    def shown(multiplexer: EventMultiplexer) -> list[tuple[int, float]]:
        multiplexer.Reload()
        return [(event.step, event.tensor_proto.float_val[0]) for event in multiplexer.Tensors("abc", "loss")]

    first = make_delta(run, [make_block([0, 1, 2], {"loss": [5.0, 4.0, 3.0]})])
    target.apply(first)
    watching = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    assert shown(watching) == [(0, 5.0), (1, 4.0), (2, 3.0)]
    target.apply(make_delta(run, [make_block([3], {"loss": [2.0]}, first_row=3)], before=first.after))
    assert shown(watching) == [(0, 5.0), (1, 4.0), (2, 3.0), (3, 2.0)]
    target.rebuild([make_delta(run, [make_block([0, 1], {"loss": [5.0, 4.5]})])])
    assert shown(EventMultiplexer().AddRunsFromDirectory(str(logdir))) == [(0, 5.0), (1, 4.5)]


def test_the_python_loaders_server_shows_the_same(tmp_path: Path) -> None:
    """With --load_fast=false curves, images and HPARAMS are right, also if an image's tag is a metric's name."""
    run = make_model_run(tmp_path / "abc", params={"lr": 0.1}, notes="hello")
    media = [media_event(draw(tmp_path / "a.png"), tag="loss", step=1, caption="c")]
    columns = {"loss": [5.0, 4.0], "loss/0": [1.0, 2.0]}
    _target(run, tmp_path / "logs").apply(make_delta(run, [make_block([0, 1], columns)], media=media))
    server = start_tensorboard(tmp_path / "logs", tmp_path, fast=False)
    try:
        expected = [(0, 1.0), (1, 2.0)]
        assert server.until(lambda: _steps(server, "abc", "loss/0"), expected) == expected
        above = {"displayName": "", "description": "<p>c</p>", "samples": 1}
        assert server.get("plugin/images/tags")["abc"] == {"loss/0 (image)": above}
        groups = server.get("plugin/hparams/session_groups", request='{"allowedStatuses": [1], "sliceSize": 9}')
        assert [(group["name"], group["hparams"]) for group in groups["sessionGroups"]] == [("abc", {"lr": 0.1})]
    finally:
        server.stop()
