"""What people are told of: a receiver in the place of Slack, to which the cluster's Alertmanager posts.

Run inside the cluster's network, where it writes the title and the text of each message. `Told` starts it.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tools.cluster import node, secrets
from tools.drill.in_cluster import Inside, write

PORT = 8098
ALERTMANAGER = ("--namespace=monitoring", "--selector=app.kubernetes.io/name=alertmanager")


class Message(NamedTuple):
    """What arrived."""

    at: float
    title: str
    text: str


class Told:
    """Takes Slack's place as long as the block lasts, by the Secret in which a site gives its address."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._inside = Inside(
            lambda message: self.messages.append(Message(*message)), "tools.drill.slack_receiver"
        )

    def __enter__(self) -> "Told":
        self._inside.__enter__()
        slack = {"slack-url": f"http://{node.IP}:{PORT}/"}
        secret = json.dumps(secrets.kubernetes_secret("monitoring", "alertmanager", slack))
        node.run("kubectl", "apply", "--server-side", "--filename=-", stdin=secret)
        # A new one reads it at once, and knows of nothing that was told before.
        node.run("kubectl", "delete", "pod", *ALERTMANAGER)
        return self

    def __exit__(self, *_: object) -> None:
        node.run("kubectl", "delete", "secret", "alertmanager", "--namespace=monitoring")
        self._inside.__exit__()

    def of(self, alert: str, namespace: str, since: float) -> str | None:
        """Return what is missing: that people were told of an alert in that namespace, None when they were.

        A message from before `since` (seconds) does not count, nor one that only says that it is over.
        """
        told = any(
            message.at >= since and message.title.endswith(f" {namespace}") and f"*{alert}*: " in message.text
            for message in self.messages
        )
        return None if told else f"nobody was told of {alert} in {namespace}, but of {self.messages}"


class Slack(BaseHTTPRequestHandler):
    """Takes the form of message that Alertmanager has for Slack."""

    def do_POST(self) -> None:
        """Write what came, and thank."""
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for attachment in body["attachments"]:
            write(Message(time.time(), attachment["title"], attachment["text"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Take messages until standard input ends."""
    server = ThreadingHTTPServer((node.IP, PORT), Slack)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
