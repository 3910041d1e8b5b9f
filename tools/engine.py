"""Build and store images with docker if its engine answers, otherwise with buildah, which needs no engine."""

import os
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools import cache, packages
from tools.child_process import run_visibly

PULL_SECONDS = 300.0  # for 45 MB; without a limit, a firewall that drops packets would block for much longer


@dataclass(frozen=True)
class Engine:
    """A program that builds and stores images; docker and buildah both accept the arguments that are used here."""

    name: str
    command: tuple[str, ...]
    """The program, with the options that select its image store."""
    building: tuple[str, ...]
    """The subcommand that builds a Dockerfile, with the options that make both programs build alike."""

    def has(self, image: str) -> bool:
        """Return whether the image is in the store."""
        return self.run("inspect", "--type", "image", image).returncode == 0

    def build(self, context: Path, tag: str, *options: str) -> str:
        """Build the Dockerfile in `context`, show the output, and return the image's id. Raises ToolError."""
        with tempfile.TemporaryDirectory(prefix="iris-image-") as folder:
            iid = Path(folder) / "iid"
            arguments = (f"--tag={tag}", f"--iidfile={iid}", "--pull=false", *options, str(context))
            command = [*self.command, *self.building, *arguments]
            run_visibly(command, env=_environment(), failure=f"{self.name} could not build {tag}")
            return iid.read_text().strip().removeprefix("sha256:")

    def pull(self, image: str) -> str | None:
        """Pull the image from its registry; return the reason if that fails, otherwise None."""
        try:
            done = self.run("pull", image, timeout=PULL_SECONDS)
        except subprocess.TimeoutExpired:
            return f"no answer within {PULL_SECONDS:.0f} s"
        return (done.stderr.strip() or "no reason given").splitlines()[-1] if done.returncode else None

    def run(self, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run another subcommand; return its exit code and output."""
        return subprocess.run(
            [*self.command, *arguments],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def find_engine() -> Engine:
    """Return docker if its engine answers, otherwise buildah. Raises ToolError."""
    docker = Engine("docker", ("docker",), ("build",))
    # Without buildx, docker's own builder has no secrets.
    checks = (("version",), ("buildx", "version"))
    if shutil.which("docker") and all(docker.run(*check).returncode == 0 for check in checks):
        return docker
    return buildah()


def buildah() -> Engine:
    """Return buildah with its store in the user's cache, and install it if it is missing. Raises ToolError."""
    packages.need("buildah", "buildah")
    store = [f"--root={cache.root() / 'images'}", f"--runroot={cache.root() / 'images-run'}"]
    if driver := os.environ.get("STORAGE_DRIVER"):  # buildah ignores the variable when --root is given
        store.append(f"--storage-driver={driver}")
    building = [
        "bud",
        "--layers",
        "--force-rm",  # leaves no working container behind when a build fails
        "--format=docker",  # the OCI format has no HEALTHCHECK
        f"--timestamp={os.environ.get('SOURCE_DATE_EPOCH', '0')}",  # makes layers reproducible
    ]
    # Newer versions of buildah raise these limits and older ones lower them. Not every root may raise them again.
    for name, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        _, hard = resource.getrlimit(limit)
        enough = 32768 if hard == resource.RLIM_INFINITY else min(hard, 32768)
        building.append(f"--ulimit={name}={enough}:{enough}")
    if os.geteuid():
        packages.need("newuidmap", "uidmap")
    return Engine("buildah", ("buildah", *store), tuple(building))


def _environment() -> dict[str, str]:
    """Return the environment for builds, which by default need no daemon and no OCI runtime."""
    return {"BUILDAH_ISOLATION": "chroot", "DOCKER_BUILDKIT": "1", **os.environ}
