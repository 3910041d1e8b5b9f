"""A snapshot of the host, to compare before and after a cluster: they are equal if nothing was left behind."""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.support.running import ROOT
from tools import cache

CHANGING = {"ns_last_pid", "random", "uuid", "entropy_avail", "pty", "nr", "dirty"}
# Other programs write to /tmp, too. These words are in the names of files from programs that the cluster uses.
OURS = re.compile("argo|buildah|cni|container|etcd|go-build|haproxy|iris|kube|mmdebstrap|runc|traefik|unshare")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


class Snapshot(NamedTuple):
    """Sets of strings that describe the host, without kernel threads and files that tests create."""

    processes: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    control_groups: frozenset[str]
    network: frozenset[str]
    settings: frozenset[str]
    files: frozenset[str]


def take(*excluded: Path) -> Snapshot:
    """Return the current state; files and folders in `excluded` and in caches are skipped."""
    return Snapshot(
        frozenset(_processes()),
        frozenset(_namespaces()),
        frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        frozenset(folder for folder, _, _ in os.walk("/sys/fs/cgroup")),
        frozenset(_network()),
        frozenset(_settings()),
        frozenset(_files(*excluded)),
    )


def difference(before: Snapshot, after: Snapshot) -> dict[str, set[str]]:
    """Return what was added or removed, by kind; empty if both are equal."""
    return {
        name: set(now ^ then)
        for name, then, now in zip(Snapshot._fields, before, after, strict=True)
        if now ^ then
    }


def _processes() -> Iterator[str]:
    """Yield orphans and children of this process; processes of other users have other parents."""
    parents, commands = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process may just have ended
            pid = int(process.name)
            parents[pid] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            commands[pid] = (
                (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            )
    for pid, parent in parents.items():
        if commands.get(pid) and parent in {0, 1, os.getpid()}:  # kernel threads have no command
            yield f"{pid} {commands[pid]}"


def _namespaces() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        for name in NAMESPACES:
            try:
                yield str((process / "ns" / name).readlink())
            except OSError:
                continue


def _network() -> Iterator[str]:
    for link in json.loads(_output("ip", "-json", "address")):
        yield f"{link['ifname']} {[address['local'] for address in link['addr_info']]}"
    yield from _output("ip", "route").splitlines()
    yield from _output("nft", "list", "ruleset").splitlines()
    yield from _output("ip", "netns", "list").splitlines()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":  # the state LISTEN
            yield f"listener {fields[1]}"


def _settings() -> Iterator[str]:
    for file in Path("/proc/sys").rglob("*"):
        if file.is_file() and file.parts[3] in {"kernel", "net", "vm"} and file.name not in CHANGING:
            with contextlib.suppress(OSError, UnicodeDecodeError):  # some files are write-only
                yield f"{file} {file.read_text().strip()}"


def _files(*excluded: Path) -> Iterator[str]:
    """Yield every path on the disk; in /etc, where contents matter most, with size and time of change."""
    home = Path.home()
    skipped = {ROOT, cache.root(), home / "go", home / ".cache", *excluded}
    for tree in ("/", *filter(os.path.ismount, ("/dev/shm", "/run", "/tmp", "/var"))):  # noqa: S108 - only read
        for folder, folders, files in os.walk(tree):
            folders[:] = [
                name for name in folders if Path(folder, name) not in skipped and _is_relevant(folder, name)
            ]
            for name in filter(partial(_is_relevant, folder), [*folders, *files]):
                path = Path(folder, name)
                yield f"{path} {_size_and_time(path)}" if folder.startswith("/etc") else str(path)


def _is_relevant(folder: str, name: str) -> bool:
    if folder == "/tmp":  # noqa: S108
        return bool(OURS.search(name))
    return name != "__pycache__" and not os.path.ismount(Path(folder, name))


def _size_and_time(path: Path) -> str:
    stat = path.lstat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
