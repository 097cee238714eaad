"""What the database writer knows of MLflow's tables, and the checks that come before it touches any."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["KNOWN", "outdated", "unknown_schema"]

_TEXT, _INT, _FLOAT, _BOOL = "text", "int", "float", "bool"
_METRIC = {"key": _TEXT, "value": _FLOAT, "timestamp": _INT, "step": _INT, "is_nan": _BOOL, "run_uuid": _TEXT}
_PAIR = {"key": _TEXT, "value": _TEXT, "run_uuid": _TEXT}

KNOWN = {
    "metrics": _METRIC,
    "latest_metrics": _METRIC,
    "params": _PAIR,
    "tags": _PAIR,
    "runs": {
        "run_uuid": _TEXT,
        "name": _TEXT,
        "source_type": _TEXT,
        "source_name": _TEXT,
        "entry_point_name": _TEXT,
        "user_id": _TEXT,
        "status": _TEXT,
        "start_time": _INT,
        "end_time": _INT,
        "deleted_time": _INT,
        "source_version": _TEXT,
        "lifecycle_stage": _TEXT,
        "artifact_uri": _TEXT,
        "experiment_id": _INT,
    },
}
"""The tables that are written, with all their columns: the same from MLflow 2.22 to 3.17."""

_READ = {
    "experiments": {
        "experiment_id": _INT,
        "name": _TEXT,
        "artifact_location": _TEXT,
        "lifecycle_stage": _TEXT,
        "creation_time": _INT,
    }
}
"""The columns that are only read; the table may have others."""


def unknown_schema(engine: Engine) -> str | None:
    """Why the database behind `engine` is not to be written to directly; None where its tables are as known."""
    import sqlalchemy

    look = sqlalchemy.inspect(engine)
    missing = [name for name in (*KNOWN, *_READ) if not look.has_table(name)]
    if missing:
        return f"it has no MLflow table {missing[0]!r}"
    for table, columns in (KNOWN | _READ).items():
        found = {column["name"]: _kind(column["type"]) for column in look.get_columns(table)}
        for name, kind in columns.items():
            if name not in found:
                return f"the table {table!r} has no column {name!r}"
            if found[name] != kind:
                return f"the column {table}.{name} is of another type"
        strangers = sorted(set(found) - set(columns))
        if strangers and table in KNOWN:
            return f"the table {table!r} has a column {strangers[0]!r} that is not known here"
    return None


def outdated(uri: str) -> str | None:
    """Why MLflow must not be let at the database `uri`: its schema is of another MLflow, which opening could migrate.

    None where MLflow can open it as it is, also where there is no such database yet or it has no MLflow tables.
    """
    import sqlalchemy
    from mlflow.store.db.utils import create_sqlalchemy_engine

    url = sqlalchemy.engine.make_url(uri)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return None
    engine = create_sqlalchemy_engine(uri)
    try:
        if not sqlalchemy.inspect(engine).has_table("alembic_version"):
            return None
        with engine.connect() as connection:
            found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    finally:
        engine.dispose()
    head = _newest_revision()
    if found in (None, head):
        return None
    return f"its schema is of another MLflow version ({found}, the installed MLflow makes {head})"


@functools.cache
def _newest_revision() -> str:
    """The schema revision that the installed MLflow makes; finding it loads all of its migrations."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _kind(column_type: object) -> str:
    from sqlalchemy import types

    for kind, family in (
        (_BOOL, types.Boolean),
        (_INT, types.Integer),
        (_FLOAT, types.Float),
        (_TEXT, types.String),
    ):
        if isinstance(column_type, family):
            return kind
    return "other"
