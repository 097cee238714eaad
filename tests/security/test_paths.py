"""Files that lead out of a run directory, never end, or are no files.

They are refused by name, and the run beside them is complete.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.exporters.mlflow.address import Address
from bridge.exporters.mlflow.client import MlflowApi
from bridge.exporters.mlflow.media import ArtifactUpload
from bridge.model import RunFile
from tests.require import require
from tests.security.measured import measure
from tests.security.scene import (
    GOOD,
    TARGETS,
    Case,
    Outside,
    Scene,
    add_media,
    assert_good,
    plain_run,
    points_of,
    target,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.zygote import Zygote

REFUSED = "refused path"
OWN_FILES = ("metrics.csv", "hparams.yaml", "summary.json", "media.jsonl")


def names(path: str) -> Callable[[Path, Outside], None]:
    """Let media.jsonl name this image; {} is the private folder."""
    return lambda run, outside: add_media(run, path.format(outside.folder))


def links(name: str, to: str) -> Callable[[Path, Outside], None]:
    """Replace the file `name` by a link to the private file `to`, or to an absolute path."""

    def harm(run: Path, outside: Outside) -> None:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(outside.folder / to)
        if name.endswith(".png"):
            add_media(run, name)

    return harm


def replaces(name: str, make: Callable[[Path], Any]) -> Callable[[Path, Outside], None]:
    """Replace the file `name` by what `make` creates."""

    def harm(run: Path, outside: Outside) -> None:
        (run / name).unlink(missing_ok=True)
        make(run / name)
        if name.endswith(".png"):
            add_media(run, name)

    return harm


def media_folder_link(run: Path, outside: Outside) -> None:
    (run / "media" / "theirs").symlink_to(outside.folder)
    add_media(run, "media/theirs/key.png")


def tree_loops(run: Path, outside: Outside) -> None:
    """Link a folder to itself, to its parent and to each other, in the tree and in the run directory."""
    tree = run.parent
    (tree / "deep").mkdir()
    for place in (tree / "deep", run):
        (place / "self").symlink_to(".")
        (place / "up").symlink_to("..")
        (place / "one").symlink_to("two")
        (place / "two").symlink_to("one")
        (place / "gone").symlink_to("nowhere")


def checkpoint(path: str) -> Callable[[Path, Outside], None]:
    """Let the sidecar name this checkpoint; {} is the private folder."""

    def harm(run: Path, outside: Outside) -> None:
        shutil.rmtree(run)
        plain_run(run, checkpoint_path=path.format(outside.folder))

    return harm


def checkpoint_pipe(run: Path, outside: Outside) -> None:
    (run / "checkpoints").mkdir()
    os.mkfifo(run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "loop.ckpt").symlink_to("loop.ckpt")
    (run / "checkpoints" / "zero.ckpt").symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
}
LINE = "media.jsonl:2"
CHECKPOINT = "checkpoints/last.ckpt"

CASES = [
    Case("media-dots", names("../../outside/media-dots/key.png"), ((REFUSED, LINE),)),
    Case("media-inner-dots", names("media/../../../outside/media-inner-dots/key.png"), ((REFUSED, LINE),)),
    Case("media-backslashes", names(r"..\..\outside\media-backslashes\key.png"), ((REFUSED, LINE),)),
    Case("media-absolute", names("{}/key.png"), ((REFUSED, LINE),)),
    Case("media-nul", names("media/own.png\0"), ((REFUSED, LINE),)),
    Case("media-nothing", names(""), ((REFUSED, LINE),)),
    Case("media-too-long", names("media/" + "x" * 5000), ((REFUSED, LINE),)),
    Case("media-link", links("media/key.png", "key.png"), ((REFUSED, LINE),)),
    Case("media-folder-link", media_folder_link, ((REFUSED, LINE),)),
    *(Case(f"media-{kind}", replaces("media/x.png", make), ((REFUSED, LINE),)) for kind, make in KINDS.items()),
    *(
        Case(
            f"{kind}-as-{name}",
            links(name, name) if kind == "link" else replaces(name, KINDS[kind]),
            ((REFUSED, name),),
            points=0 if name == "metrics.csv" else 3,
            media=0 if name == "media.jsonl" else 1,
        )
        for name in OWN_FILES
        for kind in ("link", *KINDS)
    ),
    Case("link-as-sidecar.json", links("sidecar.json", "sidecar.json"), reason="leads out of the run directory"),
    *(
        Case(
            f"{kind}-as-sidecar.json",
            replaces("sidecar.json", make),
            reason="leads out of the run directory" if kind == "device" else "is not a regular file",
        )
        for kind, make in KINDS.items()
    ),
    Case("heartbeat-link", links("heartbeat", "id_ed25519")),
    Case("tree-loops", tree_loops),
    Case("checkpoint-absolute", checkpoint("{}/id_ed25519"), in_mlflow=(("left out", "checkpoint"),)),
    Case(
        "checkpoint-dots", checkpoint("../../outside/checkpoint-dots/key.png"), in_mlflow=(("left out", "checkpoint"),)
    ),
    Case("checkpoint-link", links("checkpoints/last.ckpt", "id_ed25519"), in_mlflow=((REFUSED, CHECKPOINT),)),
    Case("checkpoint-folder-link", lambda run, outside: (run / "checkpoints").symlink_to(outside.folder)),
    Case("checkpoint-pipe", checkpoint_pipe, in_mlflow=((REFUSED, CHECKPOINT, 3),)),
]
BY_NAME = {case.name: case for case in CASES}
IN_MLFLOW = [
    "media-dots",
    "media-absolute",
    "media-link",
    "media-folder-link",
    "media-pipe",
    *(f"link-as-{name}" for name in (*OWN_FILES, "sidecar.json")),
    *(name for name in BY_NAME if name.startswith("checkpoint-")),
]
"""Those whose files MLflow would take as artifacts."""


def hostile(root: Path, database: Path) -> Scene:
    """Make all hostile run directories and a good one in one tree."""
    scene = Scene.make(root, database)
    for case in CASES:
        outside = Outside.make(root / "outside" / case.name, f"MARK-{case.name}-b3BlbnNzaC1rZXk")
        case.harm(plain_run(scene.runs / case.name), outside)
    return scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Scene:
    return hostile(tmp_path_factory.mktemp("paths"), sqlite_template)


@pytest.fixture(scope="module")
def exported(scene: Scene) -> dict[str, Any]:
    """Return the report of the export into each target.

    All runs go to TensorBoard, and those that matter to MLflow.
    """
    reports = {}
    for to in TARGETS:
        seen = scene.call("export", *where(to), *target(to), "--workers", 1, "--checkpoints", "--json")
        assert seen.code == 3
        reports[to] = seen.data
    return reports


def where(to: str) -> list[str]:
    """Return the run directories exported to the target."""
    return ["runs"] if to == "tensorboard" else [f"runs/{name}" for name in ("good", *IN_MLFLOW)]


@pytest.fixture(scope="module")
def shown(scene: Scene, exported: dict[str, Any]) -> bytes:
    """Return all bytes of the bridge's files, and all output, also of commands that show the runs."""
    scene.call("ls", "runs", "--json")
    for name in BY_NAME:
        scene.call("show", f"runs/{name}")
    return "\n".join(scene.said).encode() + b"\n".join(path.read_bytes() for path in scene.left())


def line_of(report: Any, run: str) -> Any:
    """Return the report's line on the run directory of that name."""
    (line,) = (line for line in report["runs"] if Path(line["path"]).name == run)
    return line


@pytest.mark.parametrize(
    ("name", "to"), [*((name, "tensorboard") for name in BY_NAME), *((name, "mlflow") for name in IN_MLFLOW)]
)
def test_it_is_refused_by_name(exported: dict[str, Any], name: str, to: str) -> None:
    """The report names the file and its line, and the rest of the run arrives.

    One without a sidecar is unreadable, with a remedy.
    """
    BY_NAME[name].assert_told(line_of(exported[to], name), to)


@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_private_is_anywhere(scene: Scene, shown: bytes, name: str) -> None:
    """Private content is in no event file, database, artifact, cache or output."""
    mark = f"MARK-{name}-b3BlbnNzaC1rZXk"
    assert mark in (scene.root / "outside" / name / "metrics.csv").read_text()
    assert mark.encode() not in shown


@pytest.mark.parametrize("to", TARGETS)
def test_the_good_run_is_whole(scene: Scene, exported: dict[str, Any], to: str) -> None:
    """The good run among these arrives with points, image, params and tags, without a notice."""
    assert_good(line_of(exported[to], "good"))
    assert points_of(scene, to, "good") == GOOD


@pytest.mark.parametrize("to", TARGETS)
def test_verify_tells_them_apart(scene: Scene, exported: dict[str, Any], to: str) -> None:
    """Verify finds the readable runs equal and refuses the same runs as the export."""
    seen = scene.call("verify", *where(to), *target(to), "--json")
    verdicts = {Path(line["path"]).name: line["verdict"] for line in seen.data["runs"]}
    expected = {"good": "="} | {case.name: "!" if case.reason else "=" for case in CASES}
    assert verdicts == {Path(line["path"]).name: expected[Path(line["path"]).name] for line in exported[to]["runs"]}
    assert seen.code == 4


def test_scan_and_ls_tell_them_apart(scene: Scene) -> None:
    """Unreadable runs are named with their reason, and all others are listed.

    A run whose heartbeat is a link to a fresh file ends when its sidecar says so.
    """
    unreadable = {case.name: case.reason for case in CASES if case.reason}
    scan = scene.call("scan", "runs", "--json")
    problems = {Path(one["run_dir"]).name: one["reason"] for one in scan.data["scans"][0]["problems"]}
    assert (scan.code, problems.keys()) == (3, unreadable.keys())
    assert all(reason in problems[name] for name, reason in unreadable.items())
    ls = scene.call("ls", "runs", "--json")
    listed = {Path(run["run_dir"]).name: run for run in ls.data["runs"]}
    assert (ls.code, listed.keys()) == (0, {"good"} | (BY_NAME.keys() - unreadable.keys()))
    assert listed["heartbeat-link"]["status"] == "completed"
    assert listed["heartbeat-link"]["ended_at"] == listed["good"]["ended_at"]
    assert all(f"runs/{name}: " in ls.err for name in unreadable)


def test_an_unreadable_run_alone_is_nothing_done(scene: Scene) -> None:
    """If no run can be read, the exit code is 1, and the error names the file on stderr."""
    seen = scene.call("export", "runs/pipe-as-sidecar.json", "--to", "tensorboard", "--logdir", "other")
    assert (seen.code, not (scene.root / "other").exists()) == (1, True)
    assert "pipe-as-sidecar.json/sidecar.json is not a regular file." in seen.err


def test_nothing_outside_is_even_opened(tmp_path: Path, heavy: Zygote, sqlite_template: Path) -> None:
    """No private file or folder is opened or listed, because the place is checked first."""
    hostile(tmp_path, sqlite_template)
    everything = ("runs", *target("tensorboard"), "--json")
    some = (*where("mlflow")[1:], *target("mlflow"), "--json")
    measured = measure(
        heavy,
        tmp_path,
        ("ls", "runs", "--json"),
        ("export", *everything, "--workers", 1),
        ("verify", *everything),
        ("export", *some, "--workers", 1, "--checkpoints"),
        ("verify", *some),
    )
    assert [seen.code for seen in measured.seen] == [0, 3, 4, 3, 4]
    assert measured.touched == ()


def test_a_file_that_is_swapped_while_it_is_sent(tmp_path: Path) -> None:
    """The upload sends the checked file, even if somebody replaces it by a link meanwhile."""
    require(Path("/proc/self/fd").exists(), "/proc")
    outside = Outside.make(tmp_path / "outside", "MARK-swapped")
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"ours")
    sent = []

    class Api(MlflowApi):
        def upload_file(self, run_id: str, file: Path, folder: str | None) -> None:
            path.unlink()
            path.symlink_to(outside.folder / "id_ed25519")
            sent.append((run_id, folder, file.name, file.read_bytes()))

    upload = ArtifactUpload(api=Api(Address.of("http://127.0.0.1:9")), run_id="run")
    assert upload.add_file("checkpoints/last.ckpt", RunFile(path=path, size=4, mtime_ns=0))
    assert (upload.finish(), sent) == ([], [("run", "checkpoints", "last.ckpt", b"ours")])
