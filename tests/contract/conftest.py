"""Run the contract's suite with one exporter after the other, each on a fresh target."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.contract.bench import Bench
from tests.contract.subjects import SUBJECTS, Subject
from tests.require import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.postgres import Cluster


@pytest.fixture(scope="session")
def contract_database(postgres: Cluster) -> str:
    """Yield one PostgreSQL database for all tests, because MLflow keeps a connection open to each that it saw."""
    return postgres.mlflow_database()


@pytest.fixture(
    params=[pytest.param(subject, marks=[pytest.mark.slow] * subject.slow, id=subject.name) for subject in SUBJECTS]
)
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Yield a fresh target of one exporter, with what tests do to it."""
    subject: Subject = request.param
    if subject.needs is not None:
        require(find_spec(subject.needs) is not None, f"the package {subject.needs}")
    # MLflow puts the artifacts of a database's experiments into the working directory.
    monkeypatch.chdir(tmp_path)
    fixtures = {name: request.getfixturevalue(name) for name in subject.fixtures}
    bench = Bench(folder=tmp_path, make=lambda folder: subject.make(folder, fixtures))
    with bench.exporter:
        yield bench
