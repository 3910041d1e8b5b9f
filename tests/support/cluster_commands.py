"""The cluster's commands for its tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from delivery.kubernetes import KubernetesObject
from tests.support.running import ROOT, wait_until
from tools.cluster import node

PLACEHOLDER = ROOT / "tests/support/placeholder.yaml"
CLUSTER = [sys.executable, "-m", "tools.cluster"]
MINUTES = 60.0


def run_cluster(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m tools.cluster`, as a user does whose files nobody else may read."""
    return subprocess.run(
        [*CLUSTER, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )


def up() -> subprocess.CompletedProcess[str]:
    """Bring the cluster up."""
    done = run_cluster("up")
    assert done.returncode == 0, done.stderr
    return done


def kill_up_when(condition: Callable[[], bool]) -> None:
    """Start `up`, and kill it with SIGKILL as soon as the condition is true."""
    process = subprocess.Popen([*CLUSTER, "up"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60 * MINUTES  # `up` may have to build all programs
        while not condition():
            assert process.poll() is None, "`up` ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def kubectl(*arguments: str) -> str:
    """Run kubectl on the node and return its output. Raises ToolError."""
    return node.run("kubectl", *arguments, seconds=5 * MINUTES)


def get(kind: str, *options: str) -> list[KubernetesObject]:
    """Return the objects of a kind."""
    items: list[KubernetesObject] = json.loads(kubectl("get", kind, *options, "--output=json"))["items"]
    return items


def wait_for_rollout(phase: str) -> None:
    """Wait until the placeholder's Rollout has that phase."""

    def reached() -> bool:
        status = get("rollouts", "--namespace=iris-dev")[0].get("status", {})
        return bool(status.get("phase") == phase)

    wait_until(reached, f"the rollout to be {phase}", 3 * MINUTES)
