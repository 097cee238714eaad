"""Export hostile run directories beside a good one by the command line, and collect what people see afterwards."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.cli.calling import call
from tests.pictures import png
from tests.run_dirs import CREATED, CREATED_S, make_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROWS = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
GOOD = [(0, CREATED_S, 1.0), (1, CREATED_S + 1, 0.5), (2, CREATED_S + 2, 0.25)]
"""The points of `loss` in every run that `plain_run` makes: step, time, value."""

TARGETS = ("tensorboard", "mlflow")


def plain_run(path: Path, **sidecar: Any) -> Path:
    """Write a run directory as a logger does.

    It has three points, hparams.yaml, summary.json, and one unique image.
    """
    make_run(path, ROWS, **{"hparams": {"lr": 0.5}} | sidecar)
    (path / "hparams.yaml").write_text("lr: 0.5\n")
    (path / "summary.json").write_text('{"metrics": {"loss": {"last": 0.25}}}')
    (path / "media").mkdir()
    (path / "media" / "own.png").write_bytes(png())
    add_media(path, "media/own.png", tag="own")
    return path


def add_media(path: Path, file: str, *, tag: str = "val") -> None:
    """Append a line to media.jsonl that names the image `file`."""
    with (path / "media.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 0, "tag": tag, "type": "image", "path": file}) + "\n")


@dataclass(frozen=True)
class Outside:
    """Somebody's private files.

    Each is valid for the name that a link gives it, so only the check of its place protects it. All hold `mark`, which
    nobody may ever see.
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
        (folder / "key.png").write_bytes(png(comment=mark))
        return cls(folder, mark)


@dataclass(frozen=True)
class Case:
    """One hostile run directory: what `harm` makes of a plain one, and the expected report.

    The run is unreadable for a `reason` with these words and a remedy with this `hint`, or it arrives with `notices`:
    kind, what (of the first), and how many if it is not one. `in_mlflow` are further ones in MLflow's report.
    """

    name: str
    harm: Callable[..., None]
    notices: tuple[tuple[str | int, ...], ...] = ()
    reason: str = ""
    hint: str = "Put a plain file in its place, or move the run directory away."
    points: int = 3
    media: int = 1
    in_mlflow: tuple[tuple[str | int, ...], ...] = ()

    def assert_told(self, line: Any, to: str = "tensorboard") -> None:
        """Assert that the line of a report names the fault, and that the rest of the run arrived."""
        if self.reason:
            told = (line["action"], self.reason in line["reason"], self.hint in line["hint"])
            assert told == ("unreadable", True, True), line
            assert line["path"] in line["reason"]
            return
        expected = self.notices + (self.in_mlflow if to == "mlflow" else ())
        found = [(entry["kind"], entry["examples"][0]["what"], entry["count"]) for entry in line["notices"]]
        assert (line["action"], line["points"], line["media"], found) == (
            "new", self.points, self.media, [(*notice, 1)[:3] for notice in expected]
        )  # fmt: skip


def assert_good(line: Any) -> None:
    """Assert that the good run arrived with points and image, without a notice."""
    assert (line["action"], line["points"], line["media"], line["notices"]) == ("new", 3, 1, [])


@dataclass(frozen=True)
class Seen:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Return the output of --json, parsed."""
        return json.loads(self.out)


@dataclass
class Scene:
    """A folder with `runs`, and the targets `tb`, `mlflow.db` and `mlruns`."""

    root: Path
    said: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path, database: Path | None = None) -> Scene:
        """Make the folder with a good run, and `mlflow.db` as a copy of `database`."""
        scene = cls(root)
        plain_run(scene.runs / "good", tags=["t:1"])
        if database is not None:
            shutil.copy(database, root / "mlflow.db")
        return scene

    @property
    def runs(self) -> Path:
        """Return the folder of the run directories."""
        return self.root / "runs"

    def call(self, *words: object) -> Seen:
        """Run a command in the folder; an unexpected exception propagates."""
        with contextlib.chdir(self.root):
            seen = Seen(*call(*words, BRIDGE_CACHE_DIR="cache"))
        self.said += [seen.out, seen.err]
        return seen

    def export(self, to: str, *words: object) -> Seen:
        """Export all runs in this process."""
        return self.call("export", "runs", "--workers", 1, *target(to), *words)

    def verify(self, to: str, *words: object) -> Seen:
        """Verify all runs."""
        return self.call("verify", "runs", *target(to), *words)

    def holding(self, text: str) -> list[Path]:
        """Return the files of all exports that hold `text`."""
        return [path for path in self.left() if text.encode() in path.read_bytes()]

    def left(self) -> Iterator[Path]:
        """Return all files that exports left, and the caches."""
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
    """Return the points of a metric from the target's own reader or SQL."""
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
