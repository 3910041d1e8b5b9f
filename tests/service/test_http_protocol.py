"""The connections themselves: upgrades, limits and deadlines, which clients try with bytes of their own."""

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from service.http_protocol import HEAD_BYTES
from tests.support.running import SETOSA, RunningService, wait_until

BODY = json.dumps({"features": SETOSA}).encode()
UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {}\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
INFO = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(body: bytes = BODY, headers: str = "", path: str = "/predict") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def exchange(service: RunningService, *packets: bytes, pause: float = 0.05) -> bytes:
    """Send packets, each on its own, and return all that the service answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for packet in packets:
                client.sendall(packet)
                time.sleep(pause)
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            answer += data
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]


# Upgrade.


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "foo", "TLS/1.0"])
@pytest.mark.parametrize("packets", [1, 2, 1000])
def test_an_upgrade_is_ignored_and_the_body_is_the_body(
    shared_service: RunningService, protocol: str, packets: int
) -> None:
    request = post(headers=UPGRADE.format(protocol))
    if packets == 1:
        pieces = [request + CLOSE]
    elif packets == 2:
        pieces = [request[: -len(BODY)], request[-len(BODY) :] + CLOSE]
    else:
        pieces = [request[:100], *(request[n : n + 1] for n in range(100, 130)), request[130:], CLOSE]
    answer = exchange(shared_service, *pieces)
    assert statuses(answer) == [200, 404]
    assert b'"class":"setosa"' in answer


@pytest.mark.parametrize("path", ["/predict", "/healthz", "/nowhere"])
def test_a_request_in_the_body_of_an_upgrade_is_not_run(shared_service: RunningService, path: str) -> None:
    for header in (
        "Connection: Upgrade\r\nUpgrade: foo\r\n",
        "upgrade: h2c\r\nconnection: keep-alive,UPGRADE\r\n",
    ):
        request = post(INFO, header, path)
        answer = exchange(shared_service, request[: -len(INFO)], INFO, CLOSE)
        assert len(statuses(answer)) == 2
        assert b"model_name" not in answer


def test_an_upgrade_with_chunks_or_among_other_requests_is_answered_like_any_request(
    shared_service: RunningService,
) -> None:
    upgrade = UPGRADE.format("h2c")
    head = (
        f"POST /predict HTTP/1.1\r\nContent-Type: application/json\r\n{upgrade}Transfer-Encoding: chunked\r\n\r\n"
    )
    chunked = head.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    get = f"GET /healthz HTTP/1.1\r\n{upgrade}\r\n".encode()
    assert statuses(exchange(shared_service, chunked + get + chunked + get + post() + CLOSE)) == [
        *(200, 200, 200, 200, 200),
        404,
    ]


def test_many_upgrades_in_one_packet_are_all_answered(shared_service: RunningService) -> None:
    get = b"GET /healthz HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert len(get) * 1000 > 3 * HEAD_BYTES  # which is the limit of one request
    assert statuses(exchange(shared_service, get * 1000 + CLOSE)) == [*([200] * 1000), 404]


@pytest.mark.parametrize("request_line", [b"CONNECT x:80 HTTP/1.1", b"CONNECT /predict HTTP/1.1"])
def test_connect_is_refused_and_nothing_after_it_runs(shared_service: RunningService, request_line: bytes) -> None:
    answer = exchange(shared_service, request_line + b"\r\nHost: x\r\n\r\n" + INFO, INFO)
    assert statuses(answer) == [400]
    assert b"model_name" not in answer


# What else could be taken for a request, or for a header.


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(headers="Transfer-Encoding: chunked\r\n"), id="length and chunks"),
        pytest.param(post(headers=f"Content-Length: {len(BODY) + 1}\r\n"), id="two lengths"),
        pytest.param(post(headers="Transfer-Encoding: identity\r\n"), id="another coding"),
        pytest.param(post(headers="X: y\nZ: z\r\n"), id="line feed alone"),
        pytest.param(post(headers="X : y\r\n"), id="space after a name"),
        pytest.param(post(headers="X: y\r\n folded\r\n"), id="folded header"),
    ],
)
def test_ambiguous_framing_is_refused_and_nothing_after_it_runs(
    shared_service: RunningService, request_: bytes
) -> None:
    answer = exchange(shared_service, request_, INFO)
    assert statuses(answer) == [400]
    assert b"model_name" not in answer


def test_a_trailer_is_not_a_header(shared_service: RunningService) -> None:
    chunked = b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n%s\r\n" % (
        len(BODY),
        BODY,
        b"Content-Type: application/json\r\n",
    )
    assert statuses(exchange(shared_service, chunked + CLOSE)) == [415, 404]


def test_a_malformed_request_does_not_answer_the_request_before_it(shared_service: RunningService) -> None:
    answer = exchange(shared_service, post() + b"NONSENSE\r\n\r\n", INFO)
    assert statuses(answer) == [200]
    assert b'"class":"setosa"' in answer


def test_a_malformed_body_does_not_answer_the_request_before_it(shared_service: RunningService) -> None:
    headers = b"POST /predict HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert 400 not in statuses(exchange(shared_service, post() + headers + b"NONSENSE\r\n"))


# Sizes.


def test_headers_of_16_kib_are_accepted(shared_service: RunningService) -> None:
    lines = "".join(f"X-{number}: {'x' * 1000}\r\n" for number in range(15))
    assert statuses(exchange(shared_service, post(headers=lines), CLOSE)) == [200, 404]


@pytest.mark.parametrize(
    ("start", "more"),
    [
        pytest.param(b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n" * 1000, id="lines"),
        pytest.param(b"GET /healthz HTTP/1.1\r\na: ", b"b" * 6000, id="one line"),
        pytest.param(b"GET /healthz HTTP/1.1\r\n", b"b" * 6000, id="a name"),
        pytest.param(b"GET /", b"b" * 6000, id="the request line"),
    ],
)
def test_endless_headers_are_refused(shared_service: RunningService, start: bytes, more: bytes) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", shared_service.port), timeout=30) as client:
        client.sendall(start)
        with contextlib.suppress(ConnectionError):
            while sent < 2**24:
                sent += client.send(more)
            pytest.fail("the service takes any number of headers")
        assert sent < 2**23  # what the kernel buffers, not what the process keeps
    assert statuses(exchange(shared_service, start + (more * 10)[:40_000])) in ([431], [])


def test_endless_trailers_are_refused(shared_service: RunningService) -> None:
    head = b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: "
    address = ("127.0.0.1", shared_service.port)
    with socket.create_connection(address, timeout=30) as client, contextlib.suppress(ConnectionError):
        client.sendall(head)
        for _ in range(2**12):
            client.sendall(b"b" * 2**12)
        pytest.fail("the service takes any number of trailers")


def test_a_body_in_chunks_of_one_byte_is_accepted(shared_service: RunningService) -> None:
    headers = b"POST /predict HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = BODY + b" " * 50_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    assert statuses(exchange(shared_service, headers + chunks + b"0\r\n\r\n" + CLOSE)) == [200, 404]


def test_a_refused_request_is_counted_and_has_a_request_id(shared_service: RunningService) -> None:
    labels = {"method": "OTHER", "endpoint": "other", "status": "400"}
    before = shared_service.metric("iris_requests_total", **labels)
    answer = exchange(shared_service, b"NONSENSE / HTTP/1.1\r\n\r\n")
    assert b"x-request-id: " in answer
    assert answer.endswith(b'{"detail":"Invalid HTTP request received."}')
    assert shared_service.metric("iris_requests_total", **labels) == before + 1


# Silence.


@pytest.fixture(scope="module")
def impatient(
    model: Path, module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    with waiting(0.5, model, module_database, tmp_path_factory.mktemp("impatient") / "journal") as running:
        yield running


def waiting(
    seconds: float,
    model: Path,
    database: str,
    journal: Path,
    *,
    request_seconds: float | None = None,
    prefix: Sequence[str] = (),
) -> RunningService:
    """Return a service that waits for so long where others wait for a minute or two."""
    service = RunningService(model, database, journal)
    code = (
        "import uvicorn; from service import __main__, http_protocol; "
        f"http_protocol.REQUEST_SECONDS = {request_seconds or seconds}; config = uvicorn.Config; "
        f"uvicorn.Config = lambda *a, **k: config(*a, **{{**k, 'timeout_keep_alive': {seconds}}}); __main__.main()"
    )
    service.command = [*prefix, sys.executable, "-c", code]
    return service


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"\r\n", [], id="an empty line"),
        pytest.param(HEALTHZ[:-2], [408], id="half a header"),
        pytest.param(b"GET /hea", [408], id="half a request line"),
        pytest.param(post()[:-2], [408], id="half a body"),
        pytest.param(HEALTHZ, [200], id="one request"),
        pytest.param(HEALTHZ + HEALTHZ[:-2], [200, 408], id="one and a half requests"),
        pytest.param(post(b"x" * 100, path="/healthz")[:-2], [405], id="half a body that nobody reads"),
    ],
)
def test_a_silent_client_is_dropped(impatient: RunningService, sent: bytes, answers: list[int]) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=20) as client:
        client.sendall(sent)
        answer = read_all(client)
    assert statuses(answer) == answers
    assert impatient.predict().status_code == 200


def test_a_client_is_dropped_although_its_body_arrived_after_its_answer(impatient: RunningService) -> None:
    request = post(b"x" * 100, path="/healthz")
    assert statuses(exchange(impatient, request[:-100], request[-100:])) == [405]


def test_a_request_may_take_longer_than_an_idle_connection_is_kept(
    model: Path, database: str, tmp_path: Path
) -> None:
    with waiting(0.5, model, database, tmp_path / "journal", request_seconds=60) as service:
        assert statuses(exchange(service, HEALTHZ[:-2], HEALTHZ[-2:] + CLOSE, pause=1)) == [200, 404]


def test_a_client_that_disconnects_has_no_deadline(impatient: RunningService) -> None:
    labels = {"endpoint": "other", "status": "408"}
    before = impatient.metric("iris_requests_total", **labels)
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=20) as client:
        client.sendall(HEALTHZ[:-2])
    time.sleep(1)
    assert impatient.metric("iris_requests_total", **labels) == before


def test_a_client_that_sends_a_byte_at_a_time_is_dropped(impatient: RunningService) -> None:
    started = time.monotonic()
    address = ("127.0.0.1", impatient.port)
    with socket.create_connection(address, timeout=20) as client, contextlib.suppress(ConnectionError):
        while time.monotonic() < started + 15:
            client.sendall(b"\r\n" if time.monotonic() < started + 0.2 else b"G")
            time.sleep(0.1)
        pytest.fail("the service waits as long as there is a byte now and then")


# Descriptors.


def test_at_the_limit_of_descriptors_old_clients_are_served_and_new_ones_as_soon_as_silent_ones_are_dropped(
    model: Path, database: str, tmp_path: Path
) -> None:
    def answers_a_new_client() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{service.url}/healthz").status_code == 200
        return False

    service = waiting(5, model, database, tmp_path / "journal", prefix=["prlimit", "--nofile=64"])
    with service, contextlib.ExitStack() as silent:
        assert service.client.get("/healthz").status_code == 200
        for _ in range(100):
            silent.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=20))
        assert service.process
        descriptors = Path(f"/proc/{service.process.pid}/fd")
        wait_until(lambda: len(list(descriptors.iterdir())) == 64, "all descriptors to be in use")
        assert service.predict().status_code == 200
        assert service.metric("iris_memory_usage_mb") > 0
        wait_until(answers_a_new_client, "a new client to be answered")
        assert service.predict().status_code == 200
