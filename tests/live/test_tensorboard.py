"""TensorBoard on run directories answers like a stock TensorBoard on a clean export of them."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.live import LiveOptions, LiveRuns
from bridge.options import ContentOptions
from bridge.registry import store
from bridge.sync.export import Options, export_runs
from tests.exporters.tensorboard.event_files import hex32
from tests.fixtures.tensorboard_server import start_tensorboard
from tests.pictures import film, log_image, png
from tests.require import require
from tests.run_dirs import CREATED_S, make_run, write_metrics, write_sidecar
from tests.rundir.event_writing import age, append, write_events
from tests.rundir.event_writing import picture as event_picture
from tests.security.harms import png_of
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bridge.live import LiveRun

HEADER = ["acc", "loss", "step", "wall_time"]


@contextmanager
def served(runs: Path, content: ContentOptions | None = None) -> Iterator[str]:
    """Yield the address of a live view of `runs`, which scans at every request."""
    live = LiveRuns(LiveOptions(roots=[str(runs)], content=content or ContentOptions()))
    with TensorBoardExporter(runs.parent / "none").serve_live(live, host="127.0.0.1", port=free_port()) as address:
        yield address.rstrip("/")


def get(address: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{address}/data/{path}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
        data = answer.read()
        return json.loads(data) if "json" in answer.headers["Content-Type"] else data


def hparams(address: str, place: str, **body: Any) -> Any:
    """Return what HPARAMS asks of a place."""
    request = urllib.request.Request(
        f"{address}/data/plugin/hparams/{place}",
        data=json.dumps({"experimentName": ""} | body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def sessions(address: str) -> dict[str, Any]:
    """Return what HPARAMS shows, by trial: hyperparameters, status, and time, step and last value of each metric."""
    rows = {"allowedStatuses": [0, 1, 2, 3], "colParams": [], "startIndex": 0, "sliceSize": 99}
    found = {}
    for group in hparams(address, "session_groups", **rows)["sessionGroups"]:
        (session,) = group["sessions"]
        last = {
            one["name"]["tag"]: (one["wallTimeSecs"], one.get("trainingStep", 0), hex32(one["value"]))
            for one in session["metricValues"]
        }
        found[group["name"]] = (group["hparams"], session.get("status", "STATUS_UNKNOWN"), last)
    return found


def everything(address: str) -> dict[str, Any]:
    """Return all that the dashboards show, in TensorBoard's 32 bits, without ids of images."""
    scalars, images, texts = (get(address, f"plugin/{plugin}/tags") for plugin in ("scalars", "images", "text"))
    return {
        "runs": sorted(get(address, "runs")),
        "scalars": {
            (run, tag): [
                (time, step, hex32(value))
                for time, step, value in get(address, "plugin/scalars/scalars", run=run, tag=tag)
            ]
            for run, tags in scalars.items()
            for tag in tags
        },
        "images": {
            (run, tag, about["description"]): [
                (one["wall_time"], one["step"], get(address, f"plugin/images/individualImage?{one['query']}&x"))
                for one in get(address, "plugin/images/images", run=run, tag=tag, sample="0")
            ]
            for run, tags in images.items()
            for tag, about in tags.items()
        },
        "texts": {
            (run, tag): [
                (one["wall_time"], one["step"], one["text"])
                for one in get(address, "plugin/text/text", run=run, tag=tag)
            ]
            for run, tags in texts.items()
            for tag in tags
        },
        "hparams": sessions(address),
    }


def exported(runs: Path, folder: Path, *, content: ContentOptions | None = None) -> dict[str, Any]:
    """Return what a stock TensorBoard shows of a clean export of `runs`."""
    options = Options(content=content or ContentOptions())
    report = export_runs([runs], TensorBoardExporter(folder / "logs"), options)
    assert not report.failed
    server = start_tensorboard(folder / "logs", folder, fast=False)
    try:
        names = sorted(path.parent.name for path in (folder / "logs").rglob(".bridge-target"))
        assert server.until(lambda: sorted(server.get("runs")), names) == names
        server.until(lambda: bool(server.get("plugin/text/tags")), expected=True)
        return everything(server.uri)
    finally:
        server.stop()


def make_runs(folder: Path) -> Path:
    """Make runs of all statuses, with all kinds of numbers, clashing names, captions and secrets."""
    runs = folder / "runs"
    first = make_run(
        runs / "group" / "one",
        [{"step": step, "loss": 1.0 / (step + 1), "acc": step if step % 2 else None} for step in range(20)],
        run_id="group/one",
        hparams={"lr": 0.1, "opt": "adam", "flag": True, "none": None, "nan": "NaN", "api_key": "s3cret"},
        notes="# Title\n\ntext",
        tags=["a|b", "password:s3cret"],
    )
    log_image(first, 0, "a.png", png(1))
    log_image(first, 0, "b.png", png(2), caption="second")
    log_image(first, 5, "c.png", png(3), caption="third")
    odd = [{"step": 0, "loss": "nan", "val/samples/0": 1.0}, {"step": 2**20, "loss": "inf"}]
    second = make_run(runs / "two", odd, status="failed", hparams={"lr": 0.2})
    log_image(second, 3, "a.png", png(4))
    log_image(second, 4, "no-pixels.png", png_of(8, 8, b"right checksums"))
    broken = {
        "no-header.png": b"no picture",
        "giant.png": png_of(60_000, 60_000, b""),
        "no-video.mp4": b"no video" * 99,
    }
    for number, (name, data) in enumerate(broken.items()):
        kind = "video" if name.endswith("mp4") else "image"
        log_image(second, 5 + number, name, data, caption=name, type=kind)
        log_image(second, 5, f"only-{name}", data, caption=name, type=kind, tag=name)
    make_run(runs / "three", [{"step": 0, "loss": 1e300}], status="interrupted")
    return runs


@pytest.mark.parametrize("content", [ContentOptions(), ContentOptions(metrics=("acc",), rename=(("acc", "a"),))])
def test_it_shows_what_an_export_shows(tmp_path: Path, content: ContentOptions) -> None:
    """Every dashboard shows the same names, points, times, images, texts, hyperparameters and statuses."""
    runs = make_runs(tmp_path)
    with served(runs, content) as address:
        live = everything(address)
    assert live == exported(runs, tmp_path, content=content)
    assert "s3cret" not in repr(live)


def test_it_shows_event_files_as_an_export_does(tmp_path: Path) -> None:
    """A directory of TensorBoardLogger that was requeued is one curve, and its pictures have their bytes."""
    run = tmp_path / "runs"
    first = write_events(run, 0, [("loss", step, 0.1 * step, CREATED_S + step) for step in range(9)])
    append(first, event_picture("samples", 3, CREATED_S + 3, png(1)), event_picture("samples", 8, CREATED_S, png(2)))
    write_events(run, 1, [("loss", step, 0.2 * step, CREATED_S + 90 + step) for step in range(5, 7)])
    (run / "hparams.yaml").write_text("lr: 0.1\n")  # without one a stock TensorBoard shows no metrics in HPARAMS
    age(run)
    with served(run) as address:
        live = everything(address)
    assert [found for _, step, found in next(iter(live["images"].values()))] == [png(1), png(2)]
    assert live == exported(run, tmp_path)


def test_it_shows_each_state_of_a_run(tmp_path: Path) -> None:
    """While runs grow, are requeued, edited and added, each answer equals that of an export at that moment."""
    chance = random.Random(7)
    runs = tmp_path / "runs"
    path = make_run(runs / "a", [{"step": 0, "loss": 1.0, "acc": 0.5}], status="running")
    (path / "heartbeat").touch()
    step, row, params = 1, 1, {"lr": 0.1}
    with served(runs) as address:
        for look in range(3):
            for _ in range(12):
                step = max(0, step - chance.randrange(1, 5)) if chance.random() < 0.2 else step + 1
                acc = chance.random() if chance.random() < 0.5 else None
                write_metrics(path, HEADER, [(acc, chance.random(), step, CREATED_S + row)], append=True)
                row += 1
            write_sidecar(path, status="running", hparams=params, notes=f"look {look}", tags=[f"t{look}"])
            log_image(path, look, f"{look}.png", png(look), caption=f"caption {look}")
            if look == 2:
                make_run(runs / "b", [{"step": 0, "loss": 1.0}])
                write_metrics(path, HEADER, [(0.5, 0.25, step + 1, CREATED_S + row)], append=True)
                write_sidecar(path, status="completed", hparams=params)
            shown = everything(address)
            clean = exported(runs, tmp_path / f"look-{look}")
            steps = [one[1] for one in shown["scalars"]["a", "loss"]]
            assert steps == sorted(set(steps))
            if look < 2:
                # An export writes no status of a running run, since an end in an event file is final, and its last rows
                # wait, since a later one may supersede them.
                assert shown["hparams"].pop("a")[1] == "STATUS_RUNNING"
                clean["hparams"].pop("a")
                assert step in steps
                for found in (shown, clean):
                    scalars = found["scalars"]
                    found["scalars"] = {key: [one for one in scalars[key] if one[1] != step] for key in scalars}
            assert shown == clean


def test_of_many_pictures_the_newest_are_shown(tmp_path: Path) -> None:
    """Of the images of a tag a page gets the last thousand steps."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    log_image(path, 0, "a.png", png(1))
    line = json.loads((path / "media.jsonl").read_text())
    (path / "media.jsonl").write_text("".join(json.dumps(line | {"step": step}) + "\n" for step in range(1003)))
    with served(tmp_path / "runs") as address:
        shown = get(address, "plugin/images/images", run="a", tag="val/samples/0", sample="0")
    assert [one["step"] for one in shown] == list(range(3, 1003))


def test_curves_of_several_runs_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system is slow, one run waits while another one is read."""
    monkeypatch.setattr(store, "_SAMPLE", 0)
    monkeypatch.setattr(store, "_SLOW_S", -1.0)
    for name in "ab":
        make_run(tmp_path / "runs" / name, [{"step": 0, "loss": 1.0}])
    both, series = threading.Barrier(2, timeout=60), LiveRuns.series

    def read(live: LiveRuns, run: LiveRun) -> Any:
        both.wait()
        return series(live, run)

    asked = {"requests": json.dumps([{"plugin": "scalars", "tag": "loss"}])}
    with served(tmp_path / "runs") as address:
        monkeypatch.setattr(LiveRuns, "series", read)
        (shown,) = get(address, "plugin/timeseries/timeSeries", **asked)
    assert {run: [point["value"] for point in points] for run, points in shown["runToSeries"].items()} == {
        "a": [1.0],
        "b": [1.0],
    }


def test_metrics_of_validation_come_first_and_no_column_is_hidden(tmp_path: Path) -> None:
    """HPARAMS lists all metrics, validation and test first, with TensorBoard's types."""
    runs = tmp_path / "runs"
    make_run(
        runs / "a", [{"step": 0, "epoch": 0, "loss": 1.0, "val/acc": 0.5}], hparams={"lr": 0.1, "same": 1, "x": "a"}
    )
    params = {"lr": 0.2, "same": 1, "x": 2, "flag": True, "only": "b"}
    make_run(runs / "b", [{"step": 0, "loss": 1.0, "test_acc": 0.5}], hparams=params)
    with served(runs) as address:
        shown, groups = hparams(address, "experiment"), sessions(address)
    assert [metric["name"]["tag"] for metric in shown["metricInfos"]] == ["test_acc", "val/acc", "epoch", "loss"]
    assert set(groups) == {"a", "b"}
    export_runs([runs], TensorBoardExporter(tmp_path / "logs"))
    server = start_tensorboard(tmp_path / "logs", tmp_path)
    try:
        assert server.until(lambda: len(server.get("plugin/scalars/tags")), 2) == 2
        theirs = hparams(server.uri, "experiment")
    finally:
        server.stop()

    def by_name(found: dict[str, Any]) -> dict[str, Any]:
        infos = {info["name"]: info for info in found["hparamInfos"]}
        for info in infos.values():
            info.get("domainDiscrete", []).sort(key=str)
        return infos

    assert by_name(shown) == by_name(theirs)
    assert [info["name"] for info in shown["hparamInfos"]][:2] == ["lr", "x"]


def test_a_picture_outside_the_run_is_not_served(tmp_path: Path) -> None:
    """No name in media.jsonl and no key in a request reaches a file that an export would not read."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    (tmp_path / "secret.png").write_bytes(png(9))
    log_image(path, 0, "a.png", png(1))
    (path / "media" / "link.png").symlink_to(tmp_path / "secret.png")
    with (path / "media.jsonl").open("a") as lines:
        for outside in ("../../secret.png", str(tmp_path / "secret.png"), "media/link.png"):
            lines.write(json.dumps({"step": 1, "tag": "x", "type": "image", "path": outside}) + "\n")
    with served(tmp_path / "runs") as address:
        assert list(get(address, "plugin/images/tags")["a"]) == ["val/samples/0"]
        for key in ("", "x", "WzEsMiwzXQ", "bnVsbA"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(address, "plugin/images/individualImage", blob_key=key)
            assert caught.value.code in (400, 404)
            caught.value.close()


def test_nothing_is_written_but_the_cache(tmp_path: Path) -> None:
    """Viewing every dashboard writes only to the cache."""
    runs = make_runs(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in runs.rglob("*")}
    written: list[str] = []
    watching = True
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    changes = {"os.rename", "os.remove", "os.mkdir", "os.truncate", "os.utime", "sqlite3.connect"}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = isinstance(arguments[2], int) and arguments[2] & flags if event == "open" else event in changes
        if watching and writes:
            written.append(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        with served(runs) as address:
            everything(address)
    finally:
        watching = False
    cache = str(tmp_path / "cache")
    assert [path for path in written if not path.startswith((cache, "/dev/", ":memory:"))] == []
    assert {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in runs.rglob("*")} == before


def test_a_video_is_converted_when_it_is_looked_at(tmp_path: Path) -> None:
    """A video is converted to a GIF once, when it is viewed."""
    from bridge.exporters.tensorboard import media

    require(media.can_convert(), "PyAV")
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    log_image(path, 0, "a.mp4", film(), tag="film", type="video")
    with served(tmp_path / "runs") as address:
        (image,) = get(address, "plugin/images/images", run="a", tag="film/0", sample="0")
        data = get(address, f"plugin/images/individualImage?{image['query']}&x")
    with Image.open(io.BytesIO(data)) as gif:
        assert (gif.format, gif.n_frames) == ("GIF", 12)


def answer_code(url: str, host: str) -> int:
    """Return the status with which a server answers a request that names this host."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_other_names_of_this_machine_are_refused(tmp_path: Path) -> None:
    """A web page whose host name resolves to 127.0.0.1 cannot read the runs through a browser."""
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    with served(tmp_path / "runs") as address:
        url = f"{address}/data/runs"
        ours = {host: answer_code(url, host) for host in ("127.0.0.1:1", "localhost", "LOCALHOST:80", "[::1]:80")}
        others = ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "")
        refused = {host: answer_code(url, host) for host in others}
    assert set(ours.values()) == {200}, ours
    assert set(refused.values()) == {403}, refused


def sample(values: list[float], limit: int | None) -> list[int]:
    from bridge.exporters.tensorboard.live import sample as places

    return places(np.array(values), limit).tolist()


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 4, 5, 10, 99, 100, 101])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, 100, 1000])
def test_a_sample_keeps_both_ends(count: int, limit: int | None) -> None:
    """A sample of any size has the first and last point, in order and without duplicates."""
    chance = random.Random(count)
    found = sample([chance.random() for _ in range(count)], limit)
    assert len(found) <= (count if limit is None else min(count, limit))
    assert found == sorted(set(found))
    assert found[-1:] == ([count - 1] if count else [])
    assert limit == 1 or found[:1] == ([0] if count else [])


def test_a_sample_loses_no_spike() -> None:
    """A sample keeps the minimum and maximum of each bucket, and NaN and infinities."""
    values = [0.0] * 10_000
    values[1234], values[5678], values[7777] = 9.0, -9.0, float("inf")
    values[3000:5000] = [float("nan")] * 2000
    found = sample(values, 100)
    assert {0, 1234, 5678, 7777, 9999} <= set(found)
    assert len(found) <= 100
