"""What several fixtures of servers and databases need."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_schema(uri: str, *, artifacts: str) -> None:
    """Let MLflow make its tables in the empty database `uri`, and leave no connection open."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(uri, artifacts)
    store.engine.dispose()
    # A cached engine would keep a connection to what is about to be copied.
    SqlAlchemyStore._engine_map.pop(uri, None)
