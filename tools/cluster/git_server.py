"""The cluster's git server: the repository that Argo CD reads, and a webhook for aborted rollouts as on GitHub.

`make up` starts it on the node: `python -m tools.cluster.git_server` serves the repository and the token in the
cluster's state.
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

from delivery import kubernetes
from delivery.event import LARGEST
from delivery.git import GitError, identity
from delivery.git import git as run_git
from delivery.kubernetes import ClusterUnavailable
from delivery.push import run_and_push
from delivery.release import ENVIRONMENTS, ReleaseError
from delivery.rollout import is_aborted
from tools.checkout import ROOT
from tools.cluster import node
from tools.errors import ToolError
from tools.progress import Say, wait_for

REPOSITORY = "iris-gitops.git"
PORT = 8099
DISPATCH_PATH = "/repos/iris-gitops/iris-gitops/dispatches"
IDENTITY = identity("iris-gitops", "iris-gitops@localhost")
RECONCILE_SECONDS = 30.0
REVERTING = threading.Lock()


def folder() -> Path:
    """Return the git server's folder, which is part of the cluster's state."""
    return node.state() / "git-server"


def repository() -> Path:
    """Return the path of the bare repository that Argo CD reads; people clone it and push to it."""
    return folder() / REPOSITORY


def dispatch_url() -> str:
    """Return the address of the webhook in the cluster."""
    return f"http://{node.IP}:{PORT}{DISPATCH_PATH}"


def head() -> str:
    """Return the id of the newest commit on main. Raises GitError."""
    return git("rev-parse", "main")


def git(*arguments: str) -> str:
    """Return the output of a git command in the repository that Argo CD reads. Raises GitError."""
    return run_git(repository(), *arguments).strip()


def update(say: Say) -> None:
    """Merge this checkout's HEAD into the repository's main, which keeps the releases made there.

    Raises ToolError.
    """
    commit = run_git(ROOT, "rev-parse", "HEAD").strip()
    if not repository().exists():
        say("cloning this checkout")
        unfinished = folder() / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        run_git(ROOT, "clone", "--quiet", "--bare", "--no-local", str(ROOT), str(unfinished))
        run_git(unfinished, "update-ref", "refs/heads/main", commit)
        run_git(unfinished, "symbolic-ref", "HEAD", "refs/heads/main")
        unfinished.rename(repository())
    git("fetch", "--quiet", str(ROOT), "HEAD")
    with tempfile.TemporaryDirectory(prefix="iris-git-server-") as temporary:
        clone = Path(temporary) / "clone"
        run_git(ROOT, "clone", "--quiet", "--shared", str(repository()), str(clone))
        try:
            run_git(clone, "merge", "--quiet", "--no-edit", commit, environ=IDENTITY)
        except GitError as error:
            raise ToolError(
                f"this checkout cannot be merged into the cluster's main ({error}); push a merge to "
                f"{repository()}, or start again without its releases: make down, make up"
            ) from error
        run_git(clone, "push", "--quiet", "origin", "HEAD:main")


def start(token: str, say: Say) -> None:
    """Start the git server on the node, and replace a running one. Raises ToolError unless it answers."""
    (folder() / "token").touch(mode=0o600)
    (folder() / "token").write_text(token)
    _stop_running()
    command = [sys.executable, "-P", "-m", "tools.cluster.git_server"]
    environ = {**node.environment(), "PYTHONPATH": str(ROOT)}
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
    wait_for(_check_answers, 30, say)


def serve() -> None:
    """Serve until the node ends."""
    (folder() / "pid").write_text(str(os.getpid()))
    os.environ.update(IDENTITY)
    address = ("--listen=" + node.IP, f"--base-path={folder()}", "--export-all", str(repository()))
    Endpoint.token = (folder() / "token").read_text()
    server = ThreadingHTTPServer((node.IP, PORT), Endpoint)
    threading.Thread(target=_refresh_on_push, daemon=True).start()
    threading.Thread(target=_reconcile, daemon=True).start()
    with subprocess.Popen(["git", "daemon", "--reuseaddr", "--informative-errors", *address]):
        server.serve_forever()


class Endpoint(BaseHTTPRequestHandler):
    """The webhook: it accepts the repository_dispatch of an aborted rollout from clients that have the token."""

    token: str
    timeout = 10  # seconds that a client may be silent

    def do_POST(self) -> None:
        """Validate the message and answer it, then act on it, as GitHub does."""
        status, event = self._validate()
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if status is HTTPStatus.NO_CONTENT:
            threading.Thread(target=_revert_by_event, args=(event,), daemon=True).start()

    def _validate(self) -> tuple[HTTPStatus, bytes]:
        if self.path != DISPATCH_PATH:
            return HTTPStatus.NOT_FOUND, b""
        authorization = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(authorization, f"Bearer {self.token}".encode()):
            return HTTPStatus.UNAUTHORIZED, b""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= LARGEST):
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b""
        event = self.rfile.read(int(length))
        try:
            is_known = json.loads(event)["event_type"] == "rollout-aborted"
        except (ValueError, KeyError, TypeError, RecursionError):
            is_known = False
        return (HTTPStatus.NO_CONTENT if is_known else HTTPStatus.UNPROCESSABLE_ENTITY), event

    def log_message(self, form: str, *values: object) -> None:
        """Write to the common log, with control characters of the client escaped."""
        _log(repr(form % values)[1:-1])


def _revert_by_event(event: bytes) -> None:
    with tempfile.NamedTemporaryFile(prefix="iris-git-server-") as message:
        message.write(event)
        message.flush()
        _revert(f"--event={message.name}")


def _revert(*arguments: str) -> None:
    """Run `delivery revert` and push its commit, as the workflow on GitHub does."""
    with REVERTING:
        try:
            code, outputs = run_and_push(str(repository()), ("revert", *arguments))
        except ReleaseError as error:
            _log(str(error))
        else:
            _log(outputs.strip() if not code else f"exit code {code}")  # the error is in the log already


def _reconcile() -> None:
    """Revert aborted releases without a message, which may be lost."""
    while True:
        time.sleep(RECONCILE_SECONDS)
        for environment in ENVIRONMENTS:
            with contextlib.suppress(ClusterUnavailable, OSError, ValueError):  # the next round tries again
                rollout = kubernetes.rollout(environment)
                if rollout and is_aborted(rollout):
                    _revert(environment, "--if-aborted")


def _refresh_on_push() -> None:
    """Have Argo CD compare with git whenever main has moved, as a push webhook does."""
    refresh = ("annotate", "applications", "--all", "--namespace=argocd", "--overwrite")
    refreshed = ""
    while True:
        with contextlib.suppress(GitError, subprocess.TimeoutExpired):
            if (latest := head()) != refreshed:
                command = ["kubectl", *refresh, "argocd.argoproj.io/refresh=normal"]
                done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=30)
                if done.returncode == 0:
                    refreshed = latest
        time.sleep(0.5)


def _check_answers() -> None:
    url = f"http://{node.IP}:{PORT}/"
    node.run("curl", "--silent", "--output", "/dev/null", "--request", "POST", url, seconds=5)
    node.run("git", "ls-remote", f"git://{node.IP}/{REPOSITORY}", "main", seconds=5)


def _stop_running() -> None:
    pid = folder() / "pid"
    if pid.exists():
        node.run("sh", "-c", f"pkill --parent {pid.read_text()}; kill {pid.read_text()} || true")
        pid.unlink()


def _log(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
