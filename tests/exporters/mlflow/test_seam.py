"""MLflow's errors as ours: worth another try or not, with a hint where a person can do something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mlflow.exceptions import MlflowException

from bridge.errors import TargetError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.mlflow.client import (
    Address,
    RunGoneError,
    artifact_errors,
    call_with_retry,
    translate_errors,
    without_credentials,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "kind", "hint"),
    [
        (
            "API request to endpoint /x failed with error code 401 != 200. Response body: 'no'",
            TargetRefusedError,
            "TOKEN",
        ),
        (
            "API request to endpoint /x failed with error code 404 != 200. Response body: 'no'",
            TargetRefusedError,
            "port",
        ),
        ("API request to endpoint /x failed with error code 503 != 200.", TargetUnavailableError, ""),
        ("API request to http://h/x failed with exception Max retries exceeded", TargetUnavailableError, ""),
        ("The run abc must be in the 'active' state. Current state is deleted.", RunGoneError, "again"),
        ("Run with id=abc not found", RunGoneError, "again"),
        ("BAD_REQUEST: UNIQUE constraint failed: metrics.key, metrics.step", TargetUnavailableError, ""),
    ],
)
def test_what_mlflow_says_is_sorted(text: str, kind: type[TargetError], hint: str) -> None:
    """By status and by meaning."""
    with pytest.raises(kind) as caught, translate_errors("http://h"):
        raise MlflowException(text)
    assert hint in (caught.value.hint or "")


def test_a_call_is_tried_again_while_the_target_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when it refuses."""
    monkeypatch.setattr("bridge.exporters.mlflow.client.RETRY_PAUSES_S", (0.0, 0.0))
    answers = [MlflowException("failed with error code 503"), MlflowException("failed with error code 500"), None]

    def call() -> str:
        error = answers.pop(0)
        if error is not None:
            raise error
        return "done"

    assert call_with_retry("http://h", call) == "done"
    answers[:] = [MlflowException("failed with error code 403"), None]
    with pytest.raises(TargetRefusedError):
        call_with_retry("http://h", call)
    assert answers == [None]


def test_a_store_of_files_that_does_not_take_them_is_refused() -> None:
    """Whatever it raises, with the way to leave files out."""
    with pytest.raises(TargetRefusedError, match="PermissionError") as caught, artifact_errors("http://h"):
        raise PermissionError(13, "Permission denied")
    assert "--no-artifacts" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ada:secret@host:5000/mlflow?x=secret", "https://host:5000/mlflow"),
        ("postgresql://ada:secret@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////data/mlflow.db?password=secret", "sqlite:////data/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_its_credentials(uri: str, shown: str) -> None:
    """Also what stands in its query."""
    assert (without_credentials(uri), Address.of(uri).shown) == (shown, shown)


def test_an_old_file_store_in_the_working_directory_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MLflow's own default would be ./mlruns."""
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\nlifecycle_stage: active\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TargetRefusedError) as caught:
        Address.of(None)
    assert "sqlite:///mlflow.db" in (caught.value.hint or "")
