"""What happens beside the training: a heartbeat, the last state that nobody saved, and how much saving may cost."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HEARTBEAT_S", "LATEST_S", "Budget", "Pulse"]

HEARTBEAT_S = 30.0
"""The thread touches the heartbeat this often."""

LATEST_S = 4.0
"""The thread looks this often for a state that is not on disk yet; so the last one is there within ten seconds."""

_SHARE = 0.02
"""The share of a training's time that the JSON files may cost."""

_BURST_S = 0.01
_BURST_WRITES = 5


class Budget:
    """Says whether the JSON files may be written again, so that they cost at most 2 % of the time.

    After a pause there is room for a burst: five writes, whatever they take, and as many more as fit into 10 ms. The next burst comes
    when this one is paid for.
    """

    def __init__(self, now: float) -> None:
        self._debt = 0.0
        self._at = now
        self._burst = _BURST_WRITES

    def allows(self, now: float) -> bool:
        """Whether a write may begin at `now` (seconds of a monotonic clock); if so it counts as begun."""
        self._debt -= (now - self._at) * _SHARE
        self._at = now
        if self._debt <= 0.0:
            self._debt, self._burst = 0.0, _BURST_WRITES
        if self._burst > 0:
            self._burst -= 1
            return True
        return self._debt < _BURST_S

    def spend(self, seconds: float) -> None:
        """Note that a write took `seconds`."""
        self._debt += seconds


class _Owner(Protocol):
    def tick(self) -> None: ...


class Pulse:
    """A daemon thread that calls its owner's `tick` every LATEST_S seconds until it is stopped, or the owner is gone."""

    def __init__(self, owner: _Owner, *, failed: Callable[[BaseException], None]) -> None:
        self._owner = weakref.ref(owner)
        self._failed = failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry-logger-heartbeat", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs (it does not in a forked child)."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Let the thread end; it is not waited for."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(LATEST_S):
            owner = self._owner()
            if owner is None:
                return
            try:
                owner.tick()
            except Exception as error:  # noqa: BLE001 - one failure must not take the heartbeat away
                self._failed(error)
            del owner
