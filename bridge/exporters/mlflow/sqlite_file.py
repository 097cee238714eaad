"""A SQLite file that MLflow has not made yet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bridge.errors import TargetRefusedError
from bridge.exporters.mlflow.address import sqlite_uri

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["can_be_made", "make_database"]


def can_be_made(file: Path) -> bool:
    """Whether `file` is not there yet. Raises TargetRefusedError where it could not be made either."""
    if file.exists():
        return False
    if not file.parent.is_dir():
        raise TargetRefusedError(f"There is no folder {file.parent} for {file.name}.", hint="Make it first.")
    if not os.access(file.parent, os.W_OK):
        raise TargetRefusedError(f"{file.name} cannot be made in {file.parent}: no permission to write there.")
    return True


def make_database(file: Path) -> None:
    """Make a new SQLite file with MLflow's tables: whole or not at all, also when this process is killed meanwhile.

    MLflow makes them in seconds and dozens of steps; a file left in between is one that nobody opens any more.
    """
    from mlflow import MlflowClient

    beside = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        MlflowClient(sqlite_uri(beside)).search_experiments(max_results=1)
        try:
            os.link(beside, file)
        except FileExistsError:
            return  # somebody else's, made without our lock
        except OSError:  # a file system without hard links
            beside.rename(file)
    finally:
        beside.unlink(missing_ok=True)
