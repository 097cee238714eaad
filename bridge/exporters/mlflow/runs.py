"""Experiments and runs as MLflow holds them, and the changes that one write makes to a run."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bridge.exporters.mlflow.facts import Tag
from bridge.model import Cursor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mlflow.entities import Run as MlflowRun

    from bridge.exporters.mlflow.rows import KeyRows

_NAMESPACE = uuid.UUID("6f0b6a7e-0e0c-5d0e-9a53-4b1c7ac2d0b1")


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment. `artifacts` is the location of its runs' files, `created` its creation time in milliseconds."""

    id: str
    name: str
    deleted: bool
    artifacts: str
    created: int

    @property
    def unique(self) -> str:
        """Return a key that no experiment of any other store has, since a run id must be unique everywhere."""
        return f"{self.id} {self.created} {self.artifacts}"


@dataclass(frozen=True, slots=True)
class RunRow:
    """The contents of a run's own row: MLflow's status, name, start and end in milliseconds."""

    status: str
    name: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class FoundRun:
    """One run as MLflow holds it, or as it is to be created. `status` is MLflow's word, times are in milliseconds.

    `tags` are all of its tags, or only those that were asked for. `metrics` are its latest values. `latest` are the
    steps and times of these values; it is empty if the run was read from a database.
    """

    run_id: str
    experiment_id: str
    status: str
    deleted: bool
    start: int | None
    end: int | None
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    latest: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: MlflowRun) -> FoundRun:
        """Return a run of MLflow's client in the bridge's form."""
        info = run.info
        return cls(
            run_id=info.run_id,
            experiment_id=str(info.experiment_id),
            status=str(info.status),
            deleted=info.lifecycle_stage == "deleted",
            start=info.start_time,
            end=info.end_time,
            tags=dict(run.data.tags) | ({Tag.NAME: info.run_name} if info.run_name else {}),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            latest={metric.key: (metric.step, metric.timestamp) for metric in run.data._metric_objs},
        )

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.tags.get(Tag.NAME, "")

    @property
    def row(self) -> RunRow:
        """Return the contents of the run's own row."""
        return RunRow(self.status, self.name, self.start or 0, self.end)

    def read_cursor(self) -> Cursor | None:
        """Return the run's cursor, None if there is none that can be read. Raise NewerFormatError."""
        text = self.tags.get(Tag.CURSOR)
        return None if text is None else Cursor.from_json(text, where=f"MLflow run {self.run_id}")

    @property
    def is_building(self) -> bool:
        """Return True for a rebuild that is not finished, or never will be."""
        return Tag.BUILDING in self.tags

    @property
    def superseded(self) -> bool:
        """Return True for a run of the bridge that another one replaced, and for an unfinished rebuild."""
        return self.is_building or Tag.REPLACED_BY in self.tags or Tag.DUPLICATE_OF in self.tags


@dataclass(slots=True, eq=False)
class RunUpdate:
    """The changes of one write to one run.

    `expected_cursor` is the run's cursor tag before the write, None if it has none. With `replace_from` all points of
    `own_keys` at or after that step are deleted first; `interim_cursor` is the cursor while that takes several
    transactions. `bests` maps a key such as `acc.best` to its metric's key and 1 for max or -1 for min. `deleted_keys`
    lose all their points. `tags`, the new cursor among them, and `params` are set or replaced. Without `row` the run's
    row stays as it is. If the run `create` is missing it is created first. `files_past` is the cursor past which files
    were stored for this write, None if there are none.
    """

    expected_cursor: str | None = None
    rows: Sequence[KeyRows] = ()
    own_keys: Collection[str] = ()
    replace_from: int | None = None
    interim_cursor: str | None = None
    bests: dict[str, tuple[str, int]] = field(default_factory=dict)
    deleted_keys: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    deleted_tags: list[str] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    row: RunRow | None = None
    create: FoundRun | None = None
    files_past: Cursor | None = None

    def reopened(self, held: Mapping[str, str]) -> dict[str, str]:
        """Return the tags that make the next export store the run's files again, after ConflictError for this write.

        `held` are the run's tags. The files of this write may have replaced newer ones of the export that was faster.
        """
        text = held.get(Tag.CURSOR)
        if self.files_past is None or text is None or text == self.tags.get(Tag.CURSOR):
            return {}  # nothing was stored, or by that cursor the other export stored the same files
        cursor = Cursor.from_json(text, where="The MLflow run")
        if cursor is None:
            return {}
        extra = {key: value for key, value in cursor.extra.items() if key not in ("files", "checkpoints")}
        # The number makes each of these cursors another one, so no export that began before can write its own after it.
        extra["pending"] = int(cursor.extra.get("pending", 0)) + 1
        tags: dict[str, str] = {}
        if cursor.media_lines > self.files_past.media_lines:
            tags[Tag.PENDING_MEDIA] = str(max(cursor.media_lines, int(held.get(Tag.PENDING_MEDIA, 0))))
            cursor = cursor.with_media_of(self.files_past)
        return tags | {Tag.CURSOR: cursor.with_(extra=extra, stat=None).to_json()}


def new_run_id(experiment: str, identity: str, *, replaces: str | None = None) -> str:
    """Return the id of the MLflow run to be created for `identity`; `replaces` is the run before it.

    The id follows from the arguments. So two exports that both find no run create the same one, and the table's
    primary key lets only one of them be the first.
    """
    return uuid.uuid5(_NAMESPACE, "\n".join((experiment, identity, replaces or ""))).hex
