"""All rows of one run but its metric points: the run itself, latest metrics, params and tags, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.errors import ConflictError, TargetRefusedError
from bridge.exporters.mlflow.rows import Latest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Row

    from bridge.exporters.mlflow.rows import KeyRows

__all__ = ["CURSOR_TAG", "PENDING_TAG", "ConflictError", "NewRun", "RunFacts", "RunRows"]

CURSOR_TAG = "bridge.cursor"
PENDING_TAG = "bridge.pending"
_NAME_TAG = "mlflow.runName"
_KEYS_AT_ONCE = 500
_LONGEST_USER = 256
"""Characters in the column; the tag `mlflow.user`, which the UI shows, has more."""

_NEW_RUN = """
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time,
                  deleted_time, source_version, lifecycle_stage, artifact_uri, experiment_id)
VALUES (:run, :name, 'UNKNOWN', '', '', :user, 'RUNNING', :start, NULL, NULL, '', 'active', :artifacts, :experiment)
ON CONFLICT DO NOTHING
"""
_SET_LATEST = """
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
VALUES (:key, :value, :timestamp, :step, :is_nan, :run)
ON CONFLICT (key, run_uuid) DO UPDATE
SET value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan
"""
_FIND_LATEST = """
SELECT step, timestamp, value, is_nan FROM metrics WHERE run_uuid = :run AND key = :key
ORDER BY step DESC, timestamp DESC, value DESC, is_nan LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run's own row says: MLflow's word for the status, the name, start and end in ms (end None: it has none)."""

    status: str
    name: str
    start_ms: int
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class NewRun:
    """How a run that does not exist yet is made, as MlflowClient.create_run would; `user` is `mlflow.user`'s value."""

    experiment_id: str
    name: str
    start_ms: int
    user: str = "unknown"


class RunRows:
    """The rows of one run, within the transaction that `connection` is in."""

    def __init__(self, connection: Connection, run_uuid: str) -> None:
        self._connection = connection
        self._run = run_uuid

    def claim(self, create: NewRun | None, *, lock: str) -> bool:
        """Keep other writers of this run out until the transaction ends; make the run where it is missing.

        True if it was made. Raises ConflictError for a run that is deleted, or gone with no `create`.
        """
        stage = self._stage(lock)
        if stage is None and create is not None and self._create(create):
            return True
        if stage is None:
            stage = self._stage(lock)
        if stage != "active":
            raise ConflictError(f"MLflow run {self._run} was deleted in the meantime.", hint="run the export again")
        return False

    def tag(self, key: str) -> str | None:
        """The value of one tag."""
        return self._one("SELECT value FROM tags WHERE run_uuid = :run AND key = :key", key=key)

    def set_facts(self, facts: RunFacts | None) -> None:
        """Set the run's row, and the tag that repeats its name."""
        if facts is None:
            return
        self._do(
            "UPDATE runs SET status = :status, name = :name, start_time = :start, end_time = :end WHERE run_uuid = :run",
            [{"status": facts.status, "name": facts.name, "start": facts.start_ms, "end": facts.end_ms}],
        )
        self.set_tags({_NAME_TAG: facts.name})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags, in the order of their keys, as two writers would otherwise wait for each other."""
        self._set_pairs("tags", tags)

    def delete_tags(self, keys: Iterable[str]) -> None:
        """Delete tags; one that is not there is as good as deleted."""
        self._do("DELETE FROM tags WHERE key = :key AND run_uuid = :run", [{"key": key} for key in keys])

    def set_params(self, params: Mapping[str, str]) -> None:
        """Set or replace params."""
        self._set_pairs("params", params)

    def set_latest(self, logged: Sequence[KeyRows], *, again: set[str]) -> None:
        """Bring the latest metrics up to date after `logged` was inserted, as log_batch does.

        Those of the keys in `again`, which lost rows, are found anew.
        """
        wanted = {rows.key: rows.latest() for rows in logged if rows.key not in again}
        held = {row.key: Latest(row.step, row.timestamp, row.value) for row in self._latest_rows(sorted(wanted))}
        self._set_latest({key: row for key, row in wanted.items() if key not in held or row[0] > held[key]})
        found: dict[str, tuple[Latest, bool]] = {}
        for key in sorted(again):
            row = self._rows(_FIND_LATEST, key=key)
            if row:
                found[key] = (Latest(row[0].step, row[0].timestamp, row[0].value), row[0].is_nan)
            else:
                self._do("DELETE FROM latest_metrics WHERE run_uuid = :run AND key = :key", [{"key": key}])
        self._set_latest(found)

    def _set_latest(self, rows: Mapping[str, tuple[Latest, bool]]) -> None:
        self._do(
            _SET_LATEST,
            [
                {
                    "key": key,
                    "value": row.value,
                    "timestamp": row.timestamp,
                    "step": row.step,
                    "is_nan": bool(is_nan),
                }
                for key, (row, is_nan) in sorted(rows.items())
            ],
        )

    def _latest_rows(self, keys: list[str]) -> list[Row[Any]]:
        import sqlalchemy as sa

        sql = "SELECT key, step, timestamp, value FROM latest_metrics WHERE run_uuid = :run AND key IN :keys"
        text = sa.text(sql).bindparams(sa.bindparam("keys", expanding=True))
        found: list[Row[Any]] = []
        for at in range(0, len(keys), _KEYS_AT_ONCE):
            found += self._connection.execute(text, {"run": self._run, "keys": keys[at : at + _KEYS_AT_ONCE]})
        return found

    def _create(self, create: NewRun) -> bool:
        from mlflow.utils.uri import append_to_uri_path

        experiment = self._rows(
            "SELECT artifact_location, lifecycle_stage FROM experiments WHERE experiment_id = :experiment",
            experiment=int(create.experiment_id),
        )
        if not experiment or experiment[0].lifecycle_stage != "active":
            raise TargetRefusedError(
                f"MLflow experiment {create.experiment_id} was deleted.",
                hint=f"mlflow experiments restore -x {create.experiment_id}",
            )
        made = self._do(
            _NEW_RUN,
            [
                {
                    "name": create.name,
                    "user": create.user[:_LONGEST_USER],
                    "start": create.start_ms,
                    "artifacts": append_to_uri_path(experiment[0].artifact_location, self._run, "artifacts"),
                    "experiment": int(create.experiment_id),
                }
            ],
        )
        if made:
            self.set_tags({_NAME_TAG: create.name})
        return bool(made)

    def _stage(self, lock: str) -> str | None:
        return self._one(f"SELECT lifecycle_stage FROM runs WHERE run_uuid = :run{lock}")  # noqa: S608 - a constant

    def _set_pairs(self, table: str, pairs: Mapping[str, str]) -> None:
        self._do(
            f"INSERT INTO {table} (key, value, run_uuid) VALUES (:key, :value, :run) "  # noqa: S608 - a constant
            "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value",
            [{"key": key, "value": value} for key, value in sorted(pairs.items())],
        )

    def _do(self, sql: str, rows: list[dict[str, object]]) -> int:
        import sqlalchemy as sa

        if not rows:
            return 0
        done = self._connection.execute(sa.text(sql), [{"run": self._run, **row} for row in rows])
        return int(done.rowcount)

    def _rows(self, sql: str, **values: object) -> list[Row[Any]]:
        import sqlalchemy as sa

        return list(self._connection.execute(sa.text(sql), {"run": self._run, **values}))

    def _one(self, sql: str, **values: object) -> str | None:
        rows = self._rows(sql, **values)
        return None if not rows else rows[0][0]
