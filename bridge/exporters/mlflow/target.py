"""One MLflow run as the target of one run directory: found or made, filled, and read back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bridge.cursor import Cursor
from bridge.errors import BridgeError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.contract import Applied
from bridge.exporters.mlflow.database import Change, NewRun, new_run_id
from bridge.exporters.mlflow.facts import facts_of
from bridge.exporters.mlflow.filling import Filling
from bridge.exporters.mlflow.locks import machine_lock
from bridge.exporters.mlflow.people import LIST_TAGS
from bridge.exporters.mlflow.readback import read_back
from bridge.exporters.mlflow.rebuild import make_beside, take_place
from bridge.exporters.mlflow.records import Choice, Record
from bridge.exporters.mlflow.run_rows import ConflictError
from bridge.exporters.mlflow.seam import RunGoneError
from bridge.exporters.mlflow.tags import Tag
from bridge.model import Delta, DeltaKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, MutableMapping

    from bridge.cursor import ContentOptions
    from bridge.exporters.contract import TargetContent
    from bridge.exporters.mlflow.api import Experiment
    from bridge.exporters.mlflow.database import Database
    from bridge.exporters.mlflow.facts import Facts
    from bridge.exporters.mlflow.place import Place
    from bridge.model import Run

__all__ = ["MlflowTarget"]

_ATTEMPTS = 5


class MlflowTarget:
    """Where one run directory goes; `memory` is what the exporter found for each identity."""

    def __init__(self, place: Place, run: Run, content: ContentOptions, memory: MutableMapping[str, Choice]) -> None:
        self._place = place
        self._run = run
        self._content = content
        self._memory = memory
        self._filling: Filling | None = None

    def apply(self, delta: Delta) -> Applied:
        """Bring `delta` in; where another export is at the same run, go on from what it has done."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._fill(delta)
            except RunGoneError:  # perhaps a person's doing: it is for the export to look at the run anew
                self._forget()
                raise
            except ConflictError:
                self._forget()
                if attempt == _ATTEMPTS:
                    raise
            except BridgeError:
                self._forget()
                raise
        raise AssertionError("unreachable")

    def _fill(self, delta: Delta) -> Applied:
        if self._filling is None:
            self._filling = self._open(delta)
        cursor = self._filling.cursor
        if cursor is not None and not follows(cursor, delta):
            caught_up = self._caught_up(cursor, delta)
            if caught_up is None:
                return Applied(notes=("another export brought this run up to date meanwhile",))
            delta = caught_up
        return self._filling.fill(delta) + Applied(notes=self._place.take_notes())

    def _caught_up(self, cursor: Cursor, delta: Delta) -> Delta | None:
        """What of `delta` is left to do, now that the target stands at `cursor`; None where nothing is.

        Raises TargetUnavailableError where `delta` cannot follow what another export has written meanwhile.
        """
        after = delta.after
        ahead = cursor.rows >= after.rows and cursor.media_lines >= after.media_lines
        if ahead and (cursor.rows > after.rows or cursor.digest == after.digest):
            if delta.more or all(cursor.sent.get(key) == value for key, value in self._facts().sent.items()):
                return None
            return Delta(delta.run, DeltaKind.SAME, after=cursor, before=cursor, metrics=delta.metrics)
        may_repeat = delta.kind in (DeltaKind.NEW, DeltaKind.APPEND, DeltaKind.SAME)
        behind = delta.before.rows if delta.before is not None else 0
        same_ground = cursor.anchors == after.anchors and cursor.content == after.content
        if may_repeat and same_ground and cursor.rows >= behind:
            return delta  # points that are there already are the same points
        raise TargetUnavailableError(
            f"Another export has changed {self.where()} in the meantime.",
            hint="Export again: what is left is looked at anew.",
        )

    def _open(self, delta: Delta) -> Filling:
        """The run to be filled: the one that is known, or a new one."""
        choice = self._choice()
        record = choice.record
        if record is None and choice.deleted is not None:
            raise RunGoneError(f"{self.where()}: the run was deleted in the meantime.", hint="Export again.")
        if record is not None:
            self._place.check_run(record.run_id, record.tags.get(Tag.CURSOR))
            return self._filling_of(*self._place.whole(record.run_id))
        if self._place.database is not None:
            return self._filling_of(self._make_in_database(delta, self._place.database), {})
        return self._filling_of(*self._place.whole(self._make(delta).run_id))

    def _filling_of(
        self, record: Record, params: dict[str, str], before_last: Callable[[], None] | None = None
    ) -> Filling:
        experiment = self._place.experiment_of(record.experiment_id)
        return Filling(
            place=self._place,
            run=self._run,
            content=self._content,
            record=record,
            params=params,
            files=self._place.takes_files(experiment),
            identity=self._identity_tags(),
            before_last=before_last or self._look_again,
        )

    def _choice(self) -> Choice:
        choice = self._memory.get(self._run.identity)
        if choice is None:
            choice = self._memory[self._run.identity] = self._place.find([self._run])[self._run.identity]
        return choice

    def _experiment(self) -> Experiment:
        experiment = self._place.experiment(self._place.naming.of_run(self._run), make=True)
        assert experiment is not None
        return experiment

    def _identity_tags(self) -> dict[str, str]:
        tags = {Tag.UID: self._run.identity}
        return tags | ({Tag.EXPERIMENT: self._place.naming.template} if self._place.naming.varies else {})

    def _first_tags(self, delta: Delta, experiment: Experiment) -> dict[str, str]:
        """What a new run is found by, and a cursor that covers nothing."""
        if experiment.deleted:
            raise TargetRefusedError(
                f"The MLflow experiment {experiment.name!r} was deleted.",
                hint=f"mlflow experiments restore --experiment-id {experiment.id}, or another --experiment.",
            )
        nothing = delta.remember or Cursor(self._run.identity, str(self._run.path), content=delta.after.content)
        return {**_own_tags(self._facts()), **self._identity_tags(), Tag.CURSOR: nothing.to_json()}

    def _facts(self) -> Facts:
        return facts_of(self._run, self._content)

    def _make_in_database(self, delta: Delta, database: Database) -> Record:
        """A new run, whose id follows from the run directory, so that no two exports can make two."""
        experiment, facts = self._experiment(), self._facts()
        tags = self._first_tags(delta, experiment)
        run_id = new_run_id(experiment.unique, self._run.identity)
        new = NewRun(experiment.id, facts.name, facts.start, facts.own.get("mlflow.user", "unknown"))
        database.write(run_id, Change(expected_cursor=None, tags=tags, create=new))
        self._place.check_run(run_id, tags[Tag.CURSOR], made=True)
        tags[Tag.NAME] = facts.name
        record = Record(run_id, experiment.id, "RUNNING", deleted=False, start=facts.start, end=None, tags=tags)
        self._memory[self._run.identity] = Choice(record=record)
        return record

    def _make(self, delta: Delta) -> Record:
        """A new run, or the one that another export made at the same moment."""
        experiment, facts = self._experiment(), self._facts()
        tags = self._first_tags(delta, experiment)
        # On one machine only one export at a time makes runs; of those on others the look after it takes care.
        with machine_lock(f"{self._place.address.uri} {experiment.id}"):
            self._forget()
            if self._choice().record is None:
                self._place.api.make_run(experiment.id, name=facts.name, start=facts.start, tags=tags)
            self._forget()
        self._keep_one()
        made = self._choice().record
        if made is None:
            raise TargetUnavailableError(f"{self.where()}: the run was made and is not there.")
        return made

    def _keep_one(self) -> None:
        """Of several runs of this run directory keep the one that all exports choose."""
        choice = self._choice()
        if choice.record is None:
            return
        for extra in choice.extras:
            self._place.api.put_away(extra.run_id, {Tag.DUPLICATE_OF: choice.record.run_id})

    def _look_again(self) -> None:
        """Before the last cursor: is this run still the one? A database decides that by the run's id."""
        if self._place.database is not None or self._filling is None:
            return
        mine = self._filling.record.run_id
        self._memory.pop(self._run.identity, None)
        record = self._choice().record
        if record is None or record.run_id != mine:
            raise ConflictError(f"MLflow run {mine} is no longer the target of {self._run.path}.", hint="Export again.")

    def _forget(self) -> None:
        self._filling = None
        self._memory.pop(self._run.identity, None)

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Fill a fresh run and put it in the old one's place, with what people did to that."""
        try:
            return self._rebuild(deltas)
        except BridgeError:
            self._forget()
            raise

    def _rebuild(self, deltas: Iterable[Delta]) -> Applied:
        self._forget()
        home = self._experiment()
        if home.deleted:
            home = self._place.revive(home)
        choice = self._choice()
        old = choice.record or (choice.deleted if choice.deleted is not None and choice.deleted.run_id else None)
        old = None if old is None else self._place.whole(old.run_id)[0]
        if choice.record is not None:
            home = self._place.experiment_of(choice.record.experiment_id)
        facts = self._facts()
        own = _own_tags(facts) | self._identity_tags()
        made = make_beside(self._place, self._run, home, facts, own, old)
        filling = self._filling_of(*self._place.whole(made), partial(self._still_due, choice.record))
        done = Applied()
        try:
            for delta in deltas:
                done += filling.fill(delta)
        except ConflictError:
            # Another one took the old run's place first. In a database both have filled the same run; else nobody
            # but us knows of this one.
            if self._place.database is None:
                self._place.api.put_away(made, {Tag.DUPLICATE_OF: old.run_id if old is not None else "nothing"})
            raise
        others = [*choice.extras, *(left for left in choice.building if left.run_id != filling.record.run_id)]
        take_place(self._place, old, filling.record, others, files=filling.files)
        self._forget()
        self._choice()
        return done

    def _still_due(self, old: Record | None) -> None:
        """Before a rebuild takes the place of `old`: raise ConflictError where another has done so already."""
        if old is not None and self._place.whole(old.run_id)[0].superseded:
            raise ConflictError(f"MLflow run {old.run_id} was rebuilt by another export.", hint="Export again.")

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """The run as MLflow's API gives it back."""
        choice = self._choice()
        if choice.record is None:
            raise TargetRefusedError(f"{self._place.address.shown} does not hold {self._run.path}.")
        return read_back(self._place, choice.record.run_id, self._run, self._content, only=only)

    def where(self) -> str:
        """The run's page on a server, else the database and the run's id."""
        shown = self._place.address.shown
        choice = self._memory.get(self._run.identity)
        record = choice.record if choice is not None else None
        if self._filling is not None:
            record = self._filling.record
        if record is None:
            return shown
        if self._place.address.is_server:
            return f"{shown}/#/experiments/{record.experiment_id}/runs/{record.run_id}?workflowType=machine_learning"
        return f"{shown} run {record.run_id}"


def follows(cursor: Cursor, delta: Delta) -> bool:
    """Whether `delta` begins where `cursor` stands."""
    before = delta.before
    if before is None:
        return not cursor.rows and not cursor.media_lines
    here = (cursor.rows, cursor.media_lines, cursor.digest)
    return here == (before.rows, before.media_lines, before.digest)


def _own_tags(facts: Facts) -> dict[str, str]:
    """The bridge's tags for a run that is made.

    The list from which is told what people took away is not among them, since their tags are not sent yet.
    """
    return {key: value for key, value in facts.own.items() if key not in LIST_TAGS}
