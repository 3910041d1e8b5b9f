"""A release: an image's digest and the model in it, as overlays/ENVIRONMENT/release holds them."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ENVIRONMENTS = ("dev", "prod")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
IMAGE = "ghcr.io/iris-gitops/iris-classifier"
"""Where the serving image is pushed to; the one place that says so."""
COMPONENT, MODEL = "kustomization.yaml", "model.json"
NOTHING = """\
# Written by `python -m delivery`, never by a person: what runs here. Nothing has been released yet.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
patches: # there is no image to run
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
TEMPLATE = """\
# Written by `python -m delivery`, never by a person: what runs here.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
images:
  - name: iris-classifier
    newName: {image}
    digest: {digest}
configMapGenerator:
  - name: release
    files: [model.json] # what the golden gate asks for
patches:
  - target: {{kind: Rollout, name: iris}}
    patch: |
      - op: add
        path: /spec/template/metadata/annotations
        value: {{model-version: "{version}", model-sha256: "{sha256}", model-run: "{run_id}"}}
"""


ANNOTATIONS = {"version": "version", "sha256": "sha256", "run": "run_id"}
"""What the pods' annotations model-... say, by the field of model.json that it is."""


class ReleaseError(Exception):
    """A release cannot be made, promoted or taken back; the message says why and what to do."""


class Release(NamedTuple):
    """An image's digest, and the model.json of the model in it."""

    digest: str
    model: str

    @property
    def facts(self) -> dict[str, Any]:
        """What model.json says."""
        facts: dict[str, Any] = json.loads(self.model)
        return facts

    @property
    def name(self) -> str:
        """How people call it: the model's version, and the beginning of the digest."""
        return f"model {self.facts['version']} ({self.digest[:19]})"

    def files(self) -> dict[str, str]:
        """Return the files that git holds of it, by name."""
        facts = {name: self.facts[name] for name in ANNOTATIONS.values()}
        return {COMPONENT: TEMPLATE.format(image=IMAGE, digest=self.digest, **facts), MODEL: self.model}


def read_model(folder: Path, digest: str) -> Release:
    """Return the release of an image with the model of that folder. Raises ReleaseError."""
    if not DIGEST.fullmatch(digest):
        raise ReleaseError(f"{digest[:80]!r} is no digest; expected sha256: and 64 hexadecimal digits")
    try:
        release = Release(digest, (folder / MODEL).read_text())
        checked = {name: release.facts[name] for name in ("version", "sha256", "run_id", "golden", "metrics")}
        if not isinstance(checked["metrics"], dict):
            raise ValueError("its metrics are no object")  # noqa: TRY004 - one of several that make it none
    except (OSError, ValueError, KeyError) as error:
        raise ReleaseError(f"{folder} is no model folder ({error}); `python -m pipeline` writes one") from error
    # These go into YAML: what the registry does not give is not taken.
    for name, pattern in (("version", r"\d{1,9}"), ("sha256", r"[0-9a-f]{64}"), ("run_id", r"[0-9a-f]{1,64}")):
        if not re.fullmatch(pattern, str(checked[name])):
            raise ReleaseError(f"{folder / MODEL}: {name} is {str(checked[name])[:80]!r}, expected {pattern}")
    return release


def parse(files: dict[str, str]) -> Release | None:
    """Return the release that these files hold, None for none. Raises ReleaseError when it is something else.

    Only what makes the release is looked for: files of an older template, or of another image name, are releases.
    """
    component = files.get(COMPONENT, NOTHING)
    digests = re.findall(r"^ *digest: (\S+)$", component, re.MULTILINE)
    if not digests and "$patch: delete" in component:
        return None
    said = dict(re.findall(r'model-(version|sha256|run): "([^"]*)"', component))
    if len(digests) == 1 and DIGEST.fullmatch(digests[0]):
        release = Release(digests[0], files.get(MODEL, ""))
        with contextlib.suppress(ValueError, KeyError, TypeError):
            facts = release.facts
            if said == {name: str(facts[key]) for name, key in ANNOTATIONS.items()}:
                return release
    raise ReleaseError(
        "the release files are not as `python -m delivery` writes them; `git log` says who changed them"
    )
