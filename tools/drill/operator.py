"""The person who operates the delivery: works in a clone, runs `delivery` commands, and pushes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from delivery import changes
from delivery.git import GitError, git, identity
from delivery.release import Release
from delivery.repository import Repository
from tools.checkout import ROOT
from tools.cluster import git_server, node
from tools.errors import ToolError

IDENTITY = identity("Ada", "ada@example.org")


class CommandFailed(ToolError):
    """A `delivery` command failed; the message is what it printed."""


class Operator:
    """A person with a clone of the cluster's repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        git(ROOT, "clone", "--quiet", str(git_server.repository()), str(self.folder))
        self.repository = Repository(self.folder)

    def run(self, *commands: tuple[str, ...]) -> None:
        """Run `delivery` commands on the newest main, and push their commits at once. Raises CommandFailed."""
        self.pull()
        for command in commands:
            self.delivery(*command)
        self.push()

    def delivery(self, *arguments: str) -> str:
        """Run a `delivery` command in the clone, where it can reach the cluster. Raises CommandFailed."""
        python = [sys.executable, "-P", "-m", "delivery", *arguments]
        command = node.nsenter(["env", f"--chdir={self.folder}", *python], "--net", "--mount")
        environ = {**node.environment(), **IDENTITY, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def commit(self, message: str, *edits: tuple[str, str, str]) -> str:
        """Push a commit of edits (path, old text, new text), and return its id."""
        self.pull()
        for path, old, new in edits:
            file = self.folder / path
            text = file.read_text()
            if old not in text:
                raise ToolError(f"{path} does not contain {old!r}: update the drill")
            file.write_text(text.replace(old, new))
        git(self.folder, "commit", "--quiet", "--all", f"--message={message} (drill)", environ=IDENTITY)
        return self.push()

    @contextmanager
    def committed(self, message: str, *edits: tuple[str, str, str]) -> Iterator[str]:
        """Push a commit of edits, yield its id, and push its revert after the block."""
        commit = self.commit(message, *edits)
        try:
            yield commit
        finally:
            self.pull()
            git(self.folder, "revert", "--no-edit", commit, environ=IDENTITY)
            self.push()

    def pull(self) -> None:
        """Reset the clone to the newest main; commits that could not be pushed are dropped."""
        git(self.folder, "fetch", "--quiet")
        git(self.folder, "reset", "--quiet", "--hard", "origin/main")

    def push(self) -> str:
        """Rebase on the newest main and push; return the commit."""
        git(self.folder, "fetch", "--quiet")
        try:
            git(self.folder, "rebase", "--quiet", "origin/main", environ=IDENTITY)
        except GitError:
            git(self.folder, "rebase", "--abort")
            raise
        git(self.folder, "push", "--quiet", "origin", "HEAD:main")
        return self.repository.head()

    def is_first_release(self) -> bool:
        """Return whether nothing has been released to prod in this clone."""
        return changes.current(self.repository, "prod") is None

    def current_release(self) -> Release:
        """Return the release that git has in prod. Raises ReleaseError if it has none."""
        self.pull()
        return changes.running(self.repository, "prod")
