"""A base image of Debian packages, for where the registries of base images cannot be reached."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools import packages
from tools.engine import Engine
from tools.errors import ToolError

RELEASE = "trixie"
# Like official images it holds neither manuals nor byte code.
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


def base_image(engine: Engine, name: str, include: Sequence[str], *hooks: str) -> str:
    """Return the image with these packages, made unless the engine has it; `hooks` are mmdebstrap's.

    Its tag tells what it was asked to hold. Raises ToolError.
    """
    options = [*ROOT, f"--include={','.join(include)}", *hooks, RELEASE]
    made_from = hashlib.sha256("\n".join((*options, DOCKERFILE)).encode()).hexdigest()
    tag = f"localhost/{name}-{made_from[:12]}"
    if not engine.has(tag):
        packages.need("mmdebstrap", "mmdebstrap")
        with tempfile.TemporaryDirectory(prefix="iris-base-") as folder:
            context = Path(folder)
            (context / "Dockerfile").write_text(DOCKERFILE)
            command = [*options, str(context / "rootfs.tar"), f"deb {packages.mirror()} {RELEASE} main"]
            # Where it unpacks is where everything else here is temporary, so that whoever cleans up finds it.
            environment = {"SOURCE_DATE_EPOCH": "0", **packages.proxy(), **os.environ, "TMPDIR": folder}
            if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode:
                raise ToolError(f"mmdebstrap could not make {name}; its last lines say why")
            engine.build(context, tag)
    return tag
