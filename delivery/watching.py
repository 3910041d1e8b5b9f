"""How a release ends: watched from the commit until all users have it, or it was taken back."""

import time
from collections.abc import Callable

from delivery import changes, kubernetes
from delivery.explanation import digest_of, share, unapplied
from delivery.kubernetes import AwayError, Kind
from delivery.release import ReleaseError, parse
from delivery.repository import Repository

PAUSE = 5.0  # seconds between two looks
PATIENCE = 60.0  # seconds without an answer, after one


def watch(
    repository: Repository, environment: str, digest: str, seconds: float, say: Callable[[str], None]
) -> bool:
    """Wait until the release has all users (True), or was refused or taken back (False), and say what changes.

    Raises TimeoutError when it is neither after `seconds`, AwayError.
    """
    deadline, answered, seen, said = time.monotonic() + seconds, -PATIENCE, False, ""
    while time.monotonic() < deadline:
        try:
            rollout = kubernetes.rollout(environment)
            refused = None if seen else unapplied(environment)
            answered = time.monotonic()
        except AwayError:
            if time.monotonic() - answered > PATIENCE:
                raise
            time.sleep(PAUSE)
            continue
        if (now := _told(rollout, digest)) != said:
            say(now)
            said = now
        end = verdict(rollout, digest, seen=seen)
        seen = seen or _asks_for(rollout, digest)
        if not seen and refused and _brings(repository, refused.commit, environment, digest):
            say(refused.text)
            end = False
        if end is not None:
            return end
        time.sleep(PAUSE)
    raise TimeoutError(
        f"{digest[:19]} was neither promoted nor taken back in {seconds / 60:.0f} minutes; "
        f"`python -m delivery status {environment}` says where it is"
    )


def verdict(rollout: Kind | None, digest: str, *, seen: bool) -> bool | None:
    """Return whether a release has all users, None while that is not decided.

    A release that was seen and is no longer asked for has been taken back in git since.
    """
    if rollout is None or not _asks_for(rollout, digest):
        return False if seen else None
    status = rollout.get("status", {})
    if str(status.get("observedGeneration")) != str(rollout["metadata"]["generation"]):
        return None  # the controller has not looked at it yet: what it says is of the release before
    if status.get("abort"):
        return False
    over = status.get("phase") == "Healthy" and status.get("currentPodHash") == status.get("stableRS")
    return True if over else None


def _asks_for(rollout: Kind | None, digest: str) -> bool:
    return rollout is not None and digest_of(rollout) == digest


def _brings(repository: Repository, commit: str, environment: str, digest: str) -> bool:
    """Whether a commit asks for the release: Argo CD may still tell of one from before it."""
    try:
        release = parse(repository.files(changes.folder(environment), commit))
    except ReleaseError:  # a commit that came to main since this clone was made, too
        return False
    return release is not None and release.digest == digest


def _told(rollout: Kind | None, digest: str) -> str:
    if rollout is None or not _asks_for(rollout, digest):
        return f"waiting for Argo CD to ask for {digest[:19]}"
    status = rollout.get("status", {})
    return f"{status.get('phase', 'Unknown')}, {share(rollout)} % of the users have it"
