"""A person's part in the loop: a clone, the commands of `delivery`, a push; everything else happens by itself."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from delivery import changes
from delivery.git import GitError, git, identity
from delivery.release import Release
from delivery.repository import Repository
from tools.checkout import ROOT
from tools.cluster import git_server, node
from tools.drill.release_images import Shipped
from tools.errors import ToolError

PERSON = identity("Ada", "ada@example.org")


class RefusedError(ToolError):
    """`delivery` has refused; the message says why."""


class Edit(NamedTuple):
    """What a file of the repository is to say instead."""

    path: str
    old: str
    new: str


class Loop:
    """A clone of the cluster's repository, in which a person works."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        git(ROOT, "clone", "--quiet", str(git_server.repository()), str(self.folder))
        self.repository = Repository(self.folder)

    def release(self, shipped: Shipped, *options: str) -> str:
        """Release to dev; return the commit. Raises RefusedError."""
        self.pull()
        self.delivery("release", shipped.digest, f"--model={shipped.model}", *options)
        return self.push()

    def promote(self, *options: str) -> str:
        """Promote what runs in dev to prod; return the commit. Raises RefusedError."""
        self.pull()
        self.delivery("promote", *options)
        return self.push()

    def ship(self, shipped: Shipped, *options: str) -> str:
        """Release to dev and promote to prod, in one push; return the commit. Raises RefusedError."""
        self.pull()
        self.delivery("release", shipped.digest, f"--model={shipped.model}", *options)
        self.delivery("promote", *options)
        return self.push()

    def revert(self, *options: str) -> str:
        """Take back what runs in prod; return the commit. Raises RefusedError."""
        self.pull()
        self.delivery("revert", "prod", *options)
        return self.push()

    def delivery(self, *arguments: str) -> str:
        """Run a command of `delivery` in the clone, where it can ask the cluster. Raises RefusedError."""
        inner = [sys.executable, "-P", "-m", "delivery", *arguments]
        command = node.nsenter(["env", f"--chdir={self.folder}", *inner], "--net", "--mount")
        environ = {**node.environment(), **PERSON, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RefusedError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    @contextmanager
    def changed(self, message: str, *edits: Edit) -> Iterator[str]:
        """Have a commit of edits as long as the block lasts, then its revert; give the commit."""
        self.pull()
        for path, old, new in edits:
            file = self.folder / path
            text = file.read_text()
            if old not in text:
                raise ToolError(f"{path} does not say {old!r}: the drill has to follow it")
            file.write_text(text.replace(old, new))
        git(self.folder, "commit", "--quiet", "--all", f"--message={message} (drill)", environ=PERSON)
        commit = self.push()
        try:
            yield commit
        finally:
            self.pull()
            git(self.folder, "revert", "--no-edit", commit, environ=PERSON)
            self.push()

    def pull(self) -> None:
        """Take what was pushed meanwhile, and drop what could not be."""
        git(self.folder, "fetch", "--quiet")
        git(self.folder, "reset", "--quiet", "--hard", "origin/main")

    def push(self) -> str:
        """Push, after whatever was pushed meanwhile; return the commit."""
        git(self.folder, "fetch", "--quiet")
        try:
            git(self.folder, "rebase", "--quiet", "origin/main", environ=PERSON)
        except GitError:
            git(self.folder, "rebase", "--abort")
            raise
        git(self.folder, "push", "--quiet", "origin", "HEAD:main")
        return self.repository.head()

    def is_first(self) -> bool:
        """Whether nothing was ever released in prod."""
        return changes.current(self.repository, "prod") is None

    def runs(self, environment: str) -> Release:
        """Return what git says runs. Raises ToolError when nothing does."""
        self.pull()
        found = changes.current(self.repository, environment)
        if found is None:
            raise ToolError(f"nothing is released in {environment}")
        return found
