"""What is said of an abort by what the cluster and git say; that they say so is played by the drill."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from delivery import explanation, kubernetes
from delivery.explanation import aborted
from delivery.release import Release
from delivery.repository import Commit, Repository
from delivery.rollout import weight

OLD, NEW = (f"sha256:{digit * 64}" for digit in "12")
MEASURED = datetime(2026, 11, 24, 16, 17, 40, tzinfo=UTC)
CANARY = {"canary": {"steps": [{"setWeight": 10}, {"analysis": {}}]}}
STATUS = {
    "abort": True,
    "abortedAt": "2026-11-24T16:18:13Z",
    "currentPodHash": "new",
    "stableRS": "old",
    "message": "RolloutAborted: Rollout aborted update to revision 2",
}


def rollout(strategy: dict[str, Any] = CANARY, **status: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"image": f"example.org/iris@{NEW}"}]}}
    return {"spec": {"strategy": strategy, "template": template}, "status": STATUS | status}


def run(**status: Any) -> dict[str, Any]:
    """Return a gate of the new version, which has failed."""
    metadata = {"creationTimestamp": f"{MEASURED:%Y-%m-%dT%H:%M:%SZ}", "labels": {"step-index": "1"}}
    metric = {"name": "server-errors", "failureCondition": "result[0] > 0.01"}
    return {"metadata": metadata, "spec": {"metrics": [metric]}, "status": {"phase": "Failed", **status}}


def commit(after: timedelta) -> Commit:
    """Return the commit of a release, at that time after it was measured."""
    return Commit("049f066a32", "Ada <ada@example.org>", MEASURED + after, "prod: model 2", "")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the cluster and git say, to be changed by a test; one gate has failed."""
    result = {"name": "server-errors", "phase": "Failed", "measurements": [{"value": "[0.304]"}]}
    says: dict[str, Any] = {
        "rollout": rollout(),
        "runs": [run(metricResults=[result])],
        "commits": [commit(timedelta(seconds=-11))],
    }
    monkeypatch.setattr(kubernetes, "rollout", lambda _: says["rollout"])
    monkeypatch.setattr(kubernetes, "analysis_runs", lambda *_: says["runs"])
    monkeypatch.setattr(kubernetes, "image", lambda *_: f"example.org/iris@{OLD}")
    monkeypatch.setattr(kubernetes, "last_words", lambda *_, **__: [])
    monkeypatch.setattr(kubernetes, "number", lambda *_: None)
    monkeypatch.setattr(
        explanation, "releases", lambda *_: ((one, Release(NEW, '{"version": "2"}')) for one in says["commits"])
    )
    return says


def told() -> str:
    abort = aborted(Repository(Path()), "prod")
    assert abort
    assert (abort.digest, abort.stable) == (NEW, OLD)
    return abort.text


def test_a_failed_gate_is_told_with_its_number_and_limit(cluster: dict[str, Any]) -> None:
    assert "failed  server errors at the pods: 30.4 %, the limit is 1 %" in told()
    assert "Shipped by Ada" in told()
    cluster["rollout"] = rollout(abort=False)
    assert aborted(Repository(Path()), "prod") is None


def test_a_clock_that_is_ahead_does_not_hide_the_gate_that_failed(cluster: dict[str, Any]) -> None:
    cluster["commits"] = [commit(timedelta(minutes=2))]
    assert "30.4 %" in told()


def test_what_was_measured_when_it_was_released_before_is_not_told(cluster: dict[str, Any]) -> None:
    cluster["commits"] = [commit(timedelta(hours=2)), commit(timedelta(seconds=-11))]
    assert "30.4 %" not in told()
    assert "a person aborted the rollout" in told()


def test_a_gate_that_ended_before_it_measured_is_told(cluster: dict[str, Any]) -> None:
    cluster["runs"] = [run(phase="Error", message="unable to resolve metric arguments")]
    assert "  | unable to resolve metric arguments" in told()


def test_it_is_told_which_pods_were_not_ready_and_why(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {"state": {"running": {}}, "restartCount": 0}
    missing = {"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}, "restartCount": 0}
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu"}
    cluster["runs"], cluster["rollout"] = [], rollout(message="ReplicaSet has timed out progressing")
    cluster["rollout"]["spec"]["progressDeadlineSeconds"] = 180
    pods: list[dict[str, Any]] = [
        {"status": {"containerStatuses": [{**running, "ready": True}]}},
        {"status": {"containerStatuses": [{**running, "ready": False}]}},
        {"status": {"containerStatuses": [{**running, "ready": False}]}},
        {"status": {"containerStatuses": [{**missing, "ready": False}]}},
        {"status": {"conditions": [full]}},
    ]
    monkeypatch.setattr(kubernetes, "pods", lambda *_: pods)
    assert told().partition("180 seconds.\n")[2].partition("\n\n")[0].splitlines() == [
        "  It runs, and says that it is not ready.",
        "  | ErrImagePull: not found",
        "  | Unschedulable: Insufficient cpu",
    ]
    pods[1:4] = []
    assert "says that it is not ready" not in told()


def test_a_gate_without_a_verdict_in_time_is_not_taken_for_pods_that_are_not_ready(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster["runs"], cluster["rollout"] = [run(phase="Inconclusive")], rollout(message="it timed out progressing")
    cluster["rollout"]["spec"]["progressDeadlineSeconds"] = 180
    pod = {"status": {"containerStatuses": [{"state": {"running": {}}, "restartCount": 0, "ready": True}]}}
    monkeypatch.setattr(kubernetes, "pods", lambda *_: [pod])
    assert "ready, but its gate had no verdict within the 180 seconds" in told()
    cluster["runs"] = [run(phase="Successful")]
    assert "It was not ready within its 180 seconds." in told()


def test_what_cannot_be_understood_keeps_nobody_from_going_back(cluster: dict[str, Any]) -> None:
    cluster["rollout"] = rollout(abortedAt="yesterday")
    assert "is not understood" in told()


def test_last_words_may_be_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = r'{"items": [{"metadata": {"name": "one"}, "status": {}}]}'
    program = tmp_path / "kubectl"
    program.write_text(f"""#!/bin/sh\ncase "$2" in get) echo '{pod}' ;; logs) printf 'died: \\377\\n' ;; esac\n""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert kubernetes.last_words("prod", "job-name=x", lines=1) == ["died: \N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("strategy", "status", "expected"),
    [
        (CANARY, {"abort": False, "currentStepIndex": 0}, 0),
        (CANARY, {"abort": False, "currentStepIndex": 1}, 10),
        (CANARY, {"currentStepIndex": 1}, 0),
        (CANARY, {"abort": False, "stableRS": "new"}, 100),
        (CANARY, {"currentPodHash": None, "stableRS": None}, 0),  # a first one that Argo Rollouts refuses
        # Switched, and not yet judged by what all users got.
        ({"blueGreen": {}}, {"abort": False, "blueGreen": {"activeSelector": "new"}}, 100),
        ({"blueGreen": {}}, {"abort": False, "blueGreen": {"activeSelector": "old"}}, 0),
    ],
)
def test_weight_is_read_from_the_rollout(strategy: dict[str, Any], status: dict[str, Any], expected: int) -> None:
    assert weight(rollout(strategy, **status)) == expected
