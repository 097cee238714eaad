"""The step of a row, from whatever a training gives as one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from logger.values import number

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAR", "step_of"]

FAR = 2**63
"""Steps are whole numbers from -FAR to FAR - 1: readers and targets hold no others."""


def step_of(step: Any, last: int | None, *, tell: Callable[[str, str], None]) -> int:
    """The step that is written for `step`, in a run whose last one is `last`: the last + 1 where none is given.

    `tell` is told what is no whole number, which is cut to one, and what is no step at all or beyond 64 bits, which gets the last + 1:
    with another step a row is of use, without one readers drop it.
    """
    if type(step) is int and -FAR <= step < FAR:
        return step
    following = 0 if last is None else min(last + 1, FAR - 1)
    if step is None:
        return following
    value = number(step)
    if value is None or not math.isfinite(value) or not -FAR <= value < FAR:
        what = "A number beyond 64 bits" if isinstance(step, int) else f"{step!r:.80}"
        tell("step", f"{what} is no step; {following} is written.")
        return following
    if value != int(value):
        tell("step", f"The step {step!r} is not a whole number; {int(value)} is written.")
    return int(value)
