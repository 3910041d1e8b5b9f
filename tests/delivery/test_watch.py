"""When a release is over, as its Rollout says; that it ends so is played by the drill."""

from typing import Any

import pytest

from delivery import kubernetes, watch
from delivery.explanation import Unapplied
from delivery.kubernetes import ClusterUnavailable
from delivery.release import Release
from delivery.repository import Repository
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
    ("rollout", "seen", "expected"),
    [
        (_rollout(), False, True),
        (_rollout(phase="Progressing", stableRS="a"), False, None),
        (_rollout(phase="Healthy", stableRS="a"), False, None),
        (_rollout(phase="Degraded", stableRS="a", abort=True), False, False),
        # Argo CD has not asked for it yet: all is well with the one before.
        (_rollout(OLD), False, None),
        # It has been asked for, and the controller has not looked yet: this is what it said of the one before.
        (_rollout(observedGeneration="3"), False, None),
        # Git has taken it back since.
        (_rollout(OLD), True, False),
        (None, False, None),
        (None, True, False),
    ],
)
def test_a_release_is_over_when_all_users_have_it_or_it_is_no_longer_asked_for(
    rollout: dict[str, Any] | None, seen: bool, expected: bool | None
) -> None:
    assert verdict(rollout, NEW, seen=seen) is expected


@pytest.fixture(autouse=True)
def applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argo CD could apply all that git said."""
    monkeypatch.setattr(watch, "unapplied", lambda _: None)


@pytest.mark.parametrize(("patience", "waits"), [(60.0, True), (0.0, False)])
def test_a_cluster_that_does_not_answer_for_a_moment_is_waited_for(
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


def test_a_cluster_that_cannot_be_asked_at_all_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def rollout(_: str) -> None:
        raise ClusterUnavailable("no kubeconfig")

    monkeypatch.setattr(kubernetes, "rollout", rollout)
    with pytest.raises(ClusterUnavailable):
        watch_release(Repository(ROOT), "prod", NEW, 10, lambda _: None)


@pytest.mark.parametrize(("brought", "refused"), [(NEW, True), (OLD, False)])
def test_what_argo_cd_could_not_apply_is_over_and_what_it_could_not_apply_before_is_not(
    monkeypatch: pytest.MonkeyPatch, brought: str, refused: bool
) -> None:
    model = '{"version": "2", "sha256": "ab", "run_id": "cd"}'
    asks = iter([_rollout(OLD), _rollout()])
    monkeypatch.setattr(kubernetes, "rollout", lambda _: next(asks))
    monkeypatch.setattr(watch, "PAUSE", 0.01)
    monkeypatch.setattr(watch, "unapplied", lambda _: Unapplied("12ab", "the signature of its image"))
    monkeypatch.setattr(Repository, "files", lambda *_: Release(brought, model).files())
    said: list[str] = []
    assert watch_release(Repository(ROOT), "prod", NEW, 10, said.append) is not refused
    assert ("the signature of its image" in said) is refused


def test_a_commit_that_is_not_here_is_not_taken_for_the_release() -> None:
    assert not watch._brings(Repository(ROOT), "f" * 40, "prod", NEW)
