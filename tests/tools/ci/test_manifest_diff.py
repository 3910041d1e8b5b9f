"""What a change would change in the cluster, rendered by the real kustomize."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import ROOT
from tools import programs
from tools.ci.manifest_diff import APPLIED, RenderError, difference

Change = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def kustomize() -> Path:
    return programs.folder("kustomize", print) / "kustomize"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This checkout's manifests as the main of a repository, in which another branch is checked out."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.org")
    _git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for folder in ("manifests", "overlays", "monitoring"):
        subprocess.run(["cp", "-r", ROOT / folder, tmp_path], check=True)
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message=begin")
    _git(tmp_path, "checkout", "--quiet", "-b", "branch")
    return tmp_path


@pytest.fixture
def change(repository: Path) -> Change:
    def commit(file: str, old: str, new: str) -> None:
        text = (repository / file).read_text()
        assert old in text
        (repository / file).write_text(text.replace(old, new, 1))
        _git(repository, "commit", "--quiet", "--all", "--message=change")

    return commit


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True)


def test_a_change_is_shown_as_the_objects_that_it_changes_and_no_others(
    repository: Path, change: Change, kustomize: Path
) -> None:
    change("manifests/postgres/statefulset.yaml", "replicas: 1", "replicas: 2")
    text = difference(repository, "main", kustomize)
    assert text.count("```diff\n") == 1
    assert "--- StatefulSet/iris-dev/" in text
    assert "\n-  replicas: 1\n+  replicas: 2\n" in text
    assert "**overlays/dev**: 1 of " in text
    assert text.count(": none of ") == len(APPLIED) - 1


def test_what_main_has_got_meanwhile_is_no_change_of_the_branch(
    repository: Path, change: Change, kustomize: Path
) -> None:
    _git(repository, "checkout", "--quiet", "main")
    change("manifests/postgres/statefulset.yaml", "replicas: 1", "replicas: 2")
    _git(repository, "checkout", "--quiet", "branch")
    assert "```" not in difference(repository, "main", kustomize)


def test_what_is_in_a_manifest_cannot_end_its_block(repository: Path, change: Change, kustomize: Path) -> None:
    change(
        "overlays/dev/kustomization.yaml",
        "namespace: iris-dev",
        "namespace: iris-dev\ncommonAnnotations: {a: '```'}",
    )
    text = difference(repository, "main", kustomize)
    assert "````diff\n" in text
    assert "\n```diff" not in text


def test_a_base_that_is_not_there_is_said_to_be_so(repository: Path, kustomize: Path) -> None:
    for base in ("0" * 40, "origin/other", "--output=file"):
        assert difference(repository, base, kustomize) == f"There is no {base} to compare with.\n"


def test_what_cannot_be_rendered_is_an_error_that_says_where(
    repository: Path, change: Change, kustomize: Path
) -> None:
    change("overlays/prod/kustomization.yaml", "../../manifests/iris", "../../manifests/none")
    with pytest.raises(RenderError, match=r"overlays/prod of HEAD cannot be rendered: .*none"):
        difference(repository, "main", kustomize)
