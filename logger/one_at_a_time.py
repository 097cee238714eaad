"""Calls that are carried out whole, one after another, whatever threads and signal handlers do."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OneAtATime", "whole"]

_Method = TypeVar("_Method", bound="Callable[..., None]")


class OneAtATime:
    """The lock of an object whose methods are `whole`.

    Threads wait for each other. A signal handler runs in the middle of the main thread's call and cannot wait for it: what
    it calls is put off until that call is done (at the latest until the next one is).
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._later: list[Callable[[], None]] = []


def whole(method: _Method) -> _Method:
    """Carry out `method` of a OneAtATime whole."""

    @functools.wraps(method)
    def call(self: OneAtATime, *args: Any, **kwargs: Any) -> None:
        # The lock itself knows best whether this thread is inside: a flag could be left standing by a Ctrl-C.
        if self._lock._is_owned():  # type: ignore[attr-defined]
            self._later.append(functools.partial(method, self, *args, **kwargs))
            return
        with self._lock:
            try:
                method(self, *args, **kwargs)
            finally:
                while self._later:
                    self._later.pop(0)()

    return cast("_Method", call)
