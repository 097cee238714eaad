"""The one property: after any history, a last export leaves what one clean export of the final directory leaves."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from bridge.options import ContentOptions
from bridge.rundir import deltas, read_run
from bridge.sync.export import Options, export_runs
from bridge.sync.verify import verify_runs
from tests.contract.subjects import SUBJECTS
from tests.property.living_run import LivingRun
from tests.zygote import Kill, KilledError, Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.exporters.contract import Exporter, TargetContent
    from tests.zygote import Zygote

VALUES = st.sampled_from(["0.5", "0.5", "1.0", "-2.25", "nan", "1e-320", "0.1", "inf", "-inf", ""])
METRICS = ("acc", "grad/norm", "val loss")
SHAPES = {
    "plain": ContentOptions(),
    "one metric": ContentOptions(metrics=("loss",)),
    "no media": ContentOptions(media=False),
    "renamed": ContentOptions(rename=(("loss", "train/loss"),)),
    "running best": ContentOptions(best=("loss:max", "acc:min")),
}
EXAMPLES = {"memory": 12, "tensorboard": 8, "mlflow-sqlite": 3}
"""Histories in the ordinary suite; the slow one takes SLOW times as many."""
SLOW = 50


def subject(name: str) -> Any:
    return next(one for one in SUBJECTS if one.name == name)


def export(name: str, folder: Path, templates: Mapping[str, Path], root: Path, content: ContentOptions) -> list[str]:
    """Export `root` with a fresh exporter in a child of the zygote; return the reasons of failed runs."""
    deltas.BETWEEN_LOOKS = 0.0
    report = export_runs([root], subject(name).make(folder, templates), Options(content=content))
    return [f"{line.action}: {line.reason}" for line in report.runs if line.failed]


def plain(held: TargetContent, edits: Mapping[str, str]) -> dict[str, Any]:
    """Return the content as comparable values, without the facts in `edits`, which belong to people.

    Points are sorted by step, because no promise fixes the order in which they are written.
    """
    facts = {"params": held.params, "status": held.status, "start": held.start, "end": held.end}
    facts |= {"notes": held.notes} if "notes" not in edits else {}
    facts |= {"tags": sorted(held.tags or ())} if "tag" not in edits else {}
    return facts | {
        "series": {
            name: [
                column[np.argsort(series.step, kind="stable")].tobytes()
                for column in (series.step, series.time, np.nan_to_num(series.value, nan=12.5e300))
            ]
            for name, series in sorted({**(held.bests or {}), **held.series}.items())
        },
        "last": {name: repr(value) for name, value in held.last.items()},
        "media": sorted((one.tag, one.step, one.index, one.digest, one.caption or "") for one in held.media),
    }


class Exports(RuleBasedStateMachine):
    """One run directory below `root`, one target, and all exports that can happen."""

    name: str
    zygote: Zygote
    templates: Mapping[str, Path]
    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="bridge-property-"))
        self.root = self.folder / "runs"
        self.content = SHAPES["plain"]
        self.edits: dict[str, str] = {}

    @rule(content=st.sampled_from(sorted(SHAPES)))
    def options_change(self, content: str) -> None:
        self.content = SHAPES[content]

    @rule()
    def export(self) -> None:
        self.exported(self.zygote.run(self.task()))

    @rule(change=st.integers(1, 25))
    def export_is_killed_at_a_change(self, change: int) -> None:
        self.exported(self.zygote.run(self.task(Kill(change=change))))

    @rule(milliseconds=st.integers(1, 400))
    def export_is_killed_some_time(self, milliseconds: int) -> None:
        self.exported(self.zygote.run(self.task(Kill(seconds=milliseconds / 1000))))

    @rule()
    def two_exports_at_once(self) -> None:
        self.exported(self.zygote.run(self.task(), self.task()))

    @rule()
    def verify_in_between(self) -> None:
        """Run verify, which may find differences but never fails or writes."""
        verify_runs([self.root], self.exporter())

    def teardown(self) -> None:
        try:
            self.the_end_equals_one_clean_export()
        finally:
            shutil.rmtree(self.folder)

    def finish(self) -> None:
        """End the run."""
        raise NotImplementedError

    def the_end_equals_one_clean_export(self) -> None:
        root, fresh = self.root, self.folder / "fresh"
        # The last rows of a running run may still wait, and when they are sent is no promise.
        self.finish()
        assert self.zygote.run(self.task()) == [[]]
        report = verify_runs([root], self.exporter())
        assert [(str(line.verdict), line.reason, line.differences.first) for line in report.runs] == [("=", "", ())]
        arguments = (self.name, fresh, self.templates, root, self.content)
        assert self.zygote.run(Task(export, arguments)) == [[]]
        held, clean = (
            self.held(exporter) for exporter in (self.exporter(), subject(self.name).make(fresh, self.templates))
        )
        assert plain(held, self.edits) == plain(clean, self.edits)
        if self.name == "tensorboard":
            self.scalars_are_equal_byte_for_byte()

    def scalars_are_equal_byte_for_byte(self) -> None:
        wheres = [
            Path(exporter.open(read_run(self.path), self.content).where())
            for exporter in (self.exporter(), subject(self.name).make(self.folder / "fresh", self.templates))
        ]
        mine, clean = ([self.scalars(path) for path in sorted(where.glob("*tfevents*scalars*"))] for where in wheres)
        assert mine == clean
        assert len(mine) == (1 if sum(series.step.size for series in self.held(self.exporter()).series.values()) else 0)

    def scalars(self, path: Path) -> object:
        """Return what has to be equal in a file of scalars: its bytes."""
        return path.read_bytes()

    def held(self, exporter: Exporter) -> TargetContent:
        run = read_run(self.path)
        with exporter:
            exporter.prepare([run], self.content)
            exporter.cursors([run])
            return exporter.open(run, self.content).read()

    def exporter(self) -> Exporter:
        made: Exporter = subject(self.name).make(self.folder / "target", self.templates)
        return made

    def task(self, kill: Kill | None = None) -> Task:
        return Task(export, (self.name, self.folder / "target", self.templates, self.root, self.content), kill)

    @staticmethod
    def exported(outcomes: list[Any]) -> None:
        """Assert that an export ended or was killed, and did not fail."""
        assert all(outcome == [] or isinstance(outcome, KilledError) for outcome in outcomes), outcomes


class Histories(Exports):
    """A directory of RegistryLogger, its target, and everything that can happen to both."""

    def __init__(self) -> None:
        super().__init__()
        self.places = (self.folder / "runs" / place for place in ("b", "deep/c", "d", "e"))
        self.run = LivingRun(self.folder / "runs" / "a")
        self.uids = (f"uid-{number}" for number in itertools.count(1))

    @property
    def path(self) -> Path:  # type: ignore[override]
        return self.run.path

    @initialize(values=st.lists(VALUES, min_size=1, max_size=1), count=st.integers(0, 4))
    def begin(self, values: list[str], count: int) -> None:
        for _ in range(count):
            self.run.log(values, stride=1)

    @rule(
        rows=st.lists(st.lists(VALUES, min_size=1, max_size=3), min_size=1, max_size=6),
        stride=st.sampled_from([0, 1, 1, 3, -1]),
        seconds=st.sampled_from([1, 1, 0]),
    )
    def rows_are_appended(self, rows: list[list[str]], stride: int, seconds: int) -> None:
        for values in rows:
            self.run.log(values, stride=stride, seconds=seconds)

    @rule(name=st.sampled_from(METRICS))
    def a_metric_appears(self, name: str) -> None:
        self.run.grow_header(name)

    @rule(tag=st.sampled_from(["samples", "val/samples"]))
    def a_picture_is_logged(self, tag: str) -> None:
        self.run.picture(tag)

    @rule(text=st.sampled_from(["0.5", "0.5,3", '"0.', ","]))
    def the_tail_is_torn(self, text: str) -> None:
        self.run.tear(text)

    @rule(back=st.integers(0, 4))
    def the_job_is_killed_and_requeued(self, back: int) -> None:
        self.run.requeue(back)

    @rule(status=st.sampled_from(["completed", "failed", "interrupted", "running"]))
    def the_status_changes(self, status: str) -> None:
        self.run.edit(status=status)

    @rule(
        notes=st.sampled_from(["", "**good**", "long " * 40]),
        tags=st.lists(st.sampled_from(["project:b", "x", "y:1"]), unique=True),
    )
    def the_sidecar_is_edited(self, notes: str, tags: list[str]) -> None:
        self.run.edit(notes=notes, tags=tags)

    @rule()
    def the_directory_is_moved(self) -> None:
        with suppress(StopIteration):
            self.run.move(next(self.places))

    @rule()
    def the_directory_is_replaced(self) -> None:
        """Replace the run by another with a new identity; the old target stays as it was."""
        shutil.rmtree(self.run.path)
        self.run = LivingRun(self.run.path, uid=next(self.uids))
        self.edits = {}

    @precondition(lambda self: self.name != "tensorboard")
    @rule(what=st.sampled_from(["notes", "tag"]), text=st.sampled_from(["by hand", "changed by hand"]))
    def a_person_edits_the_target(self, what: str, text: str) -> None:
        if edit(self.name, self.folder, self.exporter(), self.run.uid, what, text):
            self.edits[what] = text

    def finish(self) -> None:
        self.run.edit(status="completed")

    def the_end_equals_one_clean_export(self) -> None:
        super().the_end_equals_one_clean_export()
        for what, text in self.edits.items():
            assert edited(self.name, self.folder, self.exporter(), self.run.uid, what) == [text]


TAGS = {"notes": "mlflow.note.content", "tag": "project"}
"""What a person edits, by MLflow's tag: one of ours or a new one, as the run has it or not."""


def edit(name: str, folder: Path, exporter: Any, uid: str, what: str, text: str) -> bool:
    """Change notes or a tag in the target as a person does in its UI; return whether there was a target.

    People find a run only after its first export: before, nobody can tell an edit from what was sent.
    """
    if name == "memory":
        if exporter.box(uid) is None:
            return False
        exporter.edit(uid, **({"notes": text} if what == "notes" else {"tags": (text,)}))
        return True
    client, runs = mlflow_runs(folder, uid)
    runs = [run for run in runs if json.loads(run.data.tags.get("mlflow.bridge.cursor", "{}")).get("sent")]
    for run in runs:
        client.set_tag(run.info.run_id, TAGS[what], text)
    return bool(runs)


def edited(name: str, folder: Path, exporter: Any, uid: str, what: str) -> list[str]:
    """Return the target's value where a person edited it, for each run there is."""
    if name == "memory":
        facts = exporter.box(uid).facts
        return [facts["notes"]] if what == "notes" else list(facts["tags"])
    return [run.data.tags.get(TAGS[what], "") for run in mlflow_runs(folder, uid)[1]]


def mlflow_runs(folder: Path, uid: str) -> tuple[Any, list[Any]]:
    """Return a client and the runs of the identity `uid`."""
    from mlflow import MlflowClient

    if not (folder / "target").exists():
        return None, []
    client = MlflowClient(f"sqlite:///{folder / 'target' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("contract")
    found = (
        []
        if experiment is None
        else client.search_runs([experiment.experiment_id], f"tags.`mlflow.bridge.uid` = '{uid}'")
    )
    return client, list(found)


def run_histories(
    histories: type[Exports], name: str, examples: int, zygote: Zygote, request: pytest.FixtureRequest
) -> None:
    """Try `examples` histories with the exporter of this name."""
    templates = {"sqlite_template": request.getfixturevalue("sqlite_template")} if name.startswith("mlflow") else {}
    machine = type("History", (histories,), {"name": name, "zygote": zygote, "templates": templates})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.parametrize("times", [1, pytest.param(SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_any_history_ends_like_one_clean_export(
    name: str, times: int, heavy: Zygote, request: pytest.FixtureRequest
) -> None:
    """After a last clean export verify finds no difference, and the target equals one clean export."""
    run_histories(Histories, name, times * EXAMPLES[name], heavy, request)
