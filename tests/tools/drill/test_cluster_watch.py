"""The watch turns changes of objects and commits into events; the drill tests that the cluster makes them."""

from pathlib import Path
from typing import Any

import pytest

from delivery.git import git, identity
from tools.cluster import git_server
from tools.drill import cluster_watch
from tools.drill.recording import Event, Measurement, describe

ROLLOUT = {
    "kind": "Rollout",
    "spec": {"template": {"metadata": {"annotations": {"model-version": "8"}}}},
}


def test_measurements_taken_at_once_are_one_event() -> None:
    before = run(result("router-errors", successful=1), result("server-errors", successful=1))
    failed = result("router-errors", successful=1, failed=1, phase="Failed", value="[0.306]")
    inconclusive = result("server-errors", successful=1, inconclusive=1, phase="Inconclusive", value="[]")
    (event,) = events(before, run(inconclusive, failed))
    assert event.measurements == (
        Measurement("router-errors", "Failed", 0.306),
        Measurement("server-errors", "Inconclusive"),
    )
    assert event.good is False
    assert describe(event) == "router-errors 0.306, server-errors Inconclusive"
    assert events(before, before) == []


@pytest.mark.parametrize(
    ("phases", "good"),
    [
        (["Successful"], True),
        (["Successful", "Inconclusive"], None),
        (["Error", "Failed"], False),
        (["Error"], None),
    ],
)
def test_gate_event_is_good_if_all_measurements_are(phases: list[str], good: bool | None) -> None:
    event = Event(0.0, "gate", measurements=tuple(Measurement("golden", phase) for phase in phases))
    assert event.good is good


def test_weight_change_has_the_new_weight() -> None:
    assert [event.weight for event in events(split(0), split(10))] == [10]
    assert [event.weight for event in events(split(10), split(0))] == [0]
    assert events(split(10), split(10)) == []
    assert events({}, split(10)) == []


def test_sync_has_the_commit() -> None:
    assert [event.commit for event in events(application("OutOfSync", "a"), application("Synced", "b"))] == ["b"]
    assert events(application("Synced", "a"), application("OutOfSync", "b")) == []


def test_abort_and_promotion_are_events_once() -> None:
    before, aborted = (
        ROLLOUT | {"status": {"stableRS": "1"}},
        ROLLOUT | {"status": {"stableRS": "1", "abort": True}},
    )
    promoted = ROLLOUT | {"status": {"stableRS": "2"}}
    assert [event.kind for event in events(before, aborted)] == ["abort"]
    assert events(aborted, aborted) == []
    assert [(event.kind, event.model_version) for event in events(before, promoted)] == [("promoted", "8")]


def test_commit_is_a_revert_if_a_trailer_rejects_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    monkeypatch.setattr(git_server, "repository", lambda: tmp_path)
    digest = "sha256:" + "0" * 64
    for message, kind in (
        ("prod: model 7", "commit"),
        ("prod: roll back model 7\n\nerrors: 30 %\n\nRelease-Rejected: " + digest, "revert"),
        (f"prod: model 8\n\nAfter a revert:\n\nRelease-Rejected: {digest}\n\nModel-Version: 8", "commit"),
    ):
        git(tmp_path, "commit", "--allow-empty", "--quiet", f"--message={message}", environ=identity("A", "a@b.c"))
        head = git(tmp_path, "rev-parse", "HEAD").strip()
        event = cluster_watch._committed(1.0, head)
        assert event == Event(1.0, kind, commit=head, subject=message.partition("\n")[0])  # type: ignore[arg-type]


def events(before: dict[str, Any], after: dict[str, Any]) -> list[Event]:
    return list(cluster_watch._events(before, after))


def run(*results: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "AnalysisRun", "status": {"metricResults": list(results)}}


def result(name: str, phase: str = "Successful", value: str = "[0]", **counts: int) -> dict[str, Any]:
    measurements = [{"phase": phase, "value": value, "finishedAt": "2026-11-29T00:00:00Z"}, {"phase": "Running"}]
    return {"name": name, "measurements": measurements, **counts}


def split(weight: int) -> dict[str, Any]:
    services = [{"name": "iris-stable", "weight": 100 - weight}, {"name": "iris-canary", "weight": weight}]
    return {"kind": "TraefikService", "spec": {"weighted": {"services": services}}}


def application(status: str, revision: str) -> dict[str, Any]:
    return {"kind": "Application", "status": {"sync": {"status": status, "revision": revision}}}
