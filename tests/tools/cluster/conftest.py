"""The one cluster of a run, shared by every file here: the first test that needs it brings it up."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.support import snapshot
from tests.support.cluster_commands import CLUSTER, PLACEHOLDER, kill_up_when, kubectl, up, wait_for_rollout
from tests.support.running import ROOT
from tools.cluster import doctor, images, node
from tools.engine import buildah
from tools.image import BASE, find_base

LAST = ("test_drill_core.py", "test_down.py")
"""The drill deletes the placeholder that other files use, and the tests of `down` end the cluster."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests of the files in LAST to the end, in the order of LAST."""
    items.sort(key=lambda item: LAST.index(item.path.name) if item.path.name in LAST else -1)


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> snapshot.Snapshot:
    """What this machine has without a cluster; packages that the cluster needs stay, so they come first."""
    if node.init_pid() is not None:
        pytest.exit("a cluster runs here, and these tests end it; `make down`, if you can do without it", 1)
    doctor.prepare()
    node.stop()
    return snapshot.take(tmp_path_factory.getbasetemp().parent)


@pytest.fixture(scope="session")
def cluster(before: snapshot.Snapshot) -> Iterator[str]:  # noqa: ARG001 - it comes first
    """The platform's cluster, brought up after an `up` that was killed; yields what the second one printed."""
    kill_up_when(lambda: node.log("kubeadm").exists())
    done = up()
    yield done.stderr
    subprocess.run([*CLUSTER, "down"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def placeholder(cluster: str) -> None:  # noqa: ARG001 - it runs there
    """What stands for an application, applied and ready in the namespace iris-dev."""
    images.push(buildah(), find_base(buildah()), images.in_registry(BASE))
    kubectl("apply", "--namespace=iris-dev", f"--filename={PLACEHOLDER}")
    kubectl("wait", "--namespace=iris-dev", "--for=condition=Available", "deployment/one", "--timeout=3m")
    wait_for_rollout("Healthy")
