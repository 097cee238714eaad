"""The bridge as a library takes arguments as meant, or refuses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import bridge
from bridge.errors import UsageError
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Make two runs of two metrics."""
    for name in ("a", "b"):
        rows = [{"step": step, "loss": 1 / (step + 1), "acc": step / 3} for step in range(3)]
        make_run(tmp_path / "runs" / name, rows, tags=[f"name:{name}"])
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"artifacts": "nwo"}, "artifacts: invalid enum value 'nwo', expected ended, now or none."),
        ({"select": {"statuses": ("done",)}}, "statuses[0]: invalid enum value 'done'"),
        ({"media": "no"}, "media: expected `bool`, got `str`."),
        ({"best": ("acc",)}, "'acc' does not say which end is best."),
        ({"metrics": (1,)}, "metrics[0]: expected `str`, got `int`."),
        ({"rename": ("loss",)}, "rename[0]: expected `array`, got `str`."),
        ({"metric": ("loss",)}, "metric is not an option of export."),
        ({"max_points": 9}, "max_points is not an option of export."),
        ({"target": {"logdri": "x"}}, "logdri is not an option of tensorboard."),
        ({"select": {"tag": "x"}}, "tag is not an option of select."),
    ],
)
def test_what_makes_no_sense_is_refused(runs: Path, tmp_path: Path, content: dict[str, Any], told: str) -> None:
    """A wrong option is an error before anything is written.

    Otherwise a target made with other options would be replaced.
    """
    where: dict[str, Any] = {"target": {"logdir": tmp_path / "tb"}, **content}
    with pytest.raises(UsageError) as caught:
        bridge.export(runs, to="tensorboard", **where)
    assert told in str(caught.value)
    assert not (tmp_path / "tb").exists()


def test_one_text_is_a_list_of_one(runs: Path, tmp_path: Path) -> None:
    """A text in place of a list is a list of one, and `rename` may be a dict."""
    target = {"logdir": tmp_path / "tb"}
    one = bridge.export(
        runs, to="tensorboard", target=target, metrics="loss", rename={"loss": "error"}, select={"tags": "name:a"}
    )
    assert [(line.run_id, line.points) for line in one.runs] == [("a", 3)]
    lists: dict[str, Any] = {"metrics": ("loss",), "rename": (("loss", "error"),), "select": {"tags": ("name:a",)}}
    again = bridge.export(runs, to="tensorboard", target=target, **lists)
    assert [str(line.action) for line in again.runs] == ["unchanged"]
