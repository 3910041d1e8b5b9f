"""When an abort is reported to the git host, evaluated by the engine that Argo Rollouts uses."""

import json
import re
import subprocess
from typing import Any

import yaml

from tests.support.go_program import go_program
from tests.support.running import ROOT
from tools import programs

CONFIGURATION = yaml.safe_load((ROOT / "manifests/platform/argo-rollouts/notifications.yaml").read_text())["data"]


def _sent(trigger: str, *statuses: dict[str, Any]) -> list[bool]:
    """Return whether the trigger sends a notification for Rollouts with these statuses."""
    conditions = yaml.safe_load(CONFIGURATION[f"trigger.{trigger}"])
    request = {"conditions": conditions, "rollouts": [{"status": status} for status in statuses]}
    program = go_program(ROOT / "tests/support/trigger.go", "argo-rollouts")
    done = subprocess.run([program], input=json.dumps(request), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: list[bool] = json.loads(done.stdout)
    return answer


def test_abort_is_reported_and_nothing_else() -> None:
    assert _sent("on-abort", {"abort": True}, {"abort": False}, {}) == [True, False, False]


def test_no_trigger_has_the_name_of_an_event_for_which_the_release_would_wait() -> None:
    """Argo Rollouts sends such a trigger while it processes the Rollout, and waits for the git host's answer."""
    source = programs.source("argo-rollouts") / "utils/conditions/conditions.go"
    reasons = set(re.findall(r'"(\w+)"', source.read_text()))
    assert _reason("trigger.on-rollout-aborted") in reasons
    assert not {_reason(key) for key in CONFIGURATION if key.startswith("trigger.")} & reasons


def _reason(key: str) -> str:
    """Return the reason of the event that sends a trigger."""
    return key.removeprefix("trigger.on-").title().replace("-", "")


def test_rollout_subscribes_to_each_trigger() -> None:
    rollout = yaml.safe_load((ROOT / "manifests/iris/rollout.yaml").read_text())
    prefix, service = "notifications.argoproj.io/subscribe.", ".forge"
    subscribed = {key.removeprefix(prefix).removesuffix(service) for key in rollout["metadata"]["annotations"]}
    assert {f"trigger.{name}" for name in subscribed} == {
        key for key in CONFIGURATION if key.startswith("trigger.")
    }
