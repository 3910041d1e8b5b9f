"""The stand-in for the forge on this machine: git for Argo CD to read, and the endpoint that is told of an abort.

On GitHub the same message starts a workflow that runs the same `delivery revert`. Run by `make up` inside the
cluster's machine; argv: the folder with the repository and the token.
"""

import contextlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from delivery.event import LARGEST
from delivery.git import GitError, identity
from delivery.git import git as _git
from delivery.push import run_and_push
from delivery.release import ReleaseError
from tools.checkout import ROOT
from tools.cluster import node
from tools.errors import ToolError
from tools.progress import Say, wait_for

REPOSITORY = "iris-gitops.git"
PORT = 8099
DISPATCH_PATH = "/repos/iris-gitops/iris-gitops/dispatches"
IDENTITY = identity("iris-gitops", "iris-gitops@localhost")


def folder() -> Path:
    """Return the folder of the forge, which goes with the cluster."""
    return node.state() / "git-server"


def repository() -> Path:
    """Return the repository that Argo CD reads, to be pushed to as to any other."""
    return folder() / REPOSITORY


def head() -> str:
    """Return the id of the newest commit on main. Raises GitError."""
    return git("rev-parse", "main")


def git(*arguments: str) -> str:
    """Return the output of a git command in the repository that Argo CD reads. Raises GitError."""
    return _git(repository(), *arguments).strip()


def update(say: Say) -> None:
    """Make the repository hold what is committed in this checkout, and keep the releases that were made since.

    Raises ToolError.
    """
    if not repository().exists():
        say("cloning this checkout")
        half = folder() / "half"
        shutil.rmtree(half, ignore_errors=True)
        _git(ROOT, "clone", "--quiet", "--bare", "--no-local", str(ROOT), str(half))
        _git(half, "update-ref", "refs/heads/main", _git(ROOT, "rev-parse", "HEAD").strip())
        _git(half, "symbolic-ref", "HEAD", "refs/heads/main")
        half.rename(repository())
    git("fetch", "--quiet", str(ROOT), "HEAD")
    with tempfile.TemporaryDirectory(prefix="iris-git-server-") as temporary:
        clone = Path(temporary) / "clone"
        _git(ROOT, "clone", "--quiet", "--shared", str(repository()), str(clone))
        try:
            _git(clone, "merge", "--quiet", "--no-edit", _git(ROOT, "rev-parse", "HEAD").strip(), environ=IDENTITY)
        except GitError as error:
            raise ToolError(
                f"the cluster's main does not go together with this checkout ({error}); push to {repository()} "
                "what does, or begin anew: make down, make up"
            ) from error
        _git(clone, "push", "--quiet", "origin", "HEAD:main")


def start(token: str, say: Say) -> None:
    """Start the forge inside the machine, in place of an older one. Raises ToolError unless it answers."""
    (folder() / "token").touch(mode=0o600)
    (folder() / "token").write_text(token)
    _end_older()
    command = [sys.executable, "-P", "-m", "tools.cluster.git_server", str(folder())]
    environ = {**node.environment(), "PYTHONPATH": str(ROOT)}
    environ.pop("TMPDIR", None)  # that of `make up` goes with it
    with node.log("git-server").open("a") as out:
        subprocess.Popen(
            node.nsenter(command),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder(),
            start_new_session=True,
        )
    wait_for(_answers, 30, say)


def serve(where: Path) -> None:
    """Serve until the machine ends."""
    (where / "pid").write_text(str(os.getpid()))
    os.environ.update(IDENTITY)
    address = ("--listen=" + node.IP, f"--base-path={where}", "--export-all", str(where / REPOSITORY))
    server = Server((node.IP, PORT), where)
    threading.Thread(target=_tell_of_commits, args=(where,), daemon=True).start()
    threading.Thread(target=server.catch_up, daemon=True).start()
    with subprocess.Popen(["git", "daemon", "--reuseaddr", "--informative-errors", *address]):
        server.serve_forever()


class Server(ThreadingHTTPServer):
    """The one endpoint, with what its requests need."""

    def __init__(self, address: tuple[str, int], where: Path) -> None:
        super().__init__(address, Endpoint)
        self.where = where
        self.token = (where / "token").read_text()
        self.one_at_a_time = threading.Lock()

    def revert(self, event: bytes) -> None:
        """Have `delivery` decide what the message means for git, and push what it commits, as on GitHub."""
        with self.one_at_a_time, tempfile.NamedTemporaryFile(prefix="iris-git-server-") as message:
            message.write(event)
            message.flush()
            try:
                _, outputs = run_and_push(str(self.where / REPOSITORY), ("revert", f"--event={message.name}"))
            except ReleaseError as error:
                outputs = f"{error}\n"
            _say(outputs.strip())

    def catch_up(self) -> None:
        """Act on aborts of which no message came: it is sent once, and may be lost."""
        query = "jsonpath={.status.abort} {.spec.template.spec.containers[0].image}"
        while True:
            time.sleep(30)
            for namespace in ("iris-dev", "iris-prod"):
                command = ["kubectl", "get", "rollout", "iris", f"--namespace={namespace}", f"--output={query}"]
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # again in half a minute
                    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
                    aborted, _, image = done.stdout.partition(" ")
                    if aborted == "true":
                        payload = {"namespace": namespace, "rollout": "iris", "image": image}
                        self.revert(json.dumps({"client_payload": payload}).encode())


class Endpoint(BaseHTTPRequestHandler):
    """POST of a repository_dispatch, by those who know the token; there is nothing else."""

    server: Server
    timeout = 10  # seconds that a client may be silent

    def do_POST(self) -> None:
        """Take a message, and act on it after the answer, as GitHub does."""
        status, event = self._judge()
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if status is HTTPStatus.NO_CONTENT:
            threading.Thread(target=self.server.revert, args=(event,), daemon=True).start()

    def _judge(self) -> tuple[HTTPStatus, bytes]:
        if self.path != DISPATCH_PATH:
            return HTTPStatus.NOT_FOUND, b""
        shown = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(shown, f"Bearer {self.server.token}".encode()):
            return HTTPStatus.UNAUTHORIZED, b""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= LARGEST):
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b""
        event = self.rfile.read(int(length))
        try:
            known = json.loads(event)["event_type"] == "rollout-aborted"
        except (ValueError, KeyError, TypeError):
            known = False
        return (HTTPStatus.NO_CONTENT if known else HTTPStatus.UNPROCESSABLE_ENTITY), event

    def log_message(self, form: str, *values: object) -> None:
        """Say it where the rest is said; what a client sent is data."""
        _say(repr(form % values)[1:-1])


def _tell_of_commits(where: Path) -> None:
    """Have Argo CD look at git when main has moved, as a forge's webhook does."""
    refresh = ("annotate", "applications", "--all", "--namespace=argocd", "--overwrite")
    told = ""
    while True:
        with contextlib.suppress(GitError, subprocess.TimeoutExpired):
            if (latest := _git(where / REPOSITORY, "rev-parse", "main")) != told:
                command = ["kubectl", *refresh, "argocd.argoproj.io/refresh=normal"]
                done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=30)
                told = told if done.returncode else latest
        time.sleep(0.5)


def _answers() -> str | None:
    ask = (
        "curl",
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        f"http://{node.IP}:{PORT}/",
    )
    node.run(*ask, "--request", "POST", seconds=5)
    node.run("git", "ls-remote", f"git://{node.IP}/{REPOSITORY}", "main", seconds=5)
    return None


def _end_older() -> None:
    pid = folder() / "pid"
    if pid.exists():
        node.run("sh", "-c", f"pkill --parent {pid.read_text()}; kill {pid.read_text()} || true")
        pid.unlink()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
