"""The tests of manifests and rules are worth something: each of these defects turns them red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.support.running import ROOT

CHECKS = (
    "tests/manifests/test_manifests.py",
    *(f"tests/monitoring/test_{name}.py" for name in ("rules", "routes", "alertmanager")),
)
NEEDS_A_MODEL = "test_the_service_exports_every_metric_and_label_that_a_rule_reads"


class Defect(NamedTuple):
    """What somebody might do to a file without meaning harm."""

    name: str
    file: str
    old: str
    new: str
    test: str = ""
    """The one that has to find it, where others may as well."""


DEFECTS = [Defect(**found) for found in yaml.safe_load((ROOT / "tests/manifests/defects.yaml").read_text())]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the tests read."""
    copy = tmp_path_factory.mktemp("defects")
    for name in ("delivery", "manifests", "monitoring", "overlays", "tests", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "docker-compose.yml"):
        shutil.copy(ROOT / name, copy)
    for name in ("service", "pipeline"):
        (copy / name).symlink_to(ROOT / name)
    return copy


def _check(checkout: Path, test: str = "") -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *CHECKS,
        *(["-k", test] if test else []),
        f"--deselect={CHECKS[0]}::{NEEDS_A_MODEL}",
    ]
    # Plugins would take longer to load than the tests to run.
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)


def test_without_a_defect_they_are_green(checkout: Path) -> None:
    done = _check(checkout)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_a_defect_turns_them_red(checkout: Path, defect: Defect) -> None:
    file = checkout / defect.file
    whole = file.read_text()
    assert defect.old in whole
    file.write_text(whole.replace(defect.old, defect.new))
    try:
        done = _check(checkout, defect.test)
    finally:
        file.write_text(whole)
    assert done.returncode == 1, done.stdout[-2000:]
    # The test itself has to say no, not Kustomize before it.
    assert " failed" in done.stdout or (not defect.test and " error" in done.stdout), done.stdout[-2000:]
