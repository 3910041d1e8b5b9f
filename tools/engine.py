"""The programs that build and keep images: docker where an engine answers, else buildah, which needs none."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools import cache, packages
from tools.errors import ToolError

PULL_SECONDS = 300.0  # for 45 MB; an address that swallows packets would keep it waiting for longer


@dataclass(frozen=True)
class Engine:
    """A program that builds and keeps images; docker and buildah understand the arguments that are used here."""

    name: str
    command: tuple[str, ...]
    """The program, and where it keeps images."""
    building: tuple[str, ...]
    """Its subcommand for a Dockerfile, and what it needs to be told to build like the other."""

    def has(self, image: str) -> bool:
        """Whether the image is there without pulling."""
        return self.run("inspect", "--type", "image", image).returncode == 0

    def build(self, context: Path, tag: str, *options: str) -> str:
        """Build the Dockerfile in `context`, its output shown; return the image's id. Raises ToolError."""
        with tempfile.TemporaryDirectory(prefix="iris-image-") as folder:
            iid = Path(folder) / "iid"
            arguments = (f"--tag={tag}", f"--iidfile={iid}", "--pull=false", *options, str(context))
            done = subprocess.run(
                [*self.command, *self.building, *arguments], env=_environment(), stdout=sys.stderr, check=False
            )
            if done.returncode:
                raise ToolError(f"{self.name} could not build {tag}; its last lines say why")
            return iid.read_text().strip().removeprefix("sha256:")

    def pull(self, image: str) -> str | None:
        """Fetch the image from its registry; return why that failed, None when it did not."""
        try:
            done = self.run("pull", image, timeout=PULL_SECONDS)
        except subprocess.TimeoutExpired:
            return f"not there after {PULL_SECONDS:.0f} s"
        return (done.stderr.strip() or "no reason given").splitlines()[-1] if done.returncode else None

    def run(self, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run another of the program's commands, and return its exit code and output."""
        return subprocess.run(
            [*self.command, *arguments],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def find_engine() -> Engine:
    """Return docker when its engine answers, else buildah. Raises ToolError."""
    docker = Engine("docker", ("docker",), ("build",))
    # Without buildx, docker's own builder knows no secrets.
    asked = (("version",), ("buildx", "version"))
    if shutil.which("docker") and all(docker.run(*question).returncode == 0 for question in asked):
        return docker
    return buildah()


def buildah() -> Engine:
    """Return buildah, which needs no engine, with a store in the user's cache. Raises ToolError."""
    packages.need("buildah", "buildah")
    store = [f"--root={cache.root() / 'images'}", f"--runroot={cache.root() / 'images-run'}"]
    if driver := os.environ.get("STORAGE_DRIVER"):  # which buildah ignores beside --root
        store.append(f"--storage-driver={driver}")
    building = [
        "bud",
        "--layers",
        "--force-rm",  # no working container stays behind, whatever happens
        "--format=docker",  # the one that knows HEALTHCHECK
        f"--timestamp={os.environ.get('SOURCE_DATE_EPOCH', '0')}",  # layers that do not tell when they were made
    ]
    # Newer buildahs raise these limits, others lower them, and not every root may raise them (again).
    for name, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        _, hard = resource.getrlimit(limit)
        enough = 32768 if hard == resource.RLIM_INFINITY else min(hard, 32768)
        building.append(f"--ulimit={name}={enough}:{enough}")
    if os.geteuid():
        packages.need("newuidmap", "uidmap")
    return Engine("buildah", ("buildah", *store), tuple(building))


def _environment() -> dict[str, str]:
    """Return the environment for a builder: no daemon and no OCI runtime needed, unless the caller's says more."""
    return {"BUILDAH_ISOLATION": "chroot", "DOCKER_BUILDKIT": "1", **os.environ}
