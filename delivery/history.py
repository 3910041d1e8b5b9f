"""What git tells of an environment: which model ran from when to when, who brought it, and why it left."""

from datetime import datetime
from typing import NamedTuple

from delivery.changes import REJECTED, rejected_by, releases
from delivery.release import Release
from delivery.repository import Commit, Repository


class Stay(NamedTuple):
    """A release's time in an environment; `until` and `left` are empty for the one that is there.

    `left` says in one line or more why it left; `rejected` is for one that was taken back.
    """

    release: Release
    since: datetime
    until: datetime | None
    brought_by: str
    left: str
    rejected: bool

    @property
    def in_short(self) -> str:
        """Why it left, in one line: of a verdict, the number beyond its limit, or what it begins with."""
        if not self.rejected:
            return self.left
        lines = [line for line in self.left.splitlines() if line] or ["for no reason that was given"]
        beyond = [line for line in lines if line.startswith("  failed  ")]
        verdict = 2 if "was taken back from" in lines[0] else 0  # after what it was, and who shipped it
        said = beyond[0].removeprefix("  failed  ").rstrip(":") if beyond else lines[min(verdict, len(lines) - 1)]
        return f"taken back: {said}"


def history(repository: Repository, environment: str) -> list[Stay]:
    """Return the releases of an environment, newest first."""
    stays: list[Stay] = []
    after: Commit | None = None
    for commit, release in releases(repository, environment):
        if release:
            stays.append(Stay(release, commit.time, after.time if after else None, commit.author, *_why(after)))
        after = commit
    return stays


def _why(after: Commit | None) -> tuple[str, bool]:
    if after is None:
        return "", False
    if not rejected_by(after):
        return f"followed by {after.subject.partition(': ')[2]}", False
    return after.body.rpartition(f"\n{REJECTED}: ")[0].strip(), True
