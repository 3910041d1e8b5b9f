"""The node: an init process with namespaces of its own, in which the whole cluster runs."""

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
from tools.child_process import output
from tools.errors import ToolError
from tools.programs import version
from tools.progress import NotRunningError

HERE = Path(__file__).parent
CONFIG = HERE / "config"
SCRIPT = HERE / "node.sh"
IP = "10.20.0.1"
"""The node's address. Like those of pods and Services, it exists only in the cluster's network namespace."""
REGISTRY = f"{IP}:5000"
KUBECONFIG = "/etc/kubernetes/admin.conf"
TEMPORARY = "/run/tmp"
"""The folder for temporary files on the node."""
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
PRIVATE = (
    Path("/etc/kubernetes"),
    Path("/usr/libexec/kubernetes"),
    Path("/var/lib/cni"),
    Path("/var/lib/etcd"),
    Path("/var/lib/kubelet"),
    Path("/var/log"),
)
"""Folders whose paths Kubernetes fixes: on the node, folders of the cluster's state are mounted over them."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class PortForward(NamedTuple):
    """A port on the host's loopback, and the address in the cluster that it forwards to."""

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
    """Return the folder with the cluster's state; `down` removes it."""
    return cache.root() / "cluster"


def log(name: str) -> Path:
    """Return the log file of a component: node, haproxy, registry, containerd, kubelet, kubeadm or git-server."""
    return state() / "log" / f"{name}.log"


def listen(forward: PortForward) -> socket.socket:
    """Return a socket that listens on the host's port. Raises ToolError."""
    try:
        return socket.create_server(("127.0.0.1", forward.port))
    except OSError as error:
        raise ToolError(f"cannot listen for {forward.name}: {os.strerror(error.errno or 0)}") from error


def init_pid() -> int | None:
    """Return the init process's id on the host, None when no cluster is running."""
    return next((pid for pid in _processes() if _pid_in_namespace(pid) == 1), None)


def require_running() -> int:
    """Return the init process's id on the host. Raises NotRunningError."""
    if (pid := init_pid()) is None:
        raise NotRunningError
    return pid


def start(programs: Sequence[Path]) -> None:
    """Start the node with an empty state and `programs` on its PATH. Raises ToolError."""
    stop()
    listeners = {forward: listen(forward) for forward in PORT_FORWARDS}
    path = ":".join([*map(str, programs), SYSTEM_PATH])
    _prepare(path, listeners)
    environ = {
        # Without the user's own environment, such as a proxy or a language.
        "PATH": path,
        "HOME": str(state()),
        "PRIVATE": " ".join(map(str, PRIVATE)),
        "CGROUP": _cgroup(),
        "NODE_IP": IP,
        "TMPDIR": TEMPORARY,
        "PORT_FORWARDS": " ".join(str(server.fileno()) for server in listeners.values()),
    }
    init = ("bash", str(SCRIPT), str(state()))
    with log("node").open("w") as out:
        process = subprocess.Popen(
            ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", *init],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd="/",
            umask=0o022,  # else the user's: pods could not read the files that the kubelet and containerd write
            start_new_session=True,
            pass_fds=[server.fileno() for server in listeners.values()],
        )
    for server in listeners.values():
        server.close()
    while init_pid() is None:
        if process.poll() is not None:
            raise ToolError(f"the node ended at once: {log('node').read_text().strip()}")
        time.sleep(0.02)


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Hold the cluster's lock, and keep temporary files in a folder that is removed at the end.

    If this process is killed, the next command removes the folder. Raises ToolError when another command holds the
    lock.
    """
    temporary = cache.root() / "tmp"
    cache.root().mkdir(parents=True, exist_ok=True)
    with (cache.root() / "cluster.lock").open("w") as lock:
        try:  # the kernel releases the lock, even if this process is killed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolError(
                "another `make up` or `make down` is running; wait until it ends, or stop it"
            ) from None
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        # The module's variable is for this process, the environment's for builders that it starts.
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        try:
            yield
        finally:
            tempfile.tempdir = None
            del os.environ["TMPDIR"]
            shutil.rmtree(temporary)


def stop() -> None:
    """Stop the cluster, even one that was killed during its start, and remove everything but the cache."""
    while ending := list(_processes()):
        for pid in ending:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # with init, the kernel ends its processes, mounts and network
        while any(map(_exists, ending)):
            time.sleep(0.02)
    for tree in _cgroups():
        for folder, _, _ in os.walk(tree, topdown=False):
            Path(folder).rmdir()
    for point in _mount_points():
        point.rmdir()
    shutil.rmtree(state(), ignore_errors=True)
    if state().exists():
        raise ToolError(f"{state()} cannot be removed; `rm -r {state()}` shows the reason")


def nsenter(command: Sequence[str], *namespaces: str) -> list[str]:
    """Return the command line that runs `command` in the node's namespaces: in these, or in all by default.

    Raises NotRunningError.
    """
    entered = namespaces or NAMESPACES
    # The node's own /run ends with it, so a command that `down` cuts off leaves nothing behind.
    temporary = [f"TMPDIR={TEMPORARY}"] if "--mount" in entered else []
    target = f"--target={require_running()}"
    return ["nsenter", target, *entered, "env", f"--chdir={Path.cwd()}", *temporary, *command]


def environment() -> Mapping[str, str]:
    """Return the environment for commands on the node: PATH with its programs, its kubeconfig, no proxy."""
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
    """Run a command on the node and return its output. Raises ToolError with its last lines."""
    name = " ".join(command[:6])
    return output(nsenter(command), name=name, env=environment(), stdin=stdin, seconds=seconds)


def leftovers() -> list[Path]:
    """Return what a cluster that is no longer running left behind: control groups, mount points, its state."""
    if init_pid() is not None:
        return []
    return [*_cgroups(), *_mount_points(), *([state()] if state().exists() else [])]


def usage() -> tuple[float, int]:
    """Return the CPU seconds that the cluster's processes have used so far, and their memory in bytes.

    Memory is the proportional set size, which counts shared pages once. Raises NotRunningError.
    """
    ticks = memory = 0
    for process in Path("/proc", str(require_running()), "root", "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # the process may just have ended
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(map(int, fields[11:15]))  # user and system time, its own and its ended children's
            memory += int((process / "smaps_rollup").read_text().split("\nPss:", 1)[1].split()[0]) * 1024
    return ticks / os.sysconf("SC_CLK_TCK"), memory


def _processes() -> Iterator[int]:
    """Yield the processes of `unshare` and init, found by their command line: no record of them is needed."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv = (process / "cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        if argv[-1:] == [str(state()).encode()] and argv[-2].endswith(b"/cluster/node.sh"):
            yield int(process.name)


def _pid_in_namespace(pid: int) -> int | None:
    """Return a process's id in its own pid namespace, None when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return int(status.split("\nNSpid:", 1)[1].split("\n", 1)[0].split()[-1])


def _exists(pid: int) -> bool:
    """Return whether a process is still running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _cgroup() -> str:
    """Return the name of the control group that contains all pods."""
    return f"iris-gitops-{cache.key(str(state()))}"


def _cgroups() -> list[Path]:
    """Return the cluster's control groups: one in version 2, one for each controller in version 1."""
    root, name = Path("/sys/fs/cgroup"), _cgroup()
    return sorted({tree.resolve() for pattern in (name, f"*/{name}") for tree in root.glob(pattern)})


def _mount_points() -> list[Path]:
    """Return the folders of PRIVATE that did not exist on the host and were created, deepest first."""
    record = state() / "mount-points"
    made = record.read_text().split() if record.exists() else []
    return [folder for folder in map(Path, reversed(made)) if folder.exists()]


def _prepare(path: str, listeners: Mapping[PortForward, socket.socket]) -> None:
    """Write the state from which the node starts."""
    (state() / "log").mkdir(parents=True)
    (state() / "path").write_text(path)
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
    # The record is written before the folders are created, so that `stop` finds them after a kill in between.
    missing = [folder for point in PRIVATE for folder in (*reversed(point.parents), point) if not folder.exists()]
    (state() / "mount-points").write_text("\n".join(map(str, missing)))
    for point in PRIVATE:
        point.mkdir(parents=True, exist_ok=True)
        (state() / "root" / point.relative_to("/")).mkdir(parents=True)
