"""Build a benchmark's rows, and time its work.

A benchmark is a module in this folder with `run(quick: bool) -> list[dict]`, whose rows come from `row()`. The rows of
one `work` are compared: the peers' time per unit over that of the row whose `who` is `ours`, all measured in the same
minute.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OURS = "ours"


def row(work: str, who: str, seconds: float, amount: float, unit: str, **more: Any) -> dict[str, Any]:
    """Return a row: `who` did `amount` `unit`s of `work` in `seconds`.

    In `more`, `at_least=N` on a peer's row promises that ours is N times faster (0.5: at most twice as slow),
    `at_most=S` promises at most S seconds, and `at_most_mib=M` at most M of the memory `mib`; `note` is printed.
    """
    return {"work": work, "who": who, "seconds": seconds, "amount": amount, "unit": unit, **more}


def best_of(times: int, action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the shortest of `times` runs of `action` in seconds, because other load only ever adds time."""
    shortest = float("inf")
    for _ in range(times):
        began = clock()
        action()
        shortest = min(shortest, clock() - began)
    return shortest


def best_in_turn(
    rounds: int, ways: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the shortest time of each way.

    The ways take turns, each round in the other order, since a machine's speed drifts and databases grow.
    """
    best = dict.fromkeys(ways, float("inf"))
    for number in range(rounds):
        for who in reversed(ways) if number % 2 else ways:
            best[who] = min(best[who], best_of(1, ways[who], clock))
    return best
