"""Users: each with an address of its own, because the router limits what one address may ask.

Run inside the cluster's network, where it writes a line of JSON for each request; it ends with its standard input.
argv: how many users, and what they ask, as `Question`s in JSON. `Traffic` starts it and counts.
"""

import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tools.cluster import node
from tools.drill.in_cluster import Inside, write

ADDRESSES = "10.20.0"  # from .100 on; the node's network, so that the router sees them and not the node
PAUSE = 0.64  # seconds between two requests of one user: 94 a minute, where the router allows 100
LONGEST = 3 * 3600.0  # seconds after which the users go home, whatever happens
ROUTER = (
    *("kubectl", "get", "pods", "--namespace=traefik", "--selector=app.kubernetes.io/name=traefik"),
    *("--field-selector=status.phase=Running", "--output=json"),
)


class Question(NamedTuple):
    """What a user asks, and the index of the class that is the right answer."""

    features: list[float]
    prediction: int


class Answer(NamedTuple):
    """What a user got: the status, or what went wrong without one; which version said so; whether it was right."""

    at: float
    status: str
    version: str
    right: bool
    request_id: str = ""

    @property
    def good(self) -> bool:
        """Whether it is what the user came for."""
        return self.status == "200" and self.right


class Traffic:
    """Steady traffic from several users, as long as the block lasts."""

    def __init__(self, host: str, questions: list[Question], users: int = 40) -> None:
        self.users = users
        self.answers: list[Answer] = []
        arguments = (host, str(users), json.dumps(questions))
        self._inside = Inside(
            lambda answer: self.answers.append(Answer(*answer)), "tools.drill.traffic", *arguments
        )

    def __enter__(self) -> "Traffic":
        for user in range(self.users):
            node.run("ip", "address", "replace", f"{_address(user)}/24", "dev", "node0")
        self._inside.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.__exit__()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Send all users home for as long as the block lasts."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def between(self, begin: float, end: float = float("inf")) -> list[Answer]:
        """Return the answers of that time."""
        return [answer for answer in self.answers if begin <= answer.at < end]


class Router:
    """Where the router's pod is; another one may have taken its place."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked = 0.0
        self._address = ""

    def address(self, *, anew: bool) -> str:
        """Return its address, looked up once a second at the most."""
        with self._lock:
            if not self._address or (anew and time.monotonic() - self._looked > 1):
                found = subprocess.run(ROUTER, capture_output=True, check=False)
                pods = json.loads(found.stdout or '{"items": []}')["items"]  # the API server may be away, too
                alive = [pod["status"].get("podIP") for pod in pods if "deletionTimestamp" not in pod["metadata"]]
                self._address = next(filter(None, alive), self._address)
                self._looked = time.monotonic()
            return self._address


def use(
    host: str,
    questions: list[Question],
    user: int,
    router: Router,
    tell: Callable[[Answer], None],
    over: threading.Event,
) -> None:
    """Ask for one prediction after the other until it is over."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the router's certificate is its own
    headers = {"Host": host, "Content-Type": "application/json"}
    connection: http.client.HTTPSConnection | None = None
    number = user
    over.wait(PAUSE * user / 40)
    while not over.is_set():
        begun = time.time()
        features, expected = questions[number % len(questions)]
        number += 1
        try:
            if connection is None:
                connection = http.client.HTTPSConnection(
                    router.address(anew=False),
                    8443,
                    timeout=10,
                    context=context,
                    source_address=(_address(user), 0),
                )
            connection.request("POST", "/predict", json.dumps({"features": features}), headers)
            response = connection.getresponse()
            body = response.read()
            facts = json.loads(body) if response.status == http.HTTPStatus.OK else {}
            right = facts.get("prediction") == expected
            tell(Answer(begun, str(response.status), facts.get("version", ""), right, facts.get("request_id", "")))
        except (OSError, http.client.HTTPException, ValueError) as error:
            tell(Answer(begun, type(error).__name__, "", right=False))
            connection = None
            router.address(anew=True)
        over.wait(max(0.0, begun + PAUSE - time.time()))


def main(host: str, users: int, questions: list[Question]) -> None:
    """Send traffic until standard input ends."""
    over, lock, router = threading.Event(), threading.Lock(), Router()

    def tell(answer: Answer) -> None:
        with lock:
            write(answer)

    for user in range(users):
        threading.Thread(target=use, args=(host, questions, user, router, tell, over), daemon=True).start()
    threading.Thread(target=_end_with_input, args=(over,), daemon=True).start()
    over.wait(LONGEST)
    over.set()
    time.sleep(0.5)  # for the last answers


def _end_with_input(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def _address(user: int) -> str:
    return f"{ADDRESSES}.{100 + user}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [Question(*asked) for asked in json.loads(sys.argv[3])])
