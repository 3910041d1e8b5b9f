"""Traffic from simulated users, each with its own address, because the router limits the rate of an address.

`Traffic` runs this module in the cluster's network, where it writes a line of JSON for each request until its
standard input ends. Its argument is the users' `Question`s in JSON.
"""

import http.client
import json
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import yaml

from tools.checkout import ROOT
from tools.cluster import node
from tools.drill.in_cluster import InClusterProcess, write

USERS = 40
ADDRESSES = "10.20.0"  # from .100 on, in the node's network: the router sees them, not the node's address
PAUSE = 0.64  # seconds between two requests of one user: 94 a minute, where the router allows 100
MAX_SECONDS = 3 * 3600  # after which the traffic ends, whatever happens to the drill
ROUTER_PODS = (
    *("kubectl", "get", "pods", "--namespace=traefik", "--selector=app.kubernetes.io/name=traefik"),
    *("--field-selector=status.phase=Running", "--output=json"),
)

Question = tuple[list[float], int]
"""The features of a request, and the index of the right class."""


class Answer(NamedTuple):
    """The result of one request."""

    at: float  # when the request was sent, seconds since 1970
    status: str  # of the HTTP response, or the exception's name where there was none
    version: str  # of the model that answered
    right: bool
    request_id: str = ""

    @property
    def good(self) -> bool:
        """Whether the request was answered, and correctly."""
        return self.status == "200" and self.right


class Traffic(InClusterProcess[Answer]):
    """Send steady traffic from USERS users for the duration of the block."""

    def __init__(self, questions: list[Question]) -> None:
        super().__init__(Answer._make, "tools.drill.traffic", json.dumps(questions))

    def __enter__(self) -> Self:
        for user in range(USERS):
            node.run("ip", "address", "replace", f"{_address(user)}/24", "dev", "node0")
        return super().__enter__()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Send no traffic for the duration of the block."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def between(self, begin: float, end: float = float("inf")) -> list[Answer]:
        """Return the answers to the requests of that time."""
        return [answer for answer in self.received if begin <= answer.at < end]


def public_host(environment: str) -> str:
    """Return the public host name of an environment, which its overlay defines."""
    overlay = yaml.safe_load((ROOT / f"overlays/{environment}/kustomization.yaml").read_text())
    [generator] = overlay["configMapGenerator"]
    return str(generator["literals"][0].removeprefix("host="))


class Router:
    """The address of the router's pod, which changes when the pod is replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checked = -1.0
        self._address = ""

    def address(self) -> str:
        """Return the address, which is looked up at most once a second."""
        with self._lock:
            if time.monotonic() - self._checked > 1:
                found = subprocess.run(ROUTER_PODS, capture_output=True, check=False)
                # No output: the API server is unavailable as well.
                pods = json.loads(found.stdout or '{"items": []}')["items"]
                alive = [pod["status"].get("podIP") for pod in pods if "deletionTimestamp" not in pod["metadata"]]
                self._address = next(filter(None, alive), self._address)
                self._checked = time.monotonic()
            return self._address


def send_requests(questions: list[Question], user: int, router: Router, over: threading.Event) -> None:
    """Send one user's requests until `over` is set, and write an `Answer` for each."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the router's certificate is self-signed
    headers = {"Host": public_host("prod"), "Content-Type": "application/json"}
    connection = http.client.HTTPSConnection(
        router.address(), 8443, timeout=10, context=context, source_address=(_address(user), 0)
    )
    number = user
    over.wait(PAUSE * user / USERS)
    while not over.is_set():
        begun = time.time()
        features, expected = questions[number % len(questions)]
        number += 1
        try:
            connection.request("POST", "/predict", json.dumps({"features": features}), headers)
            response = connection.getresponse()
            body = response.read()
            result = json.loads(body) if response.status == http.HTTPStatus.OK else {}
            right = result.get("prediction") == expected
            version, request_id = result.get("version", ""), result.get("request_id", "")
            write(Answer(begun, str(response.status), version, right, request_id))
        except (OSError, http.client.HTTPException, ValueError) as error:
            write(Answer(begun, type(error).__name__, "", right=False))
            connection.close()  # the next request opens it again
            connection.host = router.address()
        over.wait(max(0.0, begun + PAUSE - time.time()))


def main(questions: list[Question]) -> None:
    """Send traffic until standard input ends, for MAX_SECONDS at most."""
    over, router = threading.Event(), Router()
    for user in range(USERS):
        threading.Thread(target=send_requests, args=(questions, user, router, over), daemon=True).start()
    signal.alarm(MAX_SECONDS)
    sys.stdin.read()
    over.set()
    time.sleep(0.5)  # until the last answers have come


def _address(user: int) -> str:
    return f"{ADDRESSES}.{100 + user}"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
