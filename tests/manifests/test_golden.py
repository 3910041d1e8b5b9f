"""Test the golden gate's program against the real service."""

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


def _gate(
    url: str, metadata: dict[str, Any], folder: Path, template_hash: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the gate. Outside a cluster a service reports an empty pod-template hash."""
    address = url.removeprefix("http://")
    file = folder / "recorded.json"
    file.write_text(json.dumps(metadata))
    command = [sys.executable, "-I", str(ROOT / "manifests/iris/golden.py"), address, str(file), template_hash]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def metadata(model: Path) -> dict[str, Any]:
    """The model.json that git holds for a release of this model."""
    read: dict[str, Any] = json.loads((model / "model.json").read_text())
    return read


def test_the_model_that_git_names_passes(
    shared_service: RunningService, metadata: dict[str, Any], tmp_path: Path
) -> None:
    done = _gate(shared_service.url, metadata, tmp_path)
    assert (done.returncode, done.stdout) == (0, "the canary reproduces the recorded answers\n")


def test_more_recorded_answers_than_a_request_may_have_are_asked_in_pieces(
    shared_service: RunningService, metadata: dict[str, Any], tmp_path: Path
) -> None:
    metadata["golden"] *= 40
    assert len(json.dumps(metadata["golden"])) > 64 * 1024
    assert len(metadata["golden"]) > 1000
    done = _gate(shared_service.url, metadata, tmp_path)
    assert (done.returncode, done.stdout) == (0, "the canary reproduces the recorded answers\n")


@pytest.mark.parametrize("field", ["version", "sha256"])
def test_a_model_that_git_does_not_name_fails(
    shared_service: RunningService, metadata: dict[str, Any], tmp_path: Path, field: str
) -> None:
    done = _gate(shared_service.url, metadata | {field: "other"}, tmp_path)
    assert done.returncode == 1
    assert f"{field}: git expects other, the canary reports {metadata[field]}" in done.stdout


def test_a_model_json_without_a_tolerance_fails(
    shared_service: RunningService, metadata: dict[str, Any], tmp_path: Path
) -> None:
    metadata.pop("golden_tolerance")
    done = _gate(shared_service.url, metadata, tmp_path)
    assert done.returncode == 1
    assert "git's model.json has no golden_tolerance" in done.stderr


def test_one_wrong_class_fails(shared_service: RunningService, metadata: dict[str, Any], tmp_path: Path) -> None:
    metadata["golden"][3]["prediction"] = (metadata["golden"][3]["prediction"] + 1) % 3
    done = _gate(shared_service.url, metadata, tmp_path)
    assert done.returncode == 1
    assert f"{metadata['golden'][3]['features']}: expected class" in done.stdout


def test_a_probability_outside_the_tolerance_fails(
    shared_service: RunningService, metadata: dict[str, Any], tmp_path: Path
) -> None:
    metadata["golden"][0]["probability"] += 2e-5
    assert _gate(shared_service.url, metadata, tmp_path).returncode == 1
    metadata["golden"][0]["probability"] -= 1.5e-5
    assert _gate(shared_service.url, metadata, tmp_path).returncode == 0


@contextmanager
def _canary(info: dict[str, Any], predictions: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the URL of a stand-in for the canary with these answers, which the real service would never give."""

    class Endpoint(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # the gate sends all requests over one connection

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}").get("features")
            found = [prediction for prediction in predictions if asked and prediction["features"] in asked]
            answer = json.dumps(info if self.path == "/info" else {"predictions": found}).encode()
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
    ("probability", "message"),
    [(float("nan"), " with probability nan"), (None, "the canary's answers could not be checked: ")],
)
def test_a_probability_that_is_not_a_number_fails(
    metadata: dict[str, Any], tmp_path: Path, probability: float | None, message: str
) -> None:
    first, *others = metadata["golden"]
    info = {"pod_template_hash": "", "version": metadata["version"], "sha256": metadata["sha256"]}
    with _canary(info, [first, *others]) as canary:
        assert _gate(canary, metadata, tmp_path).returncode == 0
    with _canary(info, [first | {"probability": probability}, *others]) as canary:
        failed = _gate(canary, metadata, tmp_path)
    assert failed.returncode == 1
    assert message in failed.stdout


def test_pods_of_another_version_get_no_prediction_requests(
    model: Path, database: str, metadata: dict[str, Any], tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    labels.write_text('rollouts-pod-template-hash="old"')
    with RunningService(model, database, tmp_path / "journal", pod_labels=str(labels)) as service:
        failed = _gate(service.url, metadata, tmp_path, "new")
        assert failed.returncode == 1
        assert "no pod of 'new' answered" in failed.stderr
        assert "a pod of 'old'" in failed.stderr
        assert service.client.get("/metrics").text.count('endpoint="/predict/batch"') == 0
        labels.write_text('rollouts-pod-template-hash="new"')
        assert _gate(service.url, metadata, tmp_path, "new").returncode == 0
