"""Provide an MLflow of each kind that exports are killed and overlap in."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["sqlite", "postgresql", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    if request.param == "server":
        return str(request.getfixturevalue("mlflow_server").uri)
    return str(request.getfixturevalue("sqlite_uri" if request.param == "sqlite" else "postgres_uri"))
