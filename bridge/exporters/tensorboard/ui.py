"""TensorBoard on a log directory, started so that it shows all of what was exported."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bridge.errors import MissingExtraError
from bridge.exporters.contract import Interface

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DEFAULT_PORT", "SAMPLES", "interface"]

DEFAULT_PORT = 6006

SAMPLES = "images=9999,text=9999,audio=9999,scalars=100000"
"""TensorBoard shows ten images and a thousand scalars a tag unless it is told otherwise."""


def interface(logdir: Path, port: int) -> Interface:
    """TensorBoard on 127.0.0.1 and `port`. Raises MissingExtraError where it is not installed."""
    if find_spec("tensorboard") is None:
        raise MissingExtraError.of("tensorboard", purpose="To show runs in TensorBoard")
    address = f"http://127.0.0.1:{port}/"
    return Interface(
        address=address,
        probe=f"{address}data/environment",
        argv=(
            sys.executable, "-m", "tensorboard.main",
            "--logdir", str(logdir.absolute()),
            "--host", "127.0.0.1",
            "--port", str(port),
            "--samples_per_plugin", SAMPLES,
        ),
    )  # fmt: skip
