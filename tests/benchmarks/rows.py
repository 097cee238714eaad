"""Build a benchmark's rows, and time its work.

A benchmark is a module in this folder with `run(quick: bool) -> list[dict]`, whose rows come from `row()`. The rows of
one `work` are compared: the peers' time per unit over that of the row whose `who` is `ours`, all measured in the same
minute.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "ours"


def row(work: str, who: str, seconds: float, amount: float, unit: str, **more: Any) -> dict[str, Any]:
    """Return a row: `who` did `amount` `unit`s of `work` in `seconds`.

    `more` is copied to the JSON. In it, `at_least=N` on a peer's row promises that ours is N times faster (0.5: at most
    twice as slow), `at_most=S` promises at most S seconds, and `at_most_mib=M` at most M of the memory `mib`; `note` is
    printed.
    """
    return {"work": work, "who": who, "seconds": seconds, "amount": amount, "unit": unit, **more}


def best_of(times: int, action: Callable[[], object]) -> float:
    """Return the shortest of `times` runs of `action` in seconds, because other load only ever adds time."""
    shortest = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        action()
        shortest = min(shortest, time.perf_counter() - began)
    return shortest
