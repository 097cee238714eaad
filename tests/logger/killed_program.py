"""Train without torch until killed: `python -m tests.logger.killed_program RUN_DIR`.

It continues the directory: row `n` has the metric `number` = n, every seventh row has a new metric, so that the header
keeps growing, and every fifth an item of media. It prints the number of each row once the row is saved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from logger.media import Encoded
from logger.run_writer import RunWriter


def main(run_dir: Path) -> None:
    writer = RunWriter.open(run_dir, "killed")
    number = writer.rows
    while True:
        row: dict[str, object] = {"number": number, "text": f'line\r\nbreak, "{number}"' if number % 3 == 0 else None}
        row[f"metric_{number // 7}"] = number / 3
        writer.log_metrics(row, number)
        writer.save()
        if number % 5 == 0:
            writer.log_media("a/b", "image", lambda: Encoded("png", b"\x89PNG"), step=number, caption=None)
        os.write(1, f"{number}\n".encode())
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
