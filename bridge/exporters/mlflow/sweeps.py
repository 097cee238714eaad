"""Sweeps: a parent run for each, its children nested below it, and what all of them came to as its tags."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.cursor import ContentOptions
from bridge.errors import NewerFormatError
from bridge.exporters.mlflow.api import record_of
from bridge.exporters.mlflow.database import Change, NewRun, new_run_id
from bridge.exporters.mlflow.locks import machine_lock
from bridge.exporters.mlflow.names import KEY_LIMIT, clean
from bridge.exporters.mlflow.records import Choice, choose
from bridge.exporters.mlflow.run_rows import ConflictError, RunFacts
from bridge.exporters.mlflow.tags import Tag
from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow.entities import Run as MlflowRun

    from bridge.exporters.mlflow.place import Place
    from bridge.exporters.mlflow.records import Record

__all__ = ["Sweep"]

_FAMILY = "bridge.sweep."
_LOOKS = 6


@dataclass(frozen=True, slots=True)
class Sweep:
    """The sweep `name` in one experiment. Its parent has neither params nor metrics, and is made by who needs it first."""

    place: Place
    experiment_id: str
    name: str

    def parent(self, *, start: int) -> str | None:
        """The parent's id; None where a person deleted it.

        It is made where there is none, to begin at `start` (milliseconds).
        """
        place = (self.experiment_id, self.name)
        if place not in self.place.parents:
            choice = self._choice()
            if choice.record is None and choice.deleted is None:
                choice = self._make(start)
            self.place.parents[place] = choice.record.run_id if choice.record is not None else None
        return self.place.parents[place]

    def _choice(self) -> Choice:
        return choose(self.place.tagged(Tag.SWEEP, self.name, self.experiment_id))

    def _make(self, start: int) -> Choice:
        title = self.name[:KEY_LIMIT]
        tags = {Tag.SWEEP: self.name}
        database = self.place.database
        if database is not None:
            # The id follows from the sweep, so that exports at the same moment make one and the same run.
            experiment = self.place.experiment_of(self.experiment_id)
            run_id = new_run_id(experiment.unique, f"sweep\n{self.name}")
            try:
                new = NewRun(self.experiment_id, title, start)
                database.write(run_id, Change(expected_cursor=None, tags=tags, create=new))
            except ConflictError:
                return self._choice()
        else:
            with machine_lock(f"{self.place.address.uri} {self.experiment_id}"):
                if self._choice().record is None:
                    self.place.api.make_run(self.experiment_id, name=title, start=start, tags=tags)
        return self._one()

    def _one(self) -> Choice:
        """Of parents that were made at the same moment the smallest id stays; the others are put away."""
        choice = self._choice()
        for extra in choice.extras:
            if choice.record is not None and Tag.DUPLICATE_OF not in extra.tags:
                self.place.api.put_away(extra.run_id, {Tag.DUPLICATE_OF: choice.record.run_id})
        return choice

    def settle(self) -> Notice | None:
        """Nest all children below the one parent, and write what they came to.

        Looks again after writing, until nothing has changed: of several exports at once the last to look is right.
        """
        written: dict[str, str] | None = None
        for _ in range(_LOOKS):
            choice = self._one()
            if choice.record is None:
                if choice.deleted is None:
                    return None
                return Notice(NoticeKind.LEFT_OUT, f"sweep {self.name}", "a person deleted its parent run")
            parent = choice.record.run_id
            children = self._children(parent)
            tags = aggregates(children, bests_of(children))
            if tags == written:
                return None
            self._write(parent, tags, children)
            written = tags
        return None

    def _children(self, parent: str) -> list[MlflowRun]:
        """The parent's active children, those of its former doubles taken over."""
        records = self.place.tagged(Tag.SWEEP, self.name, self.experiment_id)
        found: list[MlflowRun] = []
        for record in records:
            search = f"tags.`{Tag.PARENT}` = '{record.run_id}'"
            for child in self.place.api.search(search, [self.experiment_id]):
                if child.info.lifecycle_stage == "deleted" or record_of(child).superseded:
                    continue
                if record.run_id != parent:
                    self.place.api.set_tags(child.info.run_id, {Tag.PARENT: parent})
                found.append(child)
        return found

    def _write(self, parent: str, tags: Mapping[str, str], children: Sequence[MlflowRun]) -> None:
        if not children:
            return
        now = record_of(self.place.api.get(parent))
        running = any(child.info.status == "RUNNING" for child in children)
        ends = [child.info.end_time for child in children if child.info.end_time is not None]
        facts = RunFacts(
            status="RUNNING" if running else "FINISHED",
            name=now.name,
            start_ms=min(child.info.start_time for child in children),
            end_ms=None if running or not ends else max(ends),
        )
        held = {key for key in now.tags if key.startswith(_FAMILY)}
        self.place.writer.write(
            parent, Change(expected_cursor=None, tags=tags, deleted_tags=sorted(held - set(tags)), facts=facts)
        )


def bests_of(children: Sequence[MlflowRun]) -> dict[str, int]:
    """The metrics that any child was exported with a `--best` of, whoever exports now; 1 for max, -1 for min.

    Where children say both, the one that more of them say.
    """
    said = Counter(text for child in children for text in _best_of(record_of(child)))
    return ContentOptions(
        best=tuple({text.rpartition(":")[0]: text for text, _ in sorted(said.items(), key=_rarest_first)}.values())
    ).bests


def _rarest_first(said: tuple[str, int]) -> tuple[int, str]:
    return said[1], said[0]


def _best_of(child: Record) -> list[str]:
    """The option `best` that shaped a child."""
    try:
        cursor = child.cursor(f"MLflow run {child.run_id}")
    except NewerFormatError:
        return []
    return list(cursor.content.get("best", ())) if cursor is not None else []


def aggregates(children: Sequence[MlflowRun], bests: Mapping[str, int]) -> dict[str, str]:
    """What the children came to, as tags: how many in all and of each status, and what became of each of `bests`.

    That is mean, standard deviation (of a sample), best value and best child, over the children with a number for it.
    """
    states = Counter(child.data.tags.get(Tag.STATUS, child.info.status.lower()) for child in children)
    tags = {f"{_FAMILY}runs": str(len(children))}
    tags |= {clean(f"{_FAMILY}{state}"): str(count) for state, count in states.items()}
    for metric, sign in sorted(bests.items()):
        values = {child.info.run_id: _value(child, metric) for child in children}
        numbers = {run_id: value for run_id, value in values.items() if value is not None}
        if not numbers:
            continue
        winner = max(sorted(numbers), key=lambda run_id: sign * numbers[run_id])
        family = f"{_FAMILY}{metric}."
        tags |= {
            clean(f"{family}mean"): repr(statistics.fmean(numbers.values())),
            clean(f"{family}std"): repr(statistics.stdev(numbers.values()) if len(numbers) > 1 else 0.0),
            clean(f"{family}best"): repr(numbers[winner]),
            clean(f"{family}best_run"): winner,
        }
    return tags


def _value(child: MlflowRun, metric: str) -> float | None:
    """The child's best value where it is known, else its last."""
    for key in (clean(f"best/{metric}"), clean(metric)):
        value = child.data.metrics.get(key)
        if value is not None and not math.isnan(value):
            return float(value)
    return None
