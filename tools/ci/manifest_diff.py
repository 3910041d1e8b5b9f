"""Compare the objects that Argo CD would apply before and after a change, as Markdown."""

import io
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from difflib import unified_diff
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from delivery.git import GitError, git
from tools.errors import ToolError

APPLIED = ("overlays/dev", "overlays/prod", "monitoring", "manifests/argocd")
LARGEST = 900_000  # characters; the summary of a job may have 1 MiB
Objects = dict[str, str]


class RenderError(ToolError):
    """A commit's manifests cannot be rendered; the message says which commit and why."""


def manifest_diff(repository: Path, base: str, kustomize: Path) -> str:
    """Return the diff of the rendered objects from the merge base of HEAD and `base` to HEAD. Raises RenderError.

    A base that does not exist, as after a first push, is reported in the text.
    """
    try:
        commit = git(repository, "rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").strip()
        ancestor = git(repository, "merge-base", "HEAD", commit).strip()
    except GitError:
        return f"The base {base[:40]} does not exist: there is nothing to compare with.\n"
    before, after = (_rendered(repository, commit, kustomize) for commit in (ancestor, "HEAD"))
    lines = [f"## Changes that Argo CD would apply, compared with {ancestor[:10]}", ""]
    for folder in APPLIED:
        changed = list(_changed(before[folder], after[folder]))
        lines += [f"**{folder}**: {len(changed)} of {len(after[folder])} objects differ", "", *changed]
    text = "\n".join([*lines, ""])
    return text if len(text) <= LARGEST else f"{text[:LARGEST]}\n\nThe rest is too long to be shown.\n"


def _rendered(repository: Path, commit: str, kustomize: Path) -> dict[str, Objects]:
    with tempfile.TemporaryDirectory(prefix="iris-manifest-diff-") as temporary:
        archive = subprocess.run(["git", "-C", repository, "archive", commit], capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(temporary, filter="data")
        return {folder: _objects(Path(temporary) / folder, commit, kustomize) for folder in APPLIED}


def _objects(folder: Path, commit: str, kustomize: Path) -> Objects:
    """Return the rendered objects of a folder by kind and name; empty if the folder does not exist."""
    if not folder.exists():
        return {}
    done = subprocess.run([kustomize, "build", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(
            f"{'/'.join(folder.parts[-2:])} of {commit[:10]} cannot be rendered: {done.stderr.strip()[-500:]}"
        )
    texts = re.split(r"^---\n", done.stdout, flags=re.MULTILINE)
    return {_name(yaml.safe_load(text)): text for text in texts}


def _name(item: dict[str, Any]) -> str:
    metadata = item["metadata"]
    return "/".join([item["kind"], *filter(None, (metadata.get("namespace"), metadata["name"]))])


def _changed(before: Objects, after: Objects) -> Iterator[str]:
    """Yield the diff of each object that differs, as a block of Markdown."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, ""), after.get(name, "")
        if old != new:
            body = unified_diff(old.splitlines(), new.splitlines(), name, name, lineterm="")
            yield "\n".join(_fenced(list(body)))


def _fenced(lines: list[str]) -> Iterator[str]:
    # A manifest may contain backticks, which must not end the block.
    ticks = max(map(len, chain.from_iterable(re.findall("`+", line) for line in lines)), default=0)
    fence = "`" * max(3, ticks + 1)
    yield f"{fence}diff"
    yield from lines
    yield f"{fence}\n"
