"""Sweeps: one parent run for each, its children nested below it, and a summary of the children as its description."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import ConflictError, counted
from bridge.exporters.mlflow.facts import KEY_LIMIT, STATUS_OF_WORD, Tag, key_of, key_of_best
from bridge.exporters.mlflow.rows import KeyRows
from bridge.exporters.mlflow.runs import FoundRun, RunRow, RunUpdate, new_run_id
from bridge.exporters.mlflow.saved_view import bests_of, typical_metrics
from bridge.exporters.mlflow.store import Candidates
from bridge.locks import machine_lock
from bridge.model import Notice, NoticeKind, digest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from bridge.exporters.mlflow.store import MlflowStore

_NOTES_DIGEST = f"{Tag.SWEEP}_notes"
"""The hidden tag with the digest of a parent's description as the bridge wrote it."""

_MOST_LOOKS = 6
_MOST_SETTINGS = 6
_MOST_ROWS = 50


@dataclass(frozen=True, slots=True)
class Sweep:
    """The sweep `name` in one experiment. Whoever needs its parent first creates it."""

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
        return Candidates.among(self.store.runs.runs_with_tag(Tag.SWEEP, [self.name], [self.experiment_id]))

    def _create(self, start: int) -> Candidates:
        """Create the parent, unless another export just did."""
        # In a database the id follows from the sweep, so exports at the same moment create one and the same run.
        run_id = new_run_id(self.store.experiment_by_id(self.experiment_id).unique, f"sweep\n{self.name}")
        tags = {Tag.NAME: self.name[:KEY_LIMIT], Tag.SWEEP: self.name}
        new = FoundRun(run_id, self.experiment_id, "RUNNING", deleted=False, start=start, end=None, tags=tags)
        with machine_lock(f"{self.store.address.uri} {self.experiment_id}"):
            if self._candidates().target is None:
                with contextlib.suppress(ConflictError):
                    self.store.runs.create(new)
        return self._keep_one()

    def _keep_one(self) -> Candidates:
        """Keep the parent with the smallest id of those that were created at the same moment."""
        candidates = self._candidates()
        for extra in candidates.extras:
            if candidates.target is not None and Tag.DUPLICATE_OF not in extra.tags:
                self.store.runs.soft_delete(extra.run_id, {Tag.DUPLICATE_OF: candidates.target.run_id})
        return candidates

    def settle(self) -> Notice | None:
        """Nest all children below the one parent, and write their summary.

        Look again after writing until nothing has changed. So of several exports at once the last to look is right.
        """
        written: ParentSummary | None = None
        for _ in range(_MOST_LOOKS):
            candidates = self._keep_one()
            if candidates.target is None:
                if candidates.deleted is None:
                    return None
                return Notice(NoticeKind.LEFT_OUT, f"sweep {self.name}", "a person deleted its parent run")
            children = self._children(candidates)
            summary = ParentSummary.of(children, bests_of(children))
            if summary == written:
                return None
            self._write(candidates.target, summary)
            written = summary
        return None

    def _children(self, candidates: Candidates) -> list[FoundRun]:
        """Return the parent's active children. Take over those of its former doubles."""
        parent = candidates.target
        assert parent is not None
        found: list[FoundRun] = []
        runs = self.store.runs
        for run in runs.runs_with_tag(Tag.SWEEP, [self.name], [self.experiment_id]):
            for child in runs.runs_with_tag(Tag.PARENT, [run.run_id], [self.experiment_id]):
                if child.deleted or child.superseded:
                    continue
                if run.run_id != parent.run_id:
                    runs.set_tags(child.run_id, {Tag.PARENT: parent.run_id})
                found.append(child)
        return found

    def _write(self, parent: FoundRun, summary: ParentSummary) -> None:
        """Write the summary into the parent: its row, its description unless a person changed that, its metrics."""
        children = summary.children
        if not children:
            return
        running = any(child.status == "RUNNING" for child in children)
        ends = [child.end for child in children if child.end is not None]
        start = min(child.start or 0 for child in children)
        end = None if running or not ends else max(ends)
        row = RunRow("RUNNING" if running else "FINISHED", parent.name, start, end)
        notes, held = summary.description(self.experiment_id), parent.tags.get(Tag.NOTES, "")
        tags = {}
        if digest(held) == parent.tags.get(_NOTES_DIGEST, digest("")):
            tags = {Tag.NOTES: notes, _NOTES_DIGEST: digest(notes)}
        values = {key: value for key, value in summary.metrics().items() if parent.metrics.get(key) != value}
        update = RunUpdate(tags=tags, row=row)
        step = 0
        if self.store.database is not None:
            update.deleted_keys = sorted(set(values) & set(parent.metrics))
        elif values:
            # Points cannot be deleted there, and MLflow shows the one of the highest step.
            step = max(len(self.store.api.history(parent.run_id, key)) for key in values)
        time = max(ends, default=start)
        update.rows = [KeyRows.of(key, [time], [step], [value]) for key, value in sorted(values.items())]
        self.store.runs.write(parent.run_id, update)


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """The values of one metric by the id of the child that has it, and the id of the best child."""

    key: str
    values: Mapping[str, float]
    best: str


@dataclass(frozen=True, slots=True)
class ParentSummary:
    """The summary of a sweep's children, by status and by metric."""

    children: tuple[FoundRun, ...]
    table: tuple[MetricSummary, ...]

    @classmethod
    def of(cls, children: Sequence[FoundRun], bests: Mapping[str, int]) -> ParentSummary:
        """Return the summary of `children`: of `bests`, the metrics that `--best` names, else of two typical ones."""
        bests = bests or {
            key: -1 if re.search("loss|err|mse|mae|perplexity", key.lower()) else 1 for key in typical_metrics(children)
        }
        table = []
        for metric, sign in bests.items():
            found = ((child.run_id, _value(child, metric)) for child in children)
            values = {run_id: value for run_id, value in sorted(found) if value is not None}
            if values:
                best = max(values, key=lambda run_id: sign * values[run_id])
                table.append(MetricSummary(key_of(metric), values, best))
        return cls(tuple(children), tuple(table))

    def metrics(self) -> dict[str, float]:
        """Return the parent's own metrics: the mean of each metric, and its best value."""
        found = {}
        for metric in self.table:
            found[metric.key] = statistics.fmean(metric.values.values())
            found[key_of_best(metric.key)] = metric.values[metric.best]
        return found

    def description(self, experiment_id: str) -> str:
        """Return the parent's description: children by status, statistics of each metric, groups of equal settings."""
        states = Counter(child.tags.get(Tag.STATUS) or STATUS_OF_WORD.get(child.status, "") for child in self.children)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        parts = [f"{counted(len(self.children), 'run')}: {counts}"]
        names = {child.run_id: child.name for child in self.children}
        rows = []
        for metric in self.table:
            link = f"[{_escaped(names[metric.best])}](#/experiments/{experiment_id}/runs/{metric.best})"
            numbers = metric.values.values()
            rows.append(
                [_escaped(metric.key), _mean_and_std(numbers), _number(min(numbers)), _number(max(numbers)), link]
            )
        if rows:
            parts.append(_markdown(["metric", "mean ± std", "min", "max", "best run"], rows))
        groups = self._groups()
        if groups:
            keys = sorted({key for settings, _ in groups for key in settings})[:_MOST_SETTINGS]
            rows = [
                [*(_escaped(settings.get(key, "")) for key in keys), str(len(ids)), *self._means(ids)]
                for settings, ids in groups
            ]
            heads = [*map(_escaped, keys), "runs", *(_escaped(metric.key) for metric in self.table)]
            parts.append("Runs that differ in the seed alone, together:\n\n" + _markdown(heads, rows))
        return "\n\n".join(parts)

    def _groups(self) -> list[tuple[dict[str, str], list[str]]]:
        """Return the settings that differ, except seeds, with the runs of each; none if no two runs share settings."""
        keys = {key for child in self.children for key in child.params if not _is_seed(key)}
        differing = sorted(key for key in keys if len({child.params.get(key) for child in self.children}) > 1)
        if not any(_is_seed(key) for child in self.children for key in child.params):
            return []
        groups: dict[tuple[str, ...], list[str]] = {}
        for child in self.children:
            groups.setdefault(tuple(child.params.get(key, "") for key in differing), []).append(child.run_id)
        if len(groups) == len(self.children):
            return []
        return [(dict(zip(differing, values, strict=True)), ids) for values, ids in sorted(groups.items())]

    def _means(self, ids: Sequence[str]) -> list[str]:
        of_group = [[m.values[run_id] for run_id in ids if run_id in m.values] for m in self.table]
        return [_mean_and_std(numbers) if numbers else "" for numbers in of_group]


def _is_seed(key: str) -> bool:
    return "seed" in key.lower().rpartition(".")[2]


def _mean_and_std(values: Collection[float]) -> str:
    """Return mean and sample standard deviation."""
    mean = _number(statistics.fmean(values))
    return f"{mean} ± {_number(statistics.stdev(values))}" if len(values) > 1 else mean


def _number(value: float) -> str:
    return f"{value:.4g}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows[:_MOST_ROWS]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escaped(text: str) -> str:
    """Return `text` for a cell of a Markdown table."""
    return re.sub(r"([\\|\[\]<>*_`])", r"\\\1", text.replace("\n", " "))


def _value(child: FoundRun, metric: str) -> float | None:
    """Return the child's best value if it is known, else its latest."""
    for key in (key_of_best(metric), key_of(metric)):
        value = child.metrics.get(key)
        if value is not None and not math.isnan(value):
            return float(value)
    return None
