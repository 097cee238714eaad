"""What a TensorBoard shows that watches while runs grow, are requeued and end: the Rust server, and the Python loader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.model import Shape, Status
from tests.deltas import make_block, make_delta, make_model_run
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.tensorboard.target import TensorBoardTarget
    from bridge.model import Run
    from tests.fixtures.tensorboard_server import TensorBoardServer

SHAPE = Shape()


def _target(run: Run, logdir: Path) -> TensorBoardTarget:
    return TensorBoardExporter(logdir).open(run, SHAPE)


def _steps(server: TensorBoardServer, run: str, tag: str) -> list[tuple[int, float]] | None:
    points = server.points(run, tag)
    return None if points is None else [(step, value) for step, _, value in points]


def test_a_watching_server_shows_the_right_curve_after_growth_and_after_a_rewind(
    tensorboard_server: TensorBoardServer, watched_logdir: Path, tmp_path: Path
) -> None:
    """Export, growth, export, requeue from a checkpoint, export: the Rust server shows each state at once, no zigzag."""
    run = make_model_run(tmp_path / "abc", status=Status.RUNNING)
    target = _target(run, watched_logdir)
    name = f"{watched_logdir.name}/abc"

    first = make_delta(run, [make_block([0, 1, 2], {"loss": [5.0, 4.0, 3.0]})])
    target.apply(first)
    expected = [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert tensorboard_server.until(lambda: _steps(tensorboard_server, name, "loss"), expected) == expected

    target.apply(make_delta(run, [make_block([3, 4], {"loss": [2.0, 1.0]}, first_row=3)], before=first.after))
    expected = [(0, 5.0), (1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert tensorboard_server.until(lambda: _steps(tensorboard_server, name, "loss"), expected) == expected

    target.rebuild([make_delta(run, [make_block([0, 1, 2, 3], {"loss": [5.0, 4.0, 3.5, 2.5]})])])
    expected = [(0, 5.0), (1, 4.0), (2, 3.5), (3, 2.5)]
    assert tensorboard_server.until(lambda: _steps(tensorboard_server, name, "loss"), expected) == expected


def test_times_steps_and_values_are_shown_as_they_are(
    tensorboard_server: TensorBoardServer, watched_logdir: Path, tmp_path: Path
) -> None:
    """Each point has its own time and step, a value as float32 has it; NaN and infinities stay what they are."""
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
    """The Python loader follows a growing run; after a rebuild it is right once it starts anew."""
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
