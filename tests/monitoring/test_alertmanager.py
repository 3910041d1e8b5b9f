"""Post alerts to the real Alertmanager, and check what arrives at stand-ins for PagerDuty, Slack and mail."""

import base64
import json
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.running import ROOT, free_port, wait_until
from tools import programs

SECRETS = "/etc/alertmanager/secrets"
KEYS = {"pagerduty-routing-key": "r" * 32, "smtp-password": "mail's password"}
GONE = {"alertname": "TargetGone", "job": "iris", "severity": "page"}


class Receivers:
    """An HTTP server and a mail server on loopback that keep each message: its channel and its text."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []
        self.passwords: set[str] = set()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _http(self))
        self.mail = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _mail(self))
        for server in (self.http, self.mail):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def about(self, namespace: str) -> list[tuple[str, str]]:
        """Return the messages that mention a namespace."""
        return [(channel, text) for channel, text in self.messages if namespace in text]

    def close(self) -> None:
        for server in (self.http, self.mail):
            server.shutdown()
            server.server_close()


def _http(receivers: Receivers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            receivers.messages.append((self.path.strip("/"), body))
            answer = b'{"status":"success"}' if self.path == "/pagerduty" else b"ok"
            self.send_response(202 if self.path == "/pagerduty" else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    return Handler


def _mail(receivers: Receivers) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            for line in self.rfile:
                verb, _, rest = line.decode().strip().partition(" ")
                if verb == "AUTH":
                    receivers.passwords.add(base64.b64decode(rest.split()[1]).decode().split("\0")[2])
                if verb == "DATA":
                    self.wfile.write(b"354 send the message\r\n")
                    text = b"".join(iter(self.rfile.readline, b".\r\n")).decode()
                    receivers.messages.append(("mail", text))
                answers = {
                    "EHLO": b"250-ready\r\n250 AUTH PLAIN\r\n",
                    "AUTH": b"235 accepted\r\n",
                    "QUIT": b"221 bye\r\n",
                }
                self.wfile.write(answers.get(verb, b"250 OK\r\n"))
                if verb == "QUIT":
                    return

    return Handler


class Alertmanager:
    """A running Alertmanager with the repository's configuration but its own addresses, credentials and waits."""

    def __init__(self, folder: Path, receivers: Receivers) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        secrets = folder / "secrets"
        config = yaml.safe_load((ROOT / "monitoring/alertmanager.yml").read_text().replace(SECRETS, str(secrets)))
        config["global"] |= {
            "smtp_smarthost": f"127.0.0.1:{receivers.mail.server_address[1]}",
            "smtp_require_tls": False,  # TLS would need a certificate
            "pagerduty_url": f"http://127.0.0.1:{receivers.http.server_address[1]}/pagerduty",
        }
        config["route"] |= {"group_wait": "2s", "group_interval": "5s"}
        file = folder / "alertmanager.yml"
        file.write_text(yaml.safe_dump(config))
        self.log = folder / "log"
        command = [
            str(programs.folder("alertmanager", print) / "alertmanager"),
            f"--config.file={file}",
            f"--storage.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--cluster.listen-address=",
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._ready, "Alertmanager to be ready", 30)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, *alerts: dict[str, str], resolved: bool = False) -> None:
        """Post alerts with these labels, as firing or as resolved."""
        body = [
            {
                "labels": labels,
                "annotations": {"summary": f"{labels['alertname']} in {labels['namespace']}"},
                **({"endsAt": datetime.now(UTC).isoformat()} if resolved else {}),
            }
            for labels in alerts
        ]
        assert httpx.post(f"{self.url}/api/v2/alerts", json=body).status_code == 200

    def inhibited(self, namespace: str) -> set[str]:
        """Return the names of a namespace's inhibited alerts."""
        found: list[dict[str, Any]] = httpx.get(
            f"{self.url}/api/v2/alerts", params={"filter": f"namespace={namespace}"}
        ).json()
        return {one["labels"]["alertname"] for one in found if one["status"]["inhibitedBy"]}


@pytest.fixture(scope="module")
def receivers() -> Iterator[Receivers]:
    started = Receivers()
    yield started
    started.close()


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, receivers: Receivers
) -> Iterator[Callable[[dict[str, str]], Alertmanager]]:
    """A function that starts an Alertmanager with these credential files."""
    started = []

    def start(secrets: dict[str, str]) -> Alertmanager:
        folder = tmp_path_factory.mktemp("alertmanager")
        (folder / "secrets").mkdir()
        for name, text in secrets.items():
            (folder / "secrets" / name).write_text(text)
        started.append(Alertmanager(folder, receivers))
        return started[-1]

    yield start
    for alertmanager in started:
        alertmanager.process.terminate()
        alertmanager.process.wait(30)


@pytest.fixture(scope="module")
def alertmanager(start: Callable[[dict[str, str]], Alertmanager], receivers: Receivers) -> Alertmanager:
    return start({**KEYS, "slack-url": f"http://127.0.0.1:{receivers.http.server_address[1]}/slack"})


def test_alertmanager_without_credentials_starts_and_logs_the_missing_file(
    start: Callable[[dict[str, str]], Alertmanager],
) -> None:
    alertmanager = start({})
    alertmanager.post({"alertname": "LowRPS", "namespace": "unsent", "severity": "warning"})
    wait_until(lambda: "secrets/slack-url" in alertmanager.log.read_text(), "the missing file to be named", 30)


@pytest.mark.parametrize(
    ("severity", "channels"),
    [
        ("page", ["pagerduty", "slack"]),
        ("critical", ["mail", "pagerduty", "slack"]),
        ("warning", ["slack"]),
        ("unknown", ["mail"]),
    ],
)
def test_an_alert_reaches_the_receivers_of_its_severity(
    alertmanager: Alertmanager, receivers: Receivers, severity: str, channels: list[str]
) -> None:
    name = f"to-{severity}"
    alertmanager.post({"alertname": "Some", "namespace": name, "severity": severity})
    wait_until(lambda: {channel for channel, _ in receivers.about(name)} >= set(channels), "the messages", 30)
    assert sorted(channel for channel, _ in receivers.about(name)) == channels
    assert receivers.passwords <= {KEYS["smtp-password"]}
    for channel, text in receivers.about(name):
        assert channel != "pagerduty" or json.loads(text)["routing_key"] == KEYS["pagerduty-routing-key"]


def test_alerts_of_one_namespace_are_grouped_into_one_message(
    alertmanager: Alertmanager, receivers: Receivers
) -> None:
    names = ("HighErrorRate", "HighLatency")
    alertmanager.post(*({"alertname": name, "namespace": "grouped", "severity": "page"} for name in names))
    alertmanager.post({"alertname": names[0], "namespace": "apart", "severity": "page"})
    wait_until(lambda: len(receivers.about("grouped") + receivers.about("apart")) >= 4, "the messages", 30)
    for channel in ("pagerduty", "slack"):
        texts = [text for found, text in receivers.about("grouped") if found == channel]
        assert len(texts) == 1
        assert all(f"{name} in grouped" in texts[0] for name in names)
        assert len([found for found, _ in receivers.about("apart") if found == channel]) == 1


def test_a_resolved_alert_in_a_firing_group_is_marked_as_resolved(
    alertmanager: Alertmanager, receivers: Receivers
) -> None:
    first, second = (
        {"alertname": name, "namespace": "half", "severity": "warning"} for name in ("First", "Second")
    )
    alertmanager.post(first, second)
    wait_until(lambda: len(receivers.about("half")) == 1, "the message", 30)
    alertmanager.post(first, resolved=True)
    wait_until(lambda: len(receivers.about("half")) == 2, "the second message", 30)
    before, after = (json.loads(text)["attachments"][0]["text"] for _, text in receivers.about("half"))
    assert "*First*: First in half" in before
    assert "*First* (resolved): First in half" in after
    assert "*Second*: Second in half" in before
    assert "*Second*: Second in half" in after


def test_target_gone_for_iris_inhibits_dependent_alerts_only_in_its_namespace(
    alertmanager: Alertmanager, receivers: Receivers
) -> None:
    dependent = {
        "HighErrorRate": "page",
        "HighLatency": "page",
        "ModelNotLoaded": "critical",
        "LowRPS": "warning",
        "RateLimited": "warning",
        "JournalGrowing": "warning",
    }
    alerts = [{"alertname": name, "severity": severity} for name, severity in dependent.items()]
    down = {"alertname": "TargetDown", "job": "iris", "severity": "warning"}
    others = [{"alertname": name, "severity": "warning"} for name in ("RolloutWaiting", "JournalLost")]
    alertmanager.post(*({**alert, "namespace": "gone"} for alert in (GONE, down, *others, *alerts)))
    alertmanager.post(*({**alert, "namespace": "other-namespace"} for alert in (down, *alerts)))
    wait_until(lambda: len(receivers.about("gone")) >= 3, "the alerts that are not inhibited", 30)
    wait_until(
        lambda: len(receivers.about("other-namespace")) >= 2 + 3 + 1, "the alerts of the other namespace", 30
    )
    assert alertmanager.inhibited("gone") == {*dependent, "TargetDown"}
    assert alertmanager.inhibited("other-namespace") == set()
    sent = " ".join(text for _, text in receivers.about("gone"))
    assert [name for name in dependent if f"{name} in gone" in sent] == []


def test_target_gone_for_iris_inhibits_alerts_without_a_namespace(alertmanager: Alertmanager) -> None:
    alertmanager.post({**GONE, "namespace": ""}, {"alertname": "LowRPS", "namespace": "", "severity": "warning"})
    wait_until(lambda: alertmanager.inhibited("") == {"LowRPS"}, "the inhibition", 30)


def test_target_gone_for_another_job_inhibits_only_its_own_target_down(alertmanager: Alertmanager) -> None:
    where = {"namespace": "other", "severity": "page"}
    alertmanager.post(
        {**where, "alertname": "TargetGone", "job": "traefik"},
        {**where, "alertname": "TargetDown", "job": "traefik"},
        {**where, "alertname": "TargetDown", "job": "iris"},
        {**where, "alertname": "HighErrorRate"},
    )
    wait_until(lambda: alertmanager.inhibited("other") == {"TargetDown"}, "the inhibition", 30)


def test_an_aborted_rollout_does_not_inhibit_error_alerts(
    alertmanager: Alertmanager, receivers: Receivers
) -> None:
    alertmanager.post(
        {"alertname": "RolloutAborted", "namespace": "aborted", "severity": "warning"},
        {"alertname": "HighErrorRate", "namespace": "aborted", "severity": "page"},
    )
    wait_until(lambda: len(receivers.about("aborted")) >= 3, "the messages of both alerts", 30)
    assert alertmanager.inhibited("aborted") == set()
