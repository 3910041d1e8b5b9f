"""List the deployment periods of an environment, as git recorded them."""

from datetime import datetime
from typing import NamedTuple

from delivery.changes import rejections, releases
from delivery.release import Release
from delivery.repository import Repository


class DeploymentPeriod(NamedTuple):
    """The time between the commit of a release and the next commit, and how it ended.

    `until` is None for the current release. `explanation` is the body of the revert commit that ended the period,
    if one did; its first line is a summary. `successor` is the next release, None after an edit that is not one.
    """

    release: Release
    since: datetime
    until: datetime | None
    released_by: str
    rolled_back: bool
    explanation: str
    successor: Release | None

    @property
    def outcome(self) -> str:
        """How the period ended, in one line."""
        if self.until is None:
            return "current"
        if self.rolled_back:
            return f"rolled back: {self.explanation.splitlines()[0]}"
        return f"superseded by {self.successor.name if self.successor else 'an edit that is not a release'}"


def history(repository: Repository, environment: str) -> list[DeploymentPeriod]:
    """Return the deployment periods of an environment, newest first."""
    periods: list[DeploymentPeriod] = []
    next_commit, next_release = None, None
    past = list(releases(repository, environment))
    for (commit, release), rejected in zip(past, [frozenset[str](), *rejections(past)], strict=False):
        if release:
            rolled_back = release.digest in rejected
            periods.append(
                DeploymentPeriod(
                    release,
                    since=commit.time,
                    until=next_commit.time if next_commit else None,
                    released_by=commit.author,
                    rolled_back=rolled_back,
                    explanation=next_commit.body if next_commit and rolled_back else "",
                    successor=next_release,
                )
            )
        next_commit, next_release = commit, release
    return periods
