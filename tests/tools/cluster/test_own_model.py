"""Follow docs/BRING-YOUR-OWN-MODEL.md with the wine data: train, release, serve, and pass the golden gate.

The test in a cluster takes ten minutes: `make test-wine`.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from delivery import changes
from delivery.repository import Repository
from tests.support import clone as clones
from tests.support import documents
from tests.support.running import ROOT, RunningService
from tools.cluster import node

DOCUMENT = ROOT / "docs/BRING-YOUR-OWN-MODEL.md"
FILES = ("kustomization.yaml", "model.json")
FILE = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the model is trained, committed and released by the commands of the document."""
    clone = clones.make(tmp_path_factory.mktemp("own"))
    for name, text in FILE.findall(DOCUMENT.read_text()):
        assert (clone / name).exists()
        (clone / name).write_text(text)
    for block in documents.blocks("wine"):
        if "$ curl " not in block.text:
            documents.check(block, clone, clones.environ())
    return clone


@pytest.fixture(scope="module")
def metadata(clone: Path) -> dict[str, Any]:
    """The metadata in git of the model that was promoted to prod."""
    release = changes.current(Repository(clone), "prod")
    assert release
    return release.metadata


def test_the_commands_change_only_the_data_set_the_model_card_and_the_releases(clone: Path) -> None:
    command = ["git", "-C", str(clone), "diff", "--name-only", "HEAD~3", "HEAD"]
    changed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert changed == [
        "docs/MODEL_CARD.md",
        *(f"overlays/{environment}/release/{file}" for environment in ("dev", "prod") for file in FILES),
        "pipeline/dataset.py",
    ]


def test_the_released_model_is_the_wine_classifier(metadata: dict[str, Any]) -> None:
    assert (metadata["name"], len(metadata["features"]), len(metadata["golden"])) == ("wine-classifier", 13, 30)
    assert metadata["classes"] == ["class_0", "class_1", "class_2"]


def test_the_service_answers_as_the_document_shows(clone: Path, database: str, tmp_path: Path) -> None:
    with RunningService(clone / "model", database, tmp_path / "journal") as service:
        for block in documents.blocks("wine"):
            if "$ curl " in block.text:
                documents.check(block, clone, clones.environ(), port=service.port)


def test_the_golden_gate_passes_the_wine_model(clone: Path, database: str, tmp_path: Path) -> None:
    with RunningService(clone / "model", database, tmp_path / "journal") as service:
        done = golden_gate(service, clone)
        assert (done.returncode, done.stdout) == (0, "the canary reproduces the recorded answers\n")
        service.wait_shipped()
        assert service.client.get("/logs").json()["logs"][0]["model_name"] == "wine-classifier"


def test_the_golden_gate_stops_the_iris_model_in_place_of_the_wine_model(
    clone: Path, model: Path, database: str, tmp_path: Path
) -> None:
    with RunningService(model, database, tmp_path / "journal") as service:
        done = golden_gate(service, clone)
        assert done.returncode == 1
        assert "returned HTTP 422" in done.stdout


@pytest.mark.wine
def test_a_local_cluster_promotes_the_wine_model(clone: Path) -> None:
    if node.init_pid() is not None:
        pytest.exit("a cluster with the iris model is running on this machine; stop it with `make down`", 1)
    environ = clones.environ()
    # The document releases a digest that no image has, so go back to the commit before the first release.
    documents.run(["git", "reset", "--quiet", "--hard", "HEAD~2"], clone, environ)
    cluster = [sys.executable, "-m", "tools.cluster"]
    try:
        documents.run([*cluster, "up"], clone, environ)
        for block in documents.blocks("wine cluster"):
            documents.check(block, clone, environ)
        info = "/api/v1/namespaces/iris-prod/services/iris-stable:80/proxy/info"
        served = documents.run([*cluster, "exec", "--", "kubectl", "get", f"--raw={info}"], clone, environ)
        assert '"wine-classifier"' in served
    finally:
        documents.run([*cluster, "down"], clone, environ)


def golden_gate(service: RunningService, clone: Path) -> subprocess.CompletedProcess[str]:
    """Run the golden gate's program, as its Job does, with the golden vectors of prod's release in git."""
    model_json = clone / changes.folder("prod") / "model.json"
    program = clone / "manifests/iris/golden.py"
    command = [sys.executable, "-I", str(program), service.url.removeprefix("http://"), str(model_json), ""]
    return subprocess.run(command, capture_output=True, text=True, check=False)
