"""A clone of this repository as a person has it, with an origin to push to, for commands that are run in it."""

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


def environ() -> Mapping[str, str]:
    """Return the environment of a person in a clone, with Python's packages on PATH and no cluster to be asked."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = environment(PATH=path, KUBECONFIG="/dev/null", **PERSON)
    # Coverage is of this checkout: what runs in a clone is not to be measured.
    return {name: value for name, value in own.items() if not name.startswith("COVERAGE_")}


def make(folder: Path) -> Path:
    """Return a clone in that folder, of the files as they are now; nothing has been released in it."""
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
    facts = json.loads((model / "model.json").read_text())
    for digest, version in ((ONE, "1"), (TWO, "2")):
        release = Release(digest, json.dumps(facts | {"version": version}))
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
    """Return what a git command prints, run by a person. Raises CalledProcessError."""
    command = ["git", "-C", str(where), *arguments]
    return subprocess.run(command, env=environ(), capture_output=True, text=True, check=True).stdout
