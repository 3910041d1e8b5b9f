"""Decide what a release, a promotion and a revert change in git. Nothing is written here."""

from collections.abc import Iterator
from typing import NamedTuple

from delivery.release import Release, ReleaseError, parse
from delivery.repository import Commit, Repository

REJECTED = "Release-Rejected"


class Change(NamedTuple):
    """A commit to be made: the new content of a folder, and the message."""

    folder: str
    files: dict[str, str]
    message: str


def folder(environment: str) -> str:
    """Return the folder of an environment's release."""
    return f"overlays/{environment}/release"


def current(repository: Repository, environment: str) -> Release | None:
    """Return the release of an environment according to git. Raises ReleaseError."""
    return parse(repository.files(folder(environment)))


def running(repository: Repository, environment: str) -> Release:
    """Return the release of an environment according to git. Raises ReleaseError also if there is none."""
    release = current(repository, environment)
    if release is None:
        command = "release" if environment == "dev" else "promote"
        raise ReleaseError(f"nothing is released in {environment}; `python -m delivery {command}` ships a release")
    return release


def release(repository: Repository, environment: str, wanted: Release, *, override: bool = False) -> Change | None:
    """Return the change that releases an image, None if git has that release already. Raises ReleaseError."""
    before = current(repository, environment)
    if before == wanted:
        return None
    rejected = wanted.digest in repository.trailers(REJECTED)
    if rejected and not override:
        raise ReleaseError(
            f"{wanted.digest} was rejected before; `git log --grep {wanted.digest}` shows the reason. "
            "To release it all the same: --override"
        )
    return Change(folder(environment), wanted.files(), _message(environment, wanted, before, rejected=rejected))


def promote(repository: Repository, digest: str = "", *, override: bool = False) -> Change | None:
    """Return the change that releases dev's release in prod, None if prod has it already.

    `digest` is the one that was approved. Raises ReleaseError, also if dev has another digest.
    """
    wanted = running(repository, "dev")
    if digest and wanted.digest != digest:
        raise ReleaseError(
            f"dev has moved on from {digest[:19]} to {wanted.name}; review that release, and promote it"
        )
    return release(repository, "prod", wanted, override=override)


def revert(
    repository: Repository, environment: str, reason: str, digest: str = "", stable: str = ""
) -> Change | None:
    """Return the change that restores an earlier release and rejects the current one.

    The earlier release is the one with the digest `stable`, to which the cluster has rolled back, or else the
    newest one that was not rejected after it was released. Return None if the current digest is not `digest`, or,
    without `digest`, if the newest commit is a revert already. Raises ReleaseError if there is no release to
    restore.
    """
    bad = current(repository, environment)
    if bad is None:
        raise ReleaseError(f"nothing is released in {environment}: there is nothing to roll back")
    if digest and bad.digest != digest:
        return None
    if not digest and REJECTED in repository.commits(folder(environment))[0].trailers:
        return None
    good = _rollback_target(repository, environment, bad, stable)
    if good is None:
        raise ReleaseError(
            f"every release of {environment} was rejected: there is none to go back to; "
            "`python -m delivery release` ships another one"
        )
    message = (
        f"{environment}: roll back {bad.name} to {good.name}\n\n"
        f"{reason.strip() or 'No reason was given.'}\n\n"
        f"{REJECTED}: {bad.digest}\n"
    )
    return Change(folder(environment), good.files(), message)


def releases(repository: Repository, environment: str) -> Iterator[tuple[Commit, Release | None]]:
    """Yield the commits to an environment's release, newest first, each with its release, None if it has none."""
    for commit in repository.commits(folder(environment)):
        try:
            yield commit, parse(repository.files(folder(environment), commit.sha))
        except ReleaseError:
            yield commit, None  # somebody's edit by hand


def _rollback_target(repository: Repository, environment: str, bad: Release, stable: str) -> Release | None:
    candidates = []
    rejected = {bad.digest}  # by a newer commit than the one that is looked at
    for commit, release in releases(repository, environment):
        if release and release.digest != bad.digest and release.digest == stable:
            return release
        if release and release.digest not in rejected:
            candidates.append(release)
        if REJECTED in commit.trailers:
            rejected.add(commit.trailers[REJECTED])
    return candidates[0] if candidates else None


def _message(environment: str, wanted: Release, before: Release | None, *, rejected: bool) -> str:
    scores = ", ".join(f"{name} {value:.4g}" for name, value in wanted.metrics.items())
    supersedes = f"Supersedes {before.name}." if before else f"The first release in {environment}."
    override = "This release was rejected before and is released with --override.\n" if rejected else ""
    metadata = wanted.metadata
    return (
        f"{environment}: {wanted.name}\n\n"
        f"{supersedes} Scores on held-out rows: {scores}.\n{override}\n"
        f"Model-Version: {metadata['version']}\n"
        f"Model-Run: {metadata['run_id']}\n"
        f"Model-Sha256: {metadata['sha256']}\n"
        f"Image-Digest: {wanted.digest}\n"
    )
