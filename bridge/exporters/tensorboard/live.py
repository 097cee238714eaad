"""Show run directories in TensorBoard itself, without event files: TensorBoard asks `RunsProvider` for its data.

Lists (of runs, tags, hyperparameters) come from the registry's records, so no run directory is opened for them. A chart
reads the points of its runs, a picture its file. Runs and tags have the names that an export gives them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
import threading
import time
from collections import defaultdict
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from tensorboard import default, errors, program
from tensorboard.backend import application
from tensorboard.data import provider
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

from bridge.errors import TargetUnavailableError
from bridge.exporters.tensorboard import facts, media
from bridge.exporters.tensorboard.events import session_end, session_start
from bridge.exporters.tensorboard.exporter import candidate_names, clean_folder, fold_case
from bridge.exporters.tensorboard.facts import caption_tag, free_tag, image_tag, metric_tags, plain
from bridge.live import READ_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.live import LiveRun, LiveRuns
    from bridge.model import MediaEvent

SAMPLES = {"scalars": 10_000, "images": 1_000, "text": 1_000}
"""The most points of one curve, pictures of one tag and texts of one tag that a page asks for."""

_SIZE = "size"


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


class RunsProvider(provider.DataProvider):  # type: ignore[misc]  # published without types
    """TensorBoard's data, read from run directories."""

    def __init__(self, live: LiveRuns) -> None:
        self._live = live

    # Runs

    def experiment_metadata(self, ctx: Any = None, **_: Any) -> Any:
        """Return what the page shows as the location of its data."""
        roots = ", ".join(map(str, self._live.roots))
        return provider.ExperimentMetadata(data_location=roots, experiment_name=self._live.roots[0].name)

    def list_plugins(self, ctx: Any = None, **_: Any) -> list[str]:
        """Return the dashboards that have data."""
        return ["scalars", "images", "text", "hparams", "metrics", "timeseries"]

    def list_runs(self, ctx: Any = None, **_: Any) -> list[Any]:
        """Return all runs."""
        return [provider.Run(name, name, live.record.start) for name, live in self._named_runs().items()]

    def _named_runs(self) -> Mapping[str, LiveRun]:
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

    def _by_run(self, plugin: str, run_tag_filter: Any, make: Callable[[LiveRun, Any], Any]) -> dict[str, Any]:
        """Return by run and tag what `make` makes of what the run has for a plugin, of those that are asked for.

        Several runs are looked at at once where the file system is slow.
        """
        find = {"scalars": self._metric_tags, "text": self._texts, "hparams": self._session, "images": self._images}
        named, runs, tags = self._named_runs(), None, None
        if run_tag_filter is not None:
            runs, tags = run_tag_filter.runs, run_tag_filter.tags
        chosen = list(named.values()) if runs is None else [named[name] for name in runs if name in named]

        def look(live: LiveRun) -> dict[str, Any]:
            found = find[plugin](live).items()
            return {tag: make(live, one) for tag, one in found if tags is None or tag in tags}

        looks = self._live.map(look, chosen) if plugin in find else []
        return {live.kept["name"]: made for live, made in zip(chosen, looks, strict=False) if made}

    # Scalars

    def _metric_tags(self, live: LiveRun) -> Mapping[str, str]:
        """Return the run's metrics by tag."""
        tags = metric_tags(tuple(self._live.metrics(live)), self._live.content.rename)
        return {tag: name for name, tag in tags.items()}

    def list_scalars(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **_: Any) -> Any:
        """Return the metrics by run and tag."""
        return self._by_run(plugin_name, run_tag_filter, partial(_described, provider.ScalarTimeSeries))

    def read_scalars(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **given: Any) -> Any:
        """Return the points by run and tag, at most `downsample` of each."""

        def points(live: LiveRun, name: str) -> list[Any]:
            series = self._live.series(live).get(name)
            if series is None:
                return []
            at = sample(series.value, given.get("downsample"))
            columns = (series.step[at].tolist(), series.time[at].tolist(), series.value[at].tolist())
            return [provider.ScalarDatum(*point) for point in zip(*columns, strict=True)]

        return self._by_run(plugin_name, run_tag_filter, points)

    def read_last_scalars(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **_: Any) -> Any:
        """Return the last point by run and tag, for HPARAMS. After READ_SECONDS the values are those of the records."""
        until = time.monotonic() + READ_SECONDS

        def last(live: LiveRun, name: str) -> Any:
            series = self._live.series(live).get(name) if time.monotonic() < until else None
            if series is not None and len(series.step):
                return provider.ScalarDatum(int(series.step[-1]), float(series.time[-1]), float(series.value[-1]))
            value = live.record.metric(name)
            return provider.ScalarDatum(0, live.record.last_alive, np.nan if value is None else float(value))

        return self._by_run(plugin_name, run_tag_filter, last)

    # Texts and hyperparameters

    def list_tensors(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **_: Any) -> Any:
        """Return the texts, or what HPARAMS reads, by run and tag."""
        return self._by_run(plugin_name, run_tag_filter, partial(_described, provider.TensorTimeSeries))

    def read_tensors(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **given: Any) -> Any:
        """Return the texts by run and tag, the last `downsample` of each."""

        def texts(_: LiveRun, points: Sequence[tuple[int, float, str]]) -> list[Any]:
            last = points[-(given.get("downsample") or 0) :]
            return [provider.TensorDatum(step, time, np.array(text.encode(), object)) for step, time, text in last]

        return self._by_run(plugin_name, run_tag_filter, texts)

    def _shown_facts(self, live: LiveRun) -> facts.ShownFacts:
        record, content = live.record, self._live.content
        return live.keep("facts", lambda: facts.shown_facts(record.notes, record.hparams, record.tags, content))

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

    def _session(self, live: LiveRun) -> Mapping[str, bytes]:
        """Return what HPARAMS reads of one run, by tag. Unlike in event files, a session's end is not final."""
        record, name = live.record, live.kept["name"]
        values = facts.session_values(self._shown_facts(live).params)
        status = "RUNNING" if record.alive else facts.STATUSES[record.status]
        found = {"_hparams_/session_start_info": session_start(values, group=name, time=record.start)}
        if status:
            end = record.last_alive if record.end is None else record.end
            found["_hparams_/session_end_info"] = session_end(status, end=end)
        return found | (self._experiment_of_all() if name == next(iter(self._named_runs())) else {})

    def _experiment_of_all(self) -> dict[str, bytes]:
        """Return the columns of HPARAMS, by tag: metrics of validation and test first.

        TensorBoard reads them from any one run, and shows no other columns than these. So this names the columns of
        all runs. An export cannot do that: it does not know the other runs of a log directory.
        """
        runs = self._live.runs()

        def columns() -> dict[str, bytes]:
            values: dict[str, list[bool | float | str]] = defaultdict(list)
            for live in runs.values():
                for key, value in facts.session_values(self._shown_facts(live).params).items():
                    values[key].append(value)
            metrics = {tag for tags in self._live.map(self._metric_tags, list(runs.values())) for tag in tags}
            return {"_hparams_/experiment": _hparams_columns(values, metrics)}

        return runs.keep("columns", columns)

    # Pictures

    def _images(self, live: LiveRun) -> Mapping[str, Sequence[MediaEvent]]:
        """Return the media events that TensorBoard can show, by tag, by step."""
        metrics, found = self._metric_tags(live), defaultdict(list)
        for event in sorted(self._live.media(live), key=lambda event: event.step):
            if media.is_shown(event):
                found[free_tag(image_tag(event.tag, event.index), metrics, "image")].append(event)
        return found

    def list_blob_sequences(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **_: Any) -> Any:
        """Return the tags with pictures, by run."""
        return self._by_run(plugin_name, run_tag_filter, partial(_described, provider.BlobSequenceTimeSeries))

    def read_blob_sequences(
        self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **given: Any
    ) -> Any:
        """Return references to the pictures by run and tag, the last `downsample` of each."""

        def pictures(live: LiveRun, images: Sequence[MediaEvent]) -> list[Any]:
            found = []
            for image in images[-(given.get("downsample") or 0) :]:
                # Width and height, which no page reads, and the picture.
                keys = map(provider.BlobReference, (_SIZE, _SIZE, f"{live.id}-{image.line}"))
                found.append(provider.BlobSequenceDatum(image.step, image.time, tuple(keys)))
            return found

        return self._by_run(plugin_name, run_tag_filter, pictures)

    def read_blob(self, ctx: Any = None, *, blob_key: str) -> bytes:
        """Return the bytes of a picture, or of a video as a GIF. Raise NotFoundError."""
        run_id, _, line = blob_key.partition("-")
        run = self._live.runs().get(run_id)
        event = next((one for one in (self._live.media(run) if run else ()) if str(one.line) == line), None)
        if blob_key == _SIZE:
            return b"0"
        if event is None:
            raise errors.NotFoundError("There is no such picture.")
        return _gif(event) if event.format in media.VIDEO_FORMATS else _loaded(event)


def _described(kind: Any, live: LiveRun, shown: Any) -> Any:
    """Return the description `kind` of a series of `live`: of a metric, of texts, of pictures, or plugin data."""
    fields = {"max_step": 0, "max_wall_time": live.record.last_alive, "description": "", "display_name": ""}
    if kind is provider.BlobSequenceTimeSeries:
        last = {"max_step": shown[-1].step, "max_wall_time": shown[-1].time, "max_length": 3}
        fields |= last | {"description": plain(shown[0].caption or "")}
    return kind(**fields, plugin_content=shown if isinstance(shown, bytes) else b"")


def _hparams_columns(params: Mapping[str, Sequence[bool | float | str]], metrics: Collection[str]) -> bytes:
    """Return the plugin data that names the columns of the HPARAMS page, a serialized HParamsPluginData.

    `params` are all values of each hyperparameter, `metrics` the tags of metrics. Each column gets the type that
    TensorBoard would find by itself: text if the values are of several types.
    """
    experiment = api_pb2.Experiment()
    for name, values in params.items():
        info = experiment.hparam_infos.add(name=name, differs=len(set(values)) > 1)
        if all(type(value) is bool for value in values):
            info.type = api_pb2.DATA_TYPE_BOOL
            info.domain_discrete.extend(sorted(set(values)))
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            info.type = api_pb2.DATA_TYPE_FLOAT64
            info.domain_interval.min_value, info.domain_interval.max_value = min(values), max(values)
        else:
            info.type = api_pb2.DATA_TYPE_STRING
            info.domain_discrete.extend(sorted({_json_text(value) for value in values}))
    for tag in sorted(metrics, key=lambda tag: (_VALIDATION.search(tag.lower()) is None, tag)):
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag))
    return bytes(plugin_data_pb2.HParamsPluginData(experiment=experiment).SerializeToString())


_VALIDATION = re.compile(r"(^|[^a-z])(val|valid|validation|test|eval)([^a-z]|$)")


def _json_text(value: bool | float | str) -> str:
    return value if isinstance(value, str) else json.dumps(value if isinstance(value, bool) else float(value))


@lru_cache(8)
def _gif(event: MediaEvent) -> bytes:
    return _loaded(event)


def _loaded(event: MediaEvent) -> bytes:
    image = media.load_image(event)
    if isinstance(image, media.EncodedImage):
        return image.data
    raise errors.NotFoundError(f"{image.what}: {image.detail or image.kind}")


# The server


def refuse_other_hosts(app: Any, names: Collection[str], *, any_address: bool) -> Any:
    """Return a WSGI application that refuses requests whose Host header is not among `names`.

    Without it, a web page anywhere could read the runs through the browser of somebody who views them, by letting its
    own name point to 127.0.0.1. An IP address cannot be such a name, so `any_address` allows all of them.
    """

    def checked(environ: Any, start_response: Any) -> Any:
        name, is_address = "", False
        with contextlib.suppress(ValueError):
            name = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or ""
            is_address = ipaddress.ip_address(name) is not None
        if name in names or (any_address and is_address):
            return app(environ, start_response)
        text = "Refused: the Host header is not the address that bridge view printed.\n"
        return Response(text, status=403)(environ, start_response)

    return checked


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: the terminal is for what `bridge view` says."""


@contextlib.contextmanager
def serve(live: LiveRuns, *, host: str, port: int) -> Iterator[None]:
    """Run TensorBoard on `live` at `host` and `port`, in threads of this process, while the block runs.

    Raise TargetUnavailableError if the port cannot be used.
    """
    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(logdir=str(live.roots[0]), host=host, port=port, samples_per_plugin=SAMPLES, reload_interval=0)
    app = application.TensorBoardWSGIApp(
        board.flags, board.plugin_loaders, RunsProvider(live), board.assets_zip_provider
    )
    here = {"127.0.0.1", "localhost", "::1"}
    others = set() if host in here else {host, socket.gethostname(), socket.getfqdn()}
    app = refuse_other_hosts(app, here | set(map(str.lower, others)), any_address=bool(others))
    try:
        server: Any = make_server(host, port, app, threaded=True, request_handler=_QuietHandler)
    except OSError as error:
        raise TargetUnavailableError(f"TensorBoard cannot be started at {host}:{port}: {error.strerror}.") from error
    server.daemon_threads = True  # Ctrl-C does not wait for a chart that is being read
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
