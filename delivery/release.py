"""A release: the digest of an image and the model in it, as the files in overlays/ENVIRONMENT/release."""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ENVIRONMENTS = ("dev", "prod")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NAME = "iris-classifier"
"""The image's name in the manifests, which Kustomize replaces with IMAGE and the digest."""
IMAGE = "ghcr.io/iris-gitops/iris-classifier"
"""The repository that the serving image is pushed to."""
LARGEST = 1_000_000
"""The most bytes of model.json: a ConfigMap, from which the golden gate reads it, holds 1 MiB."""
COMPONENT, MODEL = "kustomization.yaml", "model.json"
GOLDEN_ONLY = "../../../manifests/iris/golden-only"
"""The component without the slo gate, as seen from a release's folder."""
COMMENT = "# The release that runs here, written by `python -m delivery`. Do not edit.\n"
IDENTITY = {"version": r"\d{1,9}", "run_id": r"[0-9a-f]{1,64}", "sha256": r"[0-9a-f]{64}"}
"""The fields of model.json that annotations and trailers repeat, and the values that they may have."""


class ReleaseError(Exception):
    """A release cannot be made, promoted or rolled back; the message says why and what to do."""


class Release(NamedTuple):
    """The digest of an image, and the text of the model.json in it."""

    digest: str
    model: str

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of model.json."""
        metadata: dict[str, Any] = json.loads(self.model)
        return metadata

    @property
    def metrics(self) -> dict[str, float]:
        """The model's scores on held-out rows, by name."""
        return {name: value for name, value in self.metadata["metrics"].items() if isinstance(value, float)}

    @property
    def name(self) -> str:
        """The model's version and the beginning of the digest, for people."""
        return f"model {self.metadata['version']} ({self.digest[:19]})"

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations of the pods, which name the model in them."""
        metadata = self.metadata
        return {
            "model-version": str(metadata["version"]),
            "model-sha256": str(metadata["sha256"]),
            "model-run": str(metadata["run_id"]),
        }

    def files(self, *, at_once: bool = False) -> dict[str, str]:
        """Return the files of the release, by name; `at_once` sends it all traffic after the golden gate."""
        annotate = {"op": "add", "path": "/spec/template/metadata/annotations", "value": self.annotations}
        component = {
            "apiVersion": "kustomize.config.k8s.io/v1alpha1",
            "kind": "Component",
            **({"components": [GOLDEN_ONLY]} if at_once else {}),
            "images": [{"name": NAME, "newName": IMAGE, "digest": self.digest}],
            # The golden gate reads its recorded questions from this ConfigMap.
            "configMapGenerator": [{"name": "release", "files": [MODEL]}],
            # JSON quotes every string; YAML would leave 1e5 bare, which Kustomize reads as a number.
            "patches": [{"target": {"kind": "Rollout", "name": "iris"}, "patch": json.dumps([annotate])}],
        }
        text = yaml.dump(component, Dumper=_IndentedDumper, sort_keys=False, width=sys.maxsize)
        return {COMPONENT: COMMENT + text, MODEL: self.model}


class _IndentedDumper(yaml.SafeDumper):
    """Indents the items of a list below its key, as yamllint demands."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - PyYAML's
        super().increase_indent(flow, indentless=False)


def read_model(folder: Path, digest: str) -> Release:
    """Return the release of an image that holds the model of a folder. Raises ReleaseError."""
    if not DIGEST.fullmatch(digest):
        raise ReleaseError(f"{digest[:80]!r} is not a digest; expected sha256: and 64 hexadecimal digits")
    try:
        release = Release(digest, (folder / MODEL).read_text())
        identity = {field: str(release.metadata[field]) for field in IDENTITY}
        size = len(release.model.encode())
        release.metrics  # noqa: B018 - a commit message shows them
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ReleaseError(f"{folder} is not a model folder ({error}); `python -m pipeline` writes one") from error
    if size > LARGEST:
        raise ReleaseError(f"{folder / MODEL} has {size:,} bytes, and {LARGEST:,} can be delivered in a ConfigMap")
    for field, pattern in IDENTITY.items():
        if not re.fullmatch(pattern, identity[field]):
            raise ReleaseError(f"{folder / MODEL}: {field} is {identity[field][:80]!r}, expected {pattern}")
    return release


def parse(files: dict[str, str]) -> Release | None:
    """Return the release in these files, None if nothing is released. Raises ReleaseError for anything else.

    Files with another image name, or written by an older version, are releases too.
    """
    if COMPONENT not in files:
        return None
    try:
        component = _load(files[COMPONENT])
        patches = [_load(patch["patch"]) for patch in component["patches"]]
        if "images" not in component and {patch["$patch"] for patch in patches} == {"delete"}:
            return None
        [image], [[annotate]] = component["images"], patches
        release = Release(image["digest"], files[MODEL])
        if DIGEST.fullmatch(release.digest) and annotate["value"] == release.annotations:
            return release
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError):
        pass  # somebody's edit, as below
    raise ReleaseError(
        "the release files are not as `python -m delivery` writes them; `git log` shows who changed them"
    )


def _load(text: str) -> Any:
    """Return the content of a YAML text. In C, because a history has thousands of them."""
    return yaml.load(text, Loader=yaml.CSafeLoader)
