"""A commit of `delivery` reaches the newest main, even if somebody else pushes in between."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from delivery import changes, push
from delivery.release import COMPONENT, IMAGE, Release
from delivery.repository import Repository
from tests.support.clone import NOTHING
from tests.support.running import ROOT

ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")
# A pre-push hook: once, somebody else pushes before we do.
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
    """A clone in which prod has one release and dev a newer one."""
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
    metadata = {
        "version": "1",
        "sha256": "1" * 64,
        "run_id": "ab12",
        "metrics": {"accuracy": 0.9333},
        "golden": [],
    }
    return Release(digest, json.dumps(metadata))


def _do(repository: Repository, change: changes.Change | None) -> None:
    assert change
    repository.commit(*change)


def _origin(checkout: Path) -> str:
    return str(checkout.parent / "origin")


def _main(checkout: Path) -> str:
    return _git(checkout.parent / "origin", "rev-parse", "main")


def _current(checkout: Path, environment: str) -> str:
    _git(checkout, "pull", "--quiet", "origin", "main")
    release = changes.current(Repository(checkout), environment)
    return release.digest if release else ""


def test_commit_is_pushed_and_printed_as_outputs(checkout: Path) -> None:
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
    assert _current(checkout, "prod") == TWO


def test_reason_cannot_forge_outputs(checkout: Path) -> None:
    code, outputs = push.run_and_push(
        _origin(checkout), ["revert", "dev", "--reason=it was bad\ncommit=other\nEOF"]
    )
    assert code == 0
    first, _, opening, *body, closing = outputs.splitlines()
    assert first == f"commit={_main(checkout)}"
    assert "commit=other" in body
    assert closing == opening.removeprefix("body<<")
    assert closing not in body


def test_rejected_push_is_retried_on_the_newest_main(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_refusal_is_not_retried_and_nothing_is_pushed(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = _main(checkout)
    code, outputs = push.run_and_push(_origin(checkout), ["promote", f"--digest={ONE}"])
    opening, error, closing = outputs.splitlines()
    assert (code, opening) == (1, f"error<<{closing}")
    assert error.startswith("delivery: dev has moved on from")
    assert capfd.readouterr().err.count("dev has moved on") == 1
    assert _main(checkout) == before


def test_nothing_to_do_prints_no_outputs(checkout: Path) -> None:
    assert push.run_and_push(_origin(checkout), ["promote"])[0] == 0
    before = _main(checkout)
    assert push.run_and_push(_origin(checkout), ["promote"]) == (0, "")
    assert _main(checkout) == before


def test_unconfirmed_event_is_retried_and_then_given_up(
    checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    payload = {"namespace": "iris-dev", "rollout": "iris", "image": f"{IMAGE}@{TWO}"}
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"action": "rollout-aborted", "client_payload": payload, "sender": {}}))
    before = _main(checkout)
    code, outputs = push.run_and_push(_origin(checkout), ["revert", f"--event={event}"])
    assert code == 4
    assert outputs.count("the cluster is unavailable") == 1
    assert capfd.readouterr().err.count("the cluster is unavailable") == push.ATTEMPTS
    assert _main(checkout) == before
    assert push.run_and_push(_origin(checkout), ["revert", f"--event={event}", "--unconfirmed"])[0] == 0
    assert _current(checkout, "dev") == ONE
