"""The explanation of a failed sync. The drill runs it with a real Argo CD; here its answers are replaced."""

from typing import Any

import pytest

from delivery import kubernetes
from delivery.explanation import SIGNATURE_NOT_VERIFIED, unapplied

REVISION = "16aafca0ac6607e1d076bbfb8f05e6f8aa30cbc0"
HOOK = {"kind": "Job", "name": "signature", "hookPhase": "Failed", "status": "Synced", "message": "backoff limit"}
REFUSED = {"kind": "Service", "name": "iris-canary", "status": "SyncFailed", "message": "port: Invalid\nvalue: 0"}
FINE = {"kind": "Service", "name": "iris-stable", "hookPhase": "Running", "status": "Synced", "message": "applied"}


def _status(phase: str, *resources: dict[str, str], sync: str = "OutOfSync", message: str = "") -> dict[str, Any]:
    result = {"syncResult": {"revision": REVISION, "resources": list(resources)}} if resources else {}
    return {"sync": {"status": sync}, "operationState": {"phase": phase, "message": message, **result}}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, []),
        (_status("Succeeded", FINE, sync="Synced"), []),
        (_status("Running", FINE), []),
        # Git was reverted to the stable version: Argo CD has nothing to do, and keeps reporting its last failure.
        (_status("Failed", HOOK, sync="Synced"), []),
        (
            _status("Failed", FINE, HOOK),
            [
                f"Argo CD could not apply commit 16aafca0ac: {SIGNATURE_NOT_VERIFIED}, and no pod was started",
                "  | no signatures found",
            ],
        ),
        (
            _status("Failed", FINE, REFUSED),
            ["Argo CD could not apply commit 16aafca0ac", "  | Service iris-canary: port: Invalid value: 0"],
        ),
        (
            _status("Error", message="ComparisonError: git is unavailable"),
            ["Argo CD could not apply the newest commit", "  | ComparisonError: git is unavailable"],
        ),
    ],
)
def test_failed_sync_is_explained_until_git_and_cluster_agree(
    monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], expected: list[str]
) -> None:
    monkeypatch.setattr(kubernetes, "application", lambda _: {"status": status})
    monkeypatch.setattr(kubernetes, "last_log_lines", lambda *_, **__: ["no signatures found"])
    refused = unapplied("prod")
    assert (refused.text.splitlines() if refused else []) == expected
    assert not refused or refused.commit in {REVISION, ""}
