"""What a release, a promotion and a revert change in git, decided from what git holds; nothing is written here."""

from typing import NamedTuple

from delivery.release import Release, ReleaseError, parse
from delivery.repository import Repository

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


def release(repository: Repository, environment: str, wanted: Release, *, override: bool = False) -> Change | None:
    """Return what makes an environment run a release, None when git says that it does. Raises ReleaseError."""
    before = current(repository, environment)
    if before == wanted:
        return None
    if wanted.digest in repository.trailers(REJECTED) and not override:
        raise ReleaseError(
            f"{wanted.digest} was rejected before; `git log --grep {wanted.digest}` says why. "
            "If it is to run all the same: --override"
        )
    return Change(folder(environment), wanted.files(), _message(environment, wanted, before, override=override))


def promote(repository: Repository, *, override: bool = False) -> Change | None:
    """Return what makes prod run what dev runs, None when it does. Raises ReleaseError."""
    wanted = current(repository, "dev")
    if wanted is None:
        raise ReleaseError("nothing runs in dev; `python -m delivery release` ships something there")
    return release(repository, "prod", wanted, override=override)


def revert(repository: Repository, environment: str, reason: str, digest: str = "") -> Change | None:
    """Return what brings back the release before the one that runs, None when git has moved on from `digest`.

    Releases that were rejected are passed over. Raises ReleaseError when there is none to go back to.
    """
    bad = current(repository, environment)
    if bad is None:
        raise ReleaseError(f"nothing runs in {environment}: there is nothing to take back")
    if digest and bad.digest != digest:
        return None
    good = _last_good(repository, environment, {*repository.trailers(REJECTED), bad.digest})
    message = (
        f"{environment}: {bad.name} is taken back, {good.name} runs again\n\n{reason.strip()}\n\n"
        f"{REJECTED}: {bad.digest}\n"
    )
    return Change(folder(environment), good.files(), message)


def _last_good(repository: Repository, environment: str, rejected: set[str]) -> Release:
    for commit in repository.commits(folder(environment)):
        try:
            good = parse(repository.files(folder(environment), commit.sha))
        except ReleaseError:
            continue  # somebody's edit, which was no release
        if good and good.digest not in rejected:
            return good
    raise ReleaseError(
        f"{environment} has had no release that was not rejected: there is none to go back to; "
        "`python -m delivery release` ships another"
    )


def _message(environment: str, wanted: Release, before: Release | None, *, override: bool) -> str:
    facts = wanted.facts
    figures = ", ".join(
        f"{name} {value:.4g}" for name, value in facts["metrics"].items() if isinstance(value, float)
    )
    lines = [
        f"{environment}: {wanted.name}",
        "",
        f"After {before.name if before else 'nothing'}. Measured on rows that it was not trained with: {figures}.",
        *(["It was rejected before and is released all the same."] if override else []),
        "",
        f"Model-Version: {facts['version']}",
        f"Model-Run: {facts['run_id']}",
        f"Model-Sha256: {facts['sha256']}",
        f"Image-Digest: {wanted.digest}",
    ]
    return "\n".join([*lines, ""])
