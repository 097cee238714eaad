"""Skip tests for want of a program or server, or fail them where everything is required."""

from __future__ import annotations

import os

import pytest


def require(present: bool, what: str) -> None:
    """Skip the test for want of `what`, or fail it where BRIDGE_REQUIRE_ALL=1."""
    if present:
        return
    if os.environ.get("BRIDGE_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is missing, and BRIDGE_REQUIRE_ALL=1 allows no skipping", pytrace=False)
    pytest.skip(f"{what} is missing")
