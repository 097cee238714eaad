"""The contract of exporters: what they declare, and what they must do. `tests/contract` holds every exporter to it.

Nothing outside an exporter asks which target it has, only what the target can hold (`Capabilities`). Exporters are
found by name (`find_exporter`, at the end): built in, installed by other packages, or given as `MODULE:FACTORY`.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import msgspec

from bridge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

    from bridge.errors import BridgeError
    from bridge.live import LiveRuns
    from bridge.model import Cursor, Delta, Notice, Run, Scalar, Series, Status
    from bridge.options import ContentOptions


class TargetMedia(msgspec.Struct, frozen=True, eq=False):
    """A picture, video or other file in a target; `digest` is the hexadecimal sha256 of its bytes.

    `caption` is None if the target cannot tell it. `time` is seconds since the epoch, None if the target stores no time
    for it.
    """

    tag: str
    step: int
    index: int
    digest: str
    caption: str | None = None
    time: float | None = None


class Mismatch(msgspec.Struct, frozen=True):
    """Something that the exporter wrote beside the run's own facts, and that is no longer as it was written.

    `fact` is its name in `Exporter.stale`: `verify` skips it if the run directory changed since. `file` is the file of
    the run directory that it comes from. `expected` and `found` are None if there is nothing.
    """

    fact: str
    file: str
    what: str
    expected: str | None
    found: str | None


class TargetContent(msgspec.Struct, frozen=True, eq=False):
    """The content of a target for one run, in the run's own words. None means that the target has no such thing.

    `series` are by the names that the run logged, so an exporter undoes its renames. `bests` are the metrics that the
    exporter itself added for `--best`, by their name. `last` is the point that the target shows as the
    last one of a metric, as a series of one, if it stores that beside the points.

    `params` have the run's keys. A value is typed or text, as the target has it: the whole text if the target keeps a
    truncated value in full elsewhere, the mask if it is masked (so in `tags`). `status` is the target's own word
    (`Capabilities.statuses`), or "". `start` and `end` are seconds since the epoch.

    `names` are the names of all metrics that the target holds, also of those whose points were not asked for.

    `mismatches` are differences that only the exporter can find: its own tags, previews, copies of files.

    `truncated` names what is held only from its beginning; `verify` compares no more. `unsupported` names what this
    target cannot hold of this run, after a notice; `verify` skips it. Both use `notes`, `name`, `status`, `end`,
    `params`, `params.KEY`, `series.NAME` and `media.TAG`.
    """

    series: Mapping[str, Series]
    params: Mapping[str, Scalar] | None = None
    tags: tuple[str, ...] | None = None
    notes: str | None = None
    name: str | None = None
    status: str | None = None
    start: float | None = None
    end: float | None = None
    bests: Mapping[str, Series] | None = None
    last: Mapping[str, Series] = {}
    names: frozenset[str] = frozenset()
    mismatches: tuple[Mismatch, ...] = ()
    media: tuple[TargetMedia, ...] = ()
    cursor: Cursor | None = None
    truncated: frozenset[str] = frozenset()
    unsupported: frozenset[str] = frozenset()


class Applied(msgspec.Struct, frozen=True):
    """What a call of `apply` or `rebuild` did: points and media added, bytes written or sent.

    `notices` tell what could not be carried over, `notes` anything else that the report should say.
    """

    points: int = 0
    media: int = 0
    bytes: int = 0
    notices: tuple[Notice, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Applied) -> Applied:
        return Applied(
            points=self.points + other.points,
            media=self.media + other.media,
            bytes=self.bytes + other.bytes,
            notices=self.notices + other.notices,
            notes=self.notes + other.notes,
        )


class Capabilities(msgspec.Struct, frozen=True):
    """What a kind of target can hold and do.

    `ordered_steps`: a series must have strictly increasing steps.
    `replaces_points`: all points from a step on can be replaced (`Delta.replace_from`). Without it, a rewind makes a
    rebuild.
    `single_writer`: only one process at a time may apply.
    `threads`: the work waits for a server, so threads of one process serve as well as processes.
    `points_a_delta`: the most points in one delta. `batch_runs`: the most runs in one `Exporter.batch`.
    `value_bits`: 64 or 32, the precision of a value. `time_step`: the resolution of times, in seconds.
    `infinities`: infinite values are stored as such; otherwise they are clipped to the largest finite ones.
    `statuses`: the target's word for each status, "" if it has none; empty if the target holds no status at all.
    `reads_event_files`: the target's user interface reads TensorBoard's event files by itself, so runs that are such
    files are left out.
    `clears_end`: a run that continues after its end loses its old end time.
    `adjusts`: the content options whose change needs no rebuild. `stale` names them as changed, and `apply` gets a
    delta of kind SAME; it raises RebuildNeededError for a change that it cannot make.
    `media_kept`: the formats (`MediaEvent.format`) stored byte for byte, None for all. `media_converted`: those stored
    in another encoding. Media of any other format are a notice.
    """

    ordered_steps: bool = False
    replaces_points: bool = False
    single_writer: bool = False
    threads: bool = False
    points_a_delta: int = 1_000_000
    batch_runs: int = 1
    value_bits: int = 64
    time_step: float = 0.001
    infinities: bool = True
    statuses: Mapping[Status, str] = {}
    reads_event_files: bool = False
    clears_end: bool = True
    adjusts: frozenset[str] = frozenset()
    media_kept: frozenset[str] | None = None
    media_converted: frozenset[str] = frozenset()


class TargetState(msgspec.Struct, frozen=True):
    """What a target says of one run before anything is read or sent.

    `exists` without a `cursor` means a target whose cursor cannot be read or trusted.
    `deleted`: a person deleted the target. `error` stops this run, for example a newer format.
    `edited` names what people changed since the last export: `name`, `notes`, `tags`, or a part of it (`tags.project`).
    `extras` are the addresses of further targets of the same run.
    """

    cursor: Cursor | None = None
    exists: bool = False
    deleted: bool = False
    error: BridgeError | None = None
    edited: tuple[str, ...] = ()
    extras: Sequence[str] = ()


class Target(Protocol):
    """The target of one run: one MLflow run, one TensorBoard run folder."""

    def apply(self, delta: Delta) -> Applied:
        """Add `delta` and the run's facts (name, status, times, params, tags, notes) to the target.

        After this call returns (in a `batch`: after its end), a kill undoes nothing. A power cut may, if
        `Exporter.cursors` notices that afterwards. Create the target if it does not exist. Write data first and the
        cursor `delta.after` second, or both in one transaction. Applying a delta twice has the same result as applying
        it once. A delta of kind SAME carries facts only. The fields `sent` and `extra` of a cursor belong to the
        exporter: it fills them in here.

        Raise TargetError, after which nothing is remembered of this call. Raise RebuildNeededError, with the target
        unchanged, if only a new target can hold what is new, for example a changed param in MLflow.
        """
        ...

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Replace the target by a complete new one, made from `deltas`, the first of which is of kind NEW.

        The old target stays whole until the new one is complete. What people edited is carried over.
        """
        ...

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return what the target holds, decoded as the UI of the target decodes it.

        With `only`, names of metrics as the run logged them, other series may be left out. Raise TargetError if the
        content cannot be read, or is not what was written (a wrong checksum).
        """
        ...

    def where(self) -> str:
        """Return the target's address for a person: a folder, a run's URL or id."""
        ...


class Exporter(Protocol):
    """A module that exports runs into one kind of target.

    It can be pickled, so it opens connections only when it needs them. An exporter that inherits from this class
    gets the methods that do nothing.
    """

    name: str

    @property
    def capabilities(self) -> Capabilities:
        """Return what the target can hold and do. This may ask the target once."""
        ...

    def prepare(self, runs: Sequence[Run], content: ContentOptions) -> None:
        """Look at all runs of this export before the first is applied (folder names, parents of sweeps)."""

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """Return what the target says of each run, by identity, in as few calls as possible."""
        ...

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """Return the names of the run's facts that differ from those last sent (`cursor.sent`): `status`, `notes`, ...

        Make no call to the target: a run with no new rows, no new media and nothing stale is left alone.
        """
        ...

    def fingerprint(self, where: str) -> str | None:
        """Return a text that differs whenever the target at the address `where` may have changed.

        Only look at sizes and times of files, and import nothing. Return None if that cannot tell, or if a file changed
        within the last two seconds, when two changes can share one mtime.
        """
        return None

    def open(self, run: Run, content: ContentOptions) -> Target:
        """Return the target of `run`. Nothing is created before `apply` or `rebuild`."""
        ...

    def batch(self) -> AbstractContextManager[None]:
        """Let small runs share what a target does once for many: what the block applies may be written only at its end.

        Each run of a block has one target, which is given one delta. Raise TargetError at the end of the block if that
        fails; then the runs are left as after a failed `apply`. After ConflictError and TargetRefusedError each one is
        exported again, alone.
        """
        return nullcontext()

    def finish(self, runs: Sequence[Run], content: ContentOptions) -> Sequence[Notice]:
        """Do what concerns several runs at once, after all runs of this export (the parents of sweeps)."""
        return ()

    def close(self) -> None:
        """Close connections and locks. The exporter can be used again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Interface(msgspec.Struct, frozen=True):
    """How to show a target in its own user interface.

    `argv` starts its server; it is empty if one runs already. `environment` is added to ours, and `folder` is the
    working directory, "" for ours. `address` is for a person's browser. `probe` is an address that answers 200 once the
    server is ready.
    """

    address: str
    probe: str
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    folder: str = ""


@runtime_checkable
class LiveViewable(Protocol):
    """An exporter whose user interface can show run directories themselves, without a target.

    `can_edit`: people can change names, notes and tags of runs on the page.
    """

    default_port: int
    can_edit: bool

    def serve_live(self, live: LiveRuns, *, host: str, port: int) -> AbstractContextManager[str]:
        """Serve `live` at `host` and `port` while the block runs. Yield the page's address.

        Raise MissingExtraError if the user interface is not installed, TargetUnavailableError if it cannot be started.
        """
        ...


@runtime_checkable
class Viewable(Protocol):
    """An exporter whose targets have a user interface that `bridge view` can start on this machine."""

    default_port: int

    @property
    def place(self) -> tuple[str, str]:
        """Return the option of the command line that names the target, and its value."""
        ...

    def interface(self, port: int) -> Interface:
        """Return the interface on 127.0.0.1 and `port`, after an export."""
        ...


ExporterFactory: TypeAlias = "Callable[..., Exporter]"
"""Creates an exporter from keyword options. The names in its signature are the options that it takes."""

ENTRY_POINTS = "bridge.exporters"
"""The entry point group in which other packages register their exporters."""

# They are entry points of this package too. This table finds them in a plain checkout, and without reading the metadata
# of every installed package.
_BUILT_IN = {
    "mlflow": "bridge.exporters.mlflow:MlflowExporter",
    "tensorboard": "bridge.exporters.tensorboard:TensorBoardExporter",
}


def exporter_names() -> tuple[str, ...]:
    """Return the names of all exporters, sorted."""
    return tuple(sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def find_exporter(name: str) -> ExporterFactory:
    """Return the factory of the exporter `name`: a built-in name, an entry point's, or `MODULE:FACTORY`.

    Raise UsageError, which lists the names, if there is none.
    """
    if name in _BUILT_IN:
        return _load(_BUILT_IN[name])
    for point in entry_points(group=ENTRY_POINTS, name=name):
        factory: ExporterFactory = point.load()
        return factory
    if ":" in name:
        try:
            return _load(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"There is no exporter {name!r}: {error}.") from error
    near = get_close_matches(name, exporter_names(), n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"There is no exporter {name!r}.{guess}", hint="--to takes " + " or ".join(exporter_names()) + ".")


def make_exporter(name: str, options: Mapping[str, Any], *, meant: Mapping[str, str]) -> Exporter:
    """Return the exporter `name`, made with those of `options` that it takes.

    Raise UsageError if there is none, and for an option in `meant` that it does not take: it would be ignored. The
    values of `meant` are the options as the user wrote them.
    """
    factory = find_exporter(name)
    taken = inspect.signature(factory).parameters
    for option, written in meant.items():
        if option not in taken:
            near = get_close_matches(option, taken, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else None
            raise UsageError(f"{written} is not an option of {name}.", hint=hint)
    return factory(**{option: value for option, value in options.items() if option in taken and value is not None})


def _load(reference: str) -> ExporterFactory:
    module, _, attribute = reference.partition(":")
    factory: ExporterFactory = getattr(import_module(module), attribute)
    return factory
