"""Run the short form of `make torture` with the slow tests: each of its parts has a test of its own in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.torture.scene import Scene

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 10.0
SEED = 3


@pytest.mark.slow
def test_killed_trainings_and_followers_end_with_every_run_the_same(tmp_path: Path) -> None:
    """Trainings and followers into three targets are killed at random.

    At the end verify finds no difference.
    """
    scene = Scene(tmp_path, trainings=1, seed=SEED, say=print)
    verdicts = scene.play(SECONDS)
    assert {name: verdict.partition(":")[0] for name, verdict in verdicts.items()} == dict.fromkeys(
        scene.targets, "exit 0"
    )
    assert scene.counts["rows"] > 0
    assert sum(count for what, count in scene.counts.items() if what.startswith("killed")) > 0
