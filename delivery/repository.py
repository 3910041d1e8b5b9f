"""The git repository: what is committed in it, and a commit more. The git command does the work."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from delivery.git import git
from delivery.release import ReleaseError


class Commit(NamedTuple):
    """A commit that changed a folder."""

    sha: str
    author: str
    time: datetime
    subject: str
    body: str


class Repository:
    """The checkout that `root` is in."""

    def __init__(self, root: Path) -> None:
        self.root = Path(git(root, "rev-parse", "--show-toplevel").strip())
        if git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
            raise ReleaseError("this clone knows only a part of what was released; git fetch --unshallow")

    def refuse_changes(self) -> None:
        """Raise ReleaseError when something is not committed: a release must not carry along what nobody means."""
        if changes := git(self.root, "status", "--porcelain"):
            raise ReleaseError(f"there are changes that are not committed; commit or stash them first:\n{changes}")

    def head(self) -> str:
        """Return the id of the commit that is checked out."""
        return git(self.root, "rev-parse", "HEAD").strip()

    def files(self, folder: str, at: str = "HEAD") -> dict[str, str]:
        """Return the files of a folder in a commit, by name."""
        names = git(self.root, "ls-tree", "--name-only", f"{at}:{folder}").splitlines()
        return {name: git(self.root, "show", f"{at}:{folder}/{name}") for name in names}

    def commits(self, folder: str) -> list[Commit]:
        """Return the commits that changed a folder, newest first."""
        text = git(self.root, "log", "-z", "--format=%H%x01%an <%ae>%x01%ct%x01%s%x01%b", "--", folder)
        fields = (entry.split("\x01", 4) for entry in text.split("\0") if entry)
        return [
            Commit(sha, who, datetime.fromtimestamp(int(when), UTC), what, why)
            for sha, who, when, what, why in fields
        ]

    def trailers(self, key: str) -> list[str]:
        """Return the values of a trailer in all commits."""
        text = git(self.root, "log", f"--format=%(trailers:key={key},valueonly,separator=%x0A)")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def commit(self, folder: str, files: Mapping[str, str], message: str) -> str:
        """Make a folder hold exactly these files, commit that, and return the commit's id."""
        git(self.root, "var", "GIT_COMMITTER_IDENT")  # says what is missing before anything is changed
        for old in (self.root / folder).iterdir():
            if old.name not in files:
                old.unlink()
        for name, text in files.items():
            (self.root / folder / name).write_text(text)
        git(self.root, "add", "--all", "--", folder)
        git(self.root, "commit", "--quiet", "--file=-", "--", folder, stdin=message)
        return self.head()
