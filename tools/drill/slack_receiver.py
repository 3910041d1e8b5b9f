"""A receiver in place of Slack, to which the cluster's Alertmanager posts its messages.

`SlackReceiver` runs this module in the cluster's network, where it writes the title and text of each message.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from tools.cluster import node, secrets
from tools.drill.in_cluster import InClusterProcess, write

PORT = 8098
ALERTMANAGER = ("--namespace=monitoring", "--selector=app.kubernetes.io/name=alertmanager")


class Message(NamedTuple):
    """A message that Alertmanager posted."""

    at: float  # seconds since 1970
    title: str
    text: str


class SlackReceiver(InClusterProcess[Message]):
    """Receive Alertmanager's messages for the duration of the block, through the Secret that holds Slack's URL."""

    def __init__(self) -> None:
        super().__init__(Message._make, "tools.drill.slack_receiver")

    def __enter__(self) -> Self:
        super().__enter__()
        slack = {"slack-url": f"http://{node.IP}:{PORT}/"}
        secret = json.dumps(secrets.kubernetes_secret("monitoring", "alertmanager", slack))
        node.run("kubectl", "apply", "--server-side", "--filename=-", stdin=secret)
        # A new pod reads the Secret at once, and has not sent any notification yet.
        node.run("kubectl", "delete", "pod", *ALERTMANAGER)
        return self

    def __exit__(self, *_: object) -> None:
        node.run("kubectl", "delete", "secret", "alertmanager", "--namespace=monitoring")
        super().__exit__()

    def missing(self, alert: str, namespace: str, since: float) -> str | None:
        """Return None if an alert fired in a namespace since then, otherwise a text that says it is missing.

        A message that only reports the alert as resolved does not count.
        """
        alerted = any(
            message.at >= since and message.title.endswith(f" {namespace}") and f"*{alert}*: " in message.text
            for message in self.received
        )
        return None if alerted else f"no message about {alert} in {namespace}; received: {self.received}"


class Slack(BaseHTTPRequestHandler):
    """Accept messages in the format that Alertmanager uses for Slack."""

    def do_POST(self) -> None:
        """Write each message, and answer 200."""
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for attachment in body["attachments"]:
            write(Message(time.time(), attachment["title"], attachment["text"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer((node.IP, PORT), Slack)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
