"""Give tests a logger, and a disk that refuses."""

from __future__ import annotations

import resource
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logger import RegistryLogger


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[RegistryLogger]:
    """Return the logger of a new run in `tmp_path / "run"`."""
    from logger import RegistryLogger

    logger = RegistryLogger(tmp_path / "run", "run")
    yield logger
    logger.finalize("success")


@pytest.fixture
def limit_files() -> Iterator[Callable[[int | None], None]]:
    """Return a function that limits files to a number of bytes, as a full disk does; None lifts the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
