"""The mutants: each a fault that somebody could make, or that another tool made, with the tests that must notice it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
