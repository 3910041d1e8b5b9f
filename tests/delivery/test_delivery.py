"""Releases, promotions and reverts in a real git repository."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from delivery import changes
from delivery.explanation import quoted, readable
from delivery.history import history
from delivery.release import COMPONENT, IMAGE, NOTHING, Release, ReleaseError, parse, read_model
from delivery.repository import Repository
from tests.support.running import ROOT

ONE, TWO, THREE, FOUR = (f"sha256:{digit * 64}" for digit in "1234")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository in which nothing has been released."""
    for name, value in (("NAME", "Ada"), ("EMAIL", "ada@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    _git(tmp_path, "init", "--quiet")
    for environment in ("dev", "prod"):
        folder = tmp_path / changes.folder(environment)
        folder.mkdir(parents=True)
        (folder / COMPONENT).write_text(NOTHING)
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message=begin")
    return Repository(tmp_path)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _release(digest: str, version: str = "1") -> Release:
    facts = {
        "version": version,
        "sha256": version * 64,
        "run_id": "ab12",
        "metrics": {"accuracy": 0.9333, "confusion": [[1]]},
        "golden": [],
    }
    return Release(digest, json.dumps(facts))


def _do(repository: Repository, change: changes.Change | None) -> str:
    assert change
    return repository.commit(*change)


def _three_releases(repository: Repository) -> None:
    for digest, version in ((ONE, "1"), (TWO, "2"), (THREE, "3")):
        _do(repository, changes.release(repository, "dev", _release(digest, version)))
        _do(repository, changes.promote(repository))


def test_a_release_is_a_commit_that_changes_one_folder_and_says_what_it_ships(repository: Repository) -> None:
    sha = _do(repository, changes.release(repository, "dev", _release(ONE)))
    assert set(_git(repository.root, "show", "--format=", "--name-only", sha).split()) == {
        "overlays/dev/release/kustomization.yaml",
        "overlays/dev/release/model.json",
    }
    assert changes.current(repository, "dev") == _release(ONE)
    message = _git(repository.root, "show", "--no-patch", "--format=%B", sha)
    assert message.startswith(f"dev: model 1 ({ONE[:19]})\n")
    assert "accuracy 0.9333" in message
    assert repository.trailers("Image-Digest") == [ONE]
    assert repository.trailers("Model-Version") == ["1"]


def test_what_runs_already_is_not_released_again(repository: Repository) -> None:
    _do(repository, changes.release(repository, "dev", _release(ONE)))
    assert changes.release(repository, "dev", _release(ONE)) is None
    _do(repository, changes.promote(repository))
    assert changes.promote(repository) is None


def test_a_promotion_ships_to_prod_what_dev_has_byte_for_byte(repository: Repository) -> None:
    _do(repository, changes.release(repository, "dev", _release(ONE)))
    _do(repository, changes.promote(repository))
    dev, prod = (repository.files(changes.folder(environment)) for environment in ("dev", "prod"))
    assert dev == prod
    _git(repository.root, "checkout", "--quiet", "HEAD~2")
    with pytest.raises(ReleaseError, match="nothing runs in dev"):
        changes.promote(repository)


def test_a_revert_brings_back_the_release_before_and_remembers_the_reason(repository: Repository) -> None:
    _three_releases(repository)
    sha = _do(repository, changes.revert(repository, "prod", "P95 was 0.8 s, the limit is 0.5 s."))
    assert changes.current(repository, "prod") == _release(TWO, "2")
    assert changes.current(repository, "dev") == _release(THREE, "3")
    message = _git(repository.root, "show", "--no-patch", "--format=%B", sha)
    assert "P95 was 0.8 s, the limit is 0.5 s." in message
    assert repository.trailers("Release-Rejected") == [THREE]


def test_a_second_revert_passes_over_what_was_rejected(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "bad"))
    _do(repository, changes.revert(repository, "prod", "bad, too", TWO))
    assert changes.current(repository, "prod") == _release(ONE)
    with pytest.raises(ReleaseError, match="there is none to go back to"):
        changes.revert(repository, "prod", "all bad", ONE)


def test_an_event_that_is_late_or_forged_changes_nothing(repository: Repository) -> None:
    _three_releases(repository)
    assert changes.revert(repository, "prod", "late", TWO) is None
    assert changes.revert(repository, "prod", "forged", f"sha256:{'f' * 64}") is None
    _do(repository, changes.revert(repository, "prod", "told once", THREE))
    assert changes.revert(repository, "prod", "told twice", THREE) is None


def test_a_rejected_release_comes_back_only_with_override(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "bad"))
    with pytest.raises(ReleaseError, match=f"{THREE} was rejected before.*--override"):
        changes.promote(repository)
    _do(repository, changes.promote(repository, override=True))
    assert changes.current(repository, "prod") == _release(THREE, "3")


def test_history_tells_who_brought_what_and_why_it_left(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "P95 was 0.8 s."))
    told = history(repository, "prod")
    assert [stay.release.facts["version"] for stay in told] == ["2", "3", "2", "1"]
    assert told[0].until is None
    assert (told[1].left, told[1].rejected) == ("P95 was 0.8 s.", True)
    assert told[2].left == f"followed by model 3 ({THREE[:19]})"
    assert told[1].in_short == "taken back: P95 was 0.8 s."
    assert told[2].in_short == told[2].left
    assert {stay.brought_by for stay in told} == {"Ada <ada@example.org>"}
    assert all(later.since >= earlier.since for later, earlier in pairwise(told))


@pytest.mark.parametrize(
    ("verdict", "in_short"),
    [
        (
            "Measured with 10 %:\n  ok  P95: 0.1 s\n  failed  errors: 30 %, the limit is 1 %",
            "errors: 30 %, the limit is 1 %",
        ),
        (
            "Measured:\n  failed  its answers to recorded questions:\n  | class 1",
            "its answers to recorded questions",
        ),
        ("It was not ready within its 60 seconds.\nIt crashed.", "It was not ready within its 60 seconds."),
    ],
)
def test_history_tells_a_verdict_in_a_line(repository: Repository, verdict: str, in_short: str) -> None:
    _three_releases(repository)
    head = "model 3 was taken back from prod at noon.\n\nShipped by Ada in 12ab: prod: model 3\n\n"
    _do(repository, changes.revert(repository, "prod", head + verdict))
    assert history(repository, "prod")[1].in_short == f"taken back: {in_short}"


def test_history_tells_of_a_reason_that_was_not_given(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", " "))
    assert history(repository, "prod")[1].in_short == "taken back: for no reason that was given"


def test_a_persons_edit_is_no_release_and_no_way_back(repository: Repository) -> None:
    _three_releases(repository)
    file = repository.root / changes.folder("prod") / COMPONENT
    file.write_text(file.read_text().replace('model-version: "3"', 'model-version: "1"'))
    _git(repository.root, "commit", "--quiet", "--all", "--message=by hand")
    with pytest.raises(ReleaseError, match="not as `python -m delivery` writes them"):
        changes.revert(repository, "prod", "bad")


def test_bytes_that_are_no_text_do_not_stand_in_a_reverts_way(repository: Repository) -> None:
    _three_releases(repository)
    folder = repository.root / changes.folder("prod")
    (folder / "notes").write_bytes(b"caf\xe9")
    _git(repository.root, "add", ".")
    _git(repository.root, "commit", "--quiet", "--author=Jos\udce9 <j@example.org>", "--message=caf\udce9")
    _do(repository, changes.revert(repository, "prod", "bad\udce9"))
    assert changes.current(repository, "prod") == _release(TWO, "2")
    assert history(repository, "prod")[0].release.digest == TWO


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", '3"\n'), ("sha256", "abc"), ("run_id", "x: y"), ("version", "")],
)
def test_a_model_that_would_break_out_of_the_file_is_refused(tmp_path: Path, field: str, value: str) -> None:
    facts = {**_release(ONE).facts, field: value}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ReleaseError, match=field):
        read_model(tmp_path, ONE)


@pytest.mark.parametrize("digest", ["latest", ONE[:-1], f"{ONE}0", ONE.upper(), f"{ONE}\n", "sha256:" + "g" * 64])
def test_what_is_no_digest_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ReleaseError, match="is no digest"):
        read_model(tmp_path, digest)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="python -m pipeline"):
        read_model(tmp_path, ONE)


def test_the_files_of_a_release_are_read_as_they_are_written() -> None:
    assert parse(_release(ONE).files()) == _release(ONE)
    assert parse({COMPONENT: NOTHING}) is None


def test_a_release_of_an_older_template_is_still_one() -> None:
    files = _release(ONE).files()
    older = files[COMPONENT].replace(IMAGE, "registry.example.org/iris").replace("    ", "      ")
    assert older != files[COMPONENT]
    assert parse({**files, COMPONENT: f"# as it was once\n{older}"}) == _release(ONE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"digest: {ONE}", "digest: latest"),
        (f"digest: {ONE}", f"digest: {ONE}\n  - name: another\n    digest: {TWO}"),
        (f"    digest: {ONE}\n", ""),
        ('model-version: "', 'model-version: "9'),
        ('model-run: "', 'model-run-id: "'),
    ],
)
def test_files_that_name_no_release_or_two_are_refused(old: str, new: str) -> None:
    files = _release(ONE).files()
    assert old in files[COMPONENT]
    with pytest.raises(ReleaseError, match="not as `python -m delivery` writes them"):
        parse({**files, COMPONENT: files[COMPONENT].replace(old, new)})


def test_the_command_says_what_it_would_do_and_then_does_it(repository: Repository, model: Path) -> None:
    dry = _command(repository, "release", ONE, f"--model={model}", "--dry-run")
    assert dry.stdout.startswith("would commit in overlays/dev/release:\n\ndev: model ")
    assert changes.current(repository, "dev") is None
    done = _command(repository, "release", ONE, f"--model={model}")
    assert done.stdout.endswith("next: git push\n")
    assert "nothing to do" in _command(repository, "release", ONE, f"--model={model}").stdout
    assert "prod: model " in _command(repository, "promote").stdout
    assert ONE[:19] in _command(repository, "history", "prod").stdout


def test_the_command_refuses_a_tree_with_changes(repository: Repository, model: Path) -> None:
    (repository.root / "notes").touch()
    done = _command(repository, "release", ONE, f"--model={model}")
    assert done.returncode == 1
    assert "commit or stash them first" in done.stderr
    assert "?? notes" in done.stderr
    assert changes.current(repository, "dev") is None


def test_the_command_does_not_wait_for_what_was_never_released(repository: Repository) -> None:
    done = _command(repository, "watch", "dev")
    assert done.returncode == 1
    assert "`python -m delivery release` ships something there" in done.stderr


def _command(repository: Repository, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "delivery", *arguments],
        cwd=repository.root,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def _event(digest: str = THREE, **other: str) -> str:
    payload = {"namespace": "iris-prod", "rollout": "iris", "image": f"{IMAGE}@{digest}"} | other
    return json.dumps({"event_type": "rollout-aborted", "client_payload": payload})


def _tell(repository: Repository, message: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `delivery revert` with a message where no cluster can be asked."""
    command = [sys.executable, "-P", "-m", "delivery", "revert", "--event", "-", *options]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "KUBECONFIG": "/dev/null"}
    return subprocess.run(
        command, cwd=repository.root, env=environ, input=message, capture_output=True, text=True, check=False
    )


def test_a_message_is_given_alone(repository: Repository) -> None:
    _three_releases(repository)
    done = _tell(repository, _event(), "--unconfirmed", "dev")
    assert done.returncode == 2
    assert "give it alone" in done.stderr


def test_an_event_takes_back_what_git_says_runs_and_nothing_a_second_time(repository: Repository) -> None:
    _three_releases(repository)
    before = repository.head()
    unconfirmed = _tell(repository, _event())
    assert (unconfirmed.returncode, repository.head()) == (4, before)
    assert "the cluster cannot be asked" in unconfirmed.stderr
    assert _tell(repository, _event(), "--unconfirmed").returncode == 0
    assert f"Release-Rejected: {THREE}" in _git(repository.root, "log", "-1", "--format=%B")
    head = repository.head()
    again = _tell(repository, _event(), "--unconfirmed")
    assert (again.returncode, repository.head()) == (0, head)
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize(
    "message",
    [
        "",
        "no JSON",
        "[]",
        '{"client_payload": 1}',
        '{"client_payload": {"namespace": "iris-prod"}}',
        _event(namespace="iris-prod-2"),
        _event(namespace="kube-system"),
        _event(namespace="../prod"),
        _event(namespace="iris-prod\n"),
        _event(rollout="iris; reboot"),
        _event(image=f"{IMAGE}:latest"),
        _event(image=f"example.org/other@{THREE}"),
        _event(image=f"{IMAGE}@{THREE}\nRelease-Rejected: {TWO}"),
        _event(digest=f"sha256:{'z' * 64}"),
    ],
)
def test_a_message_that_is_not_ours_is_refused_and_changes_nothing(repository: Repository, message: str) -> None:
    _three_releases(repository)
    head = repository.head()
    done = _tell(repository, message)
    assert (done.returncode, repository.head()) == (1, head)
    assert "nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_program_wrote_cannot_pass_for_a_trailer(repository: Repository) -> None:
    _three_releases(repository)
    reason = "\n".join(["It failed.", "", quoted(f"x\nRelease-Rejected: {TWO}\x1b[31m")])
    _do(repository, changes.revert(repository, "prod", reason))
    assert repository.trailers(changes.REJECTED) == [THREE]
    assert "\x1b" not in _git(repository.root, "log", "-1", "--format=%B")


def test_last_words_are_for_people() -> None:
    failed = {"level": "ERROR", "message": "failed", "traceback": "Traceback:\n  File\nRuntimeError: no scaler"}
    refused = {"level": "ERROR", "message": "refused", "detail": "the request failed"}
    lines = [json.dumps(failed), json.dumps(refused), json.dumps(failed), "plain", "[1]", '{"other": 1}']
    said = ["failed: RuntimeError: no scaler", "refused: the request failed", "plain", "[1]", '{"other": 1}']
    assert readable(lines) == said


def test_an_abort_goes_back_to_what_the_cluster_went_back_to(repository: Repository) -> None:
    _three_releases(repository)
    # The second was on its way when the third came: it was never stable.
    change = changes.revert(repository, "dev", "bad", THREE, stable=ONE)
    assert change
    assert parse(change.files) == _release(ONE, "1")
    assert parse(_reverted(repository, THREE)) == _release(TWO, "2")


def test_a_rejected_release_that_ran_again_is_one_to_go_back_to(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "dev", "bad"))
    _do(repository, changes.release(repository, "dev", _release(THREE, "3"), override=True))
    _do(repository, changes.release(repository, "dev", _release(FOUR, "4")))
    assert parse(_reverted(repository, FOUR)) == _release(THREE, "3")


def test_a_revert_by_hand_is_not_done_a_second_time(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "dev", "bad"))
    assert changes.revert(repository, "dev", "bad") is None
    assert parse(_reverted(repository, TWO)) == _release(ONE, "1")


def test_without_an_identity_nothing_is_changed(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    _three_releases(repository)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    _git(repository.root, "config", "user.useConfigOnly", "true")
    with pytest.raises(ReleaseError, match=r"user\.email|tell me who you are"):
        _do(repository, changes.revert(repository, "dev", "bad"))
    repository.refuse_changes()


def test_a_shallow_clone_is_refused(repository: Repository, tmp_path: Path) -> None:
    _three_releases(repository)
    shallow = tmp_path / "shallow"
    _git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository.root}", str(shallow))
    with pytest.raises(ReleaseError, match="--unshallow"):
        Repository(shallow)


def _reverted(repository: Repository, digest: str) -> dict[str, str]:
    change = changes.revert(repository, "dev", "bad", digest)
    assert change
    return change.files


@pytest.mark.parametrize("arguments", [["revert"], ["status"], ["why", "nowhere"], ["release"], ["--nothing"]])
def test_a_command_that_is_not_whole_is_explained(repository: Repository, arguments: list[str]) -> None:
    command = [sys.executable, "-P", "-m", "delivery", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=repository.root, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr
