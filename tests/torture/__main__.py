"""`python -m tests.torture`: train, export, kill and starve for minutes.

Verify finds no difference at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.torture.scene import Scene


def main() -> int:
    """Return the exit code: 0 if every run is equal in every target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240.0, help="how long things are killed")
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bridge-torture-") as folder:
        scene = Scene(Path(folder), trainings=asked.trainings, seed=asked.seed, say=print)
        verdicts = scene.play(asked.seconds)
    print(scene.summary())
    for target, verdict in verdicts.items():
        print(f"{target}: {verdict}")
    return 0 if all(verdict.startswith("exit 0") for verdict in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
