"""What a benchmark returns, and a stopwatch for it.

A benchmark is a module in this folder with `run(quick: bool) -> list[dict]`: rows as `row()` makes them. The rows of
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
    """`who` did `amount` `unit`s of `work` in `seconds`.

    `more` goes into the JSON as it is; of it, `at_least=N` on a peer's row states the promise that ours is N times
    faster (0.5: at most twice as slow), `at_most=S` on any row that it takes at most S seconds, `at_most_mib=M` that
    the memory `mib` is at most M; `note` is printed.
    """
    return {"work": work, "who": who, "seconds": seconds, "amount": amount, "unit": unit, **more}


def best_of(times: int, action: Callable[[], object]) -> float:
    """Return the shortest of `times` runs of `action`, in seconds: what else the machine does only ever adds."""
    shortest = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        action()
        shortest = min(shortest, time.perf_counter() - began)
    return shortest
