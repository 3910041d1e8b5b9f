"""What could not be applied, as Argo CD says it of an Application; that it says so is played by the drill."""

from typing import Any

import pytest

from delivery import kubernetes
from delivery.explanation import unapplied

REVISION = "16aafca0ac6607e1d076bbfb8f05e6f8aa30cbc0"
HOOK = {"kind": "Job", "name": "signature", "hookPhase": "Failed", "status": "Synced", "message": "backoff limit"}
REFUSED = {"kind": "Service", "name": "iris-canary", "status": "SyncFailed", "message": "port: Invalid\nvalue: 0"}
FINE = {"kind": "Service", "name": "iris-stable", "hookPhase": "Running", "status": "Synced", "message": "applied"}


def _status(phase: str, *resources: dict[str, str], sync: str = "OutOfSync", message: str = "") -> dict[str, Any]:
    result = {"syncResult": {"revision": REVISION, "resources": list(resources)}} if resources else {}
    return {"sync": {"status": sync}, "operationState": {"phase": phase, "message": message, **result}}


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({}, []),
        (_status("Succeeded", FINE, sync="Synced"), []),
        (_status("Running", FINE), []),
        # Git has moved on to what runs: Argo CD then has nothing to do, and leaves its last failure there.
        (_status("Failed", HOOK, sync="Synced"), []),
        (
            _status("Failed", FINE, HOOK),
            [
                "Argo CD could not apply 16aafca0ac: the signature of its image could not be verified, so nothing "
                "of it was started.",
                "  | no signatures found",
            ],
        ),
        (
            _status("Failed", FINE, REFUSED),
            ["Argo CD could not apply 16aafca0ac:", "  | Service iris-canary: port: Invalid value: 0"],
        ),
        (
            _status("Error", message="ComparisonError: git is away"),
            ["Argo CD could not apply what git says:", "  | ComparisonError: git is away"],
        ),
    ],
)
def test_a_sync_that_failed_is_told_until_git_and_cluster_agree(
    monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], told: list[str]
) -> None:
    monkeypatch.setattr(kubernetes, "application", lambda _: {"status": status})
    monkeypatch.setattr(kubernetes, "last_words", lambda *_, **__: ["no signatures found"])
    refused = unapplied("prod")
    assert (refused.text.splitlines() if refused else []) == told
    assert not refused or refused.commit in {REVISION, ""}
