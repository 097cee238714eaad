"""The fixture of the contract's suite: one exporter after the other, each on a fresh target."""

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


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.name)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A fresh target of one exporter, with what tests do to it."""
    subject: Subject = request.param
    if subject.needs is not None:
        require(find_spec(subject.needs) is not None, f"the package {subject.needs}")
    templates = {}
    if subject.needs == "mlflow":
        templates["sqlite"] = request.getfixturevalue("sqlite_template")
    bench = Bench(folder=tmp_path, make=lambda folder: subject.make(folder, templates))
    with bench.exporter:
        yield bench
