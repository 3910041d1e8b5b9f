"""The verdict on a release. The drill watches real Rollouts; here kubectl's answers are replaced."""

from datetime import UTC, datetime
from typing import Any

import pytest

from delivery import kubernetes, manifests, watch
from delivery.explanation import Unapplied
from delivery.kubernetes import ClusterUnavailable
from delivery.release import Release
from delivery.repository import Commit, Repository
from delivery.watch import verdict, watch_release
from tests.support.running import ROOT

OLD, NEW = (f"sha256:{digit * 64}" for digit in "12")
PROMOTED = {"observedGeneration": "4", "phase": "Healthy", "currentPodHash": "b", "stableRS": "b"}


def _rollout(digest: str = NEW, **status: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"image": f"example.org/iris@{digest}"}]}}
    return {
        "metadata": {"generation": 4},
        "spec": {"template": template, "strategy": {"canary": {}}},
        "status": PROMOTED | status,
    }


@pytest.mark.parametrize(
    ("rollout", "applied", "expected"),
    [
        (_rollout(), False, True),
        (_rollout(phase="Progressing", stableRS="a"), False, None),
        (_rollout(phase="Healthy", stableRS="a"), False, None),
        (_rollout(phase="Degraded", stableRS="a", abort=True), False, False),
        # Argo CD has not applied it yet: the previous release is healthy.
        (_rollout(OLD), False, None),
        # It is applied, but the controller has not processed it: the status is that of the previous release.
        (_rollout(observedGeneration="3"), False, None),
        # Git has been reverted since.
        (_rollout(OLD), True, False),
        (None, False, None),
        (None, True, False),
    ],
)
def test_verdict(rollout: dict[str, Any] | None, applied: bool, expected: bool | None) -> None:
    assert verdict(rollout, NEW, applied=applied) is expected


@pytest.fixture(autouse=True)
def nothing_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argo CD has applied everything."""
    monkeypatch.setattr(watch, "unapplied", lambda _: None)


@pytest.mark.parametrize(("patience", "waits"), [(60.0, True), (0.0, False)])
def test_watch_tolerates_a_short_outage_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch, patience: float, waits: bool
) -> None:
    answers = iter([_rollout(OLD), None, _rollout()])

    def rollout(_: str) -> dict[str, Any]:
        if (answer := next(answers)) is None:
            raise ClusterUnavailable("a moment")
        return answer

    monkeypatch.setattr(kubernetes, "rollout", rollout)
    monkeypatch.setattr(watch, "PAUSE", 0.01)
    monkeypatch.setattr(watch, "PATIENCE", patience)
    if waits:
        assert watch_release(Repository(ROOT), "prod", NEW, 10, lambda _: None)
    else:
        with pytest.raises(ClusterUnavailable):
            watch_release(Repository(ROOT), "prod", NEW, 10, lambda _: None)


def test_watch_announces_once_which_manifests_changed_since_the_stable_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    author, time = "Ada <ada@example.org>", datetime(2026, 11, 24, tzinfo=UTC)
    limits = Commit("049f066a32c", author, time, "slo: allow 2 %", "", {})
    answers = iter([_rollout(OLD), _rollout(stableRS="a"), _rollout(stableRS="a"), _rollout()])
    monkeypatch.setattr(kubernetes, "rollout", lambda _: next(answers))
    monkeypatch.setattr(manifests, "changed", lambda *_: [limits])
    monkeypatch.setattr(watch, "PAUSE", 0.01)
    said: list[str] = []
    assert watch_release(Repository(ROOT), "prod", NEW, 10, said.append)
    assert [line for line in said if "slo" in line] == [f"changed   049f066a32 by {author}: slo: allow 2 %"]


def test_watch_fails_at_once_if_the_cluster_never_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def rollout(_: str) -> None:
        raise ClusterUnavailable("no kubeconfig")

    monkeypatch.setattr(kubernetes, "rollout", rollout)
    with pytest.raises(ClusterUnavailable):
        watch_release(Repository(ROOT), "prod", NEW, 10, lambda _: None)


@pytest.mark.parametrize(("committed", "refused"), [(NEW, True), (OLD, False)])
def test_failed_sync_ends_the_watch_only_if_its_commit_has_the_release(
    monkeypatch: pytest.MonkeyPatch, committed: str, refused: bool
) -> None:
    model = '{"version": "2", "sha256": "ab", "run_id": "cd"}'
    answers = iter([_rollout(OLD), _rollout()])
    monkeypatch.setattr(kubernetes, "rollout", lambda _: next(answers))
    monkeypatch.setattr(watch, "PAUSE", 0.01)
    monkeypatch.setattr(watch, "unapplied", lambda _: Unapplied("12ab", "the signature of its image"))
    monkeypatch.setattr(Repository, "files", lambda *_: Release(committed, model).files())
    said: list[str] = []
    assert watch_release(Repository(ROOT), "prod", NEW, 10, said.append) is not refused
    assert ("the signature of its image" in said) is refused


def test_unknown_commit_does_not_have_the_release() -> None:
    assert not watch._releases(Repository(ROOT), "f" * 40, "prod", NEW)
