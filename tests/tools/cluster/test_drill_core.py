"""The scenarios of `make drill-core`, played in the cluster that the other tests have used."""

import subprocess
import sys

import pytest

from tests.support.cluster_commands import PLACEHOLDER, kubectl
from tests.support.running import ROOT

pytestmark = pytest.mark.drill


def test_every_core_scenario_ends_as_expected(cluster: str, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: ARG001
    kubectl("delete", "--namespace=iris-dev", f"--filename={PLACEHOLDER}", "--ignore-not-found")
    with capfd.disabled():  # a quarter of an hour: show each scenario as it is played
        done = subprocess.run([sys.executable, "-m", "tools.drill", "run", "--core"], cwd=ROOT, check=False)
    assert done.returncode == 0
