"""Compare the objects that Argo CD would apply before and after a change, as Markdown."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any

import yaml

from delivery.git import GitError, git
from tools.child_process import output
from tools.errors import ToolError

APPLIED = ("overlays/dev", "overlays/prod", "monitoring", "manifests/argocd")
LARGEST = 900_000  # characters; the summary of a job may have 1 MiB
GATES = "Limits or steps that judge every release from now on change"
Objects = dict[str, str]


def manifest_diff(repository: Path, base: str, kustomize: Path) -> str:
    """Return the diff of the rendered objects from the merge base of HEAD and `base` to HEAD.

    A base that does not exist, as after a first push, is reported in the text. Raises ToolError, which says which
    commit cannot be rendered and why.
    """
    try:
        commit = git(repository, "rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").strip()
        ancestor = git(repository, "merge-base", "HEAD", commit).strip()
    except GitError:
        return f"The base {base[:40]} does not exist: there is nothing to compare with.\n"
    before, after = (_rendered(repository, commit, kustomize) for commit in (ancestor, "HEAD"))
    lines = [f"## Changes that Argo CD would apply, compared with {ancestor[:10]}", ""]
    if names := [name for folder in APPLIED for name in _changed_gates(before[folder], after[folder])]:
        lines += [f"**{GATES}: {', '.join(names)}**", ""]
    for folder in APPLIED:
        changed = list(_changed(before[folder], after[folder]))
        lines += [f"**{folder}**: {len(changed)} of {len(after[folder])} objects differ", "", *changed]
    text = "\n".join([*lines, ""])
    return text if len(text) <= LARGEST else f"{text[:LARGEST]}\n\nThe rest is too long to be shown.\n"


def _rendered(repository: Path, commit: str, kustomize: Path) -> dict[str, Objects]:
    with tempfile.TemporaryDirectory(prefix="iris-manifest-diff-") as temporary:
        archive = Path(temporary) / "commit.tar"
        git(repository, "archive", f"--output={archive}", commit)
        shutil.unpack_archive(archive, temporary, filter="data")
        return {folder: _objects(Path(temporary) / folder, commit, kustomize) for folder in APPLIED}


def _objects(folder: Path, commit: str, kustomize: Path) -> Objects:
    """Return the rendered objects of a folder by kind and name; empty if the folder does not exist."""
    if not folder.exists():
        return {}
    try:
        rendered = output([str(kustomize), "build", str(folder)], name="kustomize build")
    except ToolError as error:
        name = "/".join(folder.parts[-2:])
        raise ToolError(f"{name} of {commit[:10]} cannot be rendered: {error}") from error
    texts = re.split(r"^---\n", rendered, flags=re.MULTILINE)
    return {_name(yaml.safe_load(text)): text for text in texts}


def _name(item: dict[str, Any]) -> str:
    metadata = item["metadata"]
    return "/".join([item["kind"], *filter(None, (metadata.get("namespace"), metadata["name"]))])


def _changed_gates(before: Objects, after: Objects) -> list[str]:
    """Return the names of the AnalysisTemplates and Rollouts that judge a release differently than before."""
    return [name for name in sorted(before.keys() & after.keys()) if _gate(before[name]) != _gate(after[name])]


def _gate(text: str) -> dict[str, Any] | None:
    """Return the part of an object that judges a release, None if there is none."""
    item = yaml.safe_load(text)
    if item["kind"] not in {"AnalysisTemplate", "Rollout"}:
        return None
    return {key: value for key, value in item["spec"].items() if key != "template"}  # the pods judge nothing


def _changed(before: Objects, after: Objects) -> Iterator[str]:
    """Yield the diff of each object that differs, as a block of Markdown."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, ""), after.get(name, "")
        if old != new:
            body = "\n".join(unified_diff(old.splitlines(), new.splitlines(), name, name, lineterm=""))
            # A manifest may contain backticks, which must not end the block.
            fence = max([*re.findall("`+", body), "``"], key=len) + "`"
            yield f"{fence}diff\n{body}\n{fence}\n"
