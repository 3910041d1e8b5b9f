"""A private Docker engine: Debian's dockerd and containerd, in their own network and mount namespaces.

It changes nothing on this machine and takes none of its ports, so that anything else may run beside it.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.support.running import wait_until
from tools import packages

NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
# When the test's process ends, however it does, the kernel kills unshare, with it the first process inside, and
# with that one all others, their mounts and their network.
NAMESPACED = ("setpriv", "--pdeathsig=KILL", "unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc")
# The first process inside; its argument is a folder. The engine writes to /etc, so it gets a copy without a name
# server. Not every root may protect itself from the OOM killer (CAP_SYS_RESOURCE), so the engine must not try.
SCRIPT = """
cd "$1" || exit 1
cp --archive /etc etc
rm -f etc/resolv.conf
touch etc/resolv.conf
mount --bind etc /etc
mount -t tmpfs tmpfs /run
ip link set lo up
dockerd --host="unix://$1/socket" --data-root="$1/data" --exec-root=/run/docker --pidfile=/run/docker.pid \
  --exec-opt=native.cgroupdriver=cgroupfs --cgroup-parent="/${1##*/}" --oom-score-adjust=0 > log 2>&1
"""


class Engine(NamedTuple):
    """A running engine."""

    folder: Path
    init: int
    """The process id of its first process, as this machine sees it."""

    @property
    def host(self) -> str:
        """The engine's address: a socket on the disk, which every network namespace can reach."""
        return f"unix://{self.folder}/socket"

    def nsenter(self, *command: str) -> str:
        """Run a command in the engine's network, where its ports are published; return the output."""
        enter = ["nsenter", f"--target={self.init}", "--net"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def api(self) -> httpx.Client:
        """Return a client of the engine's API."""
        transport = httpx.HTTPTransport(uds=f"{self.folder}/socket")
        return httpx.Client(transport=transport, base_url="http://engine", timeout=300)

    def listens(self) -> bool:
        """Whether the socket accepts connections; the first request then waits until the engine is ready."""
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(f"{self.folder}/socket") == 0

    def load(self, archive: Path) -> None:
        """Load the image of an archive, under its name in the archive."""
        with self.api() as client, archive.open("rb") as content:
            assert "Loaded image" in client.post("/images/load", content=content).raise_for_status().text


@contextlib.contextmanager
def running() -> Iterator[Engine]:
    """Yield an empty engine, which ends with the block. Raises AssertionError if it leaves anything behind."""
    if os.geteuid():
        pytest.fail("a private Docker engine needs root")
    packages.need("dockerd", "docker.io")
    packages.need("ip", "iproute2")
    with tempfile.TemporaryDirectory(prefix="iris-engine-") as name:
        folder = Path(name)
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": name}  # without the proxy of the user
        with subprocess.Popen([*NAMESPACED, "bash", "-c", SCRIPT, "bash", name], env=environ) as process:
            try:
                wait_until(lambda: process.poll() is not None or _family(process.pid)[1:], "the first process")
                engine = Engine(folder, _family(process.pid)[1])
                wait_until(lambda: process.poll() is not None or engine.listens(), "the engine")
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                yield engine
            finally:
                its_own = set().union(*map(_namespaces, _family(process.pid))) - _namespaces(os.getpid())
                process.kill()
        wait_until(lambda: not its_own & _all_namespaces(), "the engine's last process to end")
        for tree in {tree.resolve() for tree in _control_groups(folder.name)}:
            for group, _, _ in os.walk(tree, topdown=False):
                wait_until(lambda group=group: _removed(group), f"the last process to leave {group}")
    assert not _control_groups(folder.name)
    assert folder.name not in Path("/proc/self/mountinfo").read_text()
    assert not folder.exists()


def _family(pid: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    found = [pid]
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the process may just have ended
            for child in file.read_text().split():
                found += _family(int(child))
    return found


def _namespaces(pid: int) -> set[str]:
    try:
        return {str(link.readlink()) for link in Path(f"/proc/{pid}/ns").iterdir()}
    except OSError:
        return set()


def _all_namespaces() -> set[str]:
    return set[str]().union(*(_namespaces(int(process.name)) for process in Path("/proc").glob("[0-9]*")))


def _removed(group: str) -> bool:
    """Remove a control group, unless it is still in use, as for a moment after its last process has ended."""
    with contextlib.suppress(OSError):
        Path(group).rmdir()
    return not Path(group).exists()


def _control_groups(name: str) -> list[Path]:
    """Return the control groups of that name: one in version 2, one for each controller in version 1."""
    root = Path("/sys/fs/cgroup")
    return [*root.glob(name), *root.glob(f"*/{name}")]
