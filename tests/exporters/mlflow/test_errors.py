"""MLflow's errors become ours: temporary or not, with a hint where a person can act."""

from __future__ import annotations

import sqlite3
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from sqlalchemy.exc import DBAPIError

from bridge.errors import MissingExtraError, TargetError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.mlflow import errors
from bridge.exporters.mlflow.address import Address, without_credentials
from bridge.exporters.mlflow.client import MlflowApi
from bridge.exporters.mlflow.errors import RunGoneError, call_with_retry, database_error, translate_errors

if TYPE_CHECKING:
    from pathlib import Path


REST = "API request to endpoint /api failed with error code {} != 200. Response body: '{}'"


@pytest.mark.parametrize(
    ("text", "kind", "says", "hint"),
    [
        (REST.format(401, "Who are you?"), TargetRefusedError, "Who are you?", "MLFLOW_TRACKING_PASSWORD"),
        (REST.format(403, "Invalid Host header - DNS rebinding"), TargetRefusedError, "Host header", "--allowed-hosts"),
        (REST.format(403, "Permission denied"), TargetRefusedError, "Permission denied", "lacks a right"),
        (REST.format(404, "no"), TargetRefusedError, "no MLflow at http://h", "port"),
        (REST.format(503, ""), TargetUnavailableError, "answers 503", ""),
        ("API request to http://h/x failed with exception Max retries exceeded", TargetUnavailableError, "reached", ""),
        ("The run abc must be in the 'active' state. Current state is deleted.", RunGoneError, "deleted", "again"),
        ("Run with id=abc not found", RunGoneError, "deleted", "again"),
        ("BAD_REQUEST: UNIQUE constraint failed: metrics.key, metrics.step", TargetUnavailableError, "sent twice", ""),
        ("BAD_REQUEST: UNIQUE constraint failed: params.key", TargetUnavailableError, "another program", ""),
    ],
)
def test_errors_of_mlflow_are_classified(text: str, kind: type[TargetError], says: str, hint: str) -> None:
    """An error's status and text decide its class; a refusal has the server's own words."""
    with pytest.raises(kind) as caught, translate_errors("http://h"):
        raise MlflowException(text)
    assert says in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "BAD_REQUEST: (sqlite3.IntegrityError) UNIQUE constraint failed: params.key, params.run_uuid",
        "BAD_REQUEST: (sqlite3.IntegrityError) UNIQUE constraint failed: tags.key, tags.run_uuid",
        "BAD_REQUEST: (sqlite3.IntegrityError) UNIQUE constraint failed: experiment_tags.key",
        'BAD_REQUEST: (psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint "param_pk"',
        'BAD_REQUEST: (psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint "tag_pk"',
        "BAD_REQUEST: (pymysql.err.IntegrityError) (1062, \"Duplicate entry 'lr-a1' for key 'params.PRIMARY'\")",
    ],
)
def test_params_and_tags_that_another_program_sets_are_sent_again(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow refuses params and tags while another request stores the same ones. The next try finds them stored."""
    monkeypatch.setattr(errors, "RETRY_PAUSES_S", (0.0,))
    refusals = [MlflowException(text, error_code=BAD_REQUEST)]

    def send() -> str:
        if refusals:
            raise refusals.pop()
        return "stored"

    assert call_with_retry("http://h", send) == "stored"


@pytest.mark.parametrize(
    ("cause", "kind", "hint"),
    [
        (sqlite3.OperationalError("database is locked"), TargetUnavailableError, "locked by another program"),
        (sqlite3.OperationalError("unable to open database file"), TargetRefusedError, "must exist and be writable"),
        (sqlite3.OperationalError("database or disk is full"), TargetRefusedError, "disk full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), TargetRefusedError, "read-only"),
        (sqlite3.IntegrityError("NOT NULL constraint failed"), TargetRefusedError, ""),
    ],
)
def test_errors_of_a_database_are_classified(cause: Exception, kind: type[TargetError], hint: str) -> None:
    """A database that is busy may be tried again, also if the driver itself says so; all else is refused."""
    for error in (cause, DBAPIError("INSERT", {}, cause)):
        found = database_error("sqlite:///x.db", error)
        assert (type(found), str(cause) in found.message) == (kind, True)
        assert hint in (found.hint or "")


def test_an_untrusted_certificate_is_reported_at_once(tmp_path: Path) -> None:
    """An untrusted certificate fails without retries, with a hint at the variable that names one as trusted."""
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TargetRefusedError, match="certificate") as caught:
            _ = MlflowApi(Address.of(f"https://127.0.0.1:{server.server_port}")).client
        server.shutdown()
    assert time.monotonic() - began < 10
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in str(caught.value.hint)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make an untrusted certificate for 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    return folder / "cert.pem", folder / "key.pem"


def test_databricks_is_left_to_mlflows_client() -> None:
    """Addresses of Databricks have no host and go to MLflow's client."""
    assert [Address.of(uri).kind for uri in ("databricks", "databricks://profile", "databricks-uc")] == ["server"] * 3


def test_a_missing_driver_is_named_with_its_pip_line() -> None:
    """A missing database driver is an error with its pip line."""
    with pytest.raises(MissingExtraError, match="pymysql") as caught:
        _ = MlflowApi(Address.of("mysql+pymysql://me:secret@127.0.0.1/x")).client
    assert caught.value.hint == 'pip install "pymysql"'
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ada:secret@host:5000/mlflow?x=secret", "https://host:5000/mlflow"),
        ("postgresql://ada:secret@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////data/mlflow.db?password=secret", "sqlite:////data/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_its_credentials(uri: str, shown: str) -> None:
    """Addresses are shown without credentials, also those in the query."""
    assert (without_credentials(uri), Address.of(uri).shown) == (shown, shown)


def test_an_old_file_store_in_the_working_directory_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If MLflow's default would be ./mlruns, the error has a hint."""
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\nlifecycle_stage: active\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TargetRefusedError) as caught:
        Address.of(None)
    assert "sqlite:///mlflow.db" in (caught.value.hint or "")
