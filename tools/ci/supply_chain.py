"""What an image comes with: the list of its parts, by syft; its signature, and that of the list, by cosign.

On GitHub nobody has a key: the workflow's own identity signs, by a certificate that lives for minutes (keyless),
and the signature says which workflow of which repository it was.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tools import programs
from tools.checkout import ROOT
from tools.errors import ToolError
from tools.progress import Say

ADMITTED = ROOT / "manifests/iris/signature.yaml"
"""What asks for the signature before an image is started; the one place that says whose."""


class SupplyError(ToolError):
    """An image has no parts, no signature or the wrong one; the message says what the program said."""


class Signer(NamedTuple):
    """Who signs, in options of cosign: what signs, and what a signature has to say to be taken."""

    signing: tuple[str, ...]
    verifying: tuple[str, ...]


def keyless() -> Signer:
    """Return the one workflow that releases, as it is on main: it signs without a key."""
    return Signer((), tuple(re.findall(r"^ +- (--certificate-\S+)$", ADMITTED.read_text(), re.MULTILINE)))


def list_parts(image: str, out: Path, say: Say) -> None:
    """Write the parts of an image of a registry, Debian's and Python's, as CycloneDX. Raises SupplyError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _run(programs.folder("syft", say) / "syft", "scan", f"registry:{image}", f"--output=cyclonedx-json={out}")


def sign(image: str, parts: Path, signer: Signer, say: Say) -> None:
    """Sign an image by digest, and the list of its parts; its registry keeps both. Raises SupplyError."""
    cosign = programs.folder("cosign", say) / "cosign"
    _run(cosign, "sign", "--yes", *signer.signing, image)
    _run(cosign, "attest", "--yes", *signer.signing, "--type=cyclonedx", f"--predicate={parts}", image)


def verify(image: str, signer: Signer, say: Say) -> None:
    """Raise SupplyError unless the signer has signed the image and the list of its parts."""
    cosign = programs.folder("cosign", say) / "cosign"
    _run(cosign, "verify", *signer.verifying, image)
    _run(cosign, "verify-attestation", *signer.verifying, "--type=cyclonedx", image)


def _run(program: Path, *arguments: str) -> None:
    environ = {**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"}
    done = subprocess.run([program, *arguments], env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SupplyError(f"{program.name} {arguments[0]}: {done.stderr.strip()[-600:]}")
