"""The one property for directories of TensorBoardLogger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from bridge.sync.verify import verify_runs
from tests.exporters.tensorboard.event_files import rows
from tests.property.living_events import LivingEvents
from tests.property.test_one_property import SHAPES, SLOW, Exports, run_histories

if TYPE_CHECKING:
    from pathlib import Path

    from tests.zygote import Zygote

EXAMPLES = {"memory": 10, "tensorboard": 6, "mlflow-sqlite": 3}
VALUES = st.sampled_from([0.5, 0.5, 1.0, -2.25, float("nan"), 0.1, float("inf")])


class EventHistories(Exports):
    """A directory of event files, its target, and everything that can happen to both."""

    def __init__(self) -> None:
        super().__init__()
        # The directory itself is named, so an export to TensorBoard does not leave it out.
        self.path = self.root = self.folder / "runs" / "a"
        self.run = LivingEvents(self.path)
        self.run.log("loss", 0.5, stride=0)
        self.kept: dict[str, set[tuple[int, float]]] | None = None
        self.has_files_beside = False

    @rule(
        tags=st.lists(st.sampled_from(["loss", "loss", "acc", "val loss"]), min_size=1, max_size=8),
        value=VALUES,
        stride=st.sampled_from([0, 1, 1, 3]),
    )
    def records_are_appended(self, tags: list[str], value: float, stride: int) -> None:
        for tag in tags:
            self.run.log(tag, value, stride=stride if self.kept is None else 1)

    @precondition(lambda self: self.kept is None)
    @rule(curve=st.sampled_from(["a", "b"]), value=VALUES)
    def a_file_beside_grows(self, curve: str, value: float) -> None:
        self.run.add_scalars(curve, value)
        self.has_files_beside = True

    @precondition(lambda self: self.kept is None and len(self.run.files) > 1)
    @rule(tag=st.sampled_from(["loss", "acc"]), back=st.integers(-1, 3))
    def the_job_before_still_writes(self, tag: str, back: int) -> None:
        self.run.log_before(tag, back)
        self.has_files_beside = True

    @precondition(lambda self: self.kept is None)
    @rule(tag=st.sampled_from(["samples", "val/samples"]), is_tensor=st.booleans())
    def a_picture_is_logged(self, tag: str, is_tensor: bool) -> None:
        self.run.picture(tag, is_tensor=is_tensor)

    @rule(size=st.integers(1, 30))
    def a_record_is_torn_and_the_job_starts_again(self, size: int) -> None:
        self.run.tear(size)

    @rule(back=st.integers(0, 4))
    def the_job_is_killed_and_requeued(self, back: int) -> None:
        self.run.begin(back if self.kept is None else 0)

    @rule()
    def nothing_is_written_for_a_while(self) -> None:
        self.finish()

    @precondition(lambda self: self.kept is None)
    @rule(content=st.sampled_from(sorted(SHAPES)))
    def options_change(self, content: str) -> None:
        self.content = SHAPES[content]

    @precondition(lambda self: self.kept is None and len(self.run.files) > 1)
    @rule()
    def the_oldest_file_is_deleted(self) -> None:
        """Delete a file whose points the target holds. From then on steps only rise."""
        self.finish()
        assert self.zygote.run(self.task()) == [[]]
        self.run.step = self.run.highest
        self.run.log("loss", 0.5, stride=1)
        self.kept = self.points()
        self.run.delete_oldest()

    def finish(self) -> None:
        self.run.end()

    def scalars(self, path: Path) -> object:
        """Return the bytes of a file of scalars; if files grew side by side, its rows by metric, in their order."""
        return sorted(rows(path), key=lambda row: list(row[2])) if self.has_files_beside else super().scalars(path)

    def the_end_equals_one_clean_export(self) -> None:
        """Assert that; after a deletion, assert that the target keeps the points it had."""
        if self.kept is None:
            super().the_end_equals_one_clean_export()
            return
        self.finish()
        assert self.zygote.run(self.task()) == [[]]
        (check,) = verify_runs([self.root], self.exporter()).runs
        # Of equal values at one step the first has the time that counts, and it may have been in the deleted file.
        assert [one for one in check.differences.first if not one.what.endswith("(time)")] == []
        now = self.points()
        assert {name: points - now.get(name, set()) for name, points in self.kept.items()} == {
            name: set() for name in self.kept
        }

    def points(self) -> dict[str, set[tuple[int, float]]]:
        """Return step and time of the points that the target holds, by metric."""
        series = self.held(self.exporter()).series
        return {name: set(zip(one.step.tolist(), one.time.tolist(), strict=True)) for name, one in series.items()}


@pytest.mark.parametrize("times", [1, pytest.param(SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_any_history_of_event_files_ends_like_one_clean_export(
    name: str, times: int, heavy: Zygote, request: pytest.FixtureRequest
) -> None:
    """After growth, restarts, torn records and kills the target equals one clean export, and verify agrees."""
    run_histories(EventHistories, name, times * EXAMPLES[name], heavy, request)
