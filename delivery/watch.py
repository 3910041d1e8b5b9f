"""Watch a release from the commit until it is promoted, rolled back or refused."""

import time
from collections.abc import Callable

from delivery import changes, kubernetes
from delivery import rollout as rollouts
from delivery.explanation import changed_manifests, listed, unapplied
from delivery.kubernetes import ClusterUnavailable, KubernetesObject
from delivery.release import ReleaseError, parse
from delivery.repository import Repository

PAUSE = 5.0  # seconds between two polls
PATIENCE = 60.0  # seconds that the cluster may be unavailable after it has answered


def watch_release(
    repository: Repository, environment: str, digest: str, seconds: float, say: Callable[[str], None]
) -> bool:
    """Wait until a release is promoted (True), or rolled back or refused (False), and report each change.

    Raises ReleaseError if it is neither after `seconds`, ClusterUnavailable.
    """
    deadline, answered, applied, reported = time.monotonic() + seconds, -PATIENCE, False, ""
    while time.monotonic() < deadline:
        try:
            rollout = kubernetes.rollout(environment)
            refused = None if applied else unapplied(environment)
            answered = time.monotonic()
        except ClusterUnavailable:
            if time.monotonic() - answered > PATIENCE:
                raise
            time.sleep(PAUSE)
            continue
        if (state := _state(rollout, digest)) != reported:
            say(state)
            reported = state
        promoted = verdict(rollout, digest, applied=applied)
        if rollout and not applied and _has_digest(rollout, digest):
            applied = True
            for line in listed(changed_manifests(repository, environment, rollout) or []):
                say(line)
        if not applied and refused and _releases(repository, refused.commit, environment, digest):
            say(refused.text)
            return False
        if promoted is not None:
            say(f"{'promoted' if promoted else 'rolled back'}: {digest[:19]}")
            return promoted
        time.sleep(PAUSE)
    raise ReleaseError(
        f"{digest[:19]} was neither promoted nor rolled back in {seconds / 60:.0f} minutes; "
        f"`python -m delivery status {environment}` shows its progress"
    )


def verdict(rollout: KubernetesObject | None, digest: str, *, applied: bool) -> bool | None:
    """Return whether a release was promoted (True) or rolled back (False), None while that is undecided.

    `applied` says that the Rollout had the release's digest before: if it has another one now, git was reverted.
    """
    if rollout is None or not _has_digest(rollout, digest):
        return False if applied else None
    if not rollouts.is_observed(rollout):
        return None  # the status is still that of the previous release
    if rollouts.is_aborted(rollout):
        return False
    return True if rollouts.is_promoted(rollout) else None


def _has_digest(rollout: KubernetesObject | None, digest: str) -> bool:
    return rollout is not None and rollouts.digest(rollout) == digest


def _releases(repository: Repository, commit: str, environment: str, digest: str) -> bool:
    """Return whether a commit has the release; Argo CD may still report a failure of an earlier commit."""
    try:
        release = parse(repository.files(changes.folder(environment), commit))
    except ReleaseError:  # also for a commit that is newer than this clone
        return False
    return release is not None and release.digest == digest


def _state(rollout: KubernetesObject | None, digest: str) -> str:
    if rollout is None or not _has_digest(rollout, digest):
        return f"waiting for Argo CD to apply {digest[:19]}"
    phase = rollout.get("status", {}).get("phase", "Unknown")
    return f"{phase}: {digest[:19]} serves {rollouts.weight(rollout)} % of traffic"
