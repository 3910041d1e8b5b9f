"""Write the SBOM of an image with syft; sign and verify image and SBOM with cosign.

On GitHub signing is keyless: the workflow signs with its own identity, by a certificate that is valid for minutes,
and the signature names the workflow and its repository.
"""

import os
from pathlib import Path
from typing import NamedTuple

import yaml

from tools import programs
from tools.checkout import ROOT
from tools.child_process import output
from tools.progress import Say

SIGNATURE_JOB = ROOT / "manifests/iris/signature.yaml"
"""The Job that verifies the signature in the cluster, and the one definition of the signer."""


class Signer(NamedTuple):
    """The options of cosign to sign as somebody, and to verify that signature."""

    signing: tuple[str, ...]
    verifying: tuple[str, ...]


def keyless() -> Signer:
    """Return the release workflow of main, which signs without a key."""
    [container] = yaml.safe_load(SIGNATURE_JOB.read_text())["spec"]["template"]["spec"]["containers"]
    return Signer((), tuple(option for option in container["args"] if option.startswith("--certificate-")))


def write_sbom(image: str, out: Path, say: Say) -> None:
    """Write the SBOM of an image in a registry, in the format CycloneDX. Raises ToolError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _run("syft", say, "scan", f"registry:{image}", f"--output=cyclonedx-json={out}")


def sign(image: str, sbom: Path, signer: Signer, say: Say) -> None:
    """Sign an image by digest, and attest its SBOM; the registry stores both. Raises ToolError."""
    _run("cosign", say, "sign", "--yes", *signer.signing, image)
    _run("cosign", say, "attest", "--yes", *signer.signing, "--type=cyclonedx", f"--predicate={sbom}", image)


def verify(image: str, signer: Signer, say: Say) -> None:
    """Raise ToolError unless the signer has signed the image and attested its SBOM."""
    _run("cosign", say, "verify", *signer.verifying, image)
    _run("cosign", say, "verify-attestation", *signer.verifying, "--type=cyclonedx", image)


def _run(name: str, say: Say, *arguments: str) -> None:
    environ = {**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"}
    output([str(programs.folder(name, say) / name), *arguments], name=f"{name} {arguments[0]}", env=environ)
