"""Build a base image from Debian packages, for machines that cannot reach a registry of base images."""

import hashlib
import os
import tempfile
from pathlib import Path

from tools import packages
from tools.child_process import run_visibly
from tools.engine import Engine

RELEASE = "trixie"
# Like the official images, it holds neither manuals nor byte code.
ROOT = (
    "mmdebstrap",
    "--variant=minbase",
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "info", "locale")),
    '--customize-hook=find "$1/usr/lib" -name __pycache__ -prune -exec rm -r {} +',
)
DOCKERFILE = """\
FROM scratch
ADD rootfs.tar /
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin
"""


def base_image(engine: Engine, name: str, *options: str) -> str:
    """Return the tag of an image made with these options of mmdebstrap; build it if the engine does not have it.

    The tag contains a digest of everything the image is built from. Raises ToolError.
    """
    options = (*ROOT, *options, RELEASE)
    made_from = hashlib.sha256("\n".join((*options, DOCKERFILE)).encode()).hexdigest()
    tag = f"localhost/{name}-{made_from[:12]}"
    if not engine.has(tag):
        packages.need("mmdebstrap", "mmdebstrap")
        with tempfile.TemporaryDirectory(prefix="iris-base-") as folder:
            context = Path(folder)
            (context / "Dockerfile").write_text(DOCKERFILE)
            command = [*options, str(context / "rootfs.tar"), f"deb {packages.mirror()} {RELEASE} main"]
            # mmdebstrap unpacks in TMPDIR: in this folder, so that nothing is left behind if it is killed.
            environ = {"SOURCE_DATE_EPOCH": "0", **packages.proxy(), **os.environ, "TMPDIR": folder}
            run_visibly(command, env=environ, failure=f"mmdebstrap could not build {name}")
            engine.build(context, tag)
    return tag
