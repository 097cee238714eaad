"""The command `bridge`, also as `python -m bridge`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and exit with its code."""
    from bridge.cli import bridge

    for stream in (sys.stdout, sys.stderr):
        # A letter that the terminal's encoding lacks shows as its escape and ends nothing.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    bridge(prog_name="bridge")


if __name__ == "__main__":
    main()
