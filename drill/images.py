"""What the drill ships: images of real models, and the same images with one thing wrong with them."""

from pathlib import Path
from typing import NamedTuple

from cluster import images
from cluster.steps import ClusterError
from delivery.release import IMAGE
from local import image
from local.engine import buildah

FAULTS = Path(__file__).parent.parent / "tests/faults"


class Shipped(NamedTuple):
    """An image in the cluster's registry, and the folder of the model in it."""

    digest: str
    model: Path
    tag: str


def good(model: Path, tag: str) -> Shipped:
    """Build the serving image of a model folder and push it. Raises ImageError, ClusterError."""
    engine = buildah()
    image.build(model, f"localhost/drill:{tag}", engine=engine, quiet=True)
    return _push(model, tag)


def bad(healthy: Shipped, fault: str) -> Shipped:
    """Build the image with that fault (tests/faults), and push it. Raises ImageError, ClusterError."""
    # Some buildahs take a layer for cached when only the value of an ARG is another.
    arguments = ("--no-cache", f"--build-arg=GOOD=localhost/drill:{healthy.tag}", f"--build-arg=FAULT={fault}")
    buildah().build(FAULTS, f"localhost/drill:{fault}", "--quiet", *arguments)
    return _push(healthy.model, fault)


def _push(model: Path, tag: str) -> Shipped:
    reference = images.in_registry(f"{IMAGE}:{tag}")
    images.push(buildah(), f"localhost/drill:{tag}", reference)
    digest = images.digest(reference)
    if digest is None:
        raise ClusterError(f"{reference} was pushed, but the registry does not have it; `make down` and `make up`")
    return Shipped(digest, model, tag)
