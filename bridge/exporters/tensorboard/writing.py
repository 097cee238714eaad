"""One write into a run's folder: data first, flushed, then the state that speaks of them, then old files go."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

from bridge.exporters.contract import Applied
from bridge.exporters.tensorboard import media
from bridge.exporters.tensorboard.encode import ScalarEncoder
from bridge.exporters.tensorboard.facts import fact_losses, facts_file, lacking_params, sent
from bridge.exporters.tensorboard.files import (
    Draft,
    Growing,
    event_file,
    generation_of,
    sync_folder,
)
from bridge.exporters.tensorboard.records import version_record
from bridge.exporters.tensorboard.state import State, left_over, write_state
from bridge.exporters.tensorboard.tags import media_losses, metric_losses, metric_tags
from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.cursor import ContentOptions
    from bridge.model import Block, Delta, Run

__all__ = ["Writing", "clipped", "steps_fit"]

_INT32 = 2**31


class Writing:
    """Deltas on their way into `folder`, of which `state` tells what is acknowledged.

    With `fresh` everything is made anew, beside what is there, which stays whole until `finish`. The caller holds the
    folder's lock, and calls `finish` or `abandon`.
    After `finish`, `files` are the event files as the state has them.
    """

    def __init__(
        self, folder: Path, state: State, run: Run, content: ContentOptions, *, group: str, fresh: bool
    ) -> None:
        self._folder = folder
        self._group = group
        self._content = content
        self._run = run
        self._before = state
        self.files = {} if fresh else dict(state.files)
        self._steps = {} if fresh else dict(state.steps)
        self._names = {} if fresh else dict(state.names)
        self._lacks = set() if fresh else {lack for lack in state.unsupported if not lack.startswith("params")}
        self._session = True if fresh else state.session
        self._generations = _newest_generations(folder, state)
        self._sinks: dict[str, Growing | Draft] = {}
        self._encoder = ScalarEncoder()
        self._tags: dict[str, str] = {}
        self._disordered = False
        self._bytes = 0

    def add(self, delta: Delta) -> Applied:
        """Write the points, and pictures of `delta`, not yet for good."""
        self._run = delta.run
        notices = self._learn_tags(delta)
        for block in delta.blocks:
            notices += clipped(block)
            self._session = self._session and steps_fit(block)
            tags = [self._tags[name].encode() for name in block.names]
            for records in self._encoder.encode(block, tags):
                self._write("scalars", records.data)
        shown = self._add_media(delta, notices)
        return Applied(points=delta.points, media=shown, notices=tuple(notices))

    def finish(self, delta: Delta) -> Applied:
        """Make all that was added durable, with the run's facts, and then the cursor after `delta`, the last one."""
        if self._disordered:
            self._order_media()
        for kind, kept in self.files.items():
            # What a killed export wrote past it goes before the state remembers the file's time.
            if kind not in self._sinks and (self._folder / kept.name).stat().st_size > kept.length:
                self._sinks[kind] = Growing(self._folder, kept)
        for kind, sink in list(self._sinks.items()):
            if sink.diverged:
                self._sinks[kind] = self._renamed(kind, sink)
            self.files[kind] = self._sinks[kind].finish()
        told = self._write_facts()
        state = State(
            identity=self._before.identity,
            cursor=delta.after.with_(sent=sent(self._run, self._content, group=self._group)),
            files=self.files,
            generations=self._generations,
            names=self._names,
            steps=self._steps,
            unsupported=frozenset(self._lacks) | lacking_params(self._run, self._content),
            session=self._session,
        )
        write_state(self._folder, state)
        self._sinks.clear()  # acknowledged: whatever fails from here on, they stay
        # Renames become durable in their order. Where a file system does not keep it, the next export notices.
        sync_folder(self._folder)
        self._clean(state)
        return Applied(bytes=self._bytes, notices=told)

    def abandon(self) -> None:
        """Leave the folder as it was, as far as the disk lets us."""
        for sink in self._sinks.values():
            sink.abandon()

    def _learn_tags(self, delta: Delta) -> list[Notice]:
        """Give the metrics of `delta` their tags; a notice for each new one that does not get the name it was to have."""
        rename = dict(self._content.rename)
        names = dict.fromkeys((*delta.metrics, *(name for block in delta.blocks for name in block.names)))
        tags = metric_tags(names, rename, self._names)
        # A metric may take the tag of an image or a text that is already in the media file.
        taken = media_losses(delta, set(tags.values()), self._steps)
        self._disordered = self._disordered or any(tag in self._steps for tag in tags.values())
        told = set(self._tags) | set(self._names.values())
        new = {name: tag for name, tag in tags.items() if name not in told}
        self._tags |= tags
        self._names |= {tag: name for name, tag in tags.items() if tag != name}
        return metric_losses(new, rename) + taken

    def _add_media(self, delta: Delta, notices: list[Notice]) -> int:
        metrics = set(self._tags.values()) if delta.media else set()
        shown = 0
        for event in delta.media:
            items, lost = media.image_items(event, metrics, self._steps)
            notices += lost
            shown += bool(items)
            if not items:
                self._lacks.add(f"media.{event.tag}")
            if len(items) > 1 and items[0].tag in self._steps and items[1].tag not in self._steps:
                # The tag's first caption comes later than its first picture, which is to have it as the description.
                self._disordered = True
            for item in items:
                self._put(item)
        return shown

    def _put(self, item: media.Item) -> None:
        last = self._steps.get(item.tag)
        if last is not None and item.step <= last:
            self._disordered = True
        self._steps[item.tag] = item.step if last is None else max(last, item.step)
        self._write("media", item.record)

    def _write(self, kind: str, data: bytes | memoryview[int]) -> None:
        sink = self._sinks.get(kind)
        if sink is None:
            sink = self._sinks[kind] = self._open(kind)
        sink.write(data)
        self._bytes += len(data)

    def _open(self, kind: str) -> Growing | Draft:
        if kind in self.files:
            return Growing(self._folder, self.files[kind])
        draft = self._new(kind)
        draft.write(version_record(self._run.start))
        return draft

    def _new(self, kind: str) -> Draft:
        self._generations[kind] = self._generations.get(kind, -1) + 1
        return Draft(self._folder, event_file(kind, self._generations[kind]))

    def _renamed(self, kind: str, old: Growing | Draft) -> Draft:
        """The same bytes as `old` holds, in a file of a new name."""
        draft = self._new(kind)
        try:
            file, _ = old.reread()
            file.seek(0)
            shutil.copyfileobj(file, draft)
        except BaseException:
            draft.abandon()
            raise
        old.abandon()
        return draft

    def _order_media(self) -> None:
        """Put the media file in order, as a new one."""
        old = self._sinks.get("media") or Growing(self._folder, self.files["media"])
        draft = self._new("media")
        try:
            first = version_record(self._run.start)
            draft.write(first)
            self._steps = {}
            file, end = old.reread()
            for item in media.ordered(file, len(first), end, set(self._tags.values())):
                self._steps[item.tag] = item.step
                draft.write(item.record)
                self._bytes += len(item.record)
        except BaseException:
            draft.abandon()
            raise
        old.abandon()
        self._sinks["media"] = draft

    def _write_facts(self) -> tuple[Notice, ...]:
        """Replace the facts' file where they changed; what was lost on the way."""
        metrics = set(self._tags.values())
        data = facts_file(self._run, self._content, group=self._group, metrics=metrics, session=self._session)
        kept = self.files.get("facts")
        if kept is not None and (self._folder / kept.name).read_bytes() == data:
            return ()
        draft = self._sinks["facts"] = self._new("facts")
        draft.write(data)
        self.files["facts"] = draft.finish()
        self._bytes += len(data)
        return tuple(fact_losses(self._run, self._content, metrics=metrics, session=self._session))

    def _clean(self, state: State) -> None:
        """Remove what the state does not speak of: old generations, and what a killed export left behind."""
        ours = {kept.name for kept in state.files.values()}
        names = [path.name for path in self._folder.iterdir() if path.name not in ours]
        for name in left_over(self._folder, state, names):
            (self._folder / name).unlink()


def clipped(block: Block) -> list[Notice]:
    """A notice for each metric with finite values that float32 cannot hold."""
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = np.isinf(block.values.astype(np.float32)) & np.isfinite(block.values) & block.present
    counts = beyond.sum(axis=1)
    return [
        Notice(NoticeKind.CLIPPED, block.names[index], "beyond 32 bits, stands as infinite", int(counts[index]))
        for index in np.flatnonzero(counts)
    ]


def steps_fit(block: Block) -> bool:
    """Whether all steps are within 32 bits, which is what the HPARAMS page takes."""
    return not len(block.step) or bool(block.step.min() >= -_INT32 and block.step.max() < _INT32)


def _newest_generations(folder: Path, state: State) -> dict[str, int]:
    """The highest generation of each kind that was ever seen, so that no name is used twice."""
    newest = dict(state.generations)
    for path in folder.iterdir():
        found = generation_of(path.name)
        if found is not None:
            newest[found[0]] = max(found[1], newest.get(found[0], -1))
    return newest
