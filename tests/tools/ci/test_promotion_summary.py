"""The summary that a person approves."""

import json
import subprocess
from pathlib import Path

import pytest

from delivery import changes
from delivery.release import COMPONENT, Release, ReleaseError
from delivery.repository import Repository
from tests.support.clone import NOTHING
from tools.ci.promotion import CARD, CHANGED, promotion

ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository with a model card, in which nothing is released."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.org")
    files = {changes.folder(environment) + f"/{COMPONENT}": NOTHING for environment in ("dev", "prod")}
    for name, text in (files | {CARD: "# Model card\n\nNot for botany.\n"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for command in ("init --quiet", "add .", "commit --quiet --message=begin"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return Repository(tmp_path)


def _ship(repository: Repository, environment: str, digest: str, accuracy: float) -> None:
    metadata = {
        "version": digest[7],
        "algorithm": "svm",
        "sha256": "1" * 64,
        "run_id": "ab12",
        "metrics": {"accuracy": accuracy, "confusion": [[1]]},
        "golden": [],
    }
    change = changes.release(repository, environment, Release(digest, json.dumps(metadata)))
    assert change
    repository.commit(*change)


def test_summary_compares_both_releases_and_has_the_model_card(repository: Repository) -> None:
    _ship(repository, "prod", ONE, 0.9)
    _ship(repository, "dev", TWO, 0.96667)
    shown = promotion(repository).splitlines()
    assert shown[0] == f"# prod: model 2 ({TWO[:19]})"
    for row in (f"| image | {ONE[:19]} | {TWO[:19]} |", "| version | 1 | 2 |", "| accuracy | 0.9 | 0.9667 |"):
        assert row in shown
    assert "Not for botany." in shown


def test_summary_lists_the_manifests_that_changed_since_the_last_release_of_prod(repository: Repository) -> None:
    _ship(repository, "prod", ONE, 0.9)
    _ship(repository, "dev", TWO, 0.96667)
    assert CHANGED not in promotion(repository)
    (repository.root / "manifests").mkdir()
    (repository.root / "manifests/limits.yaml").touch()
    for command in (["add", "."], ["commit", "--quiet", "--message=slo: allow ``` 2 %"]):
        subprocess.run(["git", *command], cwd=repository.root, check=True)
    changed = f"    changed   {repository.head()[:10]} by Ada <ada@example.org>: slo: allow ``` 2 %"
    assert f"\n\n{CHANGED}\n\n{changed}\n\n# Model card" in promotion(repository)


def test_summary_of_the_first_release_has_an_empty_column(repository: Repository) -> None:
    _ship(repository, "dev", ONE, 0.9)
    assert "| accuracy |  | 0.9 |" in promotion(repository).splitlines()


def test_nothing_to_promote_is_an_error(repository: Repository) -> None:
    with pytest.raises(ReleaseError, match="nothing is released in dev"):
        promotion(repository)
    for environment in ("dev", "prod"):
        _ship(repository, environment, ONE, 0.9)
    with pytest.raises(ReleaseError, match="nothing to promote"):
        promotion(repository)
