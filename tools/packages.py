"""Install missing Debian packages if this process may, otherwise report the command that does."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.child_process import run_visibly
from tools.errors import ToolError

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian runs this before it starts the service of a new package; exit code 101 means "do not start"."""


def need(program: str, package: str) -> None:
    """Install the package unless the program is on PATH. Raises ToolError."""
    if not shutil.which(program):
        install([package])


def install(packages: Sequence[str]) -> None:
    """Install packages without starting their services. Raises ToolError."""
    command = ["apt-get", "install", "--yes", *packages]
    if os.geteuid() or not shutil.which("apt-get"):
        raise ToolError(f"{', '.join(packages)}: not installed; `sudo {' '.join(command)}`")
    with _no_services():
        _update()
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run_visibly(command, env=environ, failure=f"`{' '.join(command)}` failed")


def mirror() -> str:
    """Return the address of the Debian mirror that apt uses. Raises ToolError."""
    if not (address := _mirror()) and os.geteuid() == 0:
        _update()  # until the package lists are there, apt does not know which address is Debian's
        address = _mirror()
    if not address:
        raise ToolError("apt has no Debian mirror to build a base image from; set one up and run `apt-get update`")
    return address


def proxy() -> dict[str, str]:
    """Return apt's proxy as an environment variable for the apt of mmdebstrap."""
    address = _output("apt-config", "dump", "--format", "%v", "Acquire::http::Proxy")
    return {"http_proxy": address} if address else {}


def _mirror() -> str | None:
    targets = _output("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Component: main")
    found = (line.split(" ", 1) for line in targets.splitlines())
    return next((address for address, label in found if label == "Debian Debian"), None)


def _update() -> None:
    """Download the package lists; a mirror that fails is reported by the installation that needs it."""
    subprocess.run(["apt-get", "update"], stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@contextmanager
def _no_services() -> Iterator[None]:
    """Keep Debian from starting services of packages installed in the block: some listen on all addresses."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
