"""Hostile run directories beside a good one, exported by the command line, and all that people see of it afterwards."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from bridge.cli import bridge
from tests.run_dirs import CREATED, CREATED_S, make_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "GOOD",
    "TARGETS",
    "Case",
    "Outside",
    "Scene",
    "Seen",
    "add_media",
    "plain_run",
    "png",
    "points_of",
    "target",
]

ROWS = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
GOOD = [(0, CREATED_S, 1.0), (1, CREATED_S + 1, 0.5), (2, CREATED_S + 2, 0.25)]
"""The points of `loss` in every run that `plain_run` makes: step, time, value."""

TARGETS = ("tensorboard", "mlflow")


def png(width: int = 4, height: int = 4, *, text: bytes = b"") -> bytes:
    """Return a grey PNG of that size.

    Where `text` is given it stands in the file's comment, and only in the 1st row are pixels.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    comment = chunk(b"tEXt", b"Comment\0" + text) if text else b""
    pixels = chunk(b"IDAT", zlib.compress(bytes((width + 1) * height), 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + comment + pixels + chunk(b"IEND", b"")


def plain_run(path: Path, **sidecar: Any) -> Path:
    """Return a run directory as a logger writes it.

    Three points, hparams.yaml, summary.json, and one picture that is its own.
    """
    make_run(path, ROWS, **{"hparams": {"lr": 0.5}} | sidecar)
    (path / "hparams.yaml").write_text("lr: 0.5\n")
    (path / "summary.json").write_text('{"metrics": {"loss": {"last": 0.25}}}')
    (path / "media").mkdir()
    (path / "media" / "own.png").write_bytes(png())
    add_media(path, "media/own.png", tag="own")
    return path


def add_media(path: Path, file: str, *, tag: str = "val") -> None:
    """Let the next line of media.jsonl name the picture `file`."""
    with (path / "media.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 0, "tag": tag, "type": "image", "path": file}) + "\n")


@dataclass(frozen=True)
class Outside:
    """Somebody's private files.

    Each would be read as what it is called, so that only the look at its place keeps it away.
    `mark` stands in each of them, and nobody may ever see it.
    """

    folder: Path
    mark: str

    @classmethod
    def make(cls, folder: Path, mark: str) -> Outside:
        """Write the files."""
        folder.mkdir(parents=True)
        facts = {"run_id": mark, "uid": mark, "status": "completed", "created_at": CREATED, "notes": mark}
        line = {"step": 0, "tag": mark, "type": "image", "path": "media/own.png", "caption": mark}
        for name, text in {
            "sidecar.json": json.dumps(facts),
            "summary.json": json.dumps({"metrics": {mark: {"last": 1.0}}}),
            "metrics.csv": f"{mark},step,wall_time\r\n1.5,0,{CREATED_S}\r\n",
            "hparams.yaml": f"{mark}: {mark}\n",
            "media.jsonl": json.dumps(line) + "\n",
            "id_ed25519": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{mark}\n-----END OPENSSH PRIVATE KEY-----\n",
        }.items():
            (folder / name).write_text(text)
        (folder / "key.png").write_bytes(png(text=mark.encode()))
        return cls(folder, mark)


@dataclass(frozen=True)
class Case:
    """One hostile run directory: what `harm` makes of a plain one, and what is said of it.

    `notices` are (kind, what) in the report, and with these, `in_mlflow`, in MLflow's; `reason` is a part of why the
    run cannot be read at all ("": it can).
    """

    name: str
    harm: Callable[[Path, Outside], None]
    notices: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    points: int = 3
    media: int = 1
    in_mlflow: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Seen:
    """What a command left: its exit code, and all that it printed."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What --json printed."""
        return json.loads(self.out)


@dataclass
class Scene:
    """A folder with `runs`, and `tb`, `mlflow.db` and `mlruns` where they are exported to."""

    root: Path
    said: list[str] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        """Where the run directories are."""
        return self.root / "runs"

    def call(self, *words: object) -> Seen:
        """Type a command in the folder; an error that nobody expected comes out."""
        with contextlib.chdir(self.root):
            result = CliRunner(env={"BRIDGE_CACHE_DIR": "cache"}).invoke(bridge, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.said += [result.stdout, result.stderr]
        return Seen(result.exit_code, result.stdout, result.stderr)

    def export(self, to: str, *words: object) -> Seen:
        """Export all runs, in this process."""
        return self.call("export", "runs", "--workers", 1, *target(to), *words)

    def verify(self, to: str, *words: object) -> Seen:
        """Verify all runs."""
        return self.call("verify", "runs", *target(to), *words)

    def holding(self, text: str) -> list[Path]:
        """Return the files that an export left and that hold `text`."""
        return [path for path in self.left() if text.encode() in path.read_bytes()]

    def left(self) -> Iterator[Path]:
        """All files that exports left, and the caches."""
        for path in self.root.rglob("*"):
            within = path.relative_to(self.root).parts[0]
            if within not in ("runs", "outside") and path.is_file():
                yield path


def target(to: str) -> list[str]:
    """Return the options of a target in the working directory."""
    if to == "tensorboard":
        return ["--to", to, "--logdir", "tb"]
    return ["--to", to, "--tracking-uri", "sqlite:///mlflow.db", "--experiment", "hostile"]


def points_of(scene: Scene, to: str, run_id: str, metric: str = "loss") -> list[tuple[int, float, float]]:
    """Return the points of a metric as the target's own reader, or SQL, finds them."""
    if to == "tensorboard":
        from tests.exporters.tensorboard.event_files import events, file_of

        found = events(file_of(scene.root / "tb" / run_id, "scalars"))
        return [
            (one.step, one.wall_time, value.simple_value)
            for one in found
            for value in one.summary.value
            if value.tag == metric
        ]
    import sqlite3

    query = (
        "SELECT step, timestamp / 1000.0, metrics.value FROM metrics JOIN tags ON tags.run_uuid = metrics.run_uuid"
        " WHERE tags.key = 'mlflow.bridge.run_id' AND tags.value = ? AND metrics.key = ? ORDER BY step"
    )
    with contextlib.closing(sqlite3.connect(scene.root / "mlflow.db")) as connection:
        return connection.execute(query, (run_id, metric)).fetchall()
