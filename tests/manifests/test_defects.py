"""Check that the tests of manifests and monitoring find defects: each defect fails the test that it names.

The tests run in a copy of the checkout, in which one defect at a time is made.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.support.running import ROOT

FILES = (
    "tests/manifests/test_manifests.py",
    *(f"tests/monitoring/test_{name}.py" for name in ("rules", "routes", "alertmanager")),
)
FILE_OF = {
    test: file
    for file in FILES
    for test in re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
}


class Defect(NamedTuple):
    """A mistake that somebody might make in good faith: in a file, the text `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    test: str
    """The test that has to find it; with parameters in brackets, only that case."""

    @property
    def node_id(self) -> str:
        """The test as pytest's command line names it."""
        return f"{FILE_OF[self.test.partition('[')[0]]}::{self.test}"


class Result(NamedTuple):
    """The result of a run of pytest: exit code, the test and exception of each failure, and the output."""

    code: int
    raised: list[tuple[str, str]]
    printed: str


DEFECTS = [Defect(**found) for found in yaml.safe_load((ROOT / "tests/manifests/defects.yaml").read_text())]
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that the tests read, including the byte code of the tests."""
    copy = tmp_path_factory.mktemp("defects")
    for name in ("delivery", "manifests", "monitoring", "overlays", "tests", "tools"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "docker-compose.yml"):
        shutil.copy(ROOT / name, copy)
    for name in ("service", "pipeline"):
        (copy / name).symlink_to(ROOT / name)
    return copy


@pytest.fixture(scope="module")
def run(checkout: Path) -> Iterator[Run]:
    """A function that runs tests in the copy, up to the first that fails."""
    # Plugins would take longer to load than the tests to run. Coverage is measured in the checkout, not in a copy.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked_pytest"],
        cwd=checkout,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(*node_ids: str) -> Result:
            assert process.stdin
            assert process.stdout
            print(json.dumps(["-x", "-q", "-p", "no:cacheprovider", *node_ids]), file=process.stdin, flush=True)
            return Result(**json.loads(process.stdout.readline()))

        yield run
        process.terminate()


def test_without_a_defect_every_named_test_passes(run: Run) -> None:
    result = run(*sorted({defect.node_id for defect in DEFECTS}))
    assert result.code == 0, result.printed[-2000:]


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_a_defect_fails_the_test_that_it_names(run: Run, checkout: Path, defect: Defect) -> None:
    file = checkout / defect.file
    text = file.read_text()
    assert defect.old in text
    file.write_text(text.replace(defect.old, defect.new))
    try:
        result = run(defect.node_id)
    finally:
        file.write_text(text)
    # An assertion of the test has to fail. An error before it, like Kustomize's, would say nothing about the test.
    assert [exception for _, exception in result.raised] == ["AssertionError"], result.printed[-2000:]
