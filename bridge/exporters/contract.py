"""The contract of an exporter: small, with declared abilities; `tests/contract` holds every exporter to it.

The verbs never ask which target they talk to, only what it can hold. Exporters are found by name through the
entry point group `bridge.exporters` (`find_exporter`); the built-in ones are `mlflow` and `tensorboard`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from bridge.cursor import ContentOptions, Cursor
    from bridge.errors import BridgeError
    from bridge.model import Delta, Notice, Run, Scalar, Series, Status


@dataclass(frozen=True, slots=True, eq=False)
class TargetMedia:
    """One picture, video or other file that a target holds; `digest` is the sha256 of its bytes, in hex."""

    tag: str
    step: int
    index: int
    digest: str
    caption: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TargetContent:
    """What a target holds of one run, read back in the source's words as far as the target can say them.

    `series` have the names that the run logged (an exporter undoes its renames); the running bests that the exporter made
    itself are in `bests` instead, as `best/NAME` and `best_step/NAME`, None where it makes none. `last` is the value that
    the target shows as the last one of a series or of a best, where it keeps that beside the points. None means that the
    target has no such thing at all (TensorBoard has no tags of its own). `params` have the run's keys; a value is what the
    target has for it, typed or as text, the whole text where the target keeps a cut value in full elsewhere, the mask
    where it is redacted (so in `tags`, too).
    `status` is the target's own word for it (`Capabilities.statuses`), "" where it says nothing.
    `cut` names that of which only the beginning is held, `lacks` what this target cannot hold of this run and
    has noted as a loss: `notes`, `name`, `status`, `end`, `params`, `params.KEY`, `series.NAME`,
    `media.TAG`. Verify asks of the first for the beginning only, of the second for nothing.
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
    last: Mapping[str, float] = field(default_factory=dict)
    media: tuple[TargetMedia, ...] = ()
    cursor: Cursor | None = None
    cut: frozenset[str] = frozenset()
    unsupported: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a delta (or a rebuild) did: points and media items added, bytes written or sent."""

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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of target can hold and do.

    `ordered_steps`: a series must have strictly increasing steps, so any rewind is a rebuild.
    `removes_points`: superseded points can be removed, so a rewind is no rebuild.
    `replaces_points`: all points from a step on can be replaced, so a rewind is no rebuild (`Delta.replace_from`).
    `removes_media`: the same for pictures.
    `holds_back`: rows that may still be superseded are better not sent yet (points cannot be taken back).
    `single_writer`: one process at a time may apply; reading and encoding go on in others.
    `threads`: waiting on a server dominates, so threads of one process serve as well as processes.
    `points_a_delta`: at most this many points are handed over in one delta.
    `value_bits`: 64 or 32, the precision of a stored value. `time_step`: the resolution of times in seconds.
    `infinities`: whether infinite values are held as such (else they are clipped to the largest finite, a notice).
    `statuses`: the target's word for each status, "" where it says nothing; empty where it holds no status.
    `clears_end`: a run that goes on after its end loses its old end time.
    `media_kept`: the formats (`MediaEvent.format`) whose files are held byte for byte, None for all;
    `media_converted`: those that are held in another encoding. Media of any other format are a notice.
    """

    ordered_steps: bool = False
    removes_points: bool = False
    removes_media: bool = False
    replaces_points: bool = False
    holds_back: bool = False
    single_writer: bool = False
    threads: bool = False
    points_a_delta: int = 1_000_000
    value_bits: int = 64
    time_step: float = 0.001
    infinities: bool = True
    statuses: Mapping[Status, str] = field(default_factory=dict)
    clears_end: bool = True
    media_kept: frozenset[str] | None = None
    media_converted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TargetState:
    """What a target says of one run before anything is read or sent.

    `cursor` is None for a run that the target does not hold, or holds without a readable cursor (then `exists`).
    `deleted`: a person deleted the target, it stays deleted. `error` stops this run (a newer format, ...).
    `edited` names what people changed in the target since the last export, which stays: `name`, `notes`, `tags`,
    or with a part of it behind a dot (`tags.project`).
    """

    cursor: Cursor | None = None
    exists: bool = False
    deleted: bool = False
    error: BridgeError | None = None
    edited: tuple[str, ...] = ()
    extras: Sequence[str] = field(default=())
    """Where second targets of the same run directory lie (verify calls them extra)."""


class Target(Protocol):
    """Where one run goes: one MLflow run, one TensorBoard run folder."""

    def apply(self, delta: Delta) -> Applied:
        """Bring `delta` and the run's own facts (name, status, times, params, tags, notes) into the target.

        Durable on return; data first and the cursor `delta.after` after it or in the same transaction. Applying
        the same delta twice is the same as once. A target that does not exist is made. `sent` and `extra` of a cursor
        are the exporter's own: the target remembers them between calls and writes them beside the rest of `after`.
        A delta of kind SAME carries facts only. Raises TargetError; then what was remembered is forgotten. Raises
        RebuildNeededError, with nothing changed, where only a fresh target can hold what is new (a param that changed
        and cannot be replaced).
        """
        ...

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Replace the target by a fresh, complete one, made of `deltas` (the first of kind NEW).

        The old target stays whole until the new one is complete. What people edited is carried over.
        """
        ...

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """What the target holds, by the reader that people use (TensorBoard's loader, MLflow's API).

        With `only` (names of metrics, as the run logged them) other series need not be read, for speed.
        Raises TargetError where what is held cannot be read, or is not what was written (a wrong checksum).
        """
        ...

    def where(self) -> str:
        """The target's address for a person: a folder, a run's URL or id."""
        ...


class Exporter(Protocol):
    """A module that replays runs into one kind of target. Can be pickled: connections are opened when needed."""

    name: str

    @property
    def capabilities(self) -> Capabilities:
        """What the target can hold and do (may ask the target once)."""
        ...

    def prepare(self, runs: Sequence[Run], content: ContentOptions) -> None:
        """Look at all runs of this export before the first is applied (folder names, parents of sweeps)."""
        ...

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """What the target knows of each run, by identity, in as few calls as possible."""
        ...

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """What of the run's own facts differs from what was last sent (`cursor.sent`), by name: `status`, `notes`, ...

        Asks nobody: a run with no new rows, no new media and nothing stale is left alone without a call.
        """
        ...

    def open(self, run: Run, content: ContentOptions) -> Target:
        """The target of `run`. Nothing is made before `apply` or `rebuild`."""
        ...

    def finish(self, runs: Sequence[Run], content: ContentOptions) -> Sequence[Notice]:
        """After all runs of this export: what concerns several at once (the parents of sweeps)."""
        ...

    def close(self) -> None:
        """Let go of connections and locks; the exporter can be used again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Interface:
    """How to show a target. `argv` starts its server, empty where one runs already; `environment` is added to ours.

    `address` is for a person's browser, `probe` answers with 200 once the server is ready.
    """

    address: str
    probe: str
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Viewable(Protocol):
    """An exporter, besides, whose targets have a user interface that `bridge view` can start here."""

    default_port: int

    def interface(self, port: int) -> Interface:
        """The interface on 127.0.0.1 and `port`, after an export."""
        ...
