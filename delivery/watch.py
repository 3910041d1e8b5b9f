"""How a release ends: watched from the commit until all users have it, or it was taken back."""

import time
from collections.abc import Callable

from delivery import changes, kubernetes
from delivery import rollout as rollouts
from delivery.explanation import unapplied
from delivery.kubernetes import ClusterUnavailable, KubernetesObject
from delivery.release import ReleaseError, parse
from delivery.repository import Repository

PAUSE = 5.0  # seconds between two looks
PATIENCE = 60.0  # seconds without an answer, after one


def watch_release(
    repository: Repository, environment: str, digest: str, seconds: float, say: Callable[[str], None]
) -> bool:
    """Wait until the release has all users (True), or was refused or taken back (False), and say what changes.

    Raises TimeoutError when it is neither after `seconds`, ClusterUnavailable.
    """
    deadline, answered, seen, said = time.monotonic() + seconds, -PATIENCE, False, ""
    while time.monotonic() < deadline:
        try:
            rollout = kubernetes.rollout(environment)
            refused = None if seen else unapplied(environment)
            answered = time.monotonic()
        except ClusterUnavailable:
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


def verdict(rollout: KubernetesObject | None, digest: str, *, seen: bool) -> bool | None:
    """Return whether a release has all users, None while that is not decided.

    A release that was seen and is no longer asked for has been taken back in git since.
    """
    if rollout is None or not _asks_for(rollout, digest):
        return False if seen else None
    if not rollouts.is_observed(rollout):
        return None  # the controller's status is still about the release before
    if rollouts.is_aborted(rollout):
        return False
    return True if rollouts.is_promoted(rollout) else None


def _asks_for(rollout: KubernetesObject | None, digest: str) -> bool:
    return rollout is not None and rollouts.digest(rollout) == digest


def _brings(repository: Repository, commit: str, environment: str, digest: str) -> bool:
    """Whether a commit asks for the release: Argo CD may still tell of one from before it."""
    try:
        release = parse(repository.files(changes.folder(environment), commit))
    except ReleaseError:  # a commit that came to main since this clone was made, too
        return False
    return release is not None and release.digest == digest


def _told(rollout: KubernetesObject | None, digest: str) -> str:
    if rollout is None or not _asks_for(rollout, digest):
        return f"waiting for Argo CD to ask for {digest[:19]}"
    status = rollout.get("status", {})
    return f"{status.get('phase', 'Unknown')}, {rollouts.weight(rollout)} % of the users have it"
