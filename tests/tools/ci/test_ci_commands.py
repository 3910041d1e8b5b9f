"""The commands of the workflows that use secrets, with and without them."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from tests.support.running import ROOT, free_port


def _run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.ci", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )


@contextmanager
def _webhook(status: int) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the address of a server that answers with a status, and the bodies that it receives."""
    received: list[bytes] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.end_headers()

        def log_message(self, form: str, *values: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_notify_sends_a_message_that_mentions_nobody() -> None:
    with _webhook(200) as (address, received):
        done = _run("notify", "rolled back: P95 > 0.5 s\n<!channel> & <@U1>", SLACK_WEBHOOK=address)
    assert done.returncode == 0, done.stderr
    [message] = received
    assert json.loads(message) == {"text": "rolled back: P95 &gt; 0.5 s\n&lt;!channel&gt; &amp; &lt;@U1&gt;"}


def test_notify_reports_an_error_without_the_address() -> None:
    with _webhook(404) as (address, _):
        refused = _run("notify", "text", SLACK_WEBHOOK=f"{address}planted-secret")
    unavailable = f"http://127.0.0.1:{free_port()}/planted-secret"
    wrong = (
        "planted-secret",
        f"{unavailable} {unavailable}",
        f"{unavailable}\n{unavailable}",
        "http://127.0.0.1:planted-secret/",
    )
    for done in (refused, *(_run("notify", "text", SLACK_WEBHOOK=address) for address in (unavailable, *wrong))):
        assert done.returncode == 1
        assert "no message was sent: " in done.stderr
        assert "planted-secret" not in done.stderr + done.stdout


def test_notify_reports_an_answer_that_is_not_http_without_showing_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        server.settimeout(60)
        port = server.getsockname()[1]
        running = pool.submit(_run, "notify", "text", SLACK_WEBHOOK=f"http://127.0.0.1:{port}/")
        client, _ = server.accept()
        with client:
            client.recv(65536)
            client.sendall(b"planted-secret\r\n")
        done = running.result()
    assert done.returncode == 1
    assert "no message was sent: " in done.stderr
    assert "planted-secret" not in done.stderr + done.stdout


def test_notify_without_the_secret_succeeds() -> None:
    done = _run("notify", "text", SLACK_WEBHOOK="")
    assert (done.returncode, done.stdout) == (0, "SLACK_WEBHOOK is not set: no message was sent\n")


def test_kubeconfig_is_readable_only_by_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    done = _run("kubeconfig", str(file), KUBECONFIG_SECRET="kind: Config\n")  # noqa: S106 - not a secret
    assert done.stdout == "configured=true\n"
    assert file.read_text() == "kind: Config\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_kubeconfig_without_the_secret_is_not_written(tmp_path: Path) -> None:
    done = _run("kubeconfig", str(tmp_path / "kubeconfig"), KUBECONFIG_SECRET="")
    assert (done.returncode, done.stdout) == (0, "configured=false\n")
    assert done.stderr == "KUBECONFIG is not set: the cluster is not asked for anything\n"
    assert not (tmp_path / "kubeconfig").exists()
