"""Render overlays as the cluster applies them, with upstream's manifests from the Go module cache."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from tools import programs
from tools.checkout import ROOT
from tools.child_process import output
from tools.errors import ToolError
from tools.progress import Say

# Public addresses of upstream's manifests: a folder in a git repository at a tag, or a single file in it.
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
    """Return the objects of an overlay as YAML, rendered without a network.

    The kustomizations name upstream's manifests by public address. The Go module of the same version contains the
    same files, and go.sum has its checksum. Raises ToolError, also if a kustomization and go.mod name different
    versions.
    """
    with tempfile.TemporaryDirectory(prefix="iris-platform-") as temporary:
        copy = Path(temporary)
        for folder in ("manifests", "overlays"):
            shutil.copytree(ROOT / folder, copy / folder)
        take_upstream_from_modules(copy)
        kustomize = programs.folder("kustomize", say) / "kustomize"
        command = [str(kustomize), "build", str(copy / overlay)]
        return output(command, name=f"kustomize build {overlay}", env={"PATH": os.defpath})


def take_upstream_from_modules(copy: Path) -> None:
    """Change the kustomizations in a copy of this checkout to take upstream's files from the module cache.

    Raises ToolError if a kustomization and go.mod name different versions.
    """
    for kustomization in copy.rglob("kustomization.yaml"):
        text = kustomization.read_text()
        for found in [*FOLDER.finditer(text), *FILE.finditer(text)]:
            module = MODULES[found["repository"]]
            if found["version"] != programs.version(module):
                raise ToolError(
                    f"{kustomization.relative_to(copy)} requires {found['repository']} {found['version']}, "
                    f"tools/modules/{module}/go.mod {programs.version(module)}: make them the same"
                )
            # Kustomize reads files only below the kustomization, but follows a link to a folder.
            here, files = kustomization.parent / f"upstream-{module}", programs.source(module)
            if (files / found["path"]).is_dir():
                if not here.exists():
                    here.symlink_to(files)
                local = f"{here.name}/{found['path']}"
            else:
                local = shutil.copyfile(files / found["path"], here.with_suffix(".yaml")).name
            text = text.replace(found[0], local)
        kustomization.write_text(text)
