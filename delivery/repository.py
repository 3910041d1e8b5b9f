"""Read the commits and files of the git repository, and commit to it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from delivery.git import git
from delivery.release import ReleaseError

FIELDS = ("%H", "%an <%ae>", "%ct", "%s", "%b", "%(trailers:only,unfold)")


class Commit(NamedTuple):
    """A commit that changed a folder. `body` includes the trailers; `trailers` has the last of each key."""

    sha: str
    author: str
    time: datetime
    subject: str
    body: str
    trailers: Mapping[str, str]


class Repository:
    """The checkout that contains the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(git(root, "rev-parse", "--show-toplevel").strip())
        if git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
            raise ReleaseError("this clone is shallow and misses releases; run `git fetch --unshallow`")

    def refuse_changes(self) -> None:
        """Raise ReleaseError if there are uncommitted changes, which a release must not carry along."""
        if changes := git(self.root, "status", "--porcelain"):
            raise ReleaseError(f"there are uncommitted changes; commit or stash them first:\n{changes}")

    def head(self) -> str:
        """Return the id of the commit that is checked out."""
        return git(self.root, "rev-parse", "HEAD").strip()

    def files(self, folder: str, at: str = "HEAD") -> dict[str, str]:
        """Return the files of a folder in a commit, by name."""
        names = git(self.root, "ls-tree", "-z", "--name-only", f"{at}:{folder}").split("\0")[:-1]
        return {name: git(self.root, "cat-file", "blob", f"{at}:{folder}/{name}") for name in names}

    def commits(self, folder: str) -> list[Commit]:
        """Return the commits that changed a folder, newest first."""
        # With -z a commit ends as a field does.
        values = git(self.root, "log", "-z", f"--format={'%x00'.join(FIELDS)}", "--", folder).split("\0")
        rows = [values[start : start + len(FIELDS)] for start in range(0, len(values) - 1, len(FIELDS))]
        return [
            Commit(sha, author, datetime.fromtimestamp(int(time), UTC), subject, body.strip(), _pairs(trailers))
            for sha, author, time, subject, body, trailers in rows
        ]

    def trailers(self, key: str) -> list[str]:
        """Return the values of a trailer in all commits."""
        text = git(self.root, "log", f"--format=%(trailers:key={key},valueonly,separator=%x0A)")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def commit(self, folder: str, files: Mapping[str, str], message: str) -> str:
        """Make a folder contain exactly these files, commit that, and return the commit's id."""
        git(self.root, "var", "GIT_COMMITTER_IDENT")  # fails without an identity, before anything is changed
        for old in (self.root / folder).iterdir():
            if old.name not in files:
                old.unlink()
        for name, text in files.items():
            (self.root / folder / name).write_text(text)
        git(self.root, "add", "--all", "--", folder)
        git(self.root, "commit", "--quiet", "--cleanup=whitespace", "--file=-", "--", folder, stdin=message)
        return self.head()


def _pairs(trailers: str) -> dict[str, str]:
    lines = (line.partition(": ") for line in trailers.split("\n") if line)
    return {key: value for key, _, value in lines}
