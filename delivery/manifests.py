"""Find the commits that changed what an environment renders, besides its release."""

import io
import tarfile
import tempfile
from pathlib import Path

from delivery import changes, kubernetes
from delivery.git import git_bytes
from delivery.release import ENVIRONMENTS, ReleaseError
from delivery.repository import Commit, Repository

FOLDERS = ("manifests", "overlays")
REVERTED = "Manifests-Reverted"
"""The trailer of a commit that reverts another one, which it names."""


def changed(repository: Repository, environment: str, stable: str) -> list[Commit]:
    """Return the commits, newest first, that changed what the environment renders, besides its release.

    They are younger than the commit that the stable version runs, which `stable`, its pod-template hash, names.
    Raises ReleaseError if that commit is not known, ClusterUnavailable.
    """
    base, path = _deployed(environment, stable)
    release = changes.folder(environment)
    commits = _since(repository, base)
    if not commits:
        return []
    renders = [_render(repository, commit.sha, path, release, base) for commit in reversed(commits)]
    renders.insert(0, _render(repository, base, path, release, base))
    # What was reverted since has changed nothing.
    first = max(number for number, render in enumerate(renders) if render == renders[0])
    pairs = zip(reversed(commits), renders, renders[1:], strict=False)
    return [commit for commit, before, after in list(pairs)[first:] if before != after][::-1]


def since_release(repository: Repository, environment: str) -> list[Commit]:
    """Return the commits, newest first, that changed manifests or overlays after the environment's release."""
    newest = next(iter(repository.commits(changes.folder(environment))), None)
    return _since(repository, newest.sha) if newest else []


def last_revert(repository: Repository) -> Commit | None:
    """Return the newest commit that reverted a change of the manifests after an abort, None if there is none."""
    return next((commit for commit in repository.commits(".", REVERTED) if commit.trailers[REVERTED]), None)


def _since(repository: Repository, base: str) -> list[Commit]:
    releases = (f":(exclude){changes.folder(name)}" for name in ENVIRONMENTS)  # nothing else renders those
    return repository.since(base, *FOLDERS, *releases)


def _deployed(environment: str, stable: str) -> tuple[str, str]:
    """Return the commit that the stable version was deployed from, and the folder that Argo CD renders."""
    application = kubernetes.application(environment) or {}
    replicas = kubernetes.replica_set(environment, stable)
    created = replicas["metadata"]["creationTimestamp"] if replicas else ""
    history = application.get("status", {}).get("history", [])
    synced = [
        entry["revision"] for entry in history if (entry.get("deployStartedAt") or entry["deployedAt"]) <= created
    ]
    if not synced:
        raise ReleaseError(
            f"the commit that {environment}'s stable version runs is not known: Argo CD's history begins later"
        )
    return synced[-1], application["spec"]["source"]["path"]


def _render(repository: Repository, commit: str, path: str, release: str, base: str) -> str:
    """Return what a commit renders with the release of `base`, or the error if it cannot be rendered."""
    with tempfile.TemporaryDirectory(prefix="iris-manifests-") as temporary:
        for sha, folder in ((commit, FOLDERS), (base, (release,))):
            archive = git_bytes(repository.root, "archive", sha, "--", *folder)
            try:
                with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                    tar.extractall(temporary, filter="data")
            except tarfile.TarError as error:  # a link that leads out of the repository
                raise ReleaseError(f"{sha[:10]} cannot be rendered: {error}") from error
        return kubernetes.kustomize(Path(temporary) / path).replace(temporary, "")
