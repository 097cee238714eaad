"""Locks between processes have one holder, end with its death, and are optional where not supported."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from bridge.locks import file_lock, machine_lock

if TYPE_CHECKING:
    from pathlib import Path


def test_a_forked_process_does_not_prolong_a_lock(tmp_path: Path) -> None:
    """A lock ends with its block, although a process that was forked in the block lives on."""
    child = 0
    try:
        with file_lock(tmp_path / "lock"):
            child = os.fork()
            if not child:
                signal.pause()
        with file_lock(tmp_path / "lock", wait=0.0) as held:
            assert held
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_an_error_in_the_block_is_the_callers(tmp_path: Path) -> None:
    """An exception of the block propagates and frees the lock."""
    with pytest.raises(OSError, match="mine"), file_lock(tmp_path / "lock"):
        raise OSError(errno.ENOLCK, "mine")
    with file_lock(tmp_path / "lock", wait=0.0) as held:
        assert held


def test_a_named_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is one lock for all of a user's processes; without a temporary folder the block runs without it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with machine_lock("a") as held:
        assert held
        with pytest.raises(TimeoutError), machine_lock("a", wait=0.0):
            pytest.fail("one name was locked twice")
        with machine_lock("b", wait=0.0) as other:
            assert other
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with machine_lock("a") as held:
        assert not held
