"""Give tests of the writer a clock that they move."""

from __future__ import annotations

import time

import pytest


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
