"""Evaluate a metric of an AnalysisTemplate with Argo Rollouts' own code (phase.go)."""

import json
import subprocess
from collections.abc import Iterable
from typing import Any

from tests.support.go_program import go_program
from tests.support.running import ROOT


def phases(metric: dict[str, Any], answers: Iterable[list[str]]) -> list[str]:
    """Return the phase of the measurement for each answer, a list of sample values as Prometheus writes them."""
    lines = [json.dumps({"metric": metric, "values": values}) for values in answers]
    program = go_program(ROOT / "tests/support/phase.go", "argo-rollouts")
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line)["phase"] for line in done.stdout.splitlines()]
