"""Write the SBOM of an image with syft; sign and verify image and SBOM with cosign.

On GitHub signing is keyless: the workflow signs with its own identity, by a certificate that is valid for minutes,
and the signature names the workflow and its repository.
"""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import yaml

from tools import programs
from tools.checkout import ROOT
from tools.errors import ToolError
from tools.progress import Say

SIGNATURE_JOB = ROOT / "manifests/iris/signature.yaml"
"""The Job that verifies the signature in the cluster, and the one definition of the signer."""


class SupplyChainError(ToolError):
    """An image has no SBOM, no signature or a wrong one; the message is that of syft or cosign."""


class Signer(NamedTuple):
    """The options of cosign to sign as somebody, and to verify that signature."""

    signing: tuple[str, ...]
    verifying: tuple[str, ...]


def keyless() -> Signer:
    """Return the release workflow of main, which signs without a key."""
    [container] = yaml.safe_load(SIGNATURE_JOB.read_text())["spec"]["template"]["spec"]["containers"]
    return Signer((), tuple(option for option in container["args"] if option.startswith("--certificate-")))


def write_sbom(image: str, out: Path, say: Say) -> None:
    """Write the SBOM of an image in a registry, in the format CycloneDX. Raises SupplyChainError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _run(programs.folder("syft", say) / "syft", "scan", f"registry:{image}", f"--output=cyclonedx-json={out}")


def sign(image: str, sbom: Path, signer: Signer, say: Say) -> None:
    """Sign an image by digest, and attest its SBOM; the registry stores both. Raises SupplyChainError."""
    cosign = programs.folder("cosign", say) / "cosign"
    _run(cosign, "sign", "--yes", *signer.signing, image)
    _run(cosign, "attest", "--yes", *signer.signing, "--type=cyclonedx", f"--predicate={sbom}", image)


def verify(image: str, signer: Signer, say: Say) -> None:
    """Raise SupplyChainError unless the signer has signed the image and attested its SBOM."""
    cosign = programs.folder("cosign", say) / "cosign"
    _run(cosign, "verify", *signer.verifying, image)
    _run(cosign, "verify-attestation", *signer.verifying, "--type=cyclonedx", image)


def _run(program: Path, *arguments: str) -> None:
    environ = {**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"}
    done = subprocess.run([program, *arguments], env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SupplyChainError(f"{program.name} {arguments[0]}: {done.stderr.strip()[-600:]}")
