"""Give tests a clock that they move, a logger, and a disk that refuses."""

from __future__ import annotations

import resource
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logger import RegistryLogger


class Clock:
    """A monotonic clock that moves only when a test sets `now`, its time in seconds."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the monotonic clock by one that a test moves."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


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
