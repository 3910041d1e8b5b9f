"""Releases, promotions and reverts in a real git repository."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from delivery import changes, git, push
from delivery.explanation import quoted, readable
from delivery.history import history
from delivery.release import COMPONENT, IMAGE, NAME, Release, ReleaseError, parse, read_model
from delivery.repository import Repository
from tests.support.clone import NOTHING
from tests.support.running import ROOT

ONE, TWO, THREE, FOUR = (f"sha256:{digit * 64}" for digit in "1234")
OLD_COMPONENT = f"""\
# Written by `python -m delivery`, never by a person: what runs here.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
images:
  - name: iris-classifier
    newName: registry.example.org/iris
    digest: {ONE}
configMapGenerator:
  - name: release
    files: [model.json] # what the golden gate asks for
patches:
  - target: {{kind: Rollout, name: iris}}
    patch: |
      - op: add
        path: /spec/template/metadata/annotations
        value: {{model-version: "1", model-sha256: "{"1" * 64}", model-run: "ab12"}}
"""


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
    metadata = {
        "version": version,
        "sha256": version * 64,
        "run_id": "ab12",
        "metrics": {"accuracy": 0.9333, "confusion": [[1]]},
        "golden": [],
    }
    return Release(digest, json.dumps(metadata))


def _do(repository: Repository, change: changes.Change | None) -> str:
    assert change
    return repository.commit(*change)


def _three_releases(repository: Repository) -> None:
    for digest, version in ((ONE, "1"), (TWO, "2"), (THREE, "3")):
        _do(repository, changes.release(repository, "dev", _release(digest, version)))
        _do(repository, changes.promote(repository))


def test_release_commits_one_folder_and_names_the_image_and_the_model(repository: Repository) -> None:
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


def test_release_and_promotion_of_the_current_release_do_nothing(repository: Repository) -> None:
    _do(repository, changes.release(repository, "dev", _release(ONE)))
    assert changes.release(repository, "dev", _release(ONE)) is None
    _do(repository, changes.promote(repository))
    assert changes.promote(repository) is None


def test_promotion_copies_the_release_of_dev_byte_for_byte(repository: Repository) -> None:
    _do(repository, changes.release(repository, "dev", _release(ONE)))
    _do(repository, changes.promote(repository))
    dev, prod = (repository.files(changes.folder(environment)) for environment in ("dev", "prod"))
    assert dev == prod
    _git(repository.root, "checkout", "--quiet", "HEAD~2")
    with pytest.raises(ReleaseError, match="nothing is released in dev"):
        changes.promote(repository)


def test_revert_restores_the_previous_release_and_records_the_reason(repository: Repository) -> None:
    _three_releases(repository)
    sha = _do(repository, changes.revert(repository, "prod", "P95 was 0.8 s, the limit is 0.5 s."))
    assert changes.current(repository, "prod") == _release(TWO, "2")
    assert changes.current(repository, "dev") == _release(THREE, "3")
    message = _git(repository.root, "show", "--no-patch", "--format=%B", sha)
    assert "P95 was 0.8 s, the limit is 0.5 s." in message
    assert repository.trailers("Release-Rejected") == [THREE]


def test_second_revert_skips_rejected_releases(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "bad"))
    _do(repository, changes.revert(repository, "prod", "bad, too", TWO))
    assert changes.current(repository, "prod") == _release(ONE)
    with pytest.raises(ReleaseError, match="there is nothing to roll back to"):
        changes.revert(repository, "prod", "all bad", ONE)


def test_late_forged_and_repeated_events_change_nothing(repository: Repository) -> None:
    _three_releases(repository)
    assert changes.revert(repository, "prod", "late", TWO) is None
    assert changes.revert(repository, "prod", "forged", f"sha256:{'f' * 64}") is None
    _do(repository, changes.revert(repository, "prod", "first message", THREE))
    assert changes.revert(repository, "prod", "repeated message", THREE) is None


def test_rejected_release_needs_override(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "bad"))
    with pytest.raises(ReleaseError, match=f"{THREE} was rejected before.*--override"):
        changes.promote(repository)
    _do(repository, changes.promote(repository, override=True))
    assert changes.current(repository, "prod") == _release(THREE, "3")


def test_history_lists_who_released_what_and_how_it_ended(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "P95 was 0.8 s."))
    periods = history(repository, "prod")
    assert [period.release.metadata["version"] for period in periods] == ["2", "3", "2", "1"]
    assert [period.outcome for period in periods] == [
        "current",
        "rolled back: P95 was 0.8 s.",
        f"superseded by model 3 ({THREE[:19]})",
        f"superseded by model 2 ({TWO[:19]})",
    ]
    assert [period.rolled_back for period in periods] == [False, True, False, False]
    assert periods[0].until is None
    assert periods[1].explanation == f"P95 was 0.8 s.\n\nRelease-Rejected: {THREE}"
    assert {period.released_by for period in periods} == {"Ada <ada@example.org>"}
    assert all(later.since >= earlier.since for later, earlier in pairwise(periods))


@pytest.mark.parametrize(
    ("reason", "summary"),
    [
        (
            "Aborted at 10 % of traffic: errors 30 %, limit 1 %\n\n  failed  errors",
            "Aborted at 10 % of traffic: errors",
        ),
        # Written by an older version.
        (
            "model 3 was withdrawn from prod at noon.\n\nIt was not ready.",
            "model 3 was withdrawn from prod at noon.",
        ),
        (" ", "No reason was given."),
    ],
)
def test_history_shows_the_first_line_of_a_reason(repository: Repository, reason: str, summary: str) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", reason))
    outcome = history(repository, "prod")[1].outcome
    assert outcome.startswith(f"rolled back: {summary}")
    assert "\n" not in outcome


def test_history_shows_an_edit_by_hand(repository: Repository) -> None:
    _three_releases(repository)
    file = repository.root / changes.folder("prod") / COMPONENT
    file.write_text(f"{file.read_text()}images: []\n")
    _git(repository.root, "commit", "--quiet", "--all", "--message=by hand")
    assert history(repository, "prod")[0].outcome == "superseded by an edit that is not a release"


def test_configuration_of_git_does_not_change_what_is_read(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {
        "core.commentChar": "R",
        "commit.cleanup": "strip",
        "i18n.commitEncoding": "ISO-8859-1",
        "i18n.logOutputEncoding": "ISO-8859-1",
        "log.follow": "true",
        "log.showSignature": "true",
        "trailer.separators": "=",
    }
    file = tmp_path / "gitconfig"
    for name, value in settings.items():
        _git(repository.root, "config", f"--file={file}", name, value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(file))
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "zu spät\n# 1 of 2\nRead the log."))
    assert repository.trailers(changes.REJECTED) == [THREE]
    period = history(repository, "prod")[1]
    assert period.explanation == f"zu spät\n# 1 of 2\nRead the log.\n\nRelease-Rejected: {THREE}"
    assert period.rolled_back


def test_edit_by_hand_is_refused(repository: Repository) -> None:
    _three_releases(repository)
    file = repository.root / changes.folder("prod") / COMPONENT
    file.write_text(file.read_text().replace('"model-version": "3"', '"model-version": "1"'))
    _git(repository.root, "commit", "--quiet", "--all", "--message=by hand")
    with pytest.raises(ReleaseError, match="not as `python -m delivery` writes them"):
        changes.revert(repository, "prod", "bad")


def test_revert_works_despite_bytes_that_are_not_utf_8(repository: Repository) -> None:
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
def test_odd_values_in_the_metadata_are_refused(tmp_path: Path, field: str, value: str) -> None:
    metadata = {**_release(ONE).metadata, field: value}
    (tmp_path / "model.json").write_text(json.dumps(metadata))
    with pytest.raises(ReleaseError, match=field):
        read_model(tmp_path, ONE)


@pytest.mark.parametrize("digest", ["latest", ONE[:-1], f"{ONE}0", ONE.upper(), f"{ONE}\n", "sha256:" + "g" * 64])
def test_malformed_digest_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ReleaseError, match="is not a digest"):
        read_model(tmp_path, digest)


def test_model_that_a_configmap_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(_release(ONE).metadata | {"reference": "x" * 1_000_000}))
    with pytest.raises(ReleaseError, match=r"has 1,000,\d{3} bytes, and 1,000,000 can be delivered"):
        read_model(tmp_path, ONE)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="python -m pipeline"):
        read_model(tmp_path, ONE)


def test_written_release_files_are_read_back() -> None:
    assert parse(_release(ONE).files()) == _release(ONE)
    assert parse({COMPONENT: NOTHING}) is None


def test_release_files_of_an_older_version_and_another_image_name_are_read() -> None:
    assert parse({**_release(ONE).files(), COMPONENT: OLD_COMPONENT}) == _release(ONE)


def test_release_files_are_yaml_that_yamllint_accepts_with_every_value_quoted(tmp_path: Path) -> None:
    odd = Release(ONE, json.dumps({"version": 'x"\n}]', "run_id": "1e5", "sha256": "0" * 64, "metrics": {}}))
    (tmp_path / COMPONENT).write_text(odd.files()[COMPONENT])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "yamllint",
            "--strict",
            f"--config-file={ROOT}/.yamllint.yaml",
            tmp_path / COMPONENT,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    assert parse(odd.files()) == odd
    assert '"model-run": "1e5"' in odd.files()[COMPONENT]


def test_the_image_has_one_name() -> None:
    """Kustomize replaces NAME in the manifests; the signer of the local cluster keeps signatures beside IMAGE."""
    manifests = "".join(file.read_text() for file in (ROOT / "manifests").rglob("*.yaml"))
    assert set(re.findall(r"(?:image: |name: IMAGE, value: )(iris\S*?)[}\s]", manifests)) == {NAME}
    signer = (ROOT / "overlays/local/signer/kustomization.yaml").read_text()
    assert re.findall(r"COSIGN_REPOSITORY, value: \"[^/]+/(.+?)\"", signer) == [IMAGE.partition("/")[2]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"digest: {ONE}", "digest: latest"),
        (f"digest: {ONE}", "digest: 1"),
        (f"digest: {ONE}", f"digest: {ONE}\n  - name: another\n    digest: {TWO}"),
        (f"    digest: {ONE}\n", ""),
        ('"model-version": "', '"model-version": "9'),
        ('"model-run": "', '"model-run-id": "'),
        ("kind: Component", "kind: [Component"),
        ("kind: Component", f"kind: {'[' * 5000}"),
        ("patches:", "other:"),
    ],
)
def test_release_files_without_exactly_one_release_are_refused(old: str, new: str) -> None:
    files = _release(ONE).files()
    assert old in files[COMPONENT]
    with pytest.raises(ReleaseError, match="not as `python -m delivery` writes them"):
        parse({**files, COMPONENT: files[COMPONENT].replace(old, new)})


@pytest.mark.parametrize("component", ["", "text", "[]", "patches: 1", "patches: [{patch: a}]", "\x00"])
def test_release_files_that_are_not_a_component_are_refused(component: str) -> None:
    with pytest.raises(ReleaseError, match="not as `python -m delivery` writes them"):
        parse({COMPONENT: component})


def test_dry_run_prints_the_commit_that_the_command_then_makes(repository: Repository, model: Path) -> None:
    dry = _command(repository, "release", ONE, f"--model={model}", "--dry-run")
    assert dry.stdout.startswith("would commit in overlays/dev/release:\n\ndev: model ")
    assert changes.current(repository, "dev") is None
    done = _command(repository, "release", ONE, f"--model={model}")
    assert done.stdout.endswith("next: git push\n")
    assert "nothing to do" in _command(repository, "release", ONE, f"--model={model}").stdout
    assert "prod: model " in _command(repository, "promote").stdout
    assert ONE[:19] in _command(repository, "history", "prod").stdout


def test_uncommitted_changes_are_refused(repository: Repository, model: Path) -> None:
    file = f"{changes.folder('prod')}/{COMPONENT}"
    (repository.root / file).write_text("mine")
    done = _command(repository, "release", ONE, f"--model={model}")
    assert done.returncode == 1
    assert "commit or stash them first" in done.stderr
    assert f" M {file}" in done.stderr
    assert changes.current(repository, "dev") is None


def test_watch_without_a_release_is_refused(repository: Repository) -> None:
    done = _command(repository, "watch", "dev")
    assert done.returncode == 1
    assert "`python -m delivery release` ships a release" in done.stderr


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


def _revert_by_event(repository: Repository, message: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `delivery revert` with a message, without a cluster."""
    command = [sys.executable, "-P", "-m", "delivery", "revert", "--event", "-", *options]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "KUBECONFIG": "/dev/null"}
    return subprocess.run(
        command, cwd=repository.root, env=environ, input=message, capture_output=True, text=True, check=False
    )


def test_event_excludes_environment_and_digest(repository: Repository) -> None:
    _three_releases(repository)
    done = _revert_by_event(repository, _event(), "--unconfirmed", "dev")
    assert done.returncode == 2
    assert "omit them" in done.stderr


def test_revert_by_event_needs_confirmation_and_is_idempotent(repository: Repository) -> None:
    _three_releases(repository)
    before = repository.head()
    unconfirmed = _revert_by_event(repository, _event())
    assert (unconfirmed.returncode, repository.head()) == (4, before)
    assert "the cluster is unavailable" in unconfirmed.stderr
    assert _revert_by_event(repository, _event(), "--unconfirmed").returncode == 0
    assert f"Release-Rejected: {THREE}" in _git(repository.root, "log", "-1", "--format=%B")
    head = repository.head()
    again = _revert_by_event(repository, _event(), "--unconfirmed")
    assert (again.returncode, repository.head()) == (0, head)
    assert "nothing to do" in again.stdout


def test_old_message_does_not_take_back_a_release_that_was_overridden_since(repository: Repository) -> None:
    _three_releases(repository)
    assert _revert_by_event(repository, _event(), "--unconfirmed").returncode == 0
    _do(repository, changes.promote(repository, override=True))
    head = repository.head()
    replayed = _revert_by_event(repository, _event(), "--unconfirmed")
    assert (replayed.returncode, repository.head()) == (1, head)
    assert "may be an old one" in replayed.stderr


def test_unconfirmed_messages_do_not_walk_back_through_the_releases(repository: Repository) -> None:
    _three_releases(repository)
    assert _revert_by_event(repository, _event(), "--unconfirmed").returncode == 0
    head = repository.head()
    second = _revert_by_event(repository, _event(TWO), "--unconfirmed")
    assert (second.returncode, repository.head()) == (1, head)
    assert "restored by a revert" in second.stderr


@pytest.mark.parametrize(
    "message",
    [
        "",
        "no JSON",
        "[]",
        '{"client_payload": 1}',
        "[" * 60_000,
        '{"client_payload":' * 60_000,
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
def test_foreign_message_is_refused_and_changes_nothing(repository: Repository, message: str) -> None:
    _three_releases(repository)
    head = repository.head()
    done = _revert_by_event(repository, message)
    assert (done.returncode, repository.head()) == (1, head)
    assert "nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr


def test_quoted_program_output_is_not_a_trailer(repository: Repository) -> None:
    _three_releases(repository)
    reason = "\n".join(["It failed.", "", quoted(f"x\nRelease-Rejected: {TWO}\x1b[31m")])
    _do(repository, changes.revert(repository, "prod", reason))
    assert repository.trailers(changes.REJECTED) == [THREE]
    assert "\x1b" not in _git(repository.root, "log", "-1", "--format=%B")


def test_log_lines_are_made_readable() -> None:
    failed = {"level": "ERROR", "message": "failed", "traceback": "Traceback:\n  File\nRuntimeError: no scaler"}
    refused = {"level": "ERROR", "message": "refused", "detail": "the request failed"}
    nested = "[" * 60_000
    lines = [json.dumps(failed), json.dumps(refused), json.dumps(failed), "plain", "[1]", '{"other": 1}', nested]
    shown = [
        "failed: RuntimeError: no scaler",
        "refused: the request failed",
        "plain",
        "[1]",
        '{"other": 1}',
        nested,
    ]
    assert readable(lines) == shown


def test_revert_restores_the_stable_version_of_the_cluster(repository: Repository) -> None:
    _three_releases(repository)
    # The second was still a canary when the third was released: it was never stable.
    change = changes.revert(repository, "dev", "bad", THREE, stable=ONE)
    assert change
    assert parse(change.files) == _release(ONE, "1")
    assert parse(_reverted(repository, THREE)) == _release(TWO, "2")


def test_rejected_release_that_was_overridden_can_be_restored(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "dev", "bad"))
    _do(repository, changes.release(repository, "dev", _release(THREE, "3"), override=True))
    _do(repository, changes.release(repository, "dev", _release(FOUR, "4")))
    assert parse(_reverted(repository, FOUR)) == _release(THREE, "3")


def test_revert_by_hand_is_idempotent(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "dev", "bad"))
    assert changes.revert(repository, "dev", "bad") is None
    assert parse(_reverted(repository, TWO)) == _release(ONE, "1")


def test_nothing_changes_without_a_git_identity(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    _three_releases(repository)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    _git(repository.root, "config", "user.useConfigOnly", "true")
    with pytest.raises(ReleaseError, match=r"user\.email|tell me who you are"):
        _do(repository, changes.revert(repository, "dev", "bad"))
    repository.refuse_changes(changes.folder("dev"))


def test_shallow_clone_is_refused(repository: Repository, tmp_path: Path) -> None:
    _three_releases(repository)
    shallow = tmp_path / "shallow"
    _git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository.root}", str(shallow))
    with pytest.raises(ReleaseError, match="--unshallow"):
        Repository(shallow)


def _reverted(repository: Repository, digest: str) -> dict[str, str]:
    change = changes.revert(repository, "dev", "bad", digest)
    assert change
    return change.files


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_silent_git_server_is_given_up(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "SECONDS", 1.0)
    with pytest.raises(ReleaseError, match="git clone: no answer in 1 seconds"):
        push.run_and_push(f"git://{silent_server}/iris", ["revert", "prod"])


@pytest.mark.parametrize("arguments", [["revert"], ["status"], ["why", "nowhere"], ["release"], ["--nothing"]])
def test_incomplete_command_prints_its_usage(repository: Repository, arguments: list[str]) -> None:
    command = [sys.executable, "-P", "-m", "delivery", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=repository.root, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr
