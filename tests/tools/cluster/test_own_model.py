"""docs/BRING-YOUR-OWN-MODEL.md is followed with the wine data: trained, released, served, let through by the gate.

`clone` has the commits that a cluster is given. That a cluster promotes wine takes ten minutes: `make test-wine`.
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
    """A clone in which somebody has done what the document says, but for serving: trained, committed, released."""
    clone = clones.make(tmp_path_factory.mktemp("own"))
    for name, text in FILE.findall(DOCUMENT.read_text()):
        assert (clone / name).exists()
        (clone / name).write_text(text)
    for block in documents.blocks("wine"):
        if not block.text.startswith("$ curl "):
            documents.check(block, clone, clones.environ())
    return clone


@pytest.fixture(scope="module")
def facts(clone: Path) -> dict[str, Any]:
    """What git holds of the model that was promoted to prod."""
    release = changes.current(Repository(clone), "prod")
    assert release
    return release.facts


def test_what_the_document_says_changes_the_data_the_card_and_the_releases_and_nothing_else(clone: Path) -> None:
    command = ["git", "-C", str(clone), "diff", "--name-only", "HEAD~3", "HEAD"]
    changed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert changed == [
        "docs/MODEL_CARD.md",
        *(f"overlays/{environment}/release/{file}" for environment in ("dev", "prod") for file in FILES),
        "pipeline/dataset.py",
    ]


def test_the_model_that_is_released_is_of_wines(facts: dict[str, Any]) -> None:
    assert (facts["name"], len(facts["features"]), len(facts["golden"])) == ("wine-classifier", 13, 30)
    assert facts["classes"] == ["class_0", "class_1", "class_2"]


def test_the_service_answers_for_wines_as_the_document_shows(clone: Path, database: str, tmp_path: Path) -> None:
    with RunningService(clone / "model", database, tmp_path / "journal") as service:
        for block in documents.blocks("wine"):
            if block.text.startswith("$ curl "):
                documents.check(block, tmp_path, clones.environ(), port=service.port)


def test_the_golden_gate_lets_it_through(clone: Path, database: str, tmp_path: Path) -> None:
    with RunningService(clone / "model", database, tmp_path / "journal") as service:
        done = golden_gate(service, clone)
        assert (done.returncode, done.stdout) == (0, "the canary reproduces the recorded answers\n")
        service.wait_shipped()
        assert service.client.get("/logs").json()["logs"][0]["model_name"] == "wine-classifier"


def test_the_golden_gate_stops_flowers_where_git_says_wine(
    clone: Path, model: Path, database: str, tmp_path: Path
) -> None:
    with RunningService(model, database, tmp_path / "journal") as service:
        done = golden_gate(service, clone)
        assert done.returncode == 1
        assert "was answered with HTTP 422" in done.stdout


@pytest.mark.wine
def test_a_cluster_of_this_machine_promotes_it(clone: Path) -> None:
    if node.init_pid() is not None:
        pytest.exit("a cluster runs here, with flowers in it; `make down`, if you can do without it", 1)
    environ = clones.environ()
    # No image has the digest that the document releases: here it is as before the first release.
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
    """Ask the service what git has recorded of prod's release, as the gate's Job does."""
    recorded = clone / changes.folder("prod") / "model.json"
    program = clone / "manifests/iris/golden.py"
    command = [sys.executable, "-I", str(program), service.url.removeprefix("http://"), str(recorded), ""]
    return subprocess.run(command, capture_output=True, text=True, check=False)
