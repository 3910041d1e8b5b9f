"""An abort whose release did not change: the commit that changed the manifests is found and reverted.

git and Kustomize are real; the cluster's answers are replaced.
"""

import shutil
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from delivery import changes, kubernetes, manifests
from delivery.__main__ import REVERT_BY_HAND, app
from delivery.kubernetes import ClusterUnavailable
from delivery.release import ReleaseError
from delivery.repository import Repository
from tests.delivery.test_delivery import ONE, THREE, TWO, _do, _event, _git, _release, repository
from tests.support.running import ROOT
from tools import programs

__all__ = ["repository"]  # the fixture
NOT_KNOWN = "changed   not known: the commit that the stable version runs was not found"
ROLLOUT = "manifests/iris/rollout.yaml"
PROD = "overlays/prod/kustomization.yaml"
ENVIRONMENT = "      - {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: IRIS_ENVIRONMENT"


@pytest.fixture
def cluster(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the cluster reports, for a test to change: prod's second release is stable; its pods do not start."""
    for folder in ("manifests", "overlays"):
        shutil.copytree(ROOT / folder, repository.root / folder, dirs_exist_ok=True)
    _git(repository.root, "add", ".")
    _git(repository.root, "commit", "--quiet", "--message=manifests")
    for digest, version in ((ONE, "1"), (TWO, "2")):
        _do(repository, changes.release(repository, "prod", _release(digest, version)))
    program = tmp_path_factory.mktemp("bin") / "kubectl"
    kustomize = programs.folder("kustomize", print) / "kustomize"
    program.write_text(f'#!/bin/sh\n[ "$2" = kustomize ] && exec {kustomize} build "$3"\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.chdir(repository.root)
    status = {
        "abort": True,
        "observedGeneration": "2",
        "abortedAt": "2026-11-24T16:18:13Z",
        "currentPodHash": "new",
        "stableRS": "old",
        "message": "ReplicaSet has timed out progressing.",
    }
    template = {"spec": {"containers": [{"image": f"example.org/iris@{TWO}"}]}}
    strategy: dict[str, Any] = {"canary": {"steps": []}}
    reports: dict[str, Any] = {
        "rollout": {
            "metadata": {"generation": 2},
            "spec": {"strategy": strategy, "template": template, "progressDeadlineSeconds": 180},
            "status": status,
        },
        "stable": TWO,
        "history": [{"revision": repository.head(), "deployStartedAt": "2026-11-24T15:00:00Z"}],
    }
    monkeypatch.setattr(kubernetes, "rollout", lambda _: reports["rollout"])
    monkeypatch.setattr(kubernetes, "analysis_runs", lambda *_: [])
    monkeypatch.setattr(kubernetes, "pods", lambda *_: [])
    monkeypatch.setattr(kubernetes, "last_log_lines", lambda *_, **__: [])
    monkeypatch.setattr(kubernetes, "replica_set", lambda *_: _replica_set(reports["stable"]))
    monkeypatch.setattr(
        kubernetes,
        "application",
        lambda _: {"spec": {"source": {"path": "overlays/prod"}}, "status": {"history": reports["history"]}},
    )
    return reports


def _replica_set(digest: str) -> dict[str, Any]:
    template = {"spec": {"containers": [{"image": f"example.org/iris@{digest}"}]}}
    return {"metadata": {"creationTimestamp": "2026-11-24T15:00:05Z"}, "spec": {"template": template}}


def _edit(repository: Repository, path: str, old: str, new: str, subject: str) -> str:
    file = repository.root / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    _git(repository.root, "commit", "--quiet", "--all", f"--message={subject}", "--author=Bob <bob@example.org>")
    return repository.head()


def _workers(repository: Repository) -> str:
    """Commit a setting that the service does not know: its pods exit."""
    new = f'value: {{name: IRIS_WORKERS, value: "4"}}}}\n{ENVIRONMENT}'
    return _edit(repository, PROD, "value: {name: IRIS_ENVIRONMENT", new.removesuffix("\n"), "prod: four workers")


def _run(*arguments: str, event: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=event)


def _by_event(digest: str = TWO) -> Result:
    return _run("revert", "--event=-", event=_event(digest))


@pytest.mark.usefixtures("cluster")
def test_commit_that_broke_the_pods_is_reverted_and_no_release_is_rejected(repository: Repository) -> None:
    bad = _workers(repository)
    _edit(repository, ROLLOUT, "# 1. One canary pod", "# 1. A canary pod", "iris: a comment")
    shown = _run("why", "prod").stdout
    assert f"changed   {bad[:10]} by Bob <bob@example.org>: prod: four workers\n" in shown
    assert "Ada" not in shown
    assert "No release is rejected." in shown
    done = _by_event()
    assert done.exit_code == 0, done.output
    assert "IRIS_WORKERS" not in (repository.root / PROD).read_text()
    assert "# 1. A canary pod" in (repository.root / ROLLOUT).read_text()
    message = _git(repository.root, "log", "-1", "--format=%B")
    assert message.startswith(f"prod: revert {bad[:10]} (prod: four workers)\n\nAborted: not ready within 180 s\n")
    assert f"changed   {bad[:10]} by Bob <bob@example.org>: prod: four workers\n" in message
    assert repository.trailers(manifests.REVERTED) == [bad]
    assert repository.trailers(changes.REJECTED) == []
    assert changes.current(repository, "prod") == _release(TWO, "2")
    head = repository.head()
    again = _by_event()
    assert (again.exit_code, repository.head()) == (0, head)
    assert "nothing to do" in again.stdout


@pytest.mark.usefixtures("cluster")
def test_person_is_alerted_with_the_list_if_several_commits_changed_the_manifests(repository: Repository) -> None:
    bad = _workers(repository)
    other = _edit(
        repository, ROLLOUT, "revisionHistoryLimit: 5", "revisionHistoryLimit: 4", "iris: four revisions"
    )
    done = _by_event()
    assert (done.exit_code, repository.head()) == (1, other)
    assert isinstance(done.exception, ReleaseError)
    assert str(done.exception).splitlines()[1:] == [
        f"changed   {other[:10]} by Bob <bob@example.org>: iris: four revisions",
        f"changed   {bad[:10]} by Bob <bob@example.org>: prod: four workers",
    ]


@pytest.mark.usefixtures("cluster")
def test_change_that_was_reverted_since_is_not_blamed(repository: Repository) -> None:
    _workers(repository)
    _git(repository.root, "revert", "--no-edit", "HEAD")
    bad = _edit(repository, ROLLOUT, "revisionHistoryLimit: 5", "revisionHistoryLimit: 4", "iris: four revisions")
    assert _by_event().exit_code == 0
    assert repository.trailers(manifests.REVERTED) == [bad]


@pytest.mark.usefixtures("cluster")
def test_commit_that_does_not_revert_cleanly_is_left_to_a_person(repository: Repository) -> None:
    _workers(repository)
    head = _edit(repository, PROD, 'name: IRIS_WORKERS, value: "4"', "name: IRIS_WORKERS, value: '4'", "quotes")
    done = _by_event()
    assert (done.exit_code, repository.head()) == (1, head)
    assert "revert it by hand: git revert" in str(done.exception)
    assert _git(repository.root, "status", "--porcelain") == ""


def test_nothing_is_reverted_if_the_commit_of_the_stable_version_is_not_known(
    repository: Repository, cluster: dict[str, Any]
) -> None:
    head = _workers(repository)
    cluster["history"] = []
    done = _by_event()
    assert (done.exit_code, repository.head()) == (1, head)
    assert "nothing was reverted" in str(done.exception)
    assert NOT_KNOWN in str(done.exception)
    assert _run("revert", "prod", f"--digest={TWO}").exit_code == 0
    assert changes.current(repository, "prod") == _release(ONE)


def test_rollback_of_a_release_names_what_else_changed(repository: Repository, cluster: dict[str, Any]) -> None:
    bad = _workers(repository)
    cluster["stable"] = ONE
    assert _by_event().exit_code == 0
    message = _git(repository.root, "log", "-1", "--format=%B")
    assert f"{changes.REJECTED}: {TWO}" in message
    assert f"changed   {bad[:10]} by Bob" in message
    assert "The manifests changed, too: if they are the cause, mend them first." in message


def test_rollback_of_a_release_says_that_it_is_not_known_what_else_changed(
    repository: Repository, cluster: dict[str, Any]
) -> None:
    cluster["stable"], cluster["history"] = ONE, []
    assert _by_event().exit_code == 0
    assert f"\n{NOT_KNOWN}\n" in _git(repository.root, "log", "-1", "--format=%B")


@pytest.mark.usefixtures("cluster")
def test_why_says_that_a_person_has_to_find_the_commit(repository: Repository) -> None:
    _workers(repository)
    assert "next: nothing; git is reverted automatically" in _run("why", "prod").stdout
    _edit(repository, ROLLOUT, "revisionHistoryLimit: 5", "revisionHistoryLimit: 4", "iris: four revisions")
    assert f"next: {REVERT_BY_HAND}\n" in _run("why", "prod").stdout


def test_why_names_the_reverted_commit_and_its_author_afterwards(
    repository: Repository, cluster: dict[str, Any]
) -> None:
    bad = _workers(repository)
    assert _by_event().exit_code == 0
    cluster["rollout"]["status"]["abort"] = False
    shown = _run("why", "prod").stdout
    assert f"UTC: prod: revert {bad[:10]} (prod: four workers)\n\nAborted: not ready within 180 s\n" in shown
    assert f"changed   {bad[:10]} by Bob <bob@example.org>: prod: four workers\n" in shown
    _do(repository, changes.revert(repository, "prod", "It is slow."))
    assert "It is slow." in _run("why", "prod").stdout


@pytest.mark.usefixtures("cluster")
def test_revert_of_manifests_has_the_reason_of_a_person(repository: Repository) -> None:
    _workers(repository)
    assert _run("revert", "prod", "--reason=Its pods exit.").exit_code == 0
    message = _git(repository.root, "log", "-1", "--format=%B")
    assert "(prod: four workers)\n\nIts pods exit.\n\nAborted: not ready within 180 s\n" in message


def test_revert_if_aborted_does_the_same_as_the_message(repository: Repository, cluster: dict[str, Any]) -> None:
    bad = _workers(repository)
    cluster["rollout"]["status"]["abort"] = False
    head = repository.head()
    done = _run("revert", "prod", "--if-aborted")
    assert (done.exit_code, repository.head()) == (0, head)
    assert "nothing to do" in done.stdout
    cluster["rollout"]["status"]["abort"] = True
    assert _run("revert", "prod", "--if-aborted").exit_code == 0
    assert repository.trailers(manifests.REVERTED) == [bad]
    cluster["stable"] = ONE
    assert _run("revert", "prod", "--if-aborted").exit_code == 0
    assert repository.trailers(changes.REJECTED) == [TWO]


def _unavailable(*_: object) -> None:
    raise ClusterUnavailable("no route to host")


@pytest.mark.parametrize("option", ["--if-aborted", "--unconfirmed"])
@pytest.mark.usefixtures("cluster")
def test_nothing_is_reverted_while_only_the_cluster_knows_what_was_aborted(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    bad = _workers(repository)
    monkeypatch.setattr(kubernetes, "rollout", _unavailable)
    if option == "--if-aborted":
        done = _run("revert", "prod", option)
        assert isinstance(done.exception, ClusterUnavailable)
    else:
        done = _run("revert", "--event=-", option, event=_event(TWO))
        assert f"changed   {bad[:10]} by Bob" in str(done.exception)
        assert REVERT_BY_HAND in str(done.exception)
        assert "nothing to do" in _run("revert", "--event=-", option, event=_event(ONE)).stdout
    assert (done.exit_code, repository.head()) == (1, bad)
    assert repository.trailers(changes.REJECTED) == []


def test_link_that_leads_out_of_the_repository_leaves_the_cause_unknown(
    repository: Repository, cluster: dict[str, Any]
) -> None:
    (repository.root / "manifests/link").symlink_to("/etc/passwd")
    _git(repository.root, "add", ".")
    _git(repository.root, "commit", "--quiet", "--message=a link")
    assert NOT_KNOWN in str(_by_event().exception)
    cluster["stable"] = ONE
    assert _by_event().exit_code == 0
    assert repository.trailers(changes.REJECTED) == [TWO]


def test_rescue_by_a_person_is_not_undone(repository: Repository, cluster: dict[str, Any]) -> None:
    """The third release has all traffic, and its pods die; a person reverts it; its errors abort the second."""
    _do(repository, changes.release(repository, "prod", _release(THREE, "3")))
    _do(repository, changes.revert(repository, "prod", "its pods die"))
    cluster["stable"] = THREE
    head = repository.head()
    done = _by_event()
    assert (done.exit_code, repository.head()) == (1, head)
    assert "was rejected since" in str(done.exception)
    assert "kubectl argo rollouts retry" in str(done.exception)
    assert _run("revert", "prod").exit_code == 0
    assert "nothing to do" in _run("revert", "prod").stdout


def test_person_reverts_a_promoted_release_at_once_and_the_next_release_passes_all_gates(
    repository: Repository, cluster: dict[str, Any]
) -> None:
    cluster["rollout"]["status"]["abort"] = False
    gated = _steps(repository)
    assert _run("revert", "prod").exit_code == 0
    assert changes.current(repository, "prod") == _release(ONE)
    at_once = _steps(repository)
    assert [name for step in at_once for name in step] == ["setCanaryScale", "analysis"]
    assert at_once == gated[:2]
    assert _run("revert", "prod").stdout.startswith("nothing to do")
    _do(repository, changes.release(repository, "prod", _release(TWO, "2"), override=True))
    assert _steps(repository) == gated


@pytest.mark.parametrize("by_person", [True, False])
def test_revert_of_a_canary_restores_the_stable_version_and_keeps_the_gates(
    repository: Repository, cluster: dict[str, Any], by_person: bool
) -> None:
    gated = _steps(repository)
    # The second was still a canary when the third was released: it was never stable.
    _do(repository, changes.release(repository, "prod", _release(THREE, "3")))
    cluster["stable"] = ONE
    cluster["rollout"]["status"]["abort"] = not by_person
    cluster["rollout"]["spec"]["template"]["spec"]["containers"][0]["image"] = f"example.org/iris@{THREE}"
    assert (_run("revert", "prod") if by_person else _by_event(THREE)).exit_code == 0
    assert changes.current(repository, "prod") == _release(ONE)
    assert _steps(repository) == gated


def _steps(repository: Repository) -> list[dict[str, Any]]:
    """Return the steps of prod's canary as they would be applied."""
    objects = yaml.safe_load_all(kubernetes.kustomize(repository.root / "overlays/prod"))
    (rollout,) = (item for item in objects if item["kind"] == "Rollout")
    steps: list[dict[str, Any]] = rollout["spec"]["strategy"]["canary"]["steps"]
    return steps
