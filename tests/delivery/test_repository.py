"""What people do to a git repository, before and after `delivery`: merges, hooks, other settings, odd files."""

import json
import os
import subprocess
import sys
import time

import pytest

from delivery import changes
from delivery.history import history
from delivery.release import COMPONENT, MODEL, ReleaseError
from delivery.repository import Repository
from tests.delivery.test_delivery import ONE, THREE, TWO, _do, _git, _release, _three_releases, repository
from tests.support.running import ROOT

__all__ = ["repository"]  # the fixture
FOLDER = changes.folder("prod")


def _reverted_to(repository: Repository, digest: str = "") -> str | None:
    change = changes.revert(repository, "prod", "bad", digest)
    return yaml_digest(change.files) if change else None


def yaml_digest(files: dict[str, str]) -> str:
    return files[COMPONENT].partition("digest: ")[2].split()[0]


def _command(repository: Repository, *arguments: str, where: str = ".") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "delivery", *arguments],
        cwd=repository.root / where,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KUBECONFIG": "/dev/null"},
        capture_output=True,
        text=True,
        check=False,
    )


def _unchanged(repository: Repository, head: str) -> bool:
    return repository.head() == head and not _git(repository.root, "status", "--porcelain")


@pytest.mark.parametrize(
    "message",
    [
        "release-rejected: {}",
        "Release-Rejected:{}\nSigned-off-by: Ada <ada@example.org>",
        "Release-Rejected:\n {}\nReviewed-by: Bob <bob@example.org>",
    ],
)
def test_edited_message_of_a_revert_still_rejects(repository: Repository, message: str) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "bad"))
    text = f"prod: roll back\n\nIt was bad.\n\n{message.format(THREE)}\n"
    _git(repository.root, "commit", "--quiet", "--amend", f"--message={text}")
    assert _reverted_to(repository) is None
    assert _reverted_to(repository, TWO) == ONE
    assert [period.rolled_back for period in history(repository, "prod")] == [False, True, False, False]


def test_signed_off_revert_still_rejects(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "bad"))
    _git(repository.root, "commit", "--quiet", "--amend", "--signoff", "--no-edit")
    assert _reverted_to(repository) is None
    assert _reverted_to(repository, TWO) == ONE


def test_merged_revert_rejects_and_what_was_on_the_branch_was_never_released(repository: Repository) -> None:
    _three_releases(repository)
    _git(repository.root, "switch", "--quiet", "--create", "rescue")
    _do(repository, changes.revert(repository, "prod", "bad"))
    _do(repository, changes.revert(repository, "prod", "bad, too", TWO))
    _git(repository.root, "switch", "--quiet", "-")
    (repository.root / "notes").write_text("meanwhile")
    _git(repository.root, "add", "notes")
    _git(repository.root, "commit", "--quiet", "--message=meanwhile")
    _git(repository.root, "merge", "--quiet", "--no-edit", "rescue")
    assert _reverted_to(repository) is None
    assert [period.release.digest for period in history(repository, "prod")] == [ONE, THREE, TWO, ONE]
    with pytest.raises(ReleaseError, match="there is nothing to roll back to"):
        changes.revert(repository, "prod", "bad", ONE)


def test_merge_after_a_revert_does_not_bring_the_rejected_release_back(repository: Repository) -> None:
    _three_releases(repository)
    _git(repository.root, "branch", "other", "HEAD~2")
    _do(repository, changes.revert(repository, "prod", "bad"))
    _git(repository.root, "switch", "--quiet", "other")
    (repository.root / "notes").write_text("meanwhile")
    _git(repository.root, "add", "notes")
    # Newer than the revert, and therefore listed before it.
    _git(repository.root, "commit", "--quiet", "--message=meanwhile", "--date=2100-01-01T00:00:00Z")
    _git(repository.root, "switch", "--quiet", "-")
    _git(repository.root, "merge", "--quiet", "--no-edit", "other")
    assert _reverted_to(repository) is None
    assert _reverted_to(repository, TWO) == ONE


def test_git_revert_by_hand_rejects_the_release(repository: Repository) -> None:
    _three_releases(repository)
    _git(repository.root, "revert", "--no-edit", "HEAD")
    assert changes.current(repository, "prod") == _release(TWO, "2")
    assert _reverted_to(repository) is None
    assert _reverted_to(repository, TWO) == ONE
    newest, reverted, *_ = history(repository, "prod")
    assert (newest.outcome, reverted.rolled_back) == ("current", True)
    assert reverted.outcome.startswith("rolled back: This reverts commit ")


def test_git_revert_of_a_revert_takes_the_rejection_back(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "bad"))
    _git(repository.root, "revert", "--no-edit", "HEAD")
    assert changes.current(repository, "prod") == _release(THREE, "3")
    assert _reverted_to(repository) == TWO


def test_earlier_release_may_be_released_again(repository: Repository) -> None:
    _three_releases(repository)
    _do(repository, changes.release(repository, "prod", _release(ONE)))
    assert _reverted_to(repository) == THREE


SETTINGS = {
    "clone.defaultRemoteName": "upstream",
    "color.ui": "always",
    "core.quotePath": "true",
    "diff.noprefix": "true",
    "log.date": "relative",
    "log.decorate": "full",
    "log.diffMerges": "off",
    "log.mailmap": "true",
    "status.branch": "true",
    "status.showStash": "true",
    "status.showUntrackedFiles": "no",
    "status.short": "true",
    "trailer.ifexists": "doNothing",
}


def test_settings_of_a_person_change_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("home") / "gitconfig"
    for name, value in SETTINGS.items():
        _git(repository.root, "config", f"--file={file}", name, value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(file))
    _three_releases(repository)
    _do(repository, changes.revert(repository, "prod", "bad"))
    assert [period.outcome for period in history(repository, "prod")][:2] == ["current", "rolled back: bad"]
    (repository.root / FOLDER / "notes").touch()
    with pytest.raises(ReleaseError, match="uncommitted changes"):
        repository.refuse_changes(FOLDER)


HOOK = "#!/bin/sh\necho 'the hook says no' >&2\nexit 1\n"


def _refusing_hook(repository: Repository) -> None:
    hook = repository.root / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK)
    hook.chmod(0o755)


def _broken_signing(repository: Repository) -> None:
    _git(repository.root, "config", "commit.gpgSign", "true")
    _git(repository.root, "config", "gpg.program", "/bin/false")


def _locked_index(repository: Repository) -> None:
    (repository.root / ".git/index.lock").touch()


def _locked_branch(repository: Repository) -> None:
    branch = _git(repository.root, "symbolic-ref", "HEAD").strip()
    (repository.root / ".git" / f"{branch}.lock").touch()


@pytest.mark.parametrize("obstacle", [_refusing_hook, _broken_signing, _locked_index, _locked_branch])
def test_failed_commit_changes_nothing(repository: Repository, obstacle: object) -> None:
    _three_releases(repository)
    head = repository.head()
    obstacle(repository)  # type: ignore[operator]
    done = _command(repository, "revert", "prod", "--reason=bad")
    assert done.returncode == 1
    assert done.stderr.startswith("delivery: git ")
    assert "Traceback" not in done.stderr
    assert _unchanged(repository, head)


def test_untracked_file_elsewhere_blocks_nothing_and_is_not_committed(repository: Repository) -> None:
    _three_releases(repository)
    (repository.root / "notes").write_text("mine")
    assert _command(repository, "revert", "prod", "--reason=bad").returncode == 0
    assert _git(repository.root, "status", "--porcelain") == "?? notes\n"
    assert changes.current(repository, "prod") == _release(TWO, "2")


@pytest.mark.parametrize("name", ["notes", "old/notes", "Größe.txt", 'a "quoted"\tname', "caf\udce9"])
def test_other_files_in_a_release_are_removed_by_the_next_one(repository: Repository, name: str) -> None:
    _three_releases(repository)
    file = repository.root / FOLDER / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("notes")
    _git(repository.root, "add", ".")
    _git(repository.root, "commit", "--quiet", "--message=notes")
    assert _command(repository, "history", "prod").returncode == 0
    done = _command(repository, "revert", "prod", "--reason=bad")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (repository.root / FOLDER).iterdir()) == [COMPONENT, MODEL]
    assert changes.current(repository, "prod") == _release(TWO, "2")
    assert _git(repository.root, "status", "--porcelain") == ""


def test_formatted_release_is_still_the_release(repository: Repository) -> None:
    _three_releases(repository)
    folder = repository.root / FOLDER
    text = (folder / COMPONENT).read_text()
    text = text.replace("kind: Rollout", 'kind: "Rollout"').replace(f"digest: {THREE}", f"\n    digest: '{THREE}'")
    (folder / COMPONENT).write_text(f"---\n\n{text}\n\n")
    (folder / MODEL).write_text(json.dumps(json.loads((folder / MODEL).read_text()), indent=4) + "\n\n")
    _git(repository.root, "commit", "--quiet", "--all", "--message=format")
    newest, *_ = history(repository, "prod")
    assert newest.release.digest == THREE
    assert _reverted_to(repository) == TWO


def test_formatted_release_is_not_released_again(repository: Repository) -> None:
    _three_releases(repository)
    model = repository.root / changes.folder("dev") / MODEL
    model.write_text(json.dumps(json.loads(model.read_text()), indent=4))
    _git(repository.root, "commit", "--quiet", "--all", "--message=format")
    assert changes.promote(repository) is None


def test_author_may_contain_any_character(repository: Repository) -> None:
    _three_releases(repository)
    _git(
        repository.root, "commit", "--quiet", "--amend", "--no-edit", "--author=A\x01d\x1ea [bold] <a@example.org>"
    )
    assert history(repository, "prod")[0].released_by == "A\x01d\x1ea [bold] <a@example.org>"
    assert "[bold]" in _command(repository, "history", "prod").stdout


def test_sparse_checkout_is_committed_to(repository: Repository) -> None:
    _three_releases(repository)
    _git(repository.root, "sparse-checkout", "set", "overlays/dev")
    assert not (repository.root / FOLDER).exists()
    done = _command(repository, "revert", "prod", "--reason=bad")
    assert done.returncode == 0, done.stderr
    assert changes.current(repository, "prod") == _release(TWO, "2")
    assert _git(repository.root, "status", "--porcelain") == ""


def test_commit_works_in_a_folder_with_an_odd_name(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _three_releases(repository)
    clone = tmp_path_factory.mktemp("odd") / " Größe [1] \n"
    _git(repository.root, "clone", "--quiet", str(repository.root), str(clone))
    _do(Repository(clone), changes.revert(Repository(clone), "prod", "bad"))
    assert changes.current(Repository(clone), "prod") == _release(TWO, "2")


def test_detached_head_is_refused(repository: Repository) -> None:
    _three_releases(repository)
    _git(repository.root, "checkout", "--quiet", "--detach")
    head = repository.head()
    done = _command(repository, "revert", "prod", "--reason=bad")
    assert done.returncode == 1
    assert "`git switch main`" in done.stderr
    assert _unchanged(repository, head)


def test_reason_with_brackets_is_shown_as_it_is(repository: Repository) -> None:
    _three_releases(repository)
    reason = "[red]wrong[/red] for [/] :warning: [link=x]"
    assert _command(repository, "revert", "prod", f"--reason={reason}").returncode == 0
    done = _command(repository, "history", "prod")
    assert done.returncode == 0, done.stderr
    assert "[red]wrong[/red] for [/] :warning: [link=x]" in " ".join(done.stdout.replace("│", " ").split())


def test_commands_work_in_a_subfolder(repository: Repository) -> None:
    _three_releases(repository)
    done = _command(repository, "revert", "prod", "--reason=bad", where="overlays")
    assert done.returncode == 0, done.stderr
    assert _git(repository.root, "status", "--porcelain") == ""


RELEASES = 1000


def test_a_thousand_releases_are_read_by_a_handful_of_processes(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _import_releases(repository)
    trace = tmp_path_factory.mktemp("trace") / "trace"
    monkeypatch.setenv("GIT_TRACE2", str(trace))
    begin = time.monotonic()
    assert len(history(repository, "prod")) == RELEASES
    assert changes.revert(repository, "prod", "bad")
    sys.stdout.write(f"{time.monotonic() - begin:.2f} s")
    assert sum(" start " in line for line in trace.read_text().splitlines()) < 15


def _import_releases(repository: Repository) -> None:
    """Make commits of many releases with one process."""
    branch = _git(repository.root, "symbolic-ref", "HEAD").strip()
    lines = []
    for number in range(RELEASES):
        digest = f"sha256:{number:064x}"
        model = {**_release(digest, str(number)).metadata, "sha256": "0" * 64, "reference": [0.123456] * 1000}
        release = _release(digest)._replace(model=json.dumps(model))
        change = changes.release(repository, "prod", release)
        assert change
        lines += [f"commit {branch}", f"committer Ada <ada@example.org> {1_700_000_000 + number} +0000"]
        lines += [f"data {len(change.message)}", change.message, *(["from HEAD^0"] if not number else [])]
        for name, text in change.files.items():
            lines += [f"M 100644 inline {FOLDER}/{name}", f"data {len(text)}", text]
    stream = "\n".join(lines) + "\n"
    subprocess.run(["git", "-C", repository.root, "fast-import", "--quiet"], input=stream, text=True, check=True)
    _git(repository.root, "reset", "--quiet", "--hard")
