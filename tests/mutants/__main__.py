"""`python -m tests.mutants [NAME...]`: try mutants (all, or those whose name contains a NAME), two at a time.

Exit 1 unless a test noticed every one.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from tests.mutants.mutant import Fate, try_out
from tests.mutants.table import MUTANTS

AT_ONCE = 2


def main(names: list[str]) -> int:
    """Try the mutants, print a line for each, and return the exit code."""
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    if not chosen:
        print(f"No mutant is called {' or '.join(names)}. There are:", *(mutant.name for mutant in MUTANTS), sep="\n  ")
        return 2
    alive = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, (fate, told) in zip(chosen, pool.map(try_out, chosen), strict=True):
            print(f"{mutant.name:<44} {mutant.file:<44} {fate}", flush=True)
            if fate is not Fate.KILLED:
                alive += 1
                print("    " + told.strip().replace("\n", "\n    "), flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} mutants killed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
