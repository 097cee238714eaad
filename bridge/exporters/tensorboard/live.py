"""Show run directories in TensorBoard itself, without event files: TensorBoard asks `RunsProvider` for its data.

Lists (of runs, tags, hyperparameters) come from the registry's records, so no run directory is opened for them. A chart
reads the points of its runs, a picture its file. Runs and tags have the names that an export gives them.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import re
import socket
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorboard import default, errors, program
from tensorboard.backend import application
from tensorboard.data import provider
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from werkzeug.serving import WSGIRequestHandler, make_server

from bridge.errors import TargetUnavailableError
from bridge.exporters.tensorboard import facts, media
from bridge.exporters.tensorboard.events import session_end, session_start
from bridge.exporters.tensorboard.exporter import candidate_names, clean_folder, fold_case
from bridge.exporters.tensorboard.facts import caption_tag, free_tag, image_tag, metric_tags, plain
from bridge.live import ByteCache

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.live import LiveRun, LiveRuns
    from bridge.model import MediaEvent

SAMPLES = {"scalars": 10_000, "images": 1_000, "text": 1_000}
"""The most points of one curve, pictures of one tag and texts of one tag that a page asks for."""

GIF_BYTES = 64 * 2**20
"""How much the converted videos in memory may take together."""


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
    padded = np.full(buckets * width, np.nan)
    padded[: count - 2] = values[1:-1]
    table = padded.reshape(buckets, width)
    starts = 1 + np.arange(buckets) * width
    least = starts + np.where(np.isnan(table), np.inf, table).argmin(axis=1)
    greatest = starts + np.where(np.isnan(table), -np.inf, table).argmax(axis=1)
    places = np.unique(np.concatenate([[0], least, greatest, [count - 1]]))
    return places[places < count]


class RunsProvider(provider.DataProvider):  # type: ignore[misc]  # published without types
    """TensorBoard's data, read from run directories. Plugin data without any field are the empty `plugin_content`."""

    def __init__(self, live: LiveRuns) -> None:
        self._live = live
        self._names: tuple[Any, dict[str, LiveRun]] = (None, {})
        self._experiment: tuple[Any, dict[str, bytes]] = (None, {})
        self._gifs = ByteCache(GIF_BYTES)

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
        return [
            provider.Run(run_id=name, run_name=name, start_time=live.record.start)
            for name, live in self._named_runs().items()
        ]

    def _named_runs(self) -> Mapping[str, LiveRun]:
        """Return the runs by the name that a first export gives their folder."""
        runs = self._live.runs()
        of, named = self._names
        if of is not runs:
            named, taken = {}, set()
            for live in runs.values():
                candidates = candidate_names(clean_folder(live.record.name), live.record.identity)
                name = next((one for one in candidates if fold_case(one) not in taken), live.id)
                taken.add(fold_case(name))
                named[name] = live
            self._names = (runs, named)
        return named

    def _chosen_runs(self, run_tag_filter: Any) -> Iterable[tuple[str, LiveRun]]:
        named = self._named_runs()
        if run_tag_filter is None or run_tag_filter.runs is None:
            return named.items()
        return [(name, named[name]) for name in run_tag_filter.runs if name in named]

    def _media(self, run_tag_filter: Any) -> Mapping[str, Sequence[MediaEvent]]:
        """Return the media events of each chosen run by its id."""
        found = self._live.media_of([live for _, live in self._chosen_runs(run_tag_filter)])
        return defaultdict(tuple, found)

    def _by_run(self, run_tag_filter: Any, tags_of: Callable[[str, LiveRun], Mapping[str, Any]]) -> dict[str, Any]:
        """Return for each chosen run what `tags_of` gives by tag, without the tags that are not asked for."""
        wanted = None if run_tag_filter is None else run_tag_filter.tags
        found = {}
        for name, live in self._chosen_runs(run_tag_filter):
            tags = {tag: item for tag, item in tags_of(name, live).items() if wanted is None or tag in wanted}
            if tags:
                found[name] = tags
        return found

    # Scalars

    def _metric_tags(self, live: LiveRun) -> Mapping[str, str]:
        """Return the run's metrics by tag."""
        tags = metric_tags(self._live.metrics(live), dict(self._live.content.rename))
        return {tag: name for name, tag in tags.items()}

    def list_scalars(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **_: Any) -> Any:
        """Return the metrics by run and tag."""

        def series(_: str, live: LiveRun) -> Mapping[str, Any]:
            return dict.fromkeys(self._metric_tags(live), _described(provider.ScalarTimeSeries, live))

        return self._by_run(run_tag_filter, series) if plugin_name == "scalars" else {}

    def read_scalars(
        self,
        ctx: Any = None,
        *,
        plugin_name: str,
        downsample: int | None = None,
        run_tag_filter: Any = None,
        **_: Any,
    ) -> Any:
        """Return the points by run and tag, at most `downsample` of each."""

        def points(_: str, live: LiveRun) -> Mapping[str, Any]:
            names = self._metric_tags(live)
            if run_tag_filter is not None and run_tag_filter.tags is not None:
                names = {tag: names[tag] for tag in run_tag_filter.tags if tag in names}
            series = self._live.series(live) if names else {}
            found = {}
            for tag, name in names.items():
                if name in series:
                    one = series[name]
                    at = sample(one.value, downsample)
                    columns = (one.step[at].tolist(), one.time[at].tolist(), one.value[at].tolist())
                    found[tag] = [provider.ScalarDatum(*point) for point in zip(*columns, strict=True)]
            return found

        return self._by_run(run_tag_filter, points) if plugin_name == "scalars" else {}

    def read_last_scalars(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **_: Any) -> Any:
        """Return the last point by run and tag, for HPARAMS."""

        def last(_: str, live: LiveRun) -> Mapping[str, Any]:
            record, found = live.record, {}
            for tag, name in self._metric_tags(live).items():
                value = record.metric(name)
                if value is not None:
                    step = record.stats.get(name, {}).get("last_step") or 0
                    found[tag] = provider.ScalarDatum(int(step), record.last_alive, float(value))
            return found

        return self._by_run(run_tag_filter, last) if plugin_name == "scalars" else {}

    # Texts and hyperparameters

    def list_tensors(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **_: Any) -> Any:
        """Return the texts, or what HPARAMS reads, by run and tag."""
        if plugin_name not in ("text", "hparams"):
            return {}
        first = next(iter(self._named_runs()), None)
        events = self._media(run_tag_filter) if plugin_name == "text" else {}

        def series(name: str, live: LiveRun) -> Mapping[str, Any]:
            contents: Mapping[str, bytes]
            if plugin_name == "text":
                contents = dict.fromkeys(self._texts(live, events[live.id]), b"")
            else:
                contents = {**self._session(name, live), **(self._experiment_of_all() if name == first else {})}
            return {
                tag: _described(provider.TensorTimeSeries, live, plugin_content=content)
                for tag, content in contents.items()
            }

        return self._by_run(run_tag_filter, series)

    def read_tensors(
        self,
        ctx: Any = None,
        *,
        plugin_name: str,
        downsample: int | None = None,
        run_tag_filter: Any = None,
        **_: Any,
    ) -> Any:
        """Return the texts by run and tag, the last `downsample` of each."""
        if plugin_name != "text":
            return {}
        events = self._media(run_tag_filter)

        def texts(_: str, live: LiveRun) -> Mapping[str, Any]:
            return {
                tag: [
                    provider.TensorDatum(step, time, np.array(text.encode(), dtype=object))
                    for step, time, text in points[-downsample if downsample else 0 :]
                ]
                for tag, points in self._texts(live, events[live.id]).items()
            }

        return self._by_run(run_tag_filter, texts)

    def _shown_facts(self, live: LiveRun) -> facts.ShownFacts:
        if "facts" not in live.kept:
            record = live.record
            live.kept["facts"] = facts.shown_facts(record.notes, record.hparams, record.tags, self._live.content)
        shown: facts.ShownFacts = live.kept["facts"]
        return shown

    def _texts(self, live: LiveRun, events: Sequence[MediaEvent]) -> dict[str, list[tuple[int, float, str]]]:
        """Return the run's texts by tag, as step, time and Markdown, by step."""
        metrics = self._metric_tags(live)
        found: dict[str, list[tuple[int, float, str]]] = defaultdict(list)
        for tag, text in facts.fact_texts(self._shown_facts(live)).items():
            found[free_tag(tag, metrics, "text")].append((0, live.record.start, text))
        for event in events:
            if event.caption:
                tag = free_tag(caption_tag(event.tag, event.index), metrics, "text")
                found[tag].append((event.step, event.time, plain(event.caption)))
        return {tag: sorted(points) for tag, points in found.items()}

    def _session(self, name: str, live: LiveRun) -> Mapping[str, bytes]:
        """Return what HPARAMS reads of one run, by tag. Unlike in event files, a session's end is not final."""
        if "session" not in live.kept:
            record = live.record
            values = facts.session_values(self._shown_facts(live).params)
            status = "RUNNING" if record.alive else facts.STATUSES[record.status]
            found = {"_hparams_/session_start_info": session_start(values, group=name, time=record.start)}
            if status:
                end = record.last_alive if record.end is None else record.end
                found["_hparams_/session_end_info"] = session_end(status, end=end)
            live.kept["session"] = found
        session: Mapping[str, bytes] = live.kept["session"]
        return session

    def _experiment_of_all(self) -> Mapping[str, bytes]:
        """Return the columns of HPARAMS, by tag: metrics of validation and test first.

        TensorBoard reads them from any one run, and shows no other columns than these. So this names the columns of
        all runs. An export cannot do that: it does not know the other runs of a log directory.
        """
        runs = self._live.runs()
        of, found = self._experiment
        if of is not runs:
            values: dict[str, list[bool | float | str]] = {}
            metrics: set[str] = set()
            for live in runs.values():
                metrics.update(self._metric_tags(live))
                for key, value in facts.session_values(self._shown_facts(live).params).items():
                    values.setdefault(key, []).append(value)
            columns = _hparams_columns(values, sorted(metrics, key=lambda tag: (not _is_validation(tag), tag)))
            found = {"_hparams_/experiment": columns}
            self._experiment = (runs, found)
        return found

    # Pictures

    def _images(self, live: LiveRun, events: Sequence[MediaEvent]) -> Mapping[str, Sequence[MediaEvent]]:
        """Return the media events that TensorBoard can show, by tag, by step."""
        metrics, found = self._metric_tags(live), defaultdict(list)
        formats = media.KEPT_FORMATS | (media.VIDEO_FORMATS if media.can_convert() else frozenset())
        for event in sorted(events, key=lambda event: event.step):
            if event.format in formats:
                found[free_tag(image_tag(event.tag, event.index), metrics, "image")].append(event)
        return found

    def list_blob_sequences(self, ctx: Any = None, *, plugin_name: str, run_tag_filter: Any = None, **_: Any) -> Any:
        """Return the tags with pictures, by run."""
        if plugin_name != "images":
            return {}
        events = self._media(run_tag_filter)

        def series(_: str, live: LiveRun) -> Mapping[str, Any]:
            return {
                tag: _described(
                    provider.BlobSequenceTimeSeries,
                    live,
                    max_step=images[-1].step,
                    max_wall_time=images[-1].time,
                    max_length=3,
                    description=plain(next((image.caption for image in images if image.caption), "") or ""),
                )
                for tag, images in self._images(live, events[live.id]).items()
            }

        return self._by_run(run_tag_filter, series)

    def read_blob_sequences(
        self,
        ctx: Any = None,
        *,
        plugin_name: str,
        downsample: int | None = None,
        run_tag_filter: Any = None,
        **_: Any,
    ) -> Any:
        """Return references to the pictures by run and tag, evenly chosen if there are more than `downsample`."""
        if plugin_name != "images":
            return {}
        events = self._media(run_tag_filter)

        def pictures(_: str, live: LiveRun) -> Mapping[str, Any]:
            found = {}
            for tag, images in self._images(live, events[live.id]).items():
                count = len(images) if downsample is None else min(len(images), downsample)
                places = np.unique(np.linspace(0, len(images) - 1, count).round().astype(int)).tolist()
                found[tag] = [
                    provider.BlobSequenceDatum(
                        step=images[place].step,
                        wall_time=images[place].time,
                        # Width and height, which no page reads, and the picture.
                        values=tuple(_reference(part, live, images[place]) for part in ("size", "size", "image")),
                    )
                    for place in places
                ]
            return found

        return self._by_run(run_tag_filter, pictures)

    def read_blob(self, ctx: Any = None, *, blob_key: str) -> bytes:
        """Return the bytes of a picture, or of a video as a GIF. Raise NotFoundError."""
        try:
            part, run_id, line = json.loads(base64.urlsafe_b64decode(blob_key + "=" * (-len(blob_key) % 4)))
            live = self._live.runs()[run_id]
            event = next(event for event in self._live.media(live) if event.line == line)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise errors.NotFoundError("There is no such picture.") from error
        if part == "size":
            return b"0"
        return (
            self._gifs.get(event.file, lambda: _loaded(event))
            if event.format in media.VIDEO_FORMATS
            else _loaded(event)
        )


def _described(kind: Any, live: LiveRun, **fields: Any) -> Any:
    """Return the description `kind` of a series of `live`."""
    usual = {"max_step": 0, "max_wall_time": live.record.last_alive, "plugin_content": b""}
    return kind(**(usual | {"description": "", "display_name": ""} | fields))


def _is_validation(tag: str) -> bool:
    return re.search(r"(^|[^a-z])(val|valid|validation|test|eval)([^a-z]|$)", tag.lower()) is not None


def _hparams_columns(params: Mapping[str, Sequence[bool | float | str]], metrics: Sequence[str]) -> bytes:
    """Return the plugin data that names the columns of the HPARAMS page, a serialized HParamsPluginData.

    `params` are all values of each hyperparameter, `metrics` the tags of metrics in the order of their columns.
    Each column gets the type that TensorBoard would find by itself: text if the values are of several types.
    """
    columns = []
    for name, values in params.items():
        kinds = {
            "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number" for value in values
        }
        info = api_pb2.HParamInfo(name=name, differs=len(set(values)) > 1)
        if kinds == {"number"}:
            info.type = api_pb2.DATA_TYPE_FLOAT64
            info.domain_interval.min_value, info.domain_interval.max_value = min(values), max(values)
        elif kinds == {"bool"}:
            info.type = api_pb2.DATA_TYPE_BOOL
            info.domain_discrete.extend(sorted(set(values)))
        else:
            info.type = api_pb2.DATA_TYPE_STRING
            info.domain_discrete.extend(sorted({_json_text(value) for value in values}))
        columns.append(info)
    experiment = api_pb2.Experiment(
        hparam_infos=columns,
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    return bytes(plugin_data_pb2.HParamsPluginData(experiment=experiment).SerializeToString())


def _json_text(value: bool | float | str) -> str:
    return value if isinstance(value, str) else json.dumps(value if isinstance(value, bool) else float(value))


def _reference(part: str, live: LiveRun, event: MediaEvent) -> Any:
    key = base64.urlsafe_b64encode(json.dumps([part, live.id, event.line]).encode()).decode().rstrip("=")
    return provider.BlobReference(blob_key=key)


def _loaded(event: MediaEvent) -> bytes:
    image = media.load_image(event)
    if isinstance(image, media.EncodedImage):
        return image.data
    raise errors.NotFoundError(f"{image.what}: {image.detail or image.kind}")


# The server


class HostCheck:
    """WSGI middleware that refuses requests whose Host header names another machine than `hosts`.

    Without it, a web page anywhere could read the runs through the browser of somebody who views them, by letting its
    own name point to 127.0.0.1. An IP address cannot be such a name, so `any_address` allows all of them.
    """

    def __init__(self, app: Any, hosts: Collection[str], *, any_address: bool = False) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._any_address = any_address

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Answer one request."""
        host = environ.get("HTTP_HOST", "").strip().lower()
        name = host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if name in self._hosts or (self._any_address and _is_address(name)):
            return self._app(environ, start_response)
        text = b"Refused: the Host header is not the address that bridge view printed.\n"
        start_response("403 Forbidden", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
        return [text]


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    return False


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
    local = host in ("127.0.0.1", "localhost", "::1")
    names = {host, "127.0.0.1", "localhost", "[::1]", *(() if local else (socket.gethostname(), socket.getfqdn()))}
    try:
        server: Any = make_server(
            host, port, HostCheck(app, names, any_address=not local), threaded=True, request_handler=_QuietHandler
        )
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
