"""Credentials in an address appear in no output, report, error, tag, cursor or cache."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

import pytest

from tests.security.scene import Scene, Seen
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.mlflow_server import MlflowServer
    from tests.fixtures.postgres import Cluster

USER = "ada"


def forms(password: str) -> list[str]:
    """Return the forms in which a password may appear: plain, in an address, in a header."""
    pair = f"{USER}:{password}".encode()
    return [password, quote(password, safe=""), base64.b64encode(pair).decode()]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Make one good run, and clients that do not wait."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("bridge.exporters.mlflow.errors.RETRY_PAUSES_S", ())
    return Scene.make(tmp_path)


def commands(scene: Scene, uri: str) -> list[Seen]:
    """Return export, plan and verify against `uri` as text and JSON, and the output of `config`."""
    to = ["--to", "mlflow", "--tracking-uri", uri, "--experiment", "e"]
    (scene.root / "bridge.yaml").write_text(json.dumps({"mlflow": {"tracking_uri": uri}}))
    return [
        scene.call("export", "runs", *to, "-v"),
        scene.call("export", "runs", *to, "--json"),
        scene.call("export", "runs", *to, "--dry-run", "--json"),
        scene.call("verify", "runs", *to, "-v"),
        scene.call("verify", "runs", *to, "--json"),
        scene.call("config"),
        scene.call("config", "--json"),
    ]


def assert_unseen(scene: Scene, password: str, printed: str = "") -> None:
    """Assert that no form of the password was printed or is in a file of the bridge."""
    for form in forms(password):
        assert not any(form in said for said in (*scene.said, printed))
        assert [path for path in scene.holding(form) if path.name != "bridge.yaml"] == []


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers every request with a status and everything that it received, with credentials in every form."""

    status = 401
    received: ClassVar[list[str]] = []

    def _answer(self) -> None:
        sent = self.headers.get("Authorization", "")
        self.received.append(sent)
        pair = base64.b64decode(sent.partition(" ")[2] or b"").decode(errors="replace")
        body = f"{sent} | {pair} | http://{pair}@{self.headers['Host']}{self.path}".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - named by the library

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the library
        """Log nothing."""


@pytest.fixture
def echo() -> Iterator[http.server.ThreadingHTTPServer]:
    """Yield a server that repeats everything it receives."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_is_down(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    """The error shows only host and port of the address."""
    password = "down:p@ss/w0rd%"
    port = free_port()
    seen = commands(scene, f"http://{USER}:{quote(password, safe='')}@127.0.0.1:{port}")
    assert [one.code for one in seen] == [1, 1, 1, 1, 1, 0, 0]
    assert f"No server answers at http://127.0.0.1:{port}: Connection refused." in seen[0].err
    assert_unseen(scene, password, "".join(capfd.readouterr()))


@pytest.mark.parametrize("status", [401, 403, 404, 400, 500, 302])
def test_a_server_that_repeats_what_it_receives(
    scene: Scene,
    echo: http.server.ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: int,
) -> None:
    """An answer that repeats the credentials does not put them into the error."""
    password = f"hunter2-{status}"
    monkeypatch.setattr(Echo, "status", status)
    seen = commands(scene, f"http://{USER}:{password}@127.0.0.1:{echo.server_port}")
    assert [one.code for one in seen] == [1, 1, 1, 1, 1, 0, 0]
    assert f"127.0.0.1:{echo.server_port}" in seen[0].err
    assert_unseen(scene, password, "".join(capfd.readouterr()))


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_credentials_in_the_environment(
    scene: Scene, echo: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Credentials that MLflow's client gets from the environment are not shown."""
    password = f"from-the-{name}"
    monkeypatch.setattr(Echo, "status", 500)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv(name, password)
    seen = commands(scene, f"http://127.0.0.1:{echo.server_port}")
    assert [one.code for one in seen] == [1, 1, 1, 1, 1, 0, 0]
    assert any(form in sent for form in forms(password) for sent in Echo.received)  # so the answers held them
    assert_unseen(scene, password)


WRONG = [
    "ftp://{0}@host/x",
    "file://{0}@host/x",
    "http://{0}@[::1",
    "mysql+nothing://{0}@host/db",
    "postgresql://{0}@127.0.0.1:1/db",
    "postgresql://{0}@[::1/db",
    "sqlite:////nowhere/at/all.db?password={1}",
    "{0}@host",
    "://{0}@host",
    "postgresql://ada:it's {1} \"it@127.0.0.1:1/db",
]


@pytest.mark.parametrize("template", WRONG)
def test_invalid_addresses(scene: Scene, capfd: pytest.CaptureFixture[str], template: str) -> None:
    """An invalid address is shown without its credentials."""
    password = f"wr0ng-{WRONG.index(template)}-address"
    for seen in commands(scene, template.format(f"{USER}:{password}", password))[:5]:
        assert seen.code in (1, 2)
    assert_unseen(scene, password, "".join(capfd.readouterr()))


RIGHT = "r1ght-p4ssword"


@pytest.fixture
def locked_uri(postgres: Cluster, postgres_uri: str) -> str:
    """Return a database that requires a password of USER; {} marks its place."""
    import psycopg2

    rules = postgres.folder / "data" / "pg_hba.conf"
    rule = f"host all {USER} 127.0.0.1/32 scram-sha-256\n"
    if rule not in rules.read_text():
        postgres.execute(f"CREATE ROLE {USER} SUPERUSER LOGIN PASSWORD '{RIGHT}'")
        rules.write_text(rule + rules.read_text())
        postgres.execute("SELECT pg_reload_conf()")
    uri = postgres_uri.replace("bridge@", f"{USER}:{{}}@")
    with pytest.raises(psycopg2.OperationalError):  # noqa: PT012 - once the server applies the new rules
        for _ in range(1000):
            psycopg2.connect(uri.format("nobody").replace("+psycopg2", "")).close()
    return uri


def test_a_wrong_database_password(scene: Scene, locked_uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong password is a permanent error with a hint, and is not shown."""
    password = "wr0ng-p4ssword"
    seen = commands(scene, locked_uri.format(password))
    assert [one.code for one in seen] == [1, 1, 1, 1, 1, 0, 0]
    assert f'password authentication failed for user "{USER}"' in seen[0].err
    assert "Hint: Check user, password and database in the address." in seen[0].err
    assert_unseen(scene, password, "".join(capfd.readouterr()))


def test_nothing_is_left_in_a_database(scene: Scene, locked_uri: str) -> None:
    """With the right password no table, artifact or report holds it."""
    import psycopg2

    seen = commands(scene, locked_uri.format(RIGHT))
    assert [one.code for one in seen] == [0] * len(seen)
    with (
        psycopg2.connect(locked_uri.format(RIGHT).replace("+psycopg2", "")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "SELECT query_to_xml('SELECT * FROM ' || tablename, true, false, '') "
            "FROM pg_tables WHERE schemaname = 'public'"
        )
        held = "".join(row[0] for row in cursor.fetchall())
    connection.close()
    assert "mlflow.bridge.cursor" in held
    assert_unseen(scene, RIGHT, held)


def test_nothing_is_left_behind_a_server(scene: Scene, mlflow_server: MlflowServer) -> None:
    """Through a server its database and files hold no credentials of its address."""
    password = "thr0ugh-a-server"
    seen = commands(scene, mlflow_server.uri.replace("://", f"://{USER}:{password}@"))
    assert [one.code for one in seen] == [0] * len(seen)
    assert f"\nOpen: {mlflow_server.uri}/#/experiments/" in seen[0].out
    held = b"".join(path.read_bytes() for path in mlflow_server.folder.rglob("*") if path.is_file())
    assert b"mlflow.bridge.cursor" in held
    assert_unseen(scene, password, held.decode("latin-1"))
