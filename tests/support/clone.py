"""A person's clone of this repository, with an origin to push to, in which tests run commands."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from delivery import changes
from delivery.changes import Change
from delivery.git import identity
from delivery.release import Release
from delivery.repository import Repository
from tests.support.running import ROOT, environment

ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")
PERSON = identity("Ada", "ada@example.org")
NOTHING = """\
# The release that runs here, written by `python -m delivery`. Do not edit. Nothing is released yet.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
patches: # there is no image yet
  - patch: |
      $patch: delete
      apiVersion: argoproj.io/v1alpha1
      kind: Rollout
      metadata: {name: iris}
  - patch: |
      $patch: delete
      apiVersion: autoscaling/v2
      kind: HorizontalPodAutoscaler
      metadata: {name: iris}
  - patch: |
      $patch: delete
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: iris-drift}
  - patch: |
      $patch: delete
      apiVersion: batch/v1
      kind: Job
      metadata: {name: signature}
"""
"""The kustomization.yaml of an environment in which nothing is released."""


def environ() -> Mapping[str, str]:
    """Return the environment variables of a person in a clone: Python's packages on PATH, and no cluster."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = environment(PATH=path, KUBECONFIG="/dev/null", **PERSON)
    # Coverage is measured for this checkout, not for the clone.
    return {name: value for name, value in own.items() if not name.startswith("COVERAGE_")}


def make(folder: Path) -> Path:
    """Make a clone with this checkout's files, including uncommitted ones; nothing is released in it."""
    clone, origin = folder / "clone", folder / "origin.git"
    clone.mkdir()
    for file in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / file).exists():
            (clone / file).parent.mkdir(parents=True, exist_ok=True)
            (clone / file).write_bytes((ROOT / file).read_bytes())
            (clone / file).chmod((ROOT / file).stat().st_mode)
    git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    git(clone, "init", "--quiet", "--initial-branch=main")
    git(clone, "remote", "add", "origin", str(origin))
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "--message=begin")
    git(clone, "push", "--quiet", "--set-upstream", "origin", "main")
    return clone


def release_two(clone: Path, model: Path) -> None:
    """Release two models to dev, promote each to prod, and push."""
    metadata = json.loads((model / "model.json").read_text())
    for digest, version in ((ONE, "1"), (TWO, "2")):
        release = Release(digest, json.dumps(metadata | {"version": version}))
        _commit(clone, changes.release(Repository(clone), "dev", release))
        _commit(clone, changes.promote(Repository(clone)))
    git(clone, "push", "--quiet")


def _commit(clone: Path, change: Change | None) -> None:
    assert change
    for name, text in change.files.items():
        (clone / change.folder / name).write_text(text)
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", f"--message={change.message}")


def git(where: Path, *arguments: str) -> str:
    """Run a git command as a person, and return its output. Raises CalledProcessError."""
    command = ["git", "-C", str(where), *arguments]
    return subprocess.run(command, env=environ(), capture_output=True, text=True, check=True).stdout
