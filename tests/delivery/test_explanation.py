"""The explanation of an abort. The drill runs it against a real cluster; here kubectl's answers are replaced."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from delivery import changes, explanation, kubernetes, manifests, status
from delivery.explanation import ABORTED_BY_PERSON, FAILED_MARK, METRIC_LABELS, NOT_READY, WHOLE_TRAFFIC, aborted
from delivery.release import Release
from delivery.repository import Commit, Repository
from delivery.rollout import weight

OLD, NEW = (f"sha256:{digit * 64}" for digit in "12")
MEASURED = datetime(2026, 11, 24, 16, 17, 40, tzinfo=UTC)
CANARY = {"canary": {"steps": [{"setWeight": 10}, {"analysis": {}}]}}
STATUS = {
    "abort": True,
    "observedGeneration": "2",
    "abortedAt": "2026-11-24T16:18:13Z",
    "currentPodHash": "new",
    "stableRS": "old",
    "message": "RolloutAborted: Rollout aborted update to revision 2",
}


def rollout(strategy: dict[str, Any] = CANARY, **changed: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"image": f"example.org/iris@{NEW}"}]}}
    spec = {"strategy": strategy, "template": template}
    return {"metadata": {"generation": 2}, "spec": spec, "status": STATUS | changed}


def run(**changed: Any) -> dict[str, Any]:
    """Return an AnalysisRun of the new version, which has failed."""
    metadata = {"creationTimestamp": f"{MEASURED:%Y-%m-%dT%H:%M:%SZ}", "labels": {"step-index": "1"}}
    metric = {"name": "server-errors", "failureCondition": "result[0] > 0.01"}
    return {"metadata": metadata, "spec": {"metrics": [metric]}, "status": {"phase": "Failed", **changed}}


def commit(after: timedelta) -> Commit:
    """Return the commit of a release, with the time between the measurement and the commit."""
    return Commit("049f066a32", "Ada <ada@example.org>", MEASURED + after, "prod: model 2", "", {})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the cluster and git report, for a test to change; one gate has failed."""
    result = {"name": "server-errors", "phase": "Failed", "measurements": [{"value": "[0.304]"}]}
    reports: dict[str, Any] = {
        "rollout": rollout(),
        "runs": [run(metricResults=[result])],
        "commits": [commit(timedelta(seconds=-11))],
    }
    monkeypatch.setattr(kubernetes, "rollout", lambda _: reports["rollout"])
    monkeypatch.setattr(kubernetes, "analysis_runs", lambda *_: reports["runs"])
    monkeypatch.setattr(kubernetes, "image", lambda *_: f"example.org/iris@{OLD}")
    monkeypatch.setattr(kubernetes, "last_log_lines", lambda *_, **__: [])
    monkeypatch.setattr(kubernetes, "number", lambda *_: None)
    monkeypatch.setattr(manifests, "changed", lambda *_: [])
    monkeypatch.setattr(
        explanation, "releases", lambda *_: ((one, Release(NEW, '{"version": "2"}')) for one in reports["commits"])
    )
    return reports


def explained() -> str:
    abort = aborted(Repository(Path()), "prod")
    assert abort
    assert (abort.digest, abort.stable) == (NEW, OLD)
    return abort.text


def test_failed_gate_is_explained_with_its_value_and_limit(cluster: dict[str, Any]) -> None:
    assert explained().startswith(
        "Aborted at 10 % of traffic: server errors at the pods 30.4 %, limit 1 %\n\n"
        f"release   model 2 ({NEW[:19]}) in prod\n"
        "released  2026-11-24 16:17:29 UTC by Ada <ada@example.org>, commit 049f066a32\n"
        "aborted   2026-11-24 16:18:13 UTC; the stable version serves all traffic\n\n"
        "Measured at 10 % of traffic:\n"
        f"  {FAILED_MARK:>7}  {METRIC_LABELS['server-errors']}    30.4 %     limit 1 %\n\n"
        "Requests: not known, because Prometheus was unavailable\n"
    )
    cluster["rollout"] = rollout(abort=False)
    assert aborted(Repository(Path()), "prod") is None


def test_status_of_the_aborted_release_is_not_that_of_the_release_that_git_restored(
    cluster: dict[str, Any],
) -> None:
    cluster["rollout"] = rollout(observedGeneration="1")
    assert aborted(Repository(Path()), "prod") is None


def test_commit_with_a_fast_clock_does_not_hide_the_failed_gate(cluster: dict[str, Any]) -> None:
    cluster["commits"] = [commit(timedelta(minutes=2))]
    assert "30.4 %" in explained()


def test_measurements_of_an_earlier_release_of_the_image_are_ignored(cluster: dict[str, Any]) -> None:
    cluster["commits"] = [commit(timedelta(hours=2)), commit(timedelta(seconds=-11))]
    assert "30.4 %" not in explained()
    assert f"Aborted {ABORTED_BY_PERSON} " in explained()


def test_gate_without_a_measurement_is_explained_by_its_message(cluster: dict[str, Any]) -> None:
    cluster["runs"] = [run(phase="Error", message="unable to resolve metric arguments")]
    assert "  | unable to resolve metric arguments" in explained()


def test_failed_gate_is_compared_with_the_stable_version(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    query = 'errors{service="iris-canary", hash="new"}'
    measured = {"value": "[0.304]", "finishedAt": "2026-11-24T16:18:10Z"}
    [result] = cluster["runs"][0]["status"]["metricResults"]
    result |= {"measurements": [measured], "metadata": {"ResolvedPrometheusQuery": query}}
    answers = {query.replace("canary", "stable").replace("new", "old"): 0.0}
    monkeypatch.setattr(kubernetes, "number", lambda asked, _: answers.get(asked))
    assert "30.4 %     limit 1 %    stable 0 %\n" in explained()


def test_golden_gate_is_explained_by_its_log(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measurement = {"phase": "Failed", "metadata": {"job-name": "golden-1"}}
    golden = run(metricResults=[{"name": "golden", "phase": "Failed", "measurements": [measurement]}])
    golden["spec"]["metrics"], golden["metadata"]["labels"] = [{"name": "golden"}], {"step-index": "0"}
    cluster["runs"] = [golden]
    logs = {"job-name=golden-1": ["recorded is class 1"]}
    monkeypatch.setattr(kubernetes, "last_log_lines", lambda _, selector, **__: logs.get(selector, ["noise"]))
    text = explained()
    assert text.startswith("Aborted before any traffic: golden gate failed\n\n")
    assert f"Measured before any traffic:\n  {FAILED_MARK:>7}  golden gate\n  | recorded is class 1\n\n" in text
    assert "noise" not in text


def test_blue_green_release_is_explained(cluster: dict[str, Any]) -> None:
    cluster["rollout"] = rollout({"blueGreen": {}})
    cluster["runs"][0]["metadata"]["labels"] = {"rollout-type": "PostPromotion"}
    text = explained()
    assert text.startswith("Aborted at 100 % of traffic: server errors at the pods 30.4 %, limit 1 %\n")
    assert f"\nRequests: {WHOLE_TRAFFIC}\n" in text
    cluster["runs"][0]["metadata"]["labels"] = {"rollout-type": "PrePromotion"}
    assert "\nRequests: none went to the new version\n" in explained()


def test_status_shows_git_argo_cd_the_rollout_and_its_gates(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    application = {
        "status": {"sync": {"status": "Synced", "revision": "049f066a32c"}, "health": {"status": "Healthy"}}
    }
    monkeypatch.setattr(kubernetes, "application", lambda _: application)
    monkeypatch.setattr(changes, "current", lambda *_: Release(NEW, '{"version": "2"}'))
    cluster["rollout"] = rollout(abort=False, phase="Progressing", message="", currentStepIndex=1)
    limits = commit(timedelta())._replace(subject="slo: allow 2 %")
    monkeypatch.setattr(manifests, "changed", lambda *_: [limits])
    _, *lines = status.lines(Repository(Path()), "prod")
    assert lines == [
        "Argo CD   Synced to commit 049f066a32, Healthy",
        "changed   049f066a32 by Ada <ada@example.org>: slo: allow 2 %",
        f"rollout   Progressing: {NEW[:19]} serves 10 % of traffic, step 1 of 2",
        "gate      Failed",
        "   failed  server errors at the pods    30.4 %     limit 1 %",
    ]
    cluster["rollout"] = None
    assert list(status.lines(Repository(Path()), "prod"))[-1] == "rollout   none"


def test_pods_that_are_not_ready_are_explained(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert explained().partition("not ready:\n")[2].partition("\n\n")[0].splitlines() == [
        "  runs, but its readiness probe fails",
        "  | ErrImagePull: not found",
        "  | Unschedulable: Insufficient cpu",
    ]
    pods[1:4] = []
    assert "readiness probe" not in explained()


def test_missed_deadline_of_a_gate_is_not_blamed_on_the_pods(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster["runs"], cluster["rollout"] = [run(phase="Inconclusive")], rollout(message="it timed out progressing")
    cluster["rollout"]["spec"]["progressDeadlineSeconds"] = 180
    pod = {"status": {"containerStatuses": [{"state": {"running": {}}, "restartCount": 0, "ready": True}]}}
    monkeypatch.setattr(kubernetes, "pods", lambda *_: [pod])
    assert "the pods were ready, but the gate had no verdict within 180 s" in explained()
    cluster["runs"] = [run(phase="Successful")]
    assert f"Aborted: {NOT_READY} 180 s\n" in explained()


def test_unreadable_status_does_not_prevent_the_revert(cluster: dict[str, Any]) -> None:
    cluster["rollout"] = rollout(abortedAt="yesterday")
    assert "could not be interpreted" in explained()


def test_log_lines_may_be_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = r'{"items": [{"metadata": {"name": "one"}, "status": {}}]}'
    program = tmp_path / "kubectl"
    program.write_text(f"""#!/bin/sh\ncase "$2" in get) echo '{pod}' ;; logs) printf 'died: \\377\\n' ;; esac\n""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert kubernetes.last_log_lines("prod", "job-name=x", lines=1) == ["died: \N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("strategy", "changed", "expected"),
    [
        (CANARY, {"abort": False, "currentStepIndex": 0}, 0),
        (CANARY, {"abort": False, "currentStepIndex": 1}, 10),
        (CANARY, {"currentStepIndex": 1}, 0),
        (CANARY, {"abort": False, "stableRS": "new"}, 100),
        (CANARY, {"currentPodHash": None, "stableRS": None}, 0),  # a first release that Argo Rollouts refuses
        # Switched, and not yet judged with the whole traffic.
        ({"blueGreen": {}}, {"abort": False, "blueGreen": {"activeSelector": "new"}}, 100),
        ({"blueGreen": {}}, {"abort": False, "blueGreen": {"activeSelector": "old"}}, 0),
    ],
)
def test_weight_is_read_from_the_rollout(strategy: dict[str, Any], changed: dict[str, Any], expected: int) -> None:
    assert weight(rollout(strategy, **changed)) == expected
