"""What a release, a promotion and a revert change in git, decided from what git holds; nothing is written here."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from delivery.release import DIGEST, Release, ReleaseError, parse
from delivery.repository import Commit, Repository

REJECTED = "Release-Rejected"


class Change(NamedTuple):
    """A commit to be: what a folder is to hold, and the message that says why."""

    folder: str
    files: dict[str, str]
    message: str


def folder(environment: str) -> str:
    """Return the folder that says what runs in an environment."""
    return f"overlays/{environment}/release"


def current(repository: Repository, environment: str) -> Release | None:
    """Return what git says runs in an environment."""
    return parse(repository.files(folder(environment)))


def running(repository: Repository, environment: str) -> Release:
    """Return what git says runs in an environment. Raises ReleaseError when nothing does."""
    runs = current(repository, environment)
    if runs is None:
        command = "release" if environment == "dev" else "promote"
        raise ReleaseError(f"nothing runs in {environment}; `python -m delivery {command}` ships something there")
    return runs


def release(repository: Repository, environment: str, wanted: Release, *, override: bool = False) -> Change | None:
    """Return what makes an environment run a release, None when git says that it does. Raises ReleaseError."""
    before = current(repository, environment)
    if before == wanted:
        return None
    rejected = wanted.digest in repository.trailers(REJECTED)
    if rejected and not override:
        raise ReleaseError(
            f"{wanted.digest} was rejected before; `git log --grep {wanted.digest}` says why. "
            "If it is to run all the same: --override"
        )
    return Change(folder(environment), wanted.files(), _message(environment, wanted, before, rejected=rejected))


def promote(repository: Repository, digest: str = "", *, override: bool = False) -> Change | None:
    """Return what makes prod run what dev runs, None when it does.

    Raises ReleaseError, also when dev runs something else than `digest`, which is what somebody has approved.
    """
    wanted = running(repository, "dev")
    if digest and wanted.digest != digest:
        raise ReleaseError(
            f"dev has moved on from {digest[:19]} to {wanted.name}; look at that one, and promote it"
        )
    return release(repository, "prod", wanted, override=override)


def revert(
    repository: Repository, environment: str, reason: str, digest: str = "", stable: str = ""
) -> Change | None:
    """Return what brings back the release before the one that runs.

    That is `stable`, the digest that the cluster went back to, or else the newest release not rejected since.
    None when git has moved on from `digest`, or, without one, when the newest commit is a revert already.
    Raises ReleaseError when there is none to go back to.
    """
    bad = current(repository, environment)
    if bad is None:
        raise ReleaseError(f"nothing runs in {environment}: there is nothing to take back")
    if bad.digest != digest if digest else rejected_by(repository.commits(folder(environment))[0]):
        return None
    ways = list(_ways_back(repository, environment))
    good = next((one for one, _ in ways if one.digest == stable != bad.digest), None) or next(
        (one for one, rejected in ways if one.digest not in {*rejected, bad.digest}), None
    )
    if good is None:
        raise ReleaseError(
            f"{environment} has had no release that was not rejected: there is none to go back to; "
            "`python -m delivery release` ships another"
        )
    message = (
        f"{environment}: {bad.name} is taken back, {good.name} runs again\n\n{reason.strip()}\n\n"
        f"{REJECTED}: {bad.digest}\n"
    )
    return Change(folder(environment), good.files(), message)


def rejected_by(commit: Commit) -> str:
    """Return the digest that a commit rejects, empty for none; only its last lines, the trailers, can."""
    found = re.search(rf"(?:^|\n\n){REJECTED}: ({DIGEST.pattern})$", commit.body.strip())
    return found[1] if found else ""


def releases(repository: Repository, environment: str) -> Iterator[tuple[Commit, Release | None]]:
    """Yield the commits of an environment, newest first, each with the release that it brought, None for none."""
    for commit in repository.commits(folder(environment)):
        try:
            yield commit, parse(repository.files(folder(environment), commit.sha))
        except ReleaseError:
            yield commit, None  # somebody's edit, which was no release


def _ways_back(repository: Repository, environment: str) -> Iterator[tuple[Release, set[str]]]:
    """Yield the releases of an environment, newest first, each with what was rejected after it was brought."""
    rejected: set[str] = set()
    for commit, release in releases(repository, environment):
        if release:
            yield release, set(rejected)
        if digest := rejected_by(commit):
            rejected.add(digest)


def _message(environment: str, wanted: Release, before: Release | None, *, rejected: bool) -> str:
    facts = wanted.facts
    figures = ", ".join(
        f"{name} {value:.4g}" for name, value in facts["metrics"].items() if isinstance(value, float)
    )
    lines = [
        f"{environment}: {wanted.name}",
        "",
        f"After {before.name if before else 'nothing'}. Measured on rows that it was not trained with: {figures}.",
        *(["It was rejected before and is released all the same."] if rejected else []),
        "",
        f"Model-Version: {facts['version']}",
        f"Model-Run: {facts['run_id']}",
        f"Model-Sha256: {facts['sha256']}",
        f"Image-Digest: {wanted.digest}",
    ]
    return "\n".join([*lines, ""])
