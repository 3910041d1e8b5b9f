"""The real Alertmanager, told of alerts, and what then arrives in the place of PagerDuty, Slack and mail."""

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
    """An HTTP server and a mail server on loopback, and what they were given: each way, and its text."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        self.passwords: set[str] = set()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _http(self))
        self.mail = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _mail(self))
        for server in (self.http, self.mail):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def about(self, namespace: str) -> list[tuple[str, str]]:
        """Return what tells of a namespace."""
        return [(way, text) for way, text in self.got if namespace in text]

    def close(self) -> None:
        for server in (self.http, self.mail):
            server.shutdown()
            server.server_close()


def _http(receivers: Receivers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            receivers.got.append((self.path.strip("/"), body))
            answer = b'{"status":"success"}' if self.path == "/pagerduty" else b"ok"
            self.send_response(202 if self.path == "/pagerduty" else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def _mail(receivers: Receivers) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                verb, _, rest = line.decode().strip().partition(" ")
                if verb == "AUTH":
                    receivers.passwords.add(base64.b64decode(rest.split()[1]).decode().split("\0")[2])
                if verb == "DATA":
                    self.wfile.write(b"354 go on\r\n")
                    text = b"".join(iter(self.rfile.readline, b".\r\n")).decode()
                    receivers.got.append(("mail", text))
                answers = {
                    "EHLO": b"250-here\r\n250 AUTH PLAIN\r\n",
                    "AUTH": b"235 yes\r\n",
                    "QUIT": b"221 bye\r\n",
                }
                self.wfile.write(answers.get(verb, b"250 yes\r\n"))
                if verb == "QUIT":
                    return

    return Handler


class Alertmanager:
    """The program with a copy of its configuration, in which addresses, credential files and waits differ."""

    def __init__(self, folder: Path, receivers: Receivers) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        secrets = folder / "secrets"
        config = yaml.safe_load((ROOT / "monitoring/alertmanager.yml").read_text().replace(SECRETS, str(secrets)))
        config["global"] |= {
            "smtp_smarthost": f"127.0.0.1:{receivers.mail.server_address[1]}",
            "smtp_require_tls": False,  # for which a certificate would be needed
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

    def tell(self, *alerts: dict[str, str], over: bool = False) -> None:
        """Post alerts by their labels, as firing or as over."""
        body = [
            {
                "labels": labels,
                "annotations": {"summary": f"{labels['alertname']} in {labels['namespace']}"},
                **({"endsAt": datetime.now(UTC).isoformat()} if over else {}),
            }
            for labels in alerts
        ]
        assert httpx.post(f"{self.url}/api/v2/alerts", json=body).status_code == 200

    def silent(self, namespace: str) -> set[str]:
        """Return the alerts of a namespace that others silence."""
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
    """What starts the program with these credentials, by file."""
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


def test_without_its_credentials_it_starts_and_says_which_file_it_lacks(
    start: Callable[[dict[str, str]], Alertmanager],
) -> None:
    alertmanager = start({})
    alertmanager.tell({"alertname": "LowRPS", "namespace": "unsent", "severity": "warning"})
    wait_until(lambda: "secrets/slack-url" in alertmanager.log.read_text(), "the missing file to be named", 30)


@pytest.mark.parametrize(
    ("severity", "ways"),
    [
        ("page", ["pagerduty", "slack"]),
        ("critical", ["mail", "pagerduty", "slack"]),
        ("warning", ["slack"]),
        ("unheard", ["mail"]),
    ],
)
def test_an_alert_arrives_where_its_severity_says(
    alertmanager: Alertmanager, receivers: Receivers, severity: str, ways: list[str]
) -> None:
    name = f"to-{severity}"
    alertmanager.tell({"alertname": "Some", "namespace": name, "severity": severity})
    wait_until(lambda: {way for way, _ in receivers.about(name)} >= set(ways), "the messages", 30)
    assert sorted(way for way, _ in receivers.about(name)) == ways
    assert receivers.passwords <= {KEYS["smtp-password"]}
    for way, text in receivers.about(name):
        assert way != "pagerduty" or json.loads(text)["routing_key"] == KEYS["pagerduty-routing-key"]


def test_what_happens_in_one_namespace_is_one_message(alertmanager: Alertmanager, receivers: Receivers) -> None:
    names = ("HighErrorRate", "HighLatency")
    alertmanager.tell(*({"alertname": name, "namespace": "grouped", "severity": "page"} for name in names))
    alertmanager.tell({"alertname": names[0], "namespace": "apart", "severity": "page"})
    wait_until(lambda: len(receivers.about("grouped") + receivers.about("apart")) >= 4, "the messages", 30)
    for way in ("pagerduty", "slack"):
        (text,) = [text for found, text in receivers.about("grouped") if found == way]
        assert all(f"{name} in grouped" in text for name in names)
        assert len([found for found, _ in receivers.about("apart") if found == way]) == 1


def test_what_is_over_while_other_things_go_on_is_said_to_be(
    alertmanager: Alertmanager, receivers: Receivers
) -> None:
    first, second = (
        {"alertname": name, "namespace": "half", "severity": "warning"} for name in ("First", "Second")
    )
    alertmanager.tell(first, second)
    wait_until(lambda: len(receivers.about("half")) == 1, "the message", 30)
    alertmanager.tell(first, over=True)
    wait_until(lambda: len(receivers.about("half")) == 2, "the second message", 30)
    before, after = (json.loads(text)["attachments"][0]["text"] for _, text in receivers.about("half"))
    assert "*First*: First in half" in before
    assert "*First* (over): First in half" in after
    assert "*Second*: Second in half" in before
    assert "*Second*: Second in half" in after


def test_where_iris_is_gone_what_follows_from_it_is_silent_and_elsewhere_it_is_not(
    alertmanager: Alertmanager, receivers: Receivers
) -> None:
    following = {
        "HighErrorRate": "page",
        "HighLatency": "page",
        "ModelNotLoaded": "critical",
        "LowRPS": "warning",
        "RateLimited": "warning",
        "JournalGrowing": "warning",
    }
    alerts = [{"alertname": name, "severity": severity} for name, severity in following.items()]
    down = {"alertname": "TargetDown", "job": "iris", "severity": "warning"}
    waiting = {"alertname": "RolloutWaiting", "severity": "warning"}
    alertmanager.tell(*({**alert, "namespace": "gone"} for alert in (GONE, down, waiting, *alerts)))
    alertmanager.tell(*({**alert, "namespace": "there"} for alert in (down, *alerts)))
    wait_until(lambda: len(receivers.about("gone")) >= 3, "what is not silent", 30)
    wait_until(lambda: len(receivers.about("there")) >= 2 + 3 + 1, "what happens elsewhere", 30)
    assert alertmanager.silent("gone") == {*following, "TargetDown"}
    assert alertmanager.silent("there") == set()
    told = " ".join(text for _, text in receivers.about("gone"))
    assert [name for name in following if f"{name} in gone" in told] == []


def test_at_a_desk_without_namespaces_it_is_the_same(alertmanager: Alertmanager) -> None:
    alertmanager.tell({**GONE, "namespace": ""}, {"alertname": "LowRPS", "namespace": "", "severity": "warning"})
    wait_until(lambda: alertmanager.silent("") == {"LowRPS"}, "the silence", 30)


def test_another_job_that_is_gone_silences_its_own_processes_alone(alertmanager: Alertmanager) -> None:
    where = {"namespace": "other", "severity": "page"}
    alertmanager.tell(
        {**where, "alertname": "TargetGone", "job": "traefik"},
        {**where, "alertname": "TargetDown", "job": "traefik"},
        {**where, "alertname": "TargetDown", "job": "iris"},
        {**where, "alertname": "HighErrorRate"},
    )
    wait_until(lambda: alertmanager.silent("other") == {"TargetDown"}, "the silence", 30)


def test_a_release_that_was_taken_back_does_not_silence_errors(
    alertmanager: Alertmanager, receivers: Receivers
) -> None:
    alertmanager.tell(
        {"alertname": "RolloutAborted", "namespace": "aborted", "severity": "warning"},
        {"alertname": "HighErrorRate", "namespace": "aborted", "severity": "page"},
    )
    wait_until(lambda: len(receivers.about("aborted")) >= 3, "both", 30)
    assert alertmanager.silent("aborted") == set()
