"""Decide what a release, a promotion and a revert change in git. Nothing is written here."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from delivery.release import Release, ReleaseError, parse
from delivery.repository import Commit, Repository

REJECTED, RELEASED = "Release-Rejected", "Image-Digest"


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
    if before and (before.digest, before.metadata) == (wanted.digest, wanted.metadata):
        return None  # also if a formatter has rewritten the files
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
    repository: Repository,
    environment: str,
    reason: str,
    digest: str = "",
    stable: str = "",
    *,
    confirmed: bool = True,
    by_person: bool = False,
) -> Change | None:
    """Return the change that restores an earlier release and rejects the current one.

    The earlier release is the one with the digest `stable`, the cluster's stable version, or else the newest one
    that was not rejected after it was released. Return None if the current digest is not `digest`, or, without
    `digest`, if the newest commit is a revert already. `confirmed` is false if the cluster could not confirm that
    it has aborted `digest`. `by_person` sends all traffic to a release other than `stable` right after the golden
    gate: the stable version is then the current one, which may not serve any more. Raises ReleaseError if there is
    no release to restore, or if git says that the current one is a person's choice.
    """
    bad = current(repository, environment)
    if bad is None:
        raise ReleaseError(f"nothing is released in {environment}: there is nothing to roll back")
    if digest and bad.digest != digest:
        return None
    past = list(releases(repository, environment))
    rejected = rejections(past)
    if not digest and rejected[0] - rejected[1]:
        return None
    if not confirmed and (rejected[0] - rejected[1] or bad.digest in frozenset().union(*rejected)):
        raise ReleaseError(
            f"the cluster is unavailable, and {bad.name} was restored by a revert, or released again after it had "
            "been rejected: the message may be an old one. Nothing was changed. "
            f"Next: python -m delivery why {environment}"
        )
    if digest and stable in rejected[0]:
        raise ReleaseError(
            f"the cluster rolled back to {stable[:19]}, which was rejected since; {bad.name} was to replace it, "
            "and was measured beside it. Nothing was changed. Next: kubectl argo rollouts retry rollout iris "
            f"--namespace=iris-{environment}, or, for an older release, python -m delivery revert {environment}"
        )
    good = _rollback_target(past, rejected[0] | {bad.digest}, stable)
    if good is None:
        raise ReleaseError(
            f"every release of {environment} was rejected: there is nothing to roll back to; "
            "`python -m delivery release` ships another one"
        )
    message = (
        f"{environment}: roll back {bad.name} to {good.name}\n\n"
        f"{reason.strip() or 'No reason was given.'}\n\n"
        f"{REJECTED}: {bad.digest}\n"
    )
    at_once = by_person and good.digest != stable
    return Change(folder(environment), good.files(at_once=at_once), message)


def releases(repository: Repository, environment: str) -> Iterator[tuple[Commit, Release | None]]:
    """Yield the commits to an environment's release, newest first, each with its release, None if it has none."""
    commits = repository.commits(folder(environment), REJECTED, RELEASED)
    contents = repository.contents(folder(environment), [commit.sha for commit in commits])
    for commit, files in zip(commits, contents, strict=True):
        try:
            yield commit, parse(files)
        except ReleaseError:
            yield commit, None  # somebody's edit by hand


def rejections(past: Sequence[tuple[Commit, Release | None]]) -> list[frozenset[str]]:
    """Return the digests that are rejected after each of the commits of `releases`, and none before the first.

    A commit rejects the digest in its trailer. So does one that a person made with `git revert`: it restores an
    earlier release without a trailer, and rejects the release that it replaces, or restores a rejected release.
    """
    found: list[frozenset[str]] = [frozenset()]
    known: set[str] = set()
    before = None
    for commit, release in reversed(past):
        rejected = found[-1].union(commit.trailers.get(REJECTED, ()))
        if release:
            by_hand = not (commit.trailers.get(REJECTED) or release.digest in commit.trailers.get(RELEASED, ()))
            if by_hand and before and release.digest in known - rejected:
                rejected |= {before.digest}
            rejected -= {release.digest}
            known.add(release.digest)
        found.append(rejected)
        before = release
    return found[::-1]


def _rollback_target(
    past: Sequence[tuple[Commit, Release | None]], rejected: frozenset[str], stable: str
) -> Release | None:
    good = [release for _, release in past if release and release.digest not in rejected]
    return next((release for release in good if release.digest == stable), good[0] if good else None)


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
