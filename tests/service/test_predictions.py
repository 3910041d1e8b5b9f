"""/predict and /predict/batch: any invalid request quickly gets a small response that says what is wrong."""

import http.client
import json
import math
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.running import SETOSA, RunningService

MARK = "MARK7f3a"  # stands for any text of a client; no response and no log line may contain it
ENDPOINTS = ("/predict", "/predict/batch")
JSON = {"Content-Type": "application/json"}
GOOD = "[5.1,3.5,1.4,0.2]"
BODY = f'{{"features":{GOOD}}}'
BATCH = f'{{"features":[{GOOD}]}}'
LIMIT = 112_096  # 1,000 rows of four of the longest floats, and 4 KiB
ANSWER_SECONDS = 0.05
ANSWER_BYTES = 4096


class Reply(NamedTuple):
    """An HTTP response, and the time it took, including the connection."""

    status: int
    headers: str
    body: bytes
    seconds: float


class Case(NamedTuple):
    """An invalid request, the status of its response, and a part of its detail."""

    status: int
    detail: str
    body: bytes
    headers: Mapping[str, str] = JSON


# Invalid rows with status and detail; {at} is their position. They are sent alone to /predict, and to
# /predict/batch after five valid rows, so that the index of the row cannot be taken for that of a value.
ROWS = {
    "three values": (422, "{at}: expected array of length 4", "[5.1,3.5,1.4]"),
    "five values": (422, "{at}: expected array of length 4", "[5.1,3.5,1.4,0.2,1]"),
    "no values": (422, "{at}: expected array of length 4", "[]"),
    "null": (422, "{at}: expected array, got null", "null"),
    "a string": (422, "{at}: expected array, got str", f'"{MARK}"'),
    "a number": (422, "{at}: expected array, got float", "5.1"),
    "true": (422, "{at}: expected array, got bool", "true"),
    "an object": (422, "{at}: expected array, got object", f'{{"{MARK}":1}}'),
    "a number out of range": (422, "{at}", "1e999"),
    "too many digits": (422, "{at}[0] (sepal_length_cm): number out of range", f"[{'9' * 5000},3.5,1.4,0.2]"),
    "out of float's range": (422, "{at}[1] (sepal_width_cm): number out of range", "[5.1,1e999,1.4,0.2]"),
    "below float's range": (422, "{at}[1] (sepal_width_cm): number out of range", "[5.1,-1e999,1.4,0.2]"),
    "a value that is null": (422, "{at}[2] (petal_length_cm): expected float, got null", "[5.1,3.5,null,0.2]"),
    "a value that is a string": (
        422,
        "{at}[2] (petal_length_cm): expected float, got str",
        f'[5.1,3.5,"{MARK}",0.2]',
    ),
    "a value that is a number in a string": (
        422,
        "{at}[2] (petal_length_cm): expected float, got str",
        '[5.1,3.5,"1.4",0.2]',
    ),
    "a value that is a boolean": (
        422,
        "{at}[3] (petal_width_cm): expected float, got bool",
        "[5.1,3.5,1.4,false]",
    ),
    "a value that is an array": (
        422,
        "{at}[0] (sepal_length_cm): expected float, got array",
        "[[5.1],3.5,1.4,0.2]",
    ),
    "a value that is an object": (
        422,
        "{at}[0] (sepal_length_cm): expected float, got object",
        f'[{{"{MARK}":5.1}},3.5,1.4,0.2]',
    ),
    "NaN": (400, "the body is not JSON", "[NaN,3.5,1.4,0.2]"),
    "Infinity": (400, "the body is not JSON", "[5.1,Infinity,1.4,0.2]"),
    "-Infinity": (400, "the body is not JSON", "[5.1,-Infinity,1.4,0.2]"),
    "a plus sign": (400, "the body is not JSON", "[+5.1,3.5,1.4,0.2]"),
    "a leading zero": (400, "the body is not JSON", "[05.1,3.5,1.4,0.2]"),
    "a bare point": (400, "the body is not JSON", "[5.,3.5,1.4,0.2]"),
    "hexadecimal": (400, "the body is not JSON", "[0x5,3.5,1.4,0.2]"),
    "underscores": (400, "the body is not JSON", "[5_1,3.5,1.4,0.2]"),
    "a trailing comma": (400, "the body is not JSON", "[5.1,3.5,1.4,0.2,]"),
    "a second document": (400, "the body is not JSON", f'[5.1,3.5,1.4,0.2]}} {{"{MARK}":1'),
    "a comment": (400, "the body is not JSON", f"[5.1,3.5,1.4,0.2/*{MARK}*/]"),
}

# Requests that are invalid for both endpoints, for the same reason.
REQUESTS = {
    "an empty body": Case(400, "the body is not JSON", b""),
    "a blank body": Case(400, "the body is not JSON", b" \n"),
    "not JSON": Case(400, "the body is not JSON", MARK.encode()),
    "a truncated body": Case(400, "the body is not JSON", b'{"features":['),
    "a byte order mark": Case(400, "the body is not JSON", b"\xef\xbb\xbf" + BODY.encode()),
    "UTF-16": Case(400, "the body is not JSON", BODY.encode("utf-16")),
    "invalid UTF-8": Case(400, "the body is not JSON", b'{"\xff":1}'),
    "half a surrogate pair": Case(400, "the body is not JSON", b'{"\\ud800":1}'),
    "compressed": Case(415, "content-encoding", b"\x1f\x8b\x08\x00", {**JSON, "Content-Encoding": "gzip"}),
    "an array": Case(422, "expected object, got array", GOOD.encode()),
    "a string": Case(422, "expected object, got str", f'"{MARK}"'.encode()),
    "null": Case(422, "expected object, got null", b"null"),
    "deep nesting": Case(422, "expected object, got array", b"[" * LIMIT),
    "deep nesting in the field": Case(422, "features", b'{"features":' + b"[" * 60_000),
    "deep nesting elsewhere": Case(422, "unknown field", b'{"x":' + b"[" * 60_000),
    "no field": Case(422, "missing required field features", b"{}"),
    "another field": Case(422, "unknown field", f'{{"{MARK}":{GOOD}}}'.encode()),
    "the field in capitals": Case(422, "unknown field", f'{{"Features":{GOOD}}}'.encode()),
    "a field too many": Case(422, "unknown field", f'{{"{MARK}":1,"features":{GOOD}}}'.encode()),
    "a byte too many": Case(413, f"larger than {LIMIT} bytes", b" " * (LIMIT + 1)),
    "a body of 20 MB": Case(413, f"larger than {LIMIT} bytes", MARK.encode() * 2_500_000),
    "no content type": Case(415, "application/json", b"{}", {}),
    "an empty content type": Case(415, "application/json", b"{}", {"Content-Type": ""}),
    "a form": Case(415, "application/json", b"{}", {"Content-Type": "application/x-www-form-urlencoded"}),
    "nearly JSON": Case(415, "application/json", b"{}", {"Content-Type": "application/jsonx"}),
    "a nameless type": Case(415, "application/json", b"{}", {"Content-Type": MARK}),
}


# Input that the HTTP parser rejects.
GARBAGE = {
    "a word": f"{MARK}\r\n\r\n".encode(),
    "an unknown method": f"{MARK} /predict HTTP/1.1\r\n\r\n".encode(),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"POST /predict HTTP/9.9\r\n\r\n",
    "half an address": b"GET http://[ HTTP/1.1\r\n\r\n",
    "a raw byte in the path": b"POST /\xff HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an unknown coding": b"POST /predict HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a chunk without a size": (
        b"POST /predict HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    ),
    "a malformed header": f"GET /healthz HTTP/1.1\r\nHo st: {MARK}\r\n\r\n".encode(),
}


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("name", ROWS)
def test_an_invalid_row_is_rejected(shared_service: RunningService, name: str, path: str) -> None:
    status, detail, row = ROWS[name]
    at, features = ("features", row) if path == "/predict" else ("features[5]", f"[{f'{GOOD},' * 5}{row}]")
    _check(shared_service, path, Case(status, detail.format(at=at), f'{{"features":{features}}}'.encode()))


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("name", REQUESTS)
def test_an_invalid_request_is_rejected(shared_service: RunningService, name: str, path: str) -> None:
    _check(shared_service, path, REQUESTS[name])


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("second", ["features", "\\u0066eatures"])
def test_a_repeated_field_is_rejected(shared_service: RunningService, second: str, path: str) -> None:
    features = GOOD if path == "/predict" else f"[{GOOD}]"
    body = f'{{"features":{features},"{second}":{features}}}'
    _check(shared_service, path, Case(422, "features: the field appears more than once", body.encode()))


@pytest.mark.parametrize(
    "key",
    [MARK, "x" * 36, "00000000-0000-0000-0000-00000000000", "é" * 36, "1" * 5000, ""],
    ids=["a word", "no digits", "a digit short", "not ASCII", "long", "empty"],
)
@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_key_that_is_not_a_uuid_is_rejected(shared_service: RunningService, key: str, path: str) -> None:
    body = BODY if path == "/predict" else BATCH
    headers = {**JSON, "Idempotency-Key": key}
    _check(shared_service, path, Case(400, "Idempotency-Key must be a UUID", body.encode(), headers))


@pytest.mark.parametrize(
    ("path", "features", "detail"),
    [
        ("/predict", f"[{GOOD}]", "features"),
        ("/predict/batch", GOOD, "features[0]: expected array, got float"),
        ("/predict/batch", "[]", "features: expected array of length >= 1"),
        ("/predict/batch", f"[{','.join([GOOD] * 1001)}]", "features: expected array of length <= 1000"),
        (
            "/predict/batch",
            f"[{','.join([*[GOOD] * 999, '[5.1,3.5,1.4,99]'])}]",
            "features[999][3] (petal_width_cm): expected float <= 4.0",
        ),
    ],
    ids=["a batch for one", "one for a batch", "0 rows", "1,001 rows", "one bad row in 1,000"],
)
def test_an_invalid_number_of_rows_is_rejected(
    shared_service: RunningService, path: str, features: str, detail: str
) -> None:
    _check(shared_service, path, Case(422, detail, f'{{"features":{features}}}'.encode()))


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_other_methods_are_rejected(shared_service: RunningService, method: str, path: str) -> None:
    reply = _check(shared_service, path, Case(405, "only POST is allowed", BODY.encode()), method=method)
    assert "allow: POST" in reply.headers


@pytest.mark.parametrize("side", ["min", "max"])
@pytest.mark.parametrize("number", range(4))
def test_a_bound_is_accepted_and_the_next_float_beyond_it_is_rejected(
    shared_service: RunningService, model: Path, number: int, side: str
) -> None:
    feature = json.loads((model / "model.json").read_text())["features"][number]
    row: list[float] = [*SETOSA]
    row[number] = feature[side]
    assert shared_service.predict(row).status_code == 200
    row[number] = math.nextafter(feature[side], math.inf if side == "max" else -math.inf)
    detail = f"features[{number}] ({feature['name']}): expected float {'<=' if side == 'max' else '>='}"
    _check(shared_service, "/predict", Case(422, detail, json.dumps({"features": row}).encode()))


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("chunks", [1, 1000])
def test_a_chunked_body_is_rejected_as_soon_as_it_is_too_large(
    shared_service: RunningService, chunks: int, path: str
) -> None:
    piece = b"x" * (20_000_000 // chunks)
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for _ in range(chunks)) + b"0\r\n\r\n"
    before = shared_service.metric("iris_memory_usage_mb")
    case = Case(413, f"larger than {LIMIT} bytes", body, {**JSON, "Transfer-Encoding": "chunked"})
    _check(shared_service, path, case)
    assert shared_service.metric("iris_memory_usage_mb") < before + 10


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_body_that_is_too_large_is_rejected_before_it_is_sent(shared_service: RunningService, path: str) -> None:
    headers = {**JSON, "Content-Length": "20000000", "Expect": "100-continue"}
    _check(shared_service, path, Case(413, f"larger than {LIMIT} bytes", b"", headers))


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_client_with_a_body_that_is_too_large_is_disconnected(shared_service: RunningService, path: str) -> None:
    response = shared_service.client.post(path, content=b"x" * (LIMIT + 1), headers=JSON)
    assert (response.status_code, response.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY.ljust(LIMIT), JSON),
        (f' \r\n\t{{ "features" : {GOOD} }} ', JSON),
        (f'{{"\\u0066eatures":{GOOD}}}', JSON),
        ('{"features":[5,35E-1,1.4e0,-0.0]}', JSON),
        (f'{{"features":[5.1,3.5,1.4,0.{"2" * 50_000}]}}', JSON),
        (BODY, {"Content-Type": "application/json; charset=utf-8"}),
        (BODY, {"content-type": "Application/JSON;x=y"}),
        (BODY, {**JSON, "Expect": "100-continue"}),
    ],
    ids=["the largest body", "blanks", "escapes", "forms of numbers", "digits", "charset", "capitals", "expect"],
)
def test_unusual_but_valid_requests_are_answered(
    shared_service: RunningService, body: str, headers: Mapping[str, str]
) -> None:
    reply = _exchange(shared_service.port, _request("POST", "/predict", body.encode(), headers))
    assert reply.status == 200, reply
    assert json.loads(reply.body)["prediction"] == 0


@pytest.mark.parametrize(
    "content_length", ["-1", "+22", "22a", "0x16", "2 2", MARK, "9" * 30, "22\r\nContent-Length: 23"]
)
def test_an_invalid_content_length_is_rejected(shared_service: RunningService, content_length: str) -> None:
    _check_rejected_by_the_parser(
        shared_service,
        _request("POST", "/predict", BODY.encode(), {**JSON, "Content-Length": content_length}),
    )


@pytest.mark.parametrize("name", GARBAGE)
def test_input_that_is_not_http_is_rejected(shared_service: RunningService, name: str) -> None:
    _check_rejected_by_the_parser(shared_service, GARBAGE[name])


def test_pipelined_requests_are_answered_in_order(shared_service: RunningService) -> None:
    bodies = [f'{{"features":[{length},3,1,0.2]}}'.encode() for length in (5, 99, 6)]
    requests = [_request("POST", "/predict", body, JSON) for body in bodies]
    with socket.create_connection(("127.0.0.1", shared_service.port), timeout=30) as connection:
        connection.sendall(b"".join(requests))
        statuses = []
        with connection.makefile("rb") as stream:
            for _ in requests:
                statuses.append(int(stream.readline().split()[1]))
                length = next(int(line.split(b":")[1]) for line in stream if line.startswith(b"content-length"))
                while stream.readline() != b"\r\n":
                    pass
                stream.read(length)
    assert statuses == [200, 422, 200]


def test_a_client_that_disconnects_within_its_body_has_no_effect(
    shared_service: RunningService,
) -> None:
    written = shared_service.metric("iris_journal_written_total")
    request = _request("POST", "/predict", BODY.encode(), {**JSON, "Content-Length": str(len(BODY) + 1)})
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", shared_service.port)) as connection:
            connection.sendall(request)
    _check_no_effect(shared_service, written)


def test_every_status_of_invalid_requests_is_documented(shared_service: RunningService) -> None:
    paths = shared_service.client.get("/openapi.json").json()["paths"]
    statuses = {str(case.status) for case in REQUESTS.values()} | {str(status) for status, *_ in ROWS.values()}
    for path in ENDPOINTS:
        assert statuses <= paths[path]["post"]["responses"].keys()


def test_no_invalid_request_raised_an_unexpected_exception(shared_service: RunningService) -> None:
    # Keep this test last: it checks the log of all others.
    assert "traceback" not in shared_service.log.read_text()
    shared_service.wait_shipped()
    assert shared_service.metric("iris_journal_rejected_total") == 0


def _check(service: RunningService, path: str, case: Case, method: str = "POST") -> Reply:
    """Assert that the response is as in `case`, and that the request has no other effect."""
    written = service.metric("iris_journal_written_total")
    replies = [_exchange(service.port, _request(method, path, case.body, case.headers)) for _ in range(3)]
    for reply in replies:
        assert reply.status == case.status, reply
        assert MARK not in f"{reply.headers}{reply.body!r}"
        assert len(reply.body) < ANSWER_BYTES
        assert "x-request-id: " in reply.headers
        if method != "HEAD":
            problem = json.loads(reply.body)
            assert list(problem) == ["detail"]
            assert case.detail.lower() in problem["detail"].lower()
    assert min(reply.seconds for reply in replies) < ANSWER_SECONDS
    _check_no_effect(service, written)
    return replies[0]


def _check_rejected_by_the_parser(service: RunningService, data: bytes) -> None:
    """Assert that the HTTP parser responds with 400 and closes the connection."""
    written = service.metric("iris_journal_written_total")
    replies = [_exchange(service.port, data) for _ in range(3)]
    for reply in replies:
        assert reply.status == 400
        assert "connection: close" in reply.headers
        assert reply.body == b'{"detail":"Invalid HTTP request received."}'
    assert min(reply.seconds for reply in replies) < ANSWER_SECONDS
    _check_no_effect(service, written)


def _check_no_effect(service: RunningService, written: float) -> None:
    """Assert that the service still answers, and that its journal has nothing but that answer."""
    assert service.predict().status_code == 200
    assert service.metric("iris_journal_written_total") == written + 1
    assert MARK not in service.log.read_text()


def _request(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    complete = {"Host": "x", **headers}
    if not complete.keys() & {"Content-Length", "Transfer-Encoding"}:
        complete["Content-Length"] = str(len(body))
    return b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), *_lines(complete), b"", body])


def _lines(headers: Mapping[str, str]) -> Iterable[bytes]:
    return (f"{name}: {value}".encode() for name, value in headers.items())


def _exchange(port: int, data: bytes) -> Reply:
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with suppress(ConnectionError):  # the service may close the connection before it has read everything
            connection.sendall(data)
        response = http.client.HTTPResponse(connection, method="HEAD" if data.startswith(b"HEAD ") else None)
        with response:
            response.begin()
            body = response.read()
        seconds = time.perf_counter() - started
        headers = "".join(f"{name}: {value}\n" for name, value in response.getheaders())
        return Reply(response.status, headers, body, seconds)
