"""The workflows on GitHub run the same commands as a laptop, with the least permissions."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import yaml

from delivery.kubernetes import KubernetesObject
from delivery.release import ENVIRONMENTS, IMAGE
from tests.support.running import ROOT
from tools.ci import supply_chain
from tools.ci.__main__ import app

FOLDER = ROOT / ".github/workflows"
NAMES = ("ci", "drill", "promote", "release", "revert")
MODULES = ("delivery", "delivery.push", "tools.ci")
# Well-known programs and the subcommands that are used.
KNOWN = ("apt-get update", "apt-get install", "docker login", "gh auth", "gh release", "gh run", "git config")
WRITES = {  # a further write permission needs a review
    ("release", "image"): {"packages", "id-token", "attestations"},
    ("release", "dev"): {"contents"},
    ("promote", "prod"): {"contents"},
    ("revert", "revert"): {"contents"},
}


def _read(name: str) -> KubernetesObject:
    # BaseLoader reads `on` as a string, not as a boolean.
    read: KubernetesObject = yaml.load((FOLDER / f"{name}.yml").read_text(), yaml.BaseLoader)  # noqa: S506 - it makes only strings
    return read


WORKFLOWS = {name: _read(name) for name in NAMES}
JOBS = [(name, job, spec) for name, workflow in WORKFLOWS.items() for job, spec in workflow["jobs"].items()]
STEPS = [(name, job, step) for name, job, spec in JOBS for step in spec["steps"]]
RUNS = sorted({step["run"] for _, _, step in STEPS if "run" in step})


def _targets() -> set[str]:
    return set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _environments(spec: KubernetesObject) -> Iterator[tuple[str, str]]:
    for item in (spec, *spec["steps"]):
        yield from item.get("env", {}).items()


def test_every_workflow_is_tested() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {f"{name}.yml" for name in NAMES}
    assert {workflow["name"] for workflow in WORKFLOWS.values()} == set(NAMES)


@pytest.mark.parametrize("run", RUNS)
def test_each_step_is_one_known_command(run: str) -> None:
    command = re.sub(
        r'( >> "\$GITHUB_(OUTPUT|STEP_SUMMARY)"| <<< "\$TOKEN"| 2>&1 \| tee \w+\.txt)$', "", run.strip()
    )
    assert not re.search(r"[;&|<>`\n]|\$\(", command), "more than one command"
    match shlex.split(command):
        case ["make", target]:
            assert target in _targets()
        case [".venv/bin/python", "-m", module, subcommand, *_]:
            assert module in MODULES
            assert find_spec(module)
            if module == "tools.ci":
                assert subcommand in {
                    command.callback.__name__ for command in app.registered_commands if command.callback
                }
        case [".venv/bin/coverage", "report", *_]:
            pass
        case [program, verb, *_]:
            assert f"{program} {verb}" in KNOWN
        case _:
            pytest.fail("neither make, nor a module of this repository, nor a well-known program")


@pytest.mark.parametrize("run", RUNS)
def test_variables_are_quoted_and_expressions_are_not_in_commands(run: str) -> None:
    assert "${{" not in run
    assert not re.search(r"\$\w", re.sub(r'"[^"]*"', "", run)), "an unquoted variable"


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_pinned_by_commit_with_the_version_in_a_comment(name: str) -> None:
    text = (FOLDER / f"{name}.yml").read_text()
    uses = re.findall(r"^ *(?:- )?uses: *(.*)$", text, re.MULTILINE)
    assert uses
    for use in uses:
        assert re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use
    for image in re.findall(r"^ *image: (.*)$", text, re.MULTILINE):
        assert re.fullmatch(r"[\w:.-]+@sha256:[0-9a-f]{64}", image), image


def test_each_action_has_the_same_version_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for _, _, step in STEPS:
        if "uses" in step:
            action, _, commit = step["uses"].partition("@")
            pins.setdefault("/".join(action.split("/")[:2]), set()).add(commit)
    assert {action for action, commits in pins.items() if len(commits) > 1} == set()


@pytest.mark.parametrize("name", NAMES)
def test_permissions_are_granted_only_to_jobs(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    assert WORKFLOWS[name]["defaults"] == {"run": {"shell": "bash"}}  # bash -e -o pipefail


@pytest.mark.parametrize(("name", "job", "spec"), JOBS, ids=[f"{name} {job}" for name, job, _ in JOBS])
def test_jobs_have_a_timeout_and_no_other_write_permission(name: str, job: str, spec: KubernetesObject) -> None:
    assert 0 < int(spec["timeout-minutes"]) <= 150
    written = {right for right, access in spec["permissions"].items() if access == "write"}
    assert written == WRITES.get((name, job), set())
    checkouts = [step for step in spec["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert [step["with"]["persist-credentials"] for step in checkouts] == ["false"]


@pytest.mark.parametrize("spec", [spec for _, _, spec in JOBS], ids=[f"{name} {job}" for name, job, _ in JOBS])
def test_secrets_come_from_an_environment_and_are_given_to_single_steps(spec: KubernetesObject) -> None:
    assert "secrets." not in str(spec.get("env", {})), "a secret is given to all steps of a job"
    secrets = {value for _, value in _environments(spec) if "secrets." in value}
    assert not secrets or spec["environment"] in {"delivery", "prod"}
    assert "secrets." not in str([step.get("with", {}) for step in spec["steps"]])


def test_no_workflow_runs_foreign_code_with_permissions() -> None:
    for name, workflow in WORKFLOWS.items():
        assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(workflow["on"])
        if "pull_request" in workflow["on"]:
            assert not re.search(r"secrets\.|github\.token", str(workflow))
            assert name not in {where for where, _ in WRITES}
    expressions = set(re.findall(r"github\.event\.[\w.]+|github\.head_ref", str(list(WORKFLOWS.values()))))
    assert expressions == {"github.event.before"}


def test_ci_runs_every_target_of_the_laptop() -> None:
    lines = re.findall(r"^make (.+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    laptop = [word for line in lines for word in line.split() if not word.startswith("-")]
    ci = {step["run"] for name, _, step in STEPS if name == "ci" and "run" in step}
    assert laptop
    assert {f"make {target}" for target in laptop} <= ci


def test_release_runs_on_main_and_is_not_triggered_by_its_own_commit() -> None:
    assert WORKFLOWS["release"]["on"] == {
        "push": {"branches": ["main"], "paths-ignore": ["overlays/**", "docs/**", "*.md"]}
    }
    for name in ("release", "promote"):
        assert WORKFLOWS[name]["concurrency"] == {"group": name, "cancel-in-progress": "false"}
    assert "concurrency" not in WORKFLOWS["revert"]  # GitHub would drop an abort


def test_event_type_of_the_notification_starts_the_revert() -> None:
    notifications = (ROOT / "manifests/platform/argo-rollouts/notifications.yaml").read_text()
    [event] = re.findall(r'"event_type": "([\w-]+)"', notifications)
    assert WORKFLOWS["revert"]["on"]["repository_dispatch"] == {"types": [event]}


def test_schedule_asks_each_environment_for_an_abort_if_the_cluster_can_be_reached() -> None:
    assert list(WORKFLOWS["revert"]["on"]["schedule"][0]) == ["cron"]
    steps = WORKFLOWS["revert"]["jobs"]["revert"]["steps"]
    polls = {step["id"]: step for step in steps if "--if-aborted" in step.get("run", "")}
    assert polls.keys() == set(ENVIRONMENTS)
    for environment, step in polls.items():
        assert f" delivery.push revert {environment} --if-aborted " in step["run"]
        assert "github.event_name == 'schedule' && steps.kubeconfig.outputs.configured == 'true'" in step["if"]
    # One that fails does not keep the other from being asked.
    assert [step["if"].startswith("!cancelled()") for step in polls.values()] == [False, True]


def test_only_promotions_need_an_approval() -> None:
    where = {(name, job): spec.get("environment") for name, job, spec in JOBS}
    assert where["promote", "prod"] == "prod"
    assert [key for key, environment in where.items() if environment == "prod"] == [("promote", "prod")]


def test_the_released_image_is_attested_by_the_workflow_that_is_verified() -> None:
    [attest] = [
        step for _, _, step in STEPS if step.get("uses", "").startswith("actions/attest-build-provenance@")
    ]
    assert attest["with"]["subject-name"] == IMAGE
    [release] = [name for name, workflow in WORKFLOWS.items() if "tools.ci sign" in str(workflow)]
    job = yaml.safe_load((ROOT / "manifests/iris/signature.yaml").read_text())
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert supply_chain.keyless() == supply_chain.Signer((), tuple(container["args"][1:3]))
    assert f"/.github/workflows/{release}.yml@refs/heads/main" in supply_chain.keyless().verifying[0]
