"""`down` leaves nothing, even of a cluster that was killed during its start. By its name, this file runs last."""

import os
import signal
from pathlib import Path

import pytest

from tests.support import snapshot
from tests.support.cluster_commands import MINUTES, kill_up_when, run_cluster
from tests.support.running import wait_until
from tools.cluster import node

pytestmark = pytest.mark.cluster


def test_down_leaves_nothing(before: snapshot.Snapshot, cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    assert run_cluster("down").returncode == 0
    _assert_nothing_left(before, tmp_path)


@pytest.mark.parametrize("victim", ["first process", "unshare"])
def test_down_leaves_nothing_of_a_cluster_that_was_killed_during_its_start(
    before: snapshot.Snapshot, tmp_path: Path, victim: str
) -> None:
    kill_up_when((node.state() / "root/etc/kubernetes/manifests/etcd.yaml").exists)
    pid = node.init_pid()
    assert pid
    if victim == "unshare":
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: node.init_pid() is None, "the cluster to be gone")
    assert any("leftovers" in line and " no " in line for line in run_cluster("doctor").stderr.splitlines())
    assert run_cluster("down").returncode == 0
    _assert_nothing_left(before, tmp_path)


def _assert_nothing_left(before: snapshot.Snapshot, excluded: Path) -> None:
    found: dict[str, set[str]] = {}

    def is_clean() -> bool:
        found.clear()
        found.update(snapshot.difference(before, snapshot.take(excluded.parent.parent)))
        return not found

    try:
        wait_until(is_clean, "nothing to be left", MINUTES)  # other programs start and end processes, too
    except AssertionError:
        pytest.fail(f"left behind, or removed: {found}")
