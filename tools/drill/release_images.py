"""What the drill ships: images of two real models, and the same images with one thing wrong with them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from delivery.release import IMAGE
from tools import cache, image
from tools.checkout import ROOT
from tools.cluster import images, node, secrets
from tools.drill.traffic import Question
from tools.engine import buildah
from tools.errors import ToolError
from tools.progress import step

FAULTS = ROOT / "tools/drill/faults"
MODELS = {"model-1": "logistic_regression", "model-2": "svm"}


class Shipped(NamedTuple):
    """An image in the cluster's registry, and the folder of the model that git is to say is in it."""

    digest: str
    model: Path

    @property
    def version(self) -> str:
        """Return the version of the model, as its answers name it."""
        return str(self.facts["version"])

    @property
    def sha256(self) -> str:
        """Return the digest of the model's file."""
        return str(self.facts["sha256"])

    @property
    def facts(self) -> dict[str, Any]:
        """What its model.json says."""
        return dict(json.loads((self.model / "model.json").read_text()))


def train(name: str) -> Path:
    """Train one of the two models, once for each state of the pipeline. Raises ToolError."""

    def make(out: Path) -> None:
        registry = f"sqlite:///{cache.root()}/drill/mlflow.db"
        (cache.root() / "drill").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pipeline", f"--algorithm={MODELS[name]}", f"--out={out}/model"]
        environ = {**os.environ, "MLFLOW_TRACKING_URI": registry}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-500:]}")

    return cache.keep("models", name, cache.key(*sorted((ROOT / "pipeline").glob("*.py"))), make) / "model"


def good() -> dict[str, Shipped]:
    """Build, push and sign the serving image of each of the models. Raises ToolError."""
    shipped = {}
    for name, algorithm in MODELS.items():
        with step(f"{name}: {algorithm.replace('_', ' ')}, trained, built, pushed, signed"):
            model = train(name)
            image.build(model, f"localhost/drill:{name}", engine=buildah(), quiet=True)
            shipped[name] = Shipped(_push_signed(name), model)
    return shipped


def questions(models: Iterable[Shipped]) -> list[Question]:
    """Return what users can ask: the rows for which all models have the same answer on record."""
    recorded = [
        [Question(row["features"], row["prediction"]) for row in model.facts["golden"]] for model in models
    ]
    return [question for question in recorded[0] if all(question in others for others in recorded)]


def bad(name: str, fault: str) -> Shipped:
    """Build, push and sign the image of a model with a fault (faults/). Raises ToolError."""
    return Shipped(_push_signed(_with(name, fault)), train(name))


def unsigned(name: str) -> Shipped:
    """Build an image with nothing wrong, and push it without a signature. Raises ToolError."""
    return Shipped(_push(_with(name, "none")), train(name))


def gone(name: str) -> Shipped:
    """Push and sign an image, and take it out of the registry. Raises ToolError."""
    shipped = bad(name, "none")
    manifest = f"http://{node.REGISTRY}/v2/{images.in_registry(IMAGE)}/manifests/{shipped.digest}"
    node.run("curl", "--silent", "--show-error", "--fail", "--request", "DELETE", manifest)
    return shipped


def _with(name: str, fault: str) -> str:
    """Build the image of a model with that fault, "none" for none, and return its tag."""
    tag = f"{name}-{fault}"
    # Rejected is rejected: each time it is another image.
    values = {"GOOD": f"localhost/drill:{name}", "FAULT": fault, "DRILL": str(time.time_ns())}
    arguments = [f"--build-arg={key}={value}" for key, value in values.items()]
    # Some buildahs take a layer for cached when only the value of an ARG is another.
    buildah().build(FAULTS, f"localhost/drill:{tag}", "--quiet", "--no-cache", *arguments)
    return tag


def _push(tag: str) -> str:
    reference = images.in_registry(f"{IMAGE}:{tag}")
    images.push(buildah(), f"localhost/drill:{tag}", reference)
    digest = images.digest(reference)
    if digest is None:
        raise ToolError(f"{reference} was pushed, but the registry does not have it; `make down` and `make up`")
    return digest


def _push_signed(tag: str) -> str:
    digest = _push(tag)
    secrets.sign_image(f"{images.in_registry(IMAGE)}@{digest}")
    return digest
