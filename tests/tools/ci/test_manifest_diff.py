"""The diff of a change's manifests, rendered by the real kustomize."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from delivery import changes
from tests.support.overlays import RELEASE
from tests.support.running import ROOT
from tools import programs
from tools.ci.manifest_diff import APPLIED, GATES, manifest_diff
from tools.errors import ToolError

Change = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def kustomize() -> Path:
    return programs.folder("kustomize", print) / "kustomize"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose main has this checkout's manifests, with another branch checked out."""
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


def test_diff_shows_only_the_changed_objects(repository: Path, change: Change, kustomize: Path) -> None:
    change("manifests/postgres/statefulset.yaml", "replicas: 1", "replicas: 2")
    text = manifest_diff(repository, "main", kustomize)
    assert text.count("```diff\n") == 1
    assert "--- StatefulSet/iris-dev/" in text
    assert "\n-  replicas: 1\n+  replicas: 2\n" in text
    assert "**overlays/dev**: 1 of " in text
    assert text.count(": 0 of ") == len(APPLIED) - 1


@pytest.mark.parametrize(
    ("file", "old", "new", "gates"),
    [
        (
            "manifests/iris/analysistemplate-slo.yaml",
            "> 0.01",
            "> 0.02",
            ["AnalysisTemplate/iris-dev/slo", "AnalysisTemplate/iris-prod/slo"],
        ),
        ("manifests/iris/rollout.yaml", "setWeight: 10\n", "setWeight: 50\n", ["Rollout/iris-prod/iris"]),
        ("manifests/iris/rollout.yaml", 'DRAIN_SECONDS, value: "120"', 'DRAIN_SECONDS, value: "60"', []),
    ],
)
def test_changed_limits_and_steps_are_announced_first(
    repository: Path, change: Change, kustomize: Path, file: str, old: str, new: str, gates: list[str]
) -> None:
    for environment in ("dev", "prod"):
        for name, text in RELEASE.files().items():
            (repository / changes.folder(environment) / name).write_text(text)
    _git(repository, "add", ".")
    _git(repository, "commit", "--quiet", "--message=released")
    _git(repository, "branch", "--force", "main")
    change(file, old, new)
    text = manifest_diff(repository, "main", kustomize)
    assert text.splitlines()[2].startswith("**overlays/dev**") == (not gates)
    assert (f"\n\n**{GATES}: {', '.join(gates)}**\n\n**overlays/dev**: " in text) == bool(gates)
    assert (GATES in text) == bool(gates)


def test_newer_commits_of_main_are_not_part_of_the_diff(repository: Path, change: Change, kustomize: Path) -> None:
    _git(repository, "checkout", "--quiet", "main")
    change("manifests/postgres/statefulset.yaml", "replicas: 1", "replicas: 2")
    _git(repository, "checkout", "--quiet", "branch")
    assert "```" not in manifest_diff(repository, "main", kustomize)


def test_backticks_in_a_manifest_do_not_end_the_block(repository: Path, change: Change, kustomize: Path) -> None:
    change(
        "overlays/dev/kustomization.yaml",
        "namespace: iris-dev",
        "namespace: iris-dev\ncommonAnnotations: {a: '```'}",
    )
    text = manifest_diff(repository, "main", kustomize)
    assert "````diff\n" in text
    assert "\n```diff" not in text


def test_missing_base_is_reported(repository: Path, kustomize: Path) -> None:
    for base in ("0" * 40, "origin/other", "--output=file"):
        assert (
            manifest_diff(repository, base, kustomize)
            == f"The base {base} does not exist: there is nothing to compare with.\n"
        )


def test_render_error_names_the_folder_and_the_commit(repository: Path, change: Change, kustomize: Path) -> None:
    change("overlays/prod/kustomization.yaml", "../../manifests/iris", "../../manifests/none")
    with pytest.raises(ToolError, match=r"overlays/prod of HEAD cannot be rendered: .*none"):
        manifest_diff(repository, "main", kustomize)
