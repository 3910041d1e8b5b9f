"""Debian packages: what this machine lacks is installed where that is allowed, else the command is named."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.errors import ToolError

POLICY = Path("/usr/sbin/policy-rc.d")
"""What Debian asks before it starts the service of a new package; 101 is "do not"."""


def need(program: str, package: str) -> None:
    """Make sure that the program is there. Raises ToolError."""
    if not shutil.which(program):
        install([package])
        if not shutil.which(program):
            raise ToolError(f"the package {package} did not bring {program}")


def install(packages: Sequence[str]) -> None:
    """Install packages, and start none of their services. Raises ToolError."""
    command = ["apt-get", "install", "--yes", *packages]
    if os.geteuid() or not shutil.which("apt-get"):
        raise ToolError(f"{', '.join(packages)}: not installed; `sudo {' '.join(command)}`")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for step in (["apt-get", "update"], command):
            done = subprocess.run(step, env=environ, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise ToolError(f"`{' '.join(command)}` failed; its last lines say why")


def mirror() -> str:
    """Return the address of the Debian mirror that apt is set up with. Raises ToolError."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Component: main"]
    for attempt in ("as it is", "updated"):
        if attempt == "updated" and os.geteuid() == 0:  # without package lists apt does not know who is who
            subprocess.run(["apt-get", "update"], stdout=sys.stderr, check=False)
        for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
            address, _, who = line.partition(" ")
            if who == "Debian Debian":
                return address
    raise ToolError(
        "apt has no Debian mirror to make a base image from; is one set up, and `apt-get update` done?"
    )


def proxy() -> dict[str, str]:
    """Return apt's own proxy as an environment variable, which the apt of others understands."""
    done = subprocess.run(
        ["apt-config", "dump", "--format", "%v", "Acquire::http::Proxy"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {"http_proxy": done.stdout} if done.stdout else {}


@contextmanager
def _no_services() -> Iterator[None]:
    """Have Debian start no service of what is installed in the block: some listen on all addresses."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
