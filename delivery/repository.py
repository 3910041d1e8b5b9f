"""Read the commits and files of the git repository, and commit to it."""

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from delivery.git import GitError, git, git_bytes
from delivery.release import COMPONENT, MODEL, ReleaseError

FIELDS = ("%H", "%P", "%an <%ae>", "%ct", "%s", "%b")


class Commit(NamedTuple):
    """A commit that changed a folder. `body` includes the trailers; `trailers` has the values of each key."""

    sha: str
    author: str
    time: datetime
    subject: str
    body: str
    trailers: Mapping[str, Sequence[str]]


class Repository:
    """The checkout that contains the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(git(root, "rev-parse", "--show-toplevel").removesuffix("\n"))
        if git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
            raise ReleaseError("this clone is shallow and misses releases; run `git fetch --unshallow`")

    def head(self) -> str:
        """Return the id of the commit that is checked out."""
        return git(self.root, "rev-parse", "HEAD").strip()

    def files(self, folder: str, at: str = "HEAD") -> dict[str, str]:
        """Return the files of a release in a commit, by name."""
        return next(self.contents(folder, [at]))

    def since(self, base: str, *paths: str) -> list[Commit]:
        """Return the commits after `base` that changed these paths, newest first. Raises GitError."""
        git(self.root, "merge-base", "--is-ancestor", base, "HEAD")
        arguments = ("-z", "--first-parent", f"--format={'%x00'.join(FIELDS)}", f"{base}..HEAD", "--", *paths)
        values = git(self.root, "log", *arguments).split("\0")
        return [_commit(values[start : start + len(FIELDS)]) for start in range(0, len(values) - 1, len(FIELDS))]

    def contents(self, folder: str, commits: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yield the files of a release, by name, in each of these commits: one process reads them all."""
        names = [f"{commit}:{folder}/{name}\n" for commit in commits for name in (COMPONENT, MODEL)]
        batch = "--batch=%(objecttype) %(objectsize)"
        answer = io.BytesIO(git_bytes(self.root, "cat-file", batch, stdin="".join(names).encode()))
        for _ in commits:
            files: dict[str, str] = {}
            for name in (COMPONENT, MODEL):
                kind, _, size = answer.readline().decode().strip().rpartition(" ")
                if size != "missing":
                    content = answer.read(int(size) + 1)[:-1]
                    files |= {name: content.decode(errors="replace")} if kind == "blob" else {}
            yield files

    def commits(self, folder: str, *keys: str) -> list[Commit]:
        """Return the commits that changed a folder on this branch, newest first, with the trailers of these keys.

        A merge is one change, which has the trailers of all merged commits that changed the folder.
        """
        trailers = [f"%(trailers:key={key},valueonly,unfold,separator=%x20)" for key in keys]
        width = len(FIELDS) + len(keys)
        # With -z a commit ends as a field does.
        values = git(self.root, "log", "-z", f"--format={'%x00'.join([*FIELDS, *trailers])}").split("\0")
        rows = {values[start]: values[start : start + width] for start in range(0, len(values) - 1, width)}
        touching = set(git(self.root, "log", "--full-history", "--format=%H", "--", folder).split())
        found: list[Commit] = []
        seen: set[str] = set()
        for tip in reversed(git(self.root, "log", "--first-parent", "--format=%H", "--", folder).split()):
            merged, waiting = [], [tip]
            while waiting:
                sha = waiting.pop()
                if sha not in seen:
                    seen.add(sha)
                    merged += [sha] if sha in touching or sha == tip else []
                    waiting += rows[sha][1].split()
            of_all = {
                key: [value for sha in merged for value in rows[sha][column].split()]
                for column, key in enumerate(keys, len(FIELDS))
            }
            found.append(_commit(rows[tip])._replace(trailers=of_all))
        return found[::-1]

    def trailers(self, key: str) -> list[str]:
        """Return the values of a trailer in all commits."""
        text = git(self.root, "log", f"--format=%(trailers:key={key},valueonly,unfold,separator=%x20)")
        return text.split()

    def refuse_changes(self, *folders: str) -> None:
        """Raise ReleaseError if there are changes that a commit to these folders would meet, or lose."""
        tracked = git(self.root, "status", "--porcelain", "--untracked-files=no")
        if changes := tracked or git(self.root, "status", "--porcelain", "--", *folders):
            raise ReleaseError(f"there are uncommitted changes; commit or stash them first:\n{changes}")
        if git(self.root, "rev-parse", "--symbolic-full-name", "HEAD").strip() == "HEAD":
            raise ReleaseError("no branch is checked out, and a commit would be on none; run `git switch main`")

    def commit(self, folder: str, files: Mapping[str, str], message: str) -> str:
        """Make a folder contain exactly these files, commit that, and return the commit's id."""
        with self._commit_of(message) as own:
            old = git_bytes(self.root, "ls-files", "-z", "--", folder, environ=own)
            git_bytes(self.root, "update-index", "--force-remove", "-z", "--stdin", stdin=old, environ=own)
            for name, text in files.items():
                blob = git(self.root, "hash-object", "-w", "--stdin", stdin=text).strip()
                entry = f"100644,{blob},{folder}/{name}"
                git(self.root, "update-index", "--add", "--cacheinfo", entry, environ=own)
        return self.head()

    def undo(self, sha: str, message: str, *except_folders: str) -> str:
        """Commit the reverse of a commit, except in some folders, and return the new commit's id.

        Raises ReleaseError unless it applies cleanly.
        """
        paths = (".", *(f":(exclude){folder}" for folder in except_folders))
        options = ("--binary", "--full-index", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/")
        patch = git_bytes(self.root, "diff", *options, "--dst-prefix=b/", f"{sha}^", sha, "--", *paths)
        with self._commit_of(message) as own:
            try:
                git_bytes(self.root, "apply", "--cached", "--reverse", stdin=patch, environ=own)
            except GitError as error:
                raise ReleaseError(
                    f"{sha[:10]} cannot be reverted: a later commit changed the same lines ({error}); "
                    f"revert it by hand: git revert {sha[:10]}"
                ) from error
        return self.head()

    @contextmanager
    def _commit_of(self, message: str) -> Iterator[dict[str, str]]:
        """Commit what the block does to an index of its own: if a hook or the signature fails, nothing changed."""
        before = self.head()
        with tempfile.TemporaryDirectory(prefix="iris-commit-") as temporary:
            own = {"GIT_INDEX_FILE": f"{temporary}/index"}
            git(self.root, "read-tree", before, environ=own)
            yield own
            tree = git(self.root, "write-tree", environ=own).strip()
            git(self.root, "read-tree", "-m", "-u", "--dry-run", before, tree)  # fails if the index is locked
            git(self.root, "commit", "--quiet", "--cleanup=whitespace", "--file=-", stdin=message, environ=own)
        git(self.root, "read-tree", "-m", "-u", before, "HEAD")


def _commit(fields: Sequence[str]) -> Commit:
    sha, _, author, time, subject, body, *_ = fields
    return Commit(sha, author, datetime.fromtimestamp(int(time), UTC), subject, body.strip(), {})
