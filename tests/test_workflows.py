"""The workflows on GitHub say what is run elsewhere too, with as few rights as it takes."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import yaml

from delivery.kubernetes import KubernetesObject
from delivery.release import IMAGE
from tests.support.running import ROOT
from tools.ci import supply_chain
from tools.ci.__main__ import app

FOLDER = ROOT / ".github/workflows"
NAMES = ("ci", "drill", "promote", "release", "revert")
MODULES = ("delivery", "delivery.push", "tools.ci")
# Single programs that everybody knows, and what of each is used.
KNOWN = ("apt-get update", "apt-get install", "docker login", "gh auth", "gh release", "gh run", "git config")
WRITES = {  # whatever else is written here needs a reason that somebody reads
    ("release", "image"): {"packages", "id-token", "attestations"},
    ("release", "dev"): {"contents"},
    ("promote", "prod"): {"contents"},
    ("revert", "revert"): {"contents"},
}


def _read(name: str) -> KubernetesObject:
    # BaseLoader: `on` is a word, not a truth.
    read: KubernetesObject = yaml.load((FOLDER / f"{name}.yml").read_text(), yaml.BaseLoader)  # noqa: S506 - makes strings
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


def test_these_are_all() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {f"{name}.yml" for name in NAMES}
    assert {workflow["name"] for workflow in WORKFLOWS.values()} == set(NAMES)


@pytest.mark.parametrize("run", RUNS)
def test_a_step_is_one_command_that_there_is(run: str) -> None:
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
            pytest.fail("neither make, nor a module of this repository, nor a program that everybody knows")


@pytest.mark.parametrize("run", RUNS)
def test_a_variable_cannot_become_another_word_or_a_command(run: str) -> None:
    assert "${{" not in run
    assert not re.search(r"\$\w", re.sub(r'"[^"]*"', "", run)), "a variable without quotes"


@pytest.mark.parametrize("name", NAMES)
def test_every_action_is_pinned_by_a_commit_and_says_which_version_that_is(name: str) -> None:
    text = (FOLDER / f"{name}.yml").read_text()
    uses = re.findall(r"^ *(?:- )?uses: *(.*)$", text, re.MULTILINE)
    assert uses
    for use in uses:
        assert re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use
    for image in re.findall(r"^ *image: (.*)$", text, re.MULTILINE):
        assert re.fullmatch(r"[\w:.-]+@sha256:[0-9a-f]{64}", image), image


def test_an_action_has_one_version_in_all_workflows() -> None:
    pins: dict[str, set[str]] = {}
    for _, _, step in STEPS:
        if "uses" in step:
            action, _, commit = step["uses"].partition("@")
            pins.setdefault("/".join(action.split("/")[:2]), set()).add(commit)
    assert {action for action, commits in pins.items() if len(commits) > 1} == set()


@pytest.mark.parametrize("name", NAMES)
def test_no_right_is_given_but_by_a_job(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    assert WORKFLOWS[name]["defaults"] == {"run": {"shell": "bash"}}  # which is -e -o pipefail


@pytest.mark.parametrize(("name", "job", "spec"), JOBS, ids=[f"{name} {job}" for name, job, _ in JOBS])
def test_a_job_has_a_limit_of_time_and_of_rights(name: str, job: str, spec: KubernetesObject) -> None:
    assert 0 < int(spec["timeout-minutes"]) <= 150
    written = {right for right, access in spec["permissions"].items() if access == "write"}
    assert written == WRITES.get((name, job), set())
    checkouts = [step for step in spec["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert [step["with"]["persist-credentials"] for step in checkouts] == ["false"]


@pytest.mark.parametrize("spec", [spec for _, _, spec in JOBS], ids=[f"{name} {job}" for name, job, _ in JOBS])
def test_a_secret_is_shown_to_the_step_that_needs_it_and_comes_from_an_environment(spec: KubernetesObject) -> None:
    assert "secrets." not in str(spec.get("env", {})), "a secret for all steps of a job"
    told = {value for _, value in _environments(spec) if "secrets." in value}
    assert not told or spec["environment"] in {"delivery", "prod"}
    assert "secrets." not in str([step.get("with", {}) for step in spec["steps"]])


def test_no_workflow_runs_what_a_stranger_wrote_with_rights_of_this_repository() -> None:
    for name, workflow in WORKFLOWS.items():
        assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(workflow["on"])
        if "pull_request" in workflow["on"]:
            assert not re.search(r"secrets\.|github\.token", str(workflow))
            assert name not in {where for where, _ in WRITES}
    expressions = set(re.findall(r"github\.event\.[\w.]+|github\.head_ref", str(list(WORKFLOWS.values()))))
    assert expressions == {"github.event.before"}


def test_ci_runs_what_a_laptop_runs() -> None:
    lines = re.findall(r"^make (.+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    laptop = [word for line in lines for word in line.split() if not word.startswith("-")]
    ci = {step["run"] for name, _, step in STEPS if name == "ci" and "run" in step}
    assert laptop
    assert {f"make {target}" for target in laptop} <= ci


def test_a_release_runs_on_main_and_a_commit_of_a_release_makes_no_other() -> None:
    assert WORKFLOWS["release"]["on"] == {
        "push": {"branches": ["main"], "paths-ignore": ["overlays/**", "docs/**", "*.md"]}
    }
    for name in ("release", "promote"):
        assert WORKFLOWS[name]["concurrency"] == {"group": name, "cancel-in-progress": "false"}
    assert "concurrency" not in WORKFLOWS["revert"]  # which would drop an abort


def test_what_the_cluster_says_of_an_abort_starts_the_revert() -> None:
    notifications = (ROOT / "manifests/platform/argo-rollouts/notifications.yaml").read_text()
    [event] = re.findall(r'"event_type": "([\w-]+)"', notifications)
    assert WORKFLOWS["revert"]["on"]["repository_dispatch"] == {"types": [event]}


def test_nobody_approves_a_revert_and_somebody_a_promotion() -> None:
    where = {(name, job): spec.get("environment") for name, job, spec in JOBS}
    assert where["promote", "prod"] == "prod"
    assert [key for key, environment in where.items() if environment == "prod"] == [("promote", "prod")]


def test_what_is_attested_is_the_image_that_is_released_by_the_workflow_that_is_verified() -> None:
    [attest] = [
        step for _, _, step in STEPS if step.get("uses", "").startswith("actions/attest-build-provenance@")
    ]
    assert attest["with"]["subject-name"] == IMAGE
    [release] = [name for name, workflow in WORKFLOWS.items() if "tools.ci sign" in str(workflow)]
    job = yaml.safe_load((ROOT / "manifests/iris/signature.yaml").read_text())
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert supply_chain.keyless() == supply_chain.Signer((), tuple(container["args"][1:3]))
    assert f"/.github/workflows/{release}.yml@refs/heads/main" in supply_chain.keyless().verifying[0]
