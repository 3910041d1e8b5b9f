"""The cluster's machine: one process with namespaces of its own, in which everything else runs."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

from tools import cache
from tools.errors import ToolError
from tools.programs import version
from tools.progress import NotRunningError

HERE = Path(__file__).parent
CONFIG = HERE / "config"
SCRIPT = HERE / "node.sh"
IP = "10.20.0.1"  # exists inside the cluster's network only, as do the addresses of pods and services
REGISTRY = f"{IP}:5000"
KUBECONFIG = "/etc/kubernetes/admin.conf"
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
PRIVATE = (
    Path("/etc/kubernetes"),
    Path("/usr/libexec/kubernetes"),
    Path("/var/lib/cni"),
    Path("/var/lib/etcd"),
    Path("/var/lib/kubelet"),
    Path("/var/log"),
)
"""Folders whose paths Kubernetes fixes: inside, folders of the cluster's state are mounted over them."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class PortForward(NamedTuple):
    """A port of this host's loopback, and what it leads to inside."""

    name: str
    port: int
    address: str


PORT_FORWARDS = (
    PortForward("router", 8080, "traefik.traefik.svc.cluster.local:80"),
    PortForward("router, TLS", 8443, "traefik.traefik.svc.cluster.local:443"),
    PortForward("Prometheus", 9090, "prometheus.monitoring.svc.cluster.local:9090"),
    PortForward("API server", 6443, f"{IP}:6443"),
)


def state() -> Path:
    """Return the folder of the running cluster; it goes with `down`."""
    return cache.root() / "cluster"


def log(name: str) -> Path:
    """Return the log file of a part: machine, registry, containerd, kubelet, kubeadm."""
    return state() / "log" / f"{name}.log"


def init_pid() -> int | None:
    """Return this host's number of the cluster's first process, None when no cluster runs."""
    return next((pid for pid in _processes() if _number_inside(pid) == 1), None)


def path(programs: Sequence[Path]) -> str:
    """Return a PATH with these folders first."""
    return ":".join([*map(str, programs), SYSTEM_PATH])


def is_running(made_from: str) -> bool:
    """Whether a machine runs that was started from the same."""
    recorded = state() / "made-from"
    return init_pid() is not None and recorded.exists() and recorded.read_text() == made_from


def start(programs: Sequence[Path], made_from: str) -> None:
    """Start the machine with an empty state and `programs` on its PATH. Raises ToolError."""
    stop()
    listeners = {forward: _listen(forward) for forward in PORT_FORWARDS}
    _prepare(programs, listeners)
    environ = {
        # No proxy, no language: nothing of the person who starts it.
        "PATH": path(programs),
        "HOME": str(state()),
        "PRIVATE": " ".join(map(str, PRIVATE)),
        "CGROUP": _cgroup(),
        "NODE_IP": IP,
        "PORT_FORWARDS": " ".join(str(server.fileno()) for server in listeners.values()),
    }
    with log("node").open("w") as out:
        process = subprocess.Popen(
            ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", *_first_process()],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd="/",
            start_new_session=True,
            pass_fds=[server.fileno() for server in listeners.values()],
        )
    for server in listeners.values():
        server.close()
    (state() / "made-from").write_text(made_from)
    while init_pid() is None:
        if process.poll() is not None:
            raise ToolError(f"it ended at once: {log('machine').read_text().strip()}")
        time.sleep(0.02)


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Keep other commands from changing the cluster meanwhile, and temporary files where they are found again.

    Raises ToolError when another command is at work.
    """
    temporary = cache.root() / "tmp"
    cache.root().mkdir(parents=True, exist_ok=True)
    with (cache.root() / "cluster.lock").open("w") as lock:  # the kernel takes it back, however this ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolError("another `make up` or `make down` is at work; wait for its end, or end it") from None
        shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(
            temporary
        )  # for this process, and for the builders that it starts
        try:
            yield
        finally:
            tempfile.tempdir = None
            del os.environ["TMPDIR"]
            shutil.rmtree(temporary)


def stop() -> None:
    """End the cluster, running or killed half-way, and remove all that is left of it outside the cache."""
    while ending := list(_processes()):
        for pid in ending:
            _kill(pid)  # with the first process, the kernel ends its process namespace, mounts and network
        while any(map(_exists, ending)):
            time.sleep(0.02)
    for tree in _cgroups():
        for folder, _, _ in os.walk(tree, topdown=False):
            Path(folder).rmdir()
    for point in _mount_points():
        point.rmdir()
    shutil.rmtree(state(), ignore_errors=True)
    if state().exists():
        raise ToolError(f"{state()} cannot be removed; `rm -r {state()}` says why")


def nsenter(command: Sequence[str], *namespaces: str) -> list[str]:
    """Return the command that runs `command` inside the cluster: in those of its namespaces, or in all.

    Raises ToolError.
    """
    if (pid := init_pid()) is None:
        raise NotRunningError
    return ["nsenter", f"--target={pid}", *(namespaces or NAMESPACES), "env", f"--chdir={Path.cwd()}", *command]


def environment() -> Mapping[str, str]:
    """Return the environment for commands inside: the cluster's programs on PATH, its kubeconfig, no proxy."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return {
        **kept,
        "PATH": (state() / "path").read_text(),
        "KUBECONFIG": KUBECONFIG,
        "KUBECACHEDIR": str(state() / "kubectl"),
        "ARGOCD_CONFIG_DIR": str(state() / "argocd"),
        "ARGOCD_OPTS": "--core",
    }


def run(*command: str, stdin: str | None = None, seconds: float = 120) -> str:
    """Run a command inside and return what it prints. Raises ToolError with its last words."""
    shown = " ".join(command[:6])
    try:
        done = subprocess.run(
            nsenter(command),
            env=environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"`{shown}` took more than {seconds:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-4:]
        raise ToolError(f"`{shown}` failed: {' | '.join(last)}")
    return done.stdout


def leftovers() -> list[Path]:
    """Return what a cluster that no longer runs has left: control groups, its state."""
    if init_pid() is not None:
        return []
    return [*_cgroups(), *_mount_points(), *([state()] if state().exists() else [])]


def usage() -> tuple[float, int]:
    """Return the seconds of processor time that the cluster's processes have used, and their memory in bytes.

    Memory is the proportional set size: what several share is counted once.
    """
    if (pid := init_pid()) is None:
        raise NotRunningError
    ticks = memory = 0
    for process in Path("/proc", str(pid), "root", "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it may just have ended
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(map(int, fields[11:15]))  # its own, and those of its children that have ended
            memory += int((process / "smaps_rollup").read_text().split("\nPss:", 1)[1].split()[0]) * 1024
    return ticks / os.sysconf("SC_CLK_TCK"), memory


def _first_process() -> list[str]:
    return ["bash", str(SCRIPT), str(state())]


def _processes() -> Iterator[int]:
    """Yield the processes of the machine itself: whatever was killed and whatever was written down of it."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv = (process / "cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        if argv[-1:] == [str(state()).encode()] and argv[-2].endswith(b"/cluster/node.sh"):
            yield int(process.name)


def _number_inside(pid: int) -> int | None:
    """Return the number of a process in its own process namespace, None when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return int(status.split("\nNSpid:", 1)[1].split("\n", 1)[0].split()[-1])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _exists(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has taken notice of yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _cgroup() -> str:
    """Return the name of the control group below which all pods are."""
    return f"iris-gitops-{cache.key(str(state()))}"


def _cgroups() -> list[Path]:
    """Return the cluster's control groups: one tree in version 2, one for each controller in version 1."""
    root, name = Path("/sys/fs/cgroup"), _cgroup()
    return sorted({tree.resolve() for pattern in (name, f"*/{name}") for tree in root.glob(pattern)})


def _mount_points() -> list[Path]:
    """Return the folders of this host that were made to mount the cluster's own over them, deepest first."""
    record = state() / "mount-points"
    made = record.read_text().split() if record.exists() else []
    return [folder for folder in map(Path, reversed(made)) if folder.exists()]


def _listen(forward: PortForward) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", forward.port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ToolError(
            f"cannot listen on port {forward.port} ({forward.name}): {reason}; `ss -ltnp` shows what uses it"
        ) from error


def _prepare(programs: Sequence[Path], listeners: Mapping[PortForward, socket.socket]) -> None:
    """Write the state that the machine starts from."""
    (state() / "log").mkdir(parents=True)
    (state() / "path").write_text(path(programs))
    values = {
        "STATE": str(state()),
        "CACHE": str(cache.root()),
        "NODE_IP": IP,
        "CGROUP": _cgroup(),
        "KUBERNETES": version("kubernetes"),
        "ETCD": version("etcd"),
        "PORT_FORWARDS": "\n".join(
            f"listen {port}\n  bind fd@{server.fileno()}\n  server service {address} resolvers cluster"
            for (_, port, address), server in listeners.items()
        ),
    }
    for file in (file for file in CONFIG.rglob("*") if file.is_file()):
        target = state() / "config" / file.relative_to(CONFIG)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(file.read_text()).substitute(values))
    # Written down before they are made, so that a kill in between leaves nothing unknown.
    missing = [folder for point in PRIVATE for folder in (*reversed(point.parents), point) if not folder.exists()]
    (state() / "mount-points").write_text("\n".join(map(str, missing)))
    for point in PRIVATE:
        point.mkdir(parents=True, exist_ok=True)
        (state() / "root" / point.relative_to("/")).mkdir(parents=True)
