"""The golden gate's program, against the real service."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import ROOT, RunningService


def _gate(url: str, facts: dict[str, Any], folder: Path, version: str = "") -> subprocess.CompletedProcess[str]:
    """Run the gate; outside a cluster, a service is of the version ""."""
    address = url.removeprefix("http://")
    file = folder / "recorded.json"
    file.write_text(json.dumps(facts))
    command = [sys.executable, "-I", str(ROOT / "manifests/iris/golden.py"), address, str(file), version]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def facts(model: Path) -> dict[str, Any]:
    """What git would hold beside the digest of an image with this model."""
    read: dict[str, Any] = json.loads((model / "model.json").read_text())
    return read


def test_the_model_that_git_says_passes(
    shared_service: RunningService, facts: dict[str, Any], tmp_path: Path
) -> None:
    done = _gate(shared_service.url, facts, tmp_path)
    assert (done.returncode, done.stdout) == (0, "the canary answers what was recorded\n")


@pytest.mark.parametrize("field", ["version", "sha256"])
def test_another_model_than_git_says_is_stopped(
    shared_service: RunningService, facts: dict[str, Any], tmp_path: Path, field: str
) -> None:
    done = _gate(shared_service.url, facts | {field: "other"}, tmp_path)
    assert done.returncode == 1
    assert f"{field}: git says other, the canary {facts[field]}" in done.stdout


def test_a_model_json_without_a_tolerance_is_stopped(
    shared_service: RunningService, facts: dict[str, Any], tmp_path: Path
) -> None:
    facts.pop("golden_tolerance")
    done = _gate(shared_service.url, facts, tmp_path)
    assert done.returncode == 1
    assert "git's model.json has no golden_tolerance" in done.stderr


def test_one_wrong_class_is_stopped(shared_service: RunningService, facts: dict[str, Any], tmp_path: Path) -> None:
    facts["golden"][3]["prediction"] = (facts["golden"][3]["prediction"] + 1) % 3
    done = _gate(shared_service.url, facts, tmp_path)
    assert done.returncode == 1
    assert f"{facts['golden'][3]['features']}: recorded is class" in done.stdout


def test_a_probability_that_is_off_is_stopped(
    shared_service: RunningService, facts: dict[str, Any], tmp_path: Path
) -> None:
    facts["golden"][0]["probability"] += 2e-5
    assert _gate(shared_service.url, facts, tmp_path).returncode == 1
    facts["golden"][0]["probability"] -= 1.5e-5
    assert _gate(shared_service.url, facts, tmp_path).returncode == 0


@contextmanager
def _canary(info: dict[str, Any], predictions: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the URL of a canary that answers this, where the service itself would not."""

    class Endpoint(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # the gate asks everything over one connection

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = json.dumps(info if self.path == "/info" else {"predictions": predictions}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self) -> None:
            self.do_POST()

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("probability", "said"),
    [(float("nan"), " with nan"), (None, "the canary did not answer as it should: ")],
)
def test_a_probability_that_is_no_number_is_stopped(
    facts: dict[str, Any], tmp_path: Path, probability: float | None, said: str
) -> None:
    first, *others = facts["golden"]
    info = {"pod_template_hash": "", "version": facts["version"], "sha256": facts["sha256"]}
    with _canary(info, [first, *others]) as canary:
        assert _gate(canary, facts, tmp_path).returncode == 0
    with _canary(info, [first | {"probability": probability}, *others]) as canary:
        stopped = _gate(canary, facts, tmp_path)
    assert stopped.returncode == 1
    assert said in stopped.stdout


def test_whoever_is_of_another_version_is_not_asked(
    model: Path, database: str, facts: dict[str, Any], tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    labels.write_text('rollouts-pod-template-hash="old"')
    with RunningService(model, database, tmp_path / "journal", pod_labels=str(labels)) as service:
        stopped = _gate(service.url, facts, tmp_path, "new")
        assert stopped.returncode == 1
        assert "no pod of 'new' answered" in stopped.stderr
        assert "a pod of 'old'" in stopped.stderr
        assert service.client.get("/metrics").text.count('endpoint="/predict/batch"') == 0
        labels.write_text('rollouts-pod-template-hash="new"')
        assert _gate(service.url, facts, tmp_path, "new").returncode == 0
