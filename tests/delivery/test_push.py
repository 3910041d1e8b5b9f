"""A command of `delivery` lands on the newest main, whoever pushes meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from delivery import changes, push
from delivery.release import COMPONENT, IMAGE, NOTHING, Release
from delivery.repository import Repository
from tests.support.running import ROOT

ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")
# What a person does between somebody's decision and push: once, and without this hook.
MEANWHILE = """\
#!/bin/sh
set -e
[ ! -e {done} ] || exit 0
touch {done}
unset GIT_DIR GIT_CONFIG_COUNT
git clone --quiet {origin} {done}.clone
cd {done}.clone
echo text > notes
git add notes
git commit --quiet --message="a person was faster"
git push --quiet origin HEAD:main
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone where one release runs in both environments, and another in dev."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.org")
    monkeypatch.setenv("KUBECONFIG", os.devnull)  # no cluster
    monkeypatch.setattr(push, "PAUSE", 0)
    clone = tmp_path / "clone"
    _git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin")
    _git(tmp_path, "clone", "--quiet", "origin", "clone")
    for environment in ("dev", "prod"):
        folder = clone / changes.folder(environment)
        folder.mkdir(parents=True)
        (folder / COMPONENT).write_text(NOTHING)
    _git(clone, "add", ".")
    _git(clone, "commit", "--quiet", "--message=begin")
    repository = Repository(clone)
    _do(repository, changes.release(repository, "dev", _release(ONE)))
    _do(repository, changes.promote(repository))
    _do(repository, changes.release(repository, "dev", _release(TWO)))
    _git(clone, "push", "--quiet", "origin", "HEAD:main")
    return clone


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _release(digest: str) -> Release:
    facts = {"version": "1", "sha256": "1" * 64, "run_id": "ab12", "metrics": {"accuracy": 0.9333}, "golden": []}
    return Release(digest, json.dumps(facts))


def _do(repository: Repository, change: changes.Change | None) -> None:
    assert change
    repository.commit(*change)


def _origin(checkout: Path) -> str:
    return str(checkout.parent / "origin")


def _main(checkout: Path, form: str = "%H") -> str:
    return _git(checkout.parent / "origin", "log", "-1", f"--format={form}", "main")


def _runs(checkout: Path, environment: str) -> str:
    _git(checkout, "pull", "--quiet", "origin", "main")
    runs = changes.current(Repository(checkout), environment)
    return runs.digest if runs else ""


def test_what_is_committed_is_pushed_and_told_as_outputs(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "delivery.push", "promote", f"--digest={TWO}"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    commit, subject, opening, *body, closing = done.stdout.splitlines()
    assert commit == f"commit={_main(checkout)}"
    assert subject == f"subject=prod: model 1 ({TWO[:19]})"
    assert opening == f"body<<{closing}"
    assert "Image-Digest: " + TWO in body
    assert _runs(checkout, "prod") == TWO


def test_what_somebody_wrote_in_a_reason_is_no_output(checkout: Path) -> None:
    code, outputs = push.run_and_push(
        _origin(checkout), ["revert", "dev", "--reason=it was bad\ncommit=other\nEOF"]
    )
    assert code == 0
    first, _, opening, *body, closing = outputs.splitlines()
    assert first == f"commit={_main(checkout)}"
    assert "commit=other" in body
    assert closing == opening.removeprefix("body<<")
    assert closing not in body


def test_when_somebody_was_faster_it_is_decided_anew(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = checkout.parent / "hooks"
    hooks.mkdir()
    origin = checkout.parent / "origin"
    (hooks / "pre-push").write_text(MEANWHILE.format(done=hooks / "done", origin=origin))
    (hooks / "pre-push").chmod(0o755)
    for name, value in (("COUNT", "1"), ("KEY_0", "core.hooksPath"), ("VALUE_0", str(hooks))):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    code, outputs = push.run_and_push(_origin(checkout), ["promote"])
    assert code == 0
    assert f"commit={_main(checkout)}\n" in outputs
    subjects = _git(origin, "log", "-2", "--format=%s", "main").splitlines()
    assert subjects == [f"prod: model 1 ({TWO[:19]})", "a person was faster"]


def test_what_is_refused_is_refused_at_once_and_nothing_is_pushed(
    checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = _main(checkout)
    assert push.run_and_push(_origin(checkout), ["promote", f"--digest={ONE}"]) == (1, "")
    assert capfd.readouterr().err.count("dev has moved on") == 1
    assert _main(checkout) == before


def test_nothing_to_do_is_no_output(checkout: Path) -> None:
    assert push.run_and_push(_origin(checkout), ["promote"])[0] == 0
    before = _main(checkout)
    assert push.run_and_push(_origin(checkout), ["promote"]) == (0, "")
    assert _main(checkout) == before


def test_a_message_that_the_cluster_does_not_confirm_is_asked_about_again_and_then_left(
    checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    payload = {"namespace": "iris-dev", "rollout": "iris", "image": f"{IMAGE}@{TWO}"}
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"action": "rollout-aborted", "client_payload": payload, "sender": {}}))
    before = _main(checkout)
    assert push.run_and_push(_origin(checkout), ["revert", f"--event={event}"]) == (4, "")
    assert capfd.readouterr().err.count("the cluster cannot be asked") == push.ATTEMPTS
    assert _main(checkout) == before
    assert push.run_and_push(_origin(checkout), ["revert", f"--event={event}", "--unconfirmed"])[0] == 0
    assert _runs(checkout, "dev") == ONE
