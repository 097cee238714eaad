"""The reader's view of a run directory beside its metrics."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from bridge.errors import RunDirectoryError
from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_run, read_summary, read_whole
from bridge.rundir.run import run_name
from tests.run_dirs import make_run, write_metrics, write_sidecar

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", [".", "nowhere"])
def test_no_run_directory(tmp_path: Path, name: str) -> None:
    """A folder without a sidecar and Lightning's files is refused."""
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        read_run(tmp_path / name)


def test_files_that_git_did_not_fetch(tmp_path: Path) -> None:
    """A Git LFS pointer in place of a file is a notice, and in place of the sidecar an unreadable run."""
    run_dir = make_run(tmp_path / "run", [{"a": 1, "step": 0}])
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    (run_dir / "metrics.csv").write_text(pointer)
    run = read_run(run_dir)
    assert [(notice.kind, notice.what) for notice in run.notices] == [(NoticeKind.MISSING_FILE, "metrics.csv")]
    assert "git lfs pull" in run.notices[0].detail
    (run_dir / "sidecar.json").write_text(pointer)
    with pytest.raises(RunDirectoryError, match="is a Git LFS pointer"):
        read_run(run_dir)


def test_where_it_lies_now_wins(tmp_path: Path) -> None:
    """The path is the real one, whatever `run_dir` or a link says."""
    run_dir = make_run(tmp_path / "real", run_dir="/somewhere/else")
    (tmp_path / "link").symlink_to(run_dir)
    assert read_run(tmp_path / "link").path == run_dir


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 5000 + "]" * 5000,
        "a: " + "{b: " * 3000 + "1" + "}" * 3000,
        "&a [*a]",
        "a: &a\n  b: *a\n",
        "? [1, 2]\n: x\n? {a: 1}\n: y\n",
        "a: 1\n\0\n",
        "- 1\n",
        "a: 2026-99-99\n",
        "a: 0b2\n1: 2\ntrue: 3\nnull: 4\n1.5: 5\n",
        "a: !!int x\n",
        "a: !!binary '*'\n",
    ],
)
def test_no_yaml_hurts(tmp_path: Path, bomb: str) -> None:
    """Loops, depth and odd keys in hparams.yaml cost at most a notice and little time."""
    run_dir = make_run(tmp_path / "run")
    (run_dir / "hparams.yaml").write_text(bomb)
    began = time.perf_counter()
    run = read_run(run_dir)
    assert len(json.dumps(dict(run.params), default=str)) < 10_000_000
    assert time.perf_counter() - began < 20


def test_a_network_in_hparams_costs_its_own_key(tmp_path: Path) -> None:
    """If hparams.yaml is too large, its largest keys are left out by name."""
    run_dir = make_run(tmp_path / "run")
    network = "model: !!python/object:torch.nn.Linear\n" + "".join(f"  w{n}: {'0.5 ' * 50}\n" for n in range(6_000))
    (run_dir / "hparams.yaml").write_text(f"lr: 0.1\n{network}layers:\n- 1\n- 2\noptim:\n  betas: [0.9, 0.99]\n")
    run = read_run(run_dir)
    assert dict(run.params) == {"lr": 0.1, "layers": "[1, 2]", "optim.betas": "[0.9, 0.99]"}
    assert [(notice.kind, notice.what) for notice in run.notices] == [(NoticeKind.TOO_LARGE, "hparams.yaml: model")]
    with (run_dir / "hparams.yaml").open("r+b") as file:
        file.truncate(65 << 20)
    assert [notice.what for notice in read_run(run_dir).notices] == ["hparams.yaml"]


PYTHON_OBJECTS = """
namespace: !!python/object:argparse.Namespace
  lr: 0.1
  inner: !!python/object:argparse.Namespace {depth: 3}
attr_dict: !!python/object/new:lightning.fabric.utilities.data.AttributeDict
  dictitems: {width: 8}
data: !!python/object:train.Config {seed: 1}
color: !!python/object/apply:train.Color
- red
path: !!python/object/apply:pathlib.PosixPath
- runs
- a
device: !!python/object/apply:torch.device
- cuda
- 0
number: !!python/object/apply:numpy.core.multiarray.scalar
- !!python/object/apply:numpy.dtype
  args: [f8, false, true]
  state: !!python/tuple [3, '<', null, null, null, -1, -1, 0]
- !!binary |
  AAAAAAAA4D8=
betas: !!python/tuple [0.9, 0.999]
names: !!set {b: null, a: null}
ordered: !!python/object/apply:collections.OrderedDict
- - [first, 1]
  - [second, 2]
act: !!python/name:torch.nn.GELU ''
list:
- !!python/object:argparse.Namespace {x: 1}
model: !!python/object:train.Network
  _modules: {}
  training: true
run: !!python/object/apply:os.system [exit 1]
"""


def test_python_objects_in_hparams_are_their_content(tmp_path: Path) -> None:
    """An object is read as its mapping, text or number without execution; a class name is a notice."""
    run_dir = make_run(tmp_path / "run")
    (run_dir / "hparams.yaml").write_text(PYTHON_OBJECTS)
    run = read_run(run_dir)
    assert dict(run.params) == {
        "namespace.lr": 0.1,
        "namespace.inner.depth": 3,
        "attr_dict.width": 8,
        "data.seed": 1,
        "color": "red",
        "path": "runs/a",
        "device": "cuda:0",
        "number": 0.5,
        "betas": "[0.9, 0.999]",
        "names": '["a", "b"]',
        "ordered.first": 1,
        "ordered.second": 2,
        "act": "torch.nn.GELU",
        "list": '[{"x": 1}]',
        "model": "train.Network",
        "run": "exit 1",
    }
    assert [(notice.kind, notice.what) for notice in run.notices] == [(NoticeKind.LEFT_OUT, "hparams.yaml: model")]


def test_values_in_hparams(tmp_path: Path) -> None:
    """A number or truth is a param as it is; a list is JSON, in which a number that is not finite is a text."""
    run_dir = make_run(tmp_path / "run")
    (run_dir / "hparams.yaml").write_text("a: .inf\nb: 0o17\nc: yes\nd: null\n1: int\n2.5: float\ne: [.nan, -.inf]\n")
    params = {"a": math.inf, "b": "0o17", "c": True, "d": None, "1": "int", "2.5": "float", "e": '["NaN", "-Infinity"]'}
    assert dict(read_run(run_dir).params) == params


@pytest.mark.parametrize(
    ("path", "run_id", "name"),
    [
        ("/data/resnet/version_0", "", "resnet/version_0"),
        ("/data/resnet/lightning_logs/version_0", "", "resnet/version_0"),
        ("/data/resnet/seed0/version_0", "", "resnet/seed0/version_0"),
        ("/data/runs/logs/version_0", "", "data/version_0"),
        ("/data/runs/baseline", "", "baseline"),
        ("/data/versions/version-0", "", "versions/version-0"),
        ("/data/a/fold=3", "", "a/fold=3"),
        ("/data/a/run", "", "a/run"),
        ("/data/a/trial_12_b", "", "trial_12_b"),
        ("/data/a/10000", "", "10000"),
        ("/data/a/9999", "", "a/9999"),
        ("/0", "", "0"),
        ("/scratch/47110/0", "47110/0", "47110/0"),
        ("/scratch/20261128/preempted", "20261128/preempted", "preempted"),
        ("/scratch/x", "sweep/seed0", "sweep/seed0"),
        ("/data/a/3/0", "3/0", "a/3/0"),
        ("/data/a/moved", "3/0", "a/3/0"),
    ],
)
def test_names(path: str, run_id: str, name: str) -> None:
    """A part of a name that says little gets its parent in front, from the run id, then the path."""
    assert run_name(run_id, path) == name


def test_a_clock_that_is_known_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system with our cache ages follow its server's clock; elsewhere a minute is allowed."""
    run_dir = make_run(tmp_path / "run", status="running", heartbeat_age=200)
    os.utime(run_dir / "metrics.csv", (0, 0))
    cache, unwritable = tmp_path / "cache", tmp_path / "file"
    unwritable.touch()

    def read(where: Path, timeout: float = 180.0) -> Status:
        monkeypatch.setenv("BRIDGE_CACHE_DIR", str(where))
        return read_run(run_dir, heartbeat_timeout=timeout).status

    assert read(cache) is Status.KILLED
    assert read(unwritable) is Status.RUNNING
    assert read(unwritable, 100) is Status.KILLED
    # This machine's clock is an hour ahead: the server's still says what is what.
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert read(tmp_path / "new", 250) is Status.RUNNING
    assert read(unwritable, 250) is Status.KILLED
    assert list(cache.iterdir()) == []


def test_the_directory_is_never_written(tmp_path: Path) -> None:
    """Reading leaves the run directory unchanged."""
    run_dir = make_run(tmp_path / "run", [{"a": 1, "step": 0}])
    before = sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(run_dir))
    run_dir.chmod(0o555)
    try:
        run = read_run(run_dir)
        list(read_whole(run, ContentOptions(), ReadOptions()))
        read_summary(run)
    finally:
        run_dir.chmod(0o755)
    assert sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(run_dir)) == before


def test_the_summary(tmp_path: Path) -> None:
    """Statistics are computed from all logged values, or read from summary.json."""
    run_dir = write_sidecar(tmp_path / "run")
    write_metrics(run_dir, ("a", "step"), [["nan", 5], [3, 6], [-1, 7], ["inf", 8], ["text", 9], [3, ""], [2, 7]])
    stats = {"last": 2.0, "min": -1.0, "max": float("inf"), "count": 5}
    stats |= {"min_step": 7, "max_step": 8, "nan_count": 1, "first_nan_step": 5}
    assert read_summary(read_run(run_dir)) == {"a": stats}
    stats = {"last": "NaN", "min": 1, "max": 2, "count": 3}
    (run_dir / "summary.json").write_text(json.dumps({"schema_version": 1, "metrics": {"a": stats, "b": 5}}))
    run = read_run(run_dir)
    assert list(run.summary_stats) == ["a"]
    found = run.summary_stats["a"]
    assert (found["min"], str(found["last"]), str(run.summary["a"])) == (1, "nan", "nan")


def test_what_is_imported() -> None:
    """Importing the reader, and reading a run without metrics, loads neither numpy nor pyarrow."""
    program = (
        "import sys, bridge.rundir; from pathlib import Path; bridge.rundir.discover; bridge.rundir.read_run;"
        "print([name for name in ('numpy', 'pyarrow', 'yaml', 'torch', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_statistics_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    """Statistics that are no numbers, or too large for a float, are left out; the first twenty are named."""
    run_dir = write_sidecar(tmp_path / "run")
    stats = {"max": 10**400, "last": "fast", "max_step": 3, "count": [1], "first_nan_step": None}
    metrics = {"a": stats} | {f"m{number}": {"max": "x"} for number in range(147)}
    (run_dir / "summary.json").write_text(json.dumps({"metrics": metrics}))
    run = read_run(run_dir)
    assert [(name, value) for name, value in run.summary_stats["a"].items() if value] == [("max_step", 3)]
    assert [(notice.what, notice.detail) for notice in run.notices[:3]] == [
        ("summary.json: metrics.a.last", "is a text, not a number"),
        ("summary.json: metrics.a.max", "is too large for a number"),
        ("summary.json: metrics.a.count", "is a list, not a whole number"),
    ]
    more = run.notices[-1]
    assert (len(run.notices), more.count, more.detail) == (21, 130, "further values of a wrong type")


@pytest.mark.parametrize("file", ["sidecar.json: hparams", "hparams.yaml"])
def test_params_that_share_a_name_are_all_kept_and_told(tmp_path: Path, file: str) -> None:
    """If keys become one name, the first has it; later ones get numbers, as the logger gives them."""
    hparams = {"a": {"b": 1}, "a.b": 2, "a.b_2": 3}
    sidecar = {"run_id": "r", "hparams": hparams if file.startswith("sidecar") else {}}
    (tmp_path / "sidecar.json").write_text(json.dumps(sidecar))
    (tmp_path / "hparams.yaml").write_text(json.dumps(hparams))
    run = read_run(tmp_path)
    assert dict(run.params) == {"a.b": 1, "a.b_2": 2, "a.b_2_2": 3}
    assert [(notice.kind, notice.what) for notice in run.notices] == [
        (NoticeKind.RENAMED, f"{file}: a.b"),
        (NoticeKind.RENAMED, f"{file}: a.b_2"),
    ]


def test_many_params_that_share_names_cost_little(tmp_path: Path) -> None:
    """Thousands of colliding keys take linear time and give a limited report."""
    run_dir = make_run(tmp_path / "run")
    (run_dir / "sidecar.json").write_text('{"run_id": "r"}')
    taken = "".join(f"a.b_{number}: 0\n" for number in range(2, 3_000))
    few = "".join(f"n{number}: {{b: 0}}\nn{number}.b: 1\n" for number in range(40))
    (run_dir / "hparams.yaml").write_text(f"{taken}{few}a: {{b: 0}}\na.b: 1\n")
    run = read_run(run_dir)
    assert run.params["a.b_3000"] == 1
    assert [notice.count for notice in run.notices] == [1] * 20 + [21]
