"""The platform: manifests/platform as the cluster applies it, upstream's files taken from the Go module cache."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools import programs
from tools.checkout import ROOT
from tools.errors import ToolError
from tools.progress import Say

# Public addresses of upstream's manifests: a folder of a git repository at a tag, or one file of it.
FOLDER = re.compile(r"https://github\.com/(?P<repository>[\w.-]+/[\w.-]+)//(?P<path>\S+)\?ref=(?P<version>\S+)")
FILE = re.compile(
    r"https://raw\.githubusercontent\.com/(?P<repository>[\w.-]+/[\w.-]+)/(?P<version>v[^/]+)/(?P<path>\S+)"
)
MODULES = {
    "argoproj/argo-cd": "argo-cd",
    "argoproj/argo-rollouts": "argo-rollouts",
    "kubernetes-sigs/metrics-server": "metrics-server",
    "traefik/traefik": "traefik",
}


def render(overlay: str, say: Say) -> str:
    """Return the objects of an overlay as YAML, upstream's manifests taken from modules of the same version.

    The kustomizations say where upstream has its manifests; a module of that version holds the same files, and its
    checksum is in go.sum. Raises ToolError, also where a kustomization and go.mod name different versions.
    """
    with tempfile.TemporaryDirectory(prefix="iris-platform-") as temporary:
        copy = Path(temporary)
        for folder in ("manifests", "overlays"):
            shutil.copytree(ROOT / folder, copy / folder)
        take_upstream_from_modules(copy)
        kustomize = programs.folder("kustomize", say) / "kustomize"
        done = subprocess.run(
            [kustomize, "build", copy / overlay],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.defpath},
        )
        if done.returncode:
            raise ToolError(f"kustomize build {overlay}: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout


def take_upstream_from_modules(copy: Path) -> None:
    """Have the kustomizations of a copy of this checkout take upstream's files from the module cache.

    Raises ToolError where one and go.mod name different versions.
    """
    for kustomization in copy.rglob("kustomization.yaml"):
        _take_upstream(kustomization, copy)


def _take_upstream(kustomization: Path, copy: Path) -> None:
    text = kustomization.read_text()
    for found in [*FOLDER.finditer(text), *FILE.finditer(text)]:
        module = MODULES[found["repository"]]
        if found["version"] != programs.version(module):
            raise ToolError(
                f"{kustomization.relative_to(copy)} asks for {found['repository']} {found['version']}, "
                f"tools/modules/{module}/go.mod for {programs.version(module)}: make them the same"
            )
        # A file has to lie inside of the kustomization's folder; a folder may be linked to from there.
        here = kustomization.parent / f"upstream-{module}"
        files = programs.source(module)
        source = files / found["path"]
        if source.is_dir():
            if not here.exists():
                here.symlink_to(files)
            text = text.replace(found[0], f"{here.name}/{found['path']}")
        else:
            shutil.copyfile(source, here.with_suffix(".yaml"))
            text = text.replace(found[0], here.with_suffix(".yaml").name)
    kustomization.write_text(text)
