"""Skip tests for want of a program or server."""

from __future__ import annotations

import pytest


def require(present: bool, what: str) -> None:
    """Skip the test for want of `what`. Where BRIDGE_REQUIRE_ALL=1, tests/no_skips.py makes that a failure."""
    if not present:
        pytest.skip(f"{what} is missing")
