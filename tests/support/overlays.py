"""Render the overlays as they would be applied, from a copy of the manifests with a release in each environment.

`argocd` contains Argo CD's Applications. Names with `local` are the local cluster's overlays; the drill edits one
into `local blue-green`. `nothing` is prod without a release.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from delivery import changes
from delivery.release import COMPONENT, Release
from tests.support.clone import NOTHING
from tests.support.running import ROOT
from tools import programs
from tools.drill.scenarios import BLUE_GREEN as BLUE_GREEN_EDITS

RELEASE = Release(
    f"sha256:{'4' * 64}",
    json.dumps({"version": "7", "sha256": "5" * 64, "run_id": "ab12", "metrics": {}, "golden": []}),
)

BLUE_GREEN = """\
resources: [../overlays/prod]
components: [../manifests/iris/blue-green]
"""
BUILT = {
    "dev": "overlays/dev",
    "prod": "overlays/prod",
    "monitoring": "monitoring",
    "argocd": "manifests/argocd",
    "blue-green": "blue-green",
    "nothing": "overlays/nothing",
    "local dev": "overlays/local/dev",
    "local prod": "overlays/local/prod",
    "local nothing": "overlays/local/nothing",
    "local blue-green": "local-blue-green/overlays/local/prod",
    "local monitoring": "overlays/local/monitoring",
    "local argocd": "overlays/local/argocd",
}


def render(copy: Path) -> dict[str, str]:
    """Copy the manifests into a folder, and return the rendered YAML of each overlay by its name in BUILT."""
    copy_with_a_release(copy)
    return {name: build(copy, name) for name in BUILT}


def copy_with_a_release(copy: Path) -> None:
    """Copy the manifests into a folder, with a release in each environment."""
    for folder in ("manifests", "overlays", "monitoring"):
        shutil.copytree(ROOT / folder, copy / folder)
    for environment in ("dev", "prod"):
        for name, text in RELEASE.files().items():
            (copy / changes.folder(environment) / name).write_text(text)
    for folder in ("manifests", "overlays"):
        shutil.copytree(copy / folder, copy / "local-blue-green" / folder)
    for path, old, new in BLUE_GREEN_EDITS:
        file = copy / "local-blue-green" / path
        file.write_text(file.read_text().replace(old, new))
    shutil.copytree(copy / "overlays/prod", copy / "overlays/nothing")
    (copy / "overlays/nothing/release" / COMPONENT).write_text(NOTHING)
    local = copy / "overlays/local/nothing"
    shutil.copytree(copy / "overlays/local/prod", local)
    file = local / "kustomization.yaml"
    file.write_text(file.read_text().replace("../../prod", "../../nothing"))
    (copy / "blue-green").mkdir()
    (copy / "blue-green/kustomization.yaml").write_text(BLUE_GREEN)


def build(copy: Path, name: str) -> str:
    """Return the rendered YAML of an overlay of that copy, by its name in BUILT; fail if Kustomize rejects it."""
    kustomize = programs.folder("kustomize", print) / "kustomize"
    done = subprocess.run([kustomize, "build", copy / BUILT[name]], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"kustomize build {BUILT[name]}: {done.stderr[-500:]}")
    return done.stdout
