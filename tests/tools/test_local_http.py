"""The programs here reach servers of this machine whatever proxy the user has."""

import re

import pytest

from tests.support.running import ROOT, RunningService
from tools import local_http


def test_a_server_of_this_machine_is_read_without_the_proxy(
    shared_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    assert local_http.get(f"{shared_service.url}/healthz", 30) == b'{"status":"ok"}'


@pytest.mark.parametrize("path", ["/nowhere", "/logs?limit=0"])
def test_an_error_status_is_an_error(shared_service: RunningService, path: str) -> None:
    with pytest.raises(OSError, match=r"404|422"):
        local_http.get(f"{shared_service.url}{path}", 30)


def test_nothing_but_the_messages_to_slack_goes_through_a_proxy() -> None:
    clients = re.compile(r"^\s*(?:import|from) (?:urllib\.request|httpx|requests)\b", re.MULTILINE)
    using = {file.relative_to(ROOT) for file in (ROOT / "tools").rglob("*.py") if clients.search(file.read_text())}
    assert {str(file) for file in using} == {"tools/ci/slack.py", "tools/local_http.py"}
