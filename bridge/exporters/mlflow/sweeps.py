"""Sweeps: one parent run for each, its children nested below it, and tags that summarise the children."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import ConflictError, NewerFormatError
from bridge.exporters.mlflow.facts import KEY_LIMIT, STATUS_OF_WORD, Tag, clean
from bridge.exporters.mlflow.find import Candidates, cursor_of
from bridge.exporters.mlflow.write_db import NewRun, RunRow, RunUpdate, new_run_id
from bridge.locks import machine_lock
from bridge.model import Notice, NoticeKind
from bridge.options import ContentOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.exporters.mlflow.client import FoundRun
    from bridge.exporters.mlflow.find import MlflowStore

SUMMARY = f"{Tag.SWEEP}."
"""The beginning of the keys that summarise a sweep."""

_MOST_LOOKS = 6


@dataclass(frozen=True, slots=True)
class Sweep:
    """The sweep `name` in one experiment. Whoever needs its parent first creates it, without params and metrics."""

    store: MlflowStore
    experiment_id: str
    name: str

    def parent(self, *, start: int) -> str | None:
        """Return the parent's id, None if a person deleted it. Create it to begin at `start` (ms) if it is missing."""
        place = (self.experiment_id, self.name)
        if place not in self.store.parents:
            candidates = self._candidates()
            if candidates.target is None and candidates.deleted is None:
                candidates = self._create(start)
            self.store.parents[place] = candidates.target.run_id if candidates.target is not None else None
        return self.store.parents[place]

    def _candidates(self) -> Candidates:
        return Candidates.among(self.store.runs_with_tag(Tag.SWEEP, self.name, self.experiment_id))

    def _create(self, start: int) -> Candidates:
        title, tags = self.name[:KEY_LIMIT], {Tag.SWEEP: self.name}
        database = self.store.database
        if database is not None:
            # The id follows from the sweep, so exports at the same moment create one and the same run.
            experiment = self.store.experiment_by_id(self.experiment_id)
            run_id = new_run_id(experiment.unique, f"sweep\n{self.name}")
            new = NewRun(self.experiment_id, title, start)
            try:
                database.write(run_id, RunUpdate(expected_cursor=None, tags=tags, create=new))
            except ConflictError:
                return self._candidates()
        else:
            with machine_lock(f"{self.store.address.uri} {self.experiment_id}"):
                if self._candidates().target is None:
                    self.store.api.create_run(self.experiment_id, name=title, start=start, tags=tags)
        return self._keep_one()

    def _keep_one(self) -> Candidates:
        """Keep the parent with the smallest id of those that were created at the same moment."""
        candidates = self._candidates()
        for extra in candidates.extras:
            if candidates.target is not None and Tag.DUPLICATE_OF not in extra.tags:
                self.store.soft_delete(extra.run_id, {Tag.DUPLICATE_OF: candidates.target.run_id})
        return candidates

    def settle(self) -> Notice | None:
        """Nest all children below the one parent, and write their summary.

        Look again after writing until nothing has changed. So of several exports at once the last to look is right.
        """
        written: dict[str, str] | None = None
        for _ in range(_MOST_LOOKS):
            candidates = self._keep_one()
            if candidates.target is None:
                if candidates.deleted is None:
                    return None
                return Notice(NoticeKind.LEFT_OUT, f"sweep {self.name}", "a person deleted its parent run")
            children = self._children(candidates)
            tags = summary_of(children, bests_of(children))
            if tags == written:
                return None
            self._write(candidates.target, tags, children)
            written = tags
        return None

    def _children(self, candidates: Candidates) -> list[FoundRun]:
        """Return the parent's active children. Take over those of its former doubles."""
        parent = candidates.target
        assert parent is not None
        found: list[FoundRun] = []
        for run in self.store.runs_with_tag(Tag.SWEEP, self.name, self.experiment_id):
            for child in self.store.runs_with_tag(Tag.PARENT, run.run_id, self.experiment_id):
                if child.deleted or child.superseded:
                    continue
                if run.run_id != parent.run_id:
                    self.store.set_tags(child.run_id, {Tag.PARENT: parent.run_id})
                found.append(child)
        return found

    def _write(self, parent: FoundRun, tags: Mapping[str, str], children: Sequence[FoundRun]) -> None:
        if not children:
            return
        running = any(child.status == "RUNNING" for child in children)
        ends = [child.end for child in children if child.end is not None]
        row = RunRow(
            status="RUNNING" if running else "FINISHED",
            name=parent.name,
            start=min(child.start or 0 for child in children),
            end=None if running or not ends else max(ends),
        )
        gone = sorted(key for key in parent.tags if key.startswith(SUMMARY) and key not in tags)
        update = RunUpdate(expected_cursor=None, tags=tags, deleted_tags=gone, row=row)
        self.store.writer.write(parent.run_id, update)


def bests_of(children: Sequence[FoundRun]) -> dict[str, int]:
    """Return the metrics that any child was exported with a `--best` of: 1 for max, -1 for min.

    If children disagree, the majority decides.
    """
    said = Counter(text for child in children for text in _best_option(child))
    rarest_first = sorted(said, key=lambda text: (said[text], text))
    return ContentOptions(best=tuple({text.rpartition(":")[0]: text for text in rarest_first}.values())).bests


def _best_option(child: FoundRun) -> list[str]:
    try:
        cursor = cursor_of(child)
    except NewerFormatError:
        return []
    return list(cursor.content.get("best", ())) if cursor is not None else []


def summary_of(children: Sequence[FoundRun], bests: Mapping[str, int]) -> dict[str, str]:
    """Return the summary of the children as tags: their number, in all and by status, and statistics of `bests`.

    The statistics are mean, sample standard deviation, best value and best child, over the children with a value.
    """
    states = Counter(child.tags.get(Tag.STATUS) or STATUS_OF_WORD.get(child.status, "") for child in children)
    tags = {f"{SUMMARY}runs": str(len(children))}
    tags |= {clean(f"{SUMMARY}{state}"): str(count) for state, count in states.items()}
    for metric, sign in sorted(bests.items()):
        values = {child.run_id: _value(child, metric) for child in children}
        numbers = {run_id: value for run_id, value in values.items() if value is not None}
        if not numbers:
            continue
        winner = max(sorted(numbers), key=lambda run_id: sign * numbers[run_id])
        statistics_of = {
            "mean": repr(statistics.fmean(numbers.values())),
            "std": repr(statistics.stdev(numbers.values()) if len(numbers) > 1 else 0.0),
            "best": repr(numbers[winner]),
            "best_run": winner,
        }
        tags |= {clean(f"{SUMMARY}{metric}.{name}"): value for name, value in statistics_of.items()}
    return tags


def _value(child: FoundRun, metric: str) -> float | None:
    """Return the child's best value if it is known, else its latest."""
    for key in (clean(f"{clean(metric)}.best"), clean(metric)):
        value = child.metrics.get(key)
        if value is not None and not math.isnan(value):
            return float(value)
    return None
