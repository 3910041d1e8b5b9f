"""Give a fork its own names, as docs/OPERATIONS.md says: tests and lint pass in it without another edit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from delivery.release import IMAGE
from tests.support import clone, documents

IS_FORK = not IMAGE.startswith("ghcr.io/iris-gitops/")
pytestmark = pytest.mark.skipif(IS_FORK, reason="this fork has its own names already")

# As long as such names get, because they must not make a line too long.
NAMES = {
    "REPOSITORY": "an-organization-with-a-long-name/classification-of-flowers",
    "IMAGE": "registry.an-organization-with-a-long-name.example:5000/machine-learning/flowers",
    "TEAM": "an-organization-with-a-long-name/people-who-are-on-call",
    "DEV_HOST": "classification-of-flowers.development.an-organization.example",
    "PROD_HOST": "classification-of-flowers.an-organization-with-a-long-name.example",
    "SMTP": "mail.an-organization-with-a-long-name.example:465",
    "SENDER": "alerts@an-organization-with-a-long-name.example",
    "ON_CALL": "on-call@an-organization-with-a-long-name.example",
}
MANIFESTS = "tests/manifests/test_manifests.py"
TESTS = (
    MANIFESTS,
    "tests/monitoring",
    "tests/delivery/test_delivery.py::test_the_image_has_one_name",
    "tests/test_workflows.py",
    "tests/test_documents.py",
)
NEEDS_A_MODEL = (
    "exports_every_metric",
    "every_panel",
    "curl",
    "for_a_clone",
    "restored",
)  # which does not depend on the names


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after the commands of the document."""
    fork = clone.make(tmp_path_factory.mktemp("fork"))
    for block in documents.blocks("fork"):
        documents.check(block, fork, {**clone.environ(), **NAMES})
    clone.git(fork, "commit", "--quiet", "--all", "--message=our names")
    return fork


def test_no_name_of_the_original_is_left(fork: Path) -> None:
    [block] = documents.blocks("fork")
    names = re.findall(r"^own (\S+) ", block.text, re.MULTILINE)
    assert len(names) > len(NAMES)
    searched = ["git", "grep", "-nF", *(f"-e{name}" for name in names)]
    found = subprocess.run(searched, cwd=fork, capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == 1


def test_every_defect_of_the_manifests_can_be_made_in_a_fork(fork: Path) -> None:
    for defect in yaml.safe_load((fork / "tests/manifests/defects.yaml").read_text()):
        assert defect["old"] in (fork / defect["file"]).read_text(), defect["name"]


def test_tests_pass_in_a_fork(fork: Path) -> None:
    run(fork, "pytest", "-q", *TESTS, "-k", " and ".join(f"not {name}" for name in NEEDS_A_MODEL))


def test_manifests_pass_in_a_fork_whose_releases_are_signed_with_a_key(fork: Path) -> None:
    component = "components:\n  - ../../manifests/iris/signed-by-key\n"
    for environment in ("dev", "prod"):
        overlay = fork / f"overlays/{environment}/kustomization.yaml"
        overlay.write_text(overlay.read_text().replace("components:\n", component))
    run(fork, "pytest", "-q", MANIFESTS, "-k", "signature or reference or differ or accepts")


def test_lint_passes_in_a_fork(fork: Path) -> None:
    run(fork, "ruff", "format", "--check", "delivery", "tools", "tests")
    run(fork, "ruff", "check", "delivery", "tools", "tests")


def run(fork: Path, module: str, *arguments: str) -> None:
    """Run a Python program in the fork. Raises AssertionError unless it succeeds."""
    documents.run([sys.executable, "-m", module, *arguments], fork, clone.environ())
