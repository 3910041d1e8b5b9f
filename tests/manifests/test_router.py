"""The real router with the routes and middlewares of manifests/iris, in front of the real service."""

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support.running import ROOT, SETOSA, RunningService, free_port, wait_until
from tools import programs

MANIFESTS = ROOT / "manifests/iris"
UPGRADE = "Connection: Upgrade, close\r\nUpgrade: {}\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
LOGS = b"GET /logs HTTP/1.1\r\nHost: iris.example\r\n\r\n"
"""A request for a path that the router does not serve."""
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(LOGS), LOGS)
CLIENTS = itertools.count(1)


def head(lines: str, length: int | None = None, path: str = "/predict") -> bytes:
    """Return the request line and the headers of a POST."""
    content = "" if length is None else f"Content-Length: {length}\r\n"
    start = f"POST {path} HTTP/1.1\r\nHost: iris.example\r\nContent-Type: application/json\r\n"
    return f"{start}{lines}{content}\r\n".encode()


@pytest.fixture(scope="module", params=["the service's protocol", "uvicorn's protocol"])
def routed(
    request: pytest.FixtureRequest, model: Path, module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningService, int]]:
    """A service and the port of a router in front of it, which alone prevents smuggling to uvicorn's protocol."""
    folder = tmp_path_factory.mktemp("router")
    service = RunningService(model, module_database, folder / "journal")
    if request.param == "uvicorn's protocol":
        code = (
            "import uvicorn; from service import __main__; config = uvicorn.Config; "
            "uvicorn.Config = lambda *a, **k: config(*a, **{**k, 'http': 'httptools'}); __main__.main()"
        )
        service.command = [sys.executable, "-c", code]
    with service, router(service, folder) as port:
        yield service, port


@contextmanager
def router(service: RunningService, folder: Path) -> Iterator[int]:
    """Run Traefik in front of a service; yield its port."""
    port = free_port()
    dynamic = folder / "dynamic.yml"
    dynamic.write_text(yaml.safe_dump({"http": configuration(service.url)}))
    command = (
        programs.folder("prebuilt", print) / "traefik",
        f"--entryPoints.web.address=127.0.0.1:{port}",
        f"--providers.file.filename={dynamic}",
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until(lambda: b" 200 OK" in exchange(port, get("/healthz")), "the router")
        yield port
    finally:
        process.terminate()
        process.wait()


def configuration(url: str) -> dict[str, object]:
    """Return the route and the middlewares of the manifests as Traefik reads them from a file."""
    (route,) = yaml.safe_load((MANIFESTS / "ingressroute.yaml").read_text())["spec"]["routes"]
    middlewares = yaml.safe_load_all((MANIFESTS / "middlewares.yaml").read_text())
    names = [middleware["name"] for middleware in route["middlewares"]]
    return {
        "routers": {"iris": {"rule": route["match"], "middlewares": names, "service": "iris"}},
        "middlewares": {item["metadata"]["name"]: item["spec"] for item in middlewares},
        "services": {"iris": {"loadBalancer": {"servers": [{"url": url}]}}},
    }


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: iris.example\r\nConnection: close\r\n\r\n".encode()


def exchange(port: int, *packets: bytes) -> bytes:
    """Send packets, each on its own, from an address of the client's own; return all that the router answers."""
    number = next(CLIENTS)
    source = (f"127.1.{number // 256}.{number % 256}", 0)  # the rate limits are for each address
    answer = b""
    with contextlib.suppress(ConnectionError), socket.socket() as client:
        client.settimeout(30)
        client.bind(source)
        client.connect(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packet in packets:
            client.sendall(packet)
            time.sleep(0.01)
        while data := client.recv(65536):
            answer += data
    return answer


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param((head(UPGRADE.format("foo"), len(LOGS)), LOGS), id="upgrade"),
        pytest.param((head(UPGRADE.format("websocket"), len(LOGS)), LOGS), id="upgrade to websocket"),
        pytest.param((head(UPGRADE.format("h2c"), len(LOGS)), LOGS), id="upgrade to h2c"),
        pytest.param((head(UPGRADE.format("foo"), len(LOGS), "/healthz"), LOGS), id="upgrade that nobody reads"),
        pytest.param(
            (head(UPGRADE.format("foo") + "Expect: 100-continue\r\n", len(LOGS)), LOGS), id="upgrade and expect"
        ),
        pytest.param((head(UPGRADE.format("foo") + CHUNKED), CHUNKS), id="upgrade and chunks"),
        pytest.param((head(CHUNKED, 5), b"0\r\n\r\n" + LOGS), id="chunks and the length of the first"),
        pytest.param((head(CHUNKED, 5 + len(LOGS)), b"0\r\n\r\n" + LOGS), id="chunks and the length of all"),
        pytest.param((head("Transfer-Encoding : chunked\r\n", 5), b"0\r\n\r\n" + LOGS), id="space before a colon"),
        pytest.param((head("Transfer-Encoding:\r\n chunked\r\n", 5), b"0\r\n\r\n" + LOGS), id="folded header"),
        pytest.param((head("X: y\nTransfer-Encoding: chunked\n", 5), b"0\r\n\r\n" + LOGS), id="line feed alone"),
        pytest.param((head(CHUNKED), b"0;x=\n" + LOGS + b"\r\n"), id="line feed in a chunk's extension"),
        pytest.param((head(CHUNKED), b'%x;x="\r\n"\r\n%s' % (len(LOGS), CHUNKS)), id="chunk's extension"),
        pytest.param((head("Content-Length: 0\r\n", len(LOGS)), LOGS), id="two lengths"),
    ],
)
def test_no_body_runs_as_a_request(routed: tuple[RunningService, int], packets: tuple[bytes, ...]) -> None:
    service, port = routed
    before = service.metric("iris_requests_total", endpoint="/logs")
    for _ in range(5):
        exchange(port, *packets[:-1], packets[-1] + get("/nowhere"))
        assert b'"model_name"' in exchange(port, get("/info"))  # the next client gets its own answer
    assert service.metric("iris_requests_total", endpoint="/logs") == before


@pytest.mark.parametrize("protocol", ["foo", "websocket", "h2c"])
def test_an_upgrade_is_ignored_and_the_body_is_the_body(routed: tuple[RunningService, int], protocol: str) -> None:
    body = json.dumps({"features": SETOSA}).encode()
    answer = exchange(routed[1], head(UPGRADE.format(protocol), len(body)), body)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"class":"setosa"' in answer
