"""Show run directories in TensorBoard itself, without event files: TensorBoard asks `RunsProvider` for its data.

Lists (of runs, tags, hyperparameters) come from the registry's records, so no run directory is opened for them. A chart
reads the points of its runs, a picture its file. Runs and tags have the names that an export gives them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import threading
import time
from collections import defaultdict
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from msgspec.structs import replace
from tensorboard import default, errors, program
from tensorboard.backend import application
from tensorboard.data import provider
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import Discrete, RealInterval
from werkzeug.exceptions import Forbidden

from bridge.errors import TargetUnavailableError
from bridge.exporters.tensorboard import facts, media
from bridge.exporters.tensorboard.exporter import candidate_names, clean_folder, fold_case
from bridge.exporters.tensorboard.facts import caption_tag, free_tag, image_tag, metric_tags, plain
from bridge.live import READ_SECONDS
from bridge.view import LOCAL_NAMES, host_names
from logger.files import VIDEO_FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.live import LiveRun, LiveRuns
    from bridge.model import MediaEvent, Run

SAMPLES = {"scalars": 10_000, "images": 1_000, "text": 1_000}
"""The most points of one curve, pictures of one tag and texts of one tag that a page asks for."""

_SIZE = "size"
_VALIDATION = re.compile(r"(^|[^a-z])(val|valid|validation|test|eval)([^a-z]|$)")


def sample(values: NDArray[np.float64], limit: int | None) -> NDArray[np.intp]:
    """Return the places of at most `limit` of n values, in order.

    The first and the last are among them, and the least and the greatest value of each of the equally wide buckets in
    between, so that no spike is lost.
    """
    count = len(values)
    if limit is None or count <= limit:
        return np.arange(count)
    if limit < 4:
        return np.array([0, count - 1] if limit > 1 else [count - 1])[:limit]
    # (buckets, width): the values between the first and the last, filled up with NaN behind. NaN is neither least nor
    # greatest: it counts as +inf for the one and -inf for the other.
    buckets = (limit - 2) // 2
    width = -(-(count - 2) // buckets)
    padded = np.pad(values[1:-1], (0, buckets * width - (count - 2)), constant_values=np.nan)
    table = padded.reshape(buckets, width)
    least = np.where(np.isnan(table), np.inf, table).argmin(axis=1)
    greatest = np.where(np.isnan(table), -np.inf, table).argmax(axis=1)
    starts = 1 + np.arange(buckets) * width
    places = np.unique(np.concatenate([[0], starts + least, starts + greatest, [count - 1]]))
    return places[places < count]


def _by_run(make: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Return a method of RunsProvider that answers by run and tag what `make` returns for each.

    `make` gets the provider, a run, what the run has under the tag, and two limits: the number of points that the page
    asks for, and the time of the monotonic clock until which last points may be read.
    """

    def answer(
        self: RunsProvider, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **given: Any
    ) -> dict[str, Any]:
        named, find = self.named_runs(), self.finders.get(plugin_name)
        asked = run_tag_filter or provider.RunTagFilter()
        chosen = named if asked.runs is None else {name: named[name] for name in asked.runs if name in named}
        limits = given.get("downsample"), time.monotonic() + READ_SECONDS

        def look(live: LiveRun) -> dict[str, Any]:
            found = find(live) if find else {}
            tags = [tag for tag in found if asked.tags is None or tag in asked.tags]
            return {tag: make(self, live, found[tag], *limits) for tag in tags}

        looks = self._live.look_at_each(look, list(chosen.values()))
        return {name: made for name, made in zip(chosen, looks, strict=True) if made}

    return answer


def _described(kind: Any, _: RunsProvider, live: LiveRun, shown: Any, *_limits: Any) -> Any:
    """Return the description `kind` of a series of `live`: of a metric, of texts, of pictures, or plugin data."""
    fields = {"max_step": 0, "max_wall_time": live.record.last_alive, "description": "", "display_name": ""}
    if kind is provider.BlobSequenceTimeSeries:
        last = {"max_step": shown[-1].step, "max_wall_time": shown[-1].time, "max_length": 3}
        fields |= last | {"description": plain(shown[0].caption or "")}
    return kind(**fields, plugin_content=shown if isinstance(shown, bytes) else b"")


class RunsProvider(provider.DataProvider):  # type: ignore[misc]  # published without types
    """TensorBoard's data, read from run directories. `finders` return what a run has for a plugin, by tag."""

    def __init__(self, live: LiveRuns) -> None:
        self._live = live
        own = {"scalars": self._metric_tags, "text": self._texts, "hparams": self._session, "images": self._images}
        self.finders: Mapping[str, Callable[[LiveRun], Mapping[str, Any]]] = own

    # Runs

    def experiment_metadata(self, ctx: Any = None, **_: Any) -> Any:
        """Return what the page shows as the location of its data."""
        roots = self._live.roots
        return provider.ExperimentMetadata(data_location=", ".join(map(str, roots)), experiment_name=roots[0].name)

    def list_plugins(self, ctx: Any = None, **_: Any) -> list[str]:
        """Return the dashboards that have data."""
        return [*self.finders, "metrics", "timeseries"]

    def list_runs(self, ctx: Any = None, **_: Any) -> list[Any]:
        """Return all runs."""
        return [provider.Run(name, name, live.record.start) for name, live in self.named_runs().items()]

    def named_runs(self) -> Mapping[str, LiveRun]:
        """Return the runs by the name that a first export gives their folder."""
        runs = self._live.runs()

        def name_all() -> Mapping[str, LiveRun]:
            named: dict[str, LiveRun] = {}
            taken = set()
            for live in runs.values():
                candidates = candidate_names(clean_folder(live.record.name), live.record.identity)
                name = live.kept["name"] = next((one for one in candidates if fold_case(one) not in taken), live.id)
                taken.add(fold_case(name))
                named[name] = live
            return named

        return runs.keep("named", name_all)

    # Scalars

    def _metric_tags(self, live: LiveRun) -> Mapping[str, str]:
        """Return the run's metrics by tag."""
        tags = metric_tags(tuple(self._live.metrics(live)), self._live.content.rename)
        return {tag: name for name, tag in tags.items()}

    def _points(self, live: LiveRun, name: str, most: int | None, _: float) -> list[Any]:
        """Return points of a metric, at most `most`."""
        series = self._live.series(live).get(name)
        if series is None:
            return []
        at = sample(series.value, most)
        columns = (series.step[at].tolist(), series.time[at].tolist(), series.value[at].tolist())
        return [provider.ScalarDatum(*point) for point in zip(*columns, strict=True)]

    def _last_point(self, live: LiveRun, name: str, _: int | None, until: float) -> Any:
        """Return the last point of a metric, for HPARAMS. After `until` its value is that of the record."""
        points = self._points(live, name, 1, until) if time.monotonic() < until else ()
        value = live.record.metric(name)
        of_record = provider.ScalarDatum(0, live.record.last_alive, np.nan if value is None else value)
        return points[0] if points else of_record

    list_scalars = _by_run(partial(_described, provider.ScalarTimeSeries))
    read_scalars = _by_run(_points)
    read_last_scalars = _by_run(_last_point)

    # Texts and hyperparameters

    def _shown_facts(self, live: LiveRun) -> Run:
        return live.keep("facts", lambda: facts.shown_facts(self._live.facts(live), self._live.content))

    def _texts(self, live: LiveRun) -> Mapping[str, Sequence[tuple[int, float, str]]]:
        """Return the run's texts by tag, as step, time and Markdown, by step."""
        metrics = self._metric_tags(live)
        found: dict[str, list[tuple[int, float, str]]] = defaultdict(list)
        for tag, text in facts.fact_texts(self._shown_facts(live)).items():
            found[free_tag(tag, metrics, "text")].append((0, live.record.start, text))
        for event in self._live.media(live):
            if event.caption and media.is_shown(event):
                tag = free_tag(caption_tag(event.tag, event.index), metrics, "text")
                found[tag].append((event.step, event.time, plain(event.caption)))
        return {tag: sorted(points) for tag, points in found.items()}

    def _last_texts(self, _: LiveRun, points: Sequence[tuple[int, float, str]], most: int | None, *__: float) -> Any:
        last = points[-(most or 0) :]
        return [provider.TensorDatum(step, time, np.array(text.encode(), object)) for step, time, text in last]

    def _session(self, live: LiveRun) -> Mapping[str, bytes]:
        """Return what HPARAMS reads of one run, by tag. Unlike in event files, a session's end is not final."""
        run, name = self._live.facts(live), live.kept["name"]
        status = "RUNNING" if run.running else facts.STATUSES[run.status]
        found = facts.session_of(replace(run, params=self._shown_facts(live).params), status, group=name)
        return found | (self._experiment() if name == next(iter(self.named_runs())) else {})

    def _experiment(self) -> dict[str, bytes]:
        """Return the columns of HPARAMS, by tag: metrics of validation and test first.

        TensorBoard reads them from any one run, and shows no other columns than these. So this names the columns of
        all runs. An export cannot do that: it does not know the other runs of a log directory. Each column gets the
        type that TensorBoard would find by itself: text if the values are of several types.
        """
        runs = self._live.runs()

        def describe() -> dict[str, bytes]:
            params: dict[str, list[bool | float | str]] = defaultdict(list)
            for live in runs.values():
                for name, value in facts.session_values(self._shown_facts(live).params).items():
                    params[name].append(float(value) if type(value) is int else value)
            experiment = api_pb2.Experiment()
            for name, values in params.items():
                domain: Any = Discrete({value if isinstance(value, str) else json.dumps(value) for value in values})
                if set(map(type, values)) == {float}:
                    domain = RealInterval(min(values), max(values))
                elif set(map(type, values)) == {bool}:
                    domain = Discrete(set(values))
                domain.update_hparam_info(experiment.hparam_infos.add(name=name, differs=len(set(values)) > 1))
            metrics = {tag for tags in self._live.look_at_each(self._metric_tags, list(runs.values())) for tag in tags}
            for tag in sorted(metrics, key=lambda tag: (_VALIDATION.search(tag.lower()) is None, tag)):
                experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag))
            data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
            return {metadata.EXPERIMENT_TAG: bytes(data.SerializeToString())}

        return runs.keep("columns", describe)

    list_tensors = _by_run(partial(_described, provider.TensorTimeSeries))
    read_tensors = _by_run(_last_texts)

    # Pictures

    def _images(self, live: LiveRun) -> Mapping[str, Sequence[MediaEvent]]:
        """Return the media events that TensorBoard can show, by tag, by step."""
        metrics, found = self._metric_tags(live), defaultdict(list)
        for event in sorted(self._live.media(live), key=lambda event: event.step):
            if media.is_shown(event):
                found[free_tag(image_tag(event.tag, event.index), metrics, "image")].append(event)
        return found

    def _last_pictures(self, live: LiveRun, images: Sequence[MediaEvent], most: int | None, _: float) -> list[Any]:
        """Return references to width and height, which no page reads, and the picture itself, of the last images."""
        size = provider.BlobReference(_SIZE)
        found = [(image, provider.BlobReference(f"{live.id}-{image.line}")) for image in images[-(most or 0) :]]
        return [provider.BlobSequenceDatum(image.step, image.time, (size, size, key)) for image, key in found]

    list_blob_sequences = _by_run(partial(_described, provider.BlobSequenceTimeSeries))
    read_blob_sequences = _by_run(_last_pictures)

    def read_blob(self, ctx: Any = None, *, blob_key: str) -> bytes:
        """Return the bytes of a picture, or of a video as a GIF. Raise NotFoundError."""
        if blob_key == _SIZE:
            return b"0"
        run_id, _, line = blob_key.partition("-")
        run = self._live.runs().get(run_id)
        for event in self._live.media(run) if run else ():
            if str(event.line) == line:
                return _gif(event) if event.format in VIDEO_FORMATS else _loaded(event)
        raise errors.NotFoundError("There is no such picture.")


def _loaded(event: MediaEvent) -> bytes:
    image = media.load_image(event)
    if isinstance(image, media.EncodedImage):
        return image.data
    raise errors.NotFoundError(f"{image.what}: {image.detail or image.kind}")


_gif = lru_cache(8)(_loaded)


# The server


def refuse_other_hosts(app: Any, host: str) -> Any:
    """Return a WSGI application that refuses requests whose Host header is no name of a server at `host`.

    Without it, a web page anywhere could read the runs through the browser of somebody who views them, by letting its
    own name point to 127.0.0.1. An IP address cannot be such a name, so where `host` is not this machine alone, all of
    them are allowed.
    """
    names = host_names(host)

    def checked(environ: Any, start_response: Any) -> Any:
        name, is_address = "", False
        with contextlib.suppress(ValueError):
            name = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or ""
            is_address = host not in LOCAL_NAMES and ipaddress.ip_address(name) is not None
        if name in names or is_address:
            return app(environ, start_response)
        return Forbidden("The Host header is not the address that bridge view printed.")(environ, start_response)

    return checked


@contextlib.contextmanager
def serve(live: LiveRuns, *, host: str, port: int) -> Iterator[None]:
    """Run TensorBoard on `live` at `host` and `port`, in threads of this process, while the block runs.

    Raise TargetUnavailableError if the port cannot be used.
    """
    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(logdir=str(live.roots[0]), host=host, port=port, samples_per_plugin=SAMPLES, reload_interval=0)
    plugins = board.plugin_loaders
    app = application.TensorBoardWSGIApp(board.flags, plugins, RunsProvider(live), board.assets_zip_provider)
    try:
        server: Any = program.WerkzeugServer(refuse_other_hosts(app, host), board.flags)
    except (OSError, program.TensorBoardServerException) as error:
        raise TargetUnavailableError(f"TensorBoard cannot be started at {host}:{port}: {error}.") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
