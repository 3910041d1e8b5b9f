"""Build and push the serving image. Its tag does not matter: a release names the digest."""

import tempfile
from pathlib import Path

from tools import image
from tools.engine import buildah
from tools.errors import ToolError
from tools.image import origin


def push(model: Path, repository: str, *, tls: bool = True) -> str:
    """Build the serving image of a model folder, push it, and return its digest in the registry.

    Raises ToolError.
    """
    engine = buildah()
    tag = f"{repository}:{origin()['REVISION'][:12]}"
    image.build(model, tag, engine=engine)
    with tempfile.TemporaryDirectory(prefix="iris-push-") as folder:
        file = Path(folder) / "digest"
        options = (f"--tls-verify={str(tls).lower()}", f"--digestfile={file}")
        done = engine.run("push", *options, tag, f"docker://{tag}")
        if done.returncode:
            raise ToolError(f"{tag} could not be pushed: {done.stderr.strip()[-300:]}")
        return file.read_text().strip()
