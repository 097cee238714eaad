"""Whether a database is the one behind a tracking URI: looked at before anything is written past the server."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from bridge.errors import BridgeError, TargetRefusedError, UsageError
from bridge.exporters.mlflow.address import Address, without_credentials
from bridge.exporters.mlflow.database import Change
from bridge.exporters.mlflow.seam import RunGoneError

if TYPE_CHECKING:
    from bridge.exporters.mlflow.api import Api, Experiment
    from bridge.exporters.mlflow.database import Database

__all__ = ["PROBE_FAMILY", "Pairing", "database_of"]

PROBE_FAMILY = "bridge.probe."
"""Tags that stand for a moment, to see whether they can be seen from the other side."""

_FIRST = "0"
"""The experiment that every MLflow has."""

_TRIES = 2


def database_of(uri: str) -> Address:
    """The address of a database behind a server. Raises UsageError for what is no database."""
    try:
        address = Address.of(uri)
    except BridgeError:
        address = None
    if address is None or address.is_server:
        raise UsageError(
            f"--database-uri: {without_credentials(uri)} is no database.",
            hint="Give what the server was started with as --backend-store-uri (postgresql://..., sqlite:///...).",
        )
    return address


class Pairing:
    """A database and the API of a server (or another address) that it is said to belong to.

    Every check raises TargetRefusedError, with nothing left behind on either side.
    """

    def __init__(self, api: Api, database: Database, shown: str) -> None:
        self._api = api
        self._database = database
        self._shown = shown
        self._proved = False

    def check_first(self) -> None:
        """Look at the experiment that every MLflow has: two MLflows made it at two different moments."""
        try:
            first = self._api.experiment_of(_FIRST)
        except TargetRefusedError:
            return  # somebody deleted it for good
        self.check_experiment(first)

    def check_experiment(self, experiment: Experiment) -> None:
        """Compare an experiment that the API knows with the database's of the same id."""
        found = self._database.experiment(experiment.id)
        if found != (experiment.name, experiment.made):
            there = "is not there" if found is None else f"is another there ({found[0]!r})"
            raise self._refusal(f"experiment {experiment.id} ({experiment.name!r}) {there}")

    def check_run(self, run_id: str, cursor: str | None, *, made: bool) -> None:
        """See whether the API shows what the database is told of a run, once: a copy has the same experiments.

        `cursor` is the run's cursor tag; a run that was `made` just now is taken away again where it is not seen.
        """
        if self._proved:
            return
        for _ in range(_TRIES):  # an export beside this one may have tidied the first away
            if self._is_seen(run_id, cursor):
                self._proved = True
                return
        if made:
            self._database.unmake(run_id)
        raise self._refusal(f"what is written to run {run_id} there does not show")

    def _is_seen(self, run_id: str, cursor: str | None) -> bool:
        probe = f"{PROBE_FAMILY}{uuid.uuid4().hex}"
        self._database.write(run_id, Change(expected_cursor=cursor, tags={probe: "true"}))
        try:
            return probe in self._api.get(run_id).data.tags
        except (RunGoneError, TargetRefusedError):
            return False
        finally:
            self._database.write(run_id, Change(expected_cursor=cursor, deleted_tags=[probe]))

    def _refusal(self, why: str) -> TargetRefusedError:
        return TargetRefusedError(
            f"{self._shown} is not the database behind {self._api.address.shown}: {why}.",
            hint="--database-uri is what the server was started with as --backend-store-uri. Without it all goes through "
            "the tracking URI.",
        )
