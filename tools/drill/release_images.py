"""The images that the drill releases: two models, and the same images with one fault each."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from delivery.release import IMAGE
from tools import cache, image
from tools.checkout import ROOT
from tools.child_process import output
from tools.cluster import images, node, secrets
from tools.drill.traffic import Question
from tools.engine import buildah
from tools.errors import ToolError
from tools.progress import step

FAULTS = ROOT / "tools/drill/faults"
MODELS = {"model-1": "logistic_regression", "model-2": "svm"}


class ReleaseImage(NamedTuple):
    """An image in the cluster's registry, and the model folder to release it with."""

    name: str  # of the model, in MODELS
    digest: str
    model: Path

    @property
    def version(self) -> str:
        """Return the model's version, which its answers contain."""
        return str(self.metadata["version"])

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the content of model.json."""
        return dict(json.loads((self.model / "model.json").read_text()))

    def release(self, *options: str) -> tuple[str, ...]:
        """Return the `delivery` command that releases the image to dev."""
        return ("release", self.digest, f"--model={self.model}", *options)


def train(name: str) -> Path:
    """Train a model, or return it from the cache if the pipeline has not changed. Raises ToolError."""

    def make(out: Path) -> None:
        (cache.root() / "drill").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pipeline", f"--algorithm={MODELS[name]}", f"--out={out}/model"]
        environ = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{cache.root()}/drill/mlflow.db"}
        output(command, name=" ".join(command[1:]), cwd=ROOT, env=environ)

    return cache.keep("models", name, cache.key(*sorted((ROOT / "pipeline").glob("*.py"))), make) / "model"


def build_good() -> list[ReleaseImage]:
    """Build, push and sign the serving image of each model. Raises ToolError."""
    built = []
    for name, algorithm in MODELS.items():
        with step(f"train, build, push and sign {name}: {algorithm.replace('_', ' ')}"):
            model = train(name)
            image.build(model, f"localhost/drill:{name}", "--quiet", engine=buildah())
            built.append(ReleaseImage(name, _push(name), model))
    return built


def shared_questions(images: list[ReleaseImage]) -> list[Question]:
    """Return the golden rows for which all models give the same answer."""
    recorded = [[(row["features"], row["prediction"]) for row in image.metadata["golden"]] for image in images]
    return [question for question in recorded[0] if all(question in others for others in recorded)]


def build_faulty(good: ReleaseImage, fault: str = "none", *, sign: bool = True) -> ReleaseImage:
    """Build, push and sign a good image once more, with a fault (see faults/). Raises ToolError."""
    tag = f"{good.name}-{fault}"
    # A rejected digest stays rejected, so every build has to give another one.
    values = (f"GOOD=localhost/drill:{good.name}", f"FAULT={fault}", f"DRILL={time.time_ns()}")
    arguments = [f"--build-arg={value}" for value in values]
    # Some versions of buildah reuse a cached layer although the value of an ARG has changed.
    buildah().build(FAULTS, f"localhost/drill:{tag}", "--quiet", "--no-cache", *arguments)
    return good._replace(digest=_push(tag, sign=sign))


def delete(image: ReleaseImage) -> None:
    """Delete an image from the registry. Raises ToolError."""
    manifest = f"http://{node.REGISTRY}/v2/{images.in_registry(IMAGE)}/manifests/{image.digest}"
    node.run("curl", "--silent", "--show-error", "--fail", "--request", "DELETE", manifest)


def _push(tag: str, *, sign: bool = True) -> str:
    """Push an image, sign it, and return its digest."""
    reference = images.in_registry(f"{IMAGE}:{tag}")
    images.push(buildah(), f"localhost/drill:{tag}", reference)
    digest = images.digest(reference)
    if digest is None:
        raise ToolError(f"{reference} was pushed, but is not in the registry; next: `make down`, then `make up`")
    if sign:
        secrets.sign_image(f"{images.in_registry(IMAGE)}@{digest}")
    return digest
