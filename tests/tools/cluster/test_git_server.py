"""The git server's webhook, without a cluster."""

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import httpx
import pytest

from tools.cluster.git_server import DISPATCH_PATH, Endpoint

TOKEN = "of this test"  # noqa: S105 - not a secret


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a running webhook."""
    monkeypatch.setattr(Endpoint, "token", TOKEN, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}{DISPATCH_PATH}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("message", ["", "[]", "no JSON", "[" * 60_000, '{"event_type":' * 4_000])
def test_message_that_is_not_an_abort_is_refused_with_an_answer(url: str, message: str) -> None:
    answer = httpx.post(url, content=message, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY
