"""The commands of the workflows that have secrets, with them and without."""

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
    """Yield the address of a server that takes a message with that status, and what it was sent."""
    sent: list[bytes] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.end_headers()

        def log_message(self, form: str, *values: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_slack_is_told_and_nobody_is_mentioned() -> None:
    with _webhook(200) as (address, sent):
        done = _run("tell", "taken back: P95 > 0.5 s\n<!channel> & <@U1>", SLACK_WEBHOOK=address)
    assert done.returncode == 0, done.stderr
    [message] = sent
    assert json.loads(message) == {"text": "taken back: P95 &gt; 0.5 s\n&lt;!channel&gt; &amp; &lt;@U1&gt;"}


def test_slack_that_refuses_or_is_away_is_an_error_that_does_not_show_the_address() -> None:
    with _webhook(404) as (address, _):
        refused = _run("tell", "text", SLACK_WEBHOOK=f"{address}planted-secret")
    away = f"http://127.0.0.1:{free_port()}/planted-secret"
    wrong = ("planted-secret", f"{away} {away}", f"{away}\n{away}", "http://127.0.0.1:planted-secret/")
    for done in (refused, *(_run("tell", "text", SLACK_WEBHOOK=address) for address in (away, *wrong))):
        assert done.returncode == 1
        assert "Slack was not told: " in done.stderr
        assert "planted-secret" not in done.stderr + done.stdout


def test_an_answer_that_is_no_http_is_an_error_that_does_not_show_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        server.settimeout(60)
        port = server.getsockname()[1]
        running = pool.submit(_run, "tell", "text", SLACK_WEBHOOK=f"http://127.0.0.1:{port}/")
        client, _ = server.accept()
        with client:
            client.recv(65536)
            client.sendall(b"planted-secret\r\n")
        done = running.result()
    assert done.returncode == 1
    assert "Slack was not told: " in done.stderr
    assert "planted-secret" not in done.stderr + done.stdout


def test_without_the_secret_slack_is_not_told_and_that_is_no_error() -> None:
    done = _run("tell", "text", SLACK_WEBHOOK="")
    assert (done.returncode, done.stdout) == (0, "SLACK_WEBHOOK is not set: nothing was sent\n")


def test_a_kubeconfig_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    done = _run("kubeconfig", str(file), KUBECONFIG_SECRET="kind: Config\n")  # noqa: S106 - none
    assert done.stdout == "there=true\n"
    assert file.read_text() == "kind: Config\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_the_secret_there_is_no_kubeconfig(tmp_path: Path) -> None:
    done = _run("kubeconfig", str(tmp_path / "kubeconfig"), KUBECONFIG_SECRET="")
    assert (done.returncode, done.stdout) == (0, "there=false\n")
    assert not (tmp_path / "kubeconfig").exists()
