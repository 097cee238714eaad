"""Fixtures of all tests. Those for servers, databases and browsers are in tests/fixtures, one file each."""

from __future__ import annotations

import os

from bridge.rundir import deltas

deltas.BETWEEN_LOOKS = 0.0  # between two looks at a file that changed; nobody but the test writes here
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

pytest_plugins: list[str] = [
    "tests.in_memory",
    "tests.closing_line",
    "tests.no_skips",
    "tests.together",
    "tests.fixtures.browser",
    "tests.fixtures.dask_cluster",
    "tests.fixtures.demo",
    "tests.fixtures.mlflow_server",
    "tests.fixtures.permissions",
    "tests.fixtures.postgres",
    "tests.fixtures.proxy",
    "tests.fixtures.sqlite",
    "tests.fixtures.tensorboard_server",
    "tests.fixtures.zygotes",
]
