"""The live views on hostile run directories: nothing private is served, and each request is bounded."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.commands import measure
from tests.security.harms import aliases, content, huge_png, params_in_yaml, picture, sidecar, sparse, sparse_picture
from tests.security.scene import Outside, add_media, plain_run
from tests.security.test_paths import links, names, replaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MARK = "only-for-its-owner"
MEMORY_MB = 700
"""MLflow and TensorBoard need half of it before they do anything."""

SECONDS = 20.0
"""What all requests for one run may take on a busy machine."""

PATHS: dict[str, Callable[[Path, Outside], None]] = {
    "media with dots": names("../../outside/key.png"),
    "media elsewhere": names("{}/key.png"),
    "media by a link": links("media/link.png", "key.png"),
    "points by a link": links("metrics.csv", "metrics.csv"),
    "facts by a link": links("sidecar.json", "sidecar.json"),
    "params by a link": links("hparams.yaml", "hparams.yaml"),
    "pipe": replaces("metrics.csv", os.mkfifo),
}
COSTLY: dict[str, Callable[[Path], None]] = {
    "line without an end": sparse("metrics.csv", "loss,step\r\n"),
    "header without an end": sparse("metrics.csv"),
    "media list without an end": sparse("media.jsonl"),
    "large sidecar": sparse("sidecar.json"),
    "long notes": sidecar(notes="n" * 5_000_000),
    "picture of a gibibyte": sparse_picture,
    "picture of many pixels": picture(lambda: huge_png(30_000)),
    "aliases": params_in_yaml(aliases()),
    "tag with dots": lambda run: add_media(run, "media/own.png", tag="../../../outside/key"),
    "many columns": content("metrics.csv", ",".join(f"m{n}" for n in range(20_000)), ",step\r\n"),
}
NO_RUNS = {"facts by a link", "header without an end", "large sidecar"}
"""The directories that cannot be read at all."""


def ask_all(runs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each run, and what both user interfaces get of it."""
    from tensorboard.data.provider import RunTagFilter

    from bridge import plugins
    from bridge.exporters.tensorboard.live import RunsProvider
    from bridge.live import LiveOptions, LiveRuns

    store = plugins.tracking_store(f"registry://{runs}")
    repository = plugins.artifact_repository(f"registry://{runs}")
    provider = RunsProvider(LiveRuns(LiveOptions(roots=[str(runs)])))
    (experiment,) = store.search_experiments()
    assert store.search_runs([experiment.experiment_id], "metrics.loss < 9", 3, 100)
    rows = {run.info.run_name: run for run in store.search_runs([experiment.experiment_id], "", 3, 100)}
    copy = runs.parent / "copy"
    copy.mkdir()
    for run in provider.list_runs(experiment_id=""):
        began = time.perf_counter()
        shown = rows[run.run_name]
        run_id, name = shown.info.run_id, shown.data.tags["mlflow.bridge.source"].rpartition("/")[2]
        only = RunTagFilter(runs=[run.run_name])
        texts: list[Any] = [store.get_run(run_id).to_dictionary(), shown.to_dictionary()]
        served = []
        for path in _paths(repository, run_id):
            with Path(repository.download_artifacts(path, str(copy))).open("rb") as file:
                served.append((path, file.read(1 << 20)))
        pictures = provider.read_blob_sequences(experiment_id="", plugin_name="images", run_tag_filter=only)
        for datum in (datum for tags in pictures.values() for datums in tags.values() for datum in datums):
            try:
                served.append(("picture", provider.read_blob(blob_key=datum.values[2].blob_key)))
            except Exception as error:  # noqa: BLE001 - TensorBoard shows its text
                texts.append(str(error))
        texts.append(provider.read_tensors(experiment_id="", plugin_name="text", run_tag_filter=only))
        texts.append(provider.list_tensors(experiment_id="", plugin_name="hparams", run_tag_filter=only))
        scalars = provider.read_scalars(
            experiment_id="",
            plugin_name="scalars",
            downsample=1000,
            run_tag_filter=RunTagFilter([run.run_name], ["loss"]),
        )
        in_tensorboard = scalars.get(run.run_name, {}).get("loss", [])
        in_mlflow = store.get_metric_history(run_id, "loss")
        yield (
            name,
            {
                "leaks": [path for path, data in served if MARK.encode() in data]
                + [text for text in map(str, texts) if MARK in text],
                "points": [[one.step for one in in_mlflow], [one.step for one in in_tensorboard]],
                "files": [path for path, _ in served],
                "seconds": time.perf_counter() - began,
            },
        )


def _paths(repository: Any, path: str) -> Iterator[str]:
    for file in repository.list_artifacts(path):
        if file.is_dir:
            yield from _paths(repository, file.path)
        else:
            yield file.path


def main(runs: str) -> None:
    """Print what `ask_all` gives as JSON; for a process of its own with a limit on its memory."""
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    print(json.dumps(dict(ask_all(Path(runs)))))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what both user interfaces get of hostile runs and a good one, by the name of the directory."""
    folder = tmp_path_factory.mktemp("hostile")
    outside = Outside.make(folder / "outside", MARK)
    for name, lead_out in PATHS.items():
        lead_out(plain_run(folder / "runs" / name), outside)
    for name, harm in COSTLY.items():
        harm(plain_run(folder / "runs" / name))
    plain_run(folder / "runs" / "good")
    program = f"from tests.live.test_hostile import main; main({str(folder / 'runs')!r})"
    used = measure([sys.executable, "-c", program], folder)
    found: dict[str, Any] = json.loads(used.output)
    return found | {"megabytes": used.mib}


@pytest.mark.parametrize("name", [*PATHS, *COSTLY])
def test_a_hostile_run_shows_nothing_private_within_bounds(shown: dict[str, Any], name: str) -> None:
    """Neither texts, points, files nor pictures come from outside of the run, and each answer ends soon."""
    assert (name in shown) == (name not in NO_RUNS)
    if name in shown:
        assert shown[name]["leaks"] == []
        assert shown[name]["seconds"] < SECONDS
        assert [path for path in shown[name]["files"] if ".." in path] == []


def test_the_run_beside_hostile_ones_is_complete(shown: dict[str, Any]) -> None:
    """Hostile runs cost the good one nothing, and no request needs much memory."""
    assert shown["good"]["points"] == [[0, 1, 2], [0, 1, 2]]
    assert len(shown["good"]["files"]) >= 6
    assert shown["megabytes"] < MEMORY_MB
    assert len(set(shown) & {*PATHS, *COSTLY}) >= 14
