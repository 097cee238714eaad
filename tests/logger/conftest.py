"""Give tests of the writer a clock that they move."""

from __future__ import annotations

import time

import pytest


class Clock:
    """The monotonic clock of this process, which stands still; `now` is its time in seconds."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the monotonic clock by one that stands still until a test moves it."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock
