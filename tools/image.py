"""Build the serving image of a model folder."""

import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from delivery.git import GitError, git
from tools.base_image import base_image
from tools.checkout import ROOT
from tools.engine import Engine, find_engine
from tools.errors import ToolError
from tools.pip_configuration import pip_secrets

TAG = "iris-classifier:local"
BASE = "python:3.13-slim"
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def build(model: Path, tag: str = TAG, *options: str, engine: Engine | None = None) -> str:
    """Build the serving image of a model folder from this checkout; return the image's id.

    `options` are further options of the build, such as --quiet; `engine` is the one that `find_engine` finds by
    default. Raises ToolError.
    """
    try:
        (model / "model.onnx").stat()
        metadata = json.loads((model / "model.json").read_bytes())
        arguments = {"MODEL_VERSION": metadata["version"], "MODEL_SHA256": metadata["sha256"], **origin()}
    except (OSError, ValueError, KeyError) as error:
        raise ToolError(f"{model} is not a model folder ({error}); `python -m pipeline` writes one") from error
    engine = engine or find_engine()
    arguments["BASE"] = find_base(engine)
    values = [f"{name}={value}" for name, value in arguments.items()]
    values += [name for name in PROXIES if name in os.environ]
    with _context(model) as context, pip_secrets(os.environ) as secrets:
        return engine.build(context, tag, *options, *(f"--build-arg={value}" for value in values), *secrets)


def find_base(engine: Engine) -> str:
    """Return the name of the base image; if it cannot be pulled, build a replacement and report that.

    Both stay in the engine's store, so that neither is pulled or built twice. Raises ToolError.
    """
    if engine.has(BASE) or (reason := engine.pull(BASE)) is None:
        return BASE
    print(  # noqa: T201
        f"{BASE} cannot be pulled: {reason}\n"
        "a base image of Debian packages stands in for it, with the same version of Python",
        file=sys.stderr,
        flush=True,
    )
    return base_image(
        engine,
        f"stand-in/{BASE}",
        "--include=ca-certificates,python3,python3-pip",
        '--customize-hook=ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
    )


@contextmanager
def _context(model: Path) -> Iterator[Path]:
    """Yield a build context with the files that the Dockerfile copies, and this model."""
    with tempfile.TemporaryDirectory(prefix="iris-context-") as folder:
        context = Path(folder)
        shutil.copytree(ROOT / "service", context / "service", ignore=shutil.ignore_patterns("__pycache__"))
        (context / "model").mkdir()
        for name in ("model.json", "model.onnx"):
            shutil.copy2(model / name, context / "model")
        for name in ("Dockerfile", ".dockerignore"):
            shutil.copy2(ROOT / name, context)
        yield context


def origin() -> dict[str, str]:
    """Return the build arguments for the image's labels: version, commit, and repository without credentials."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    revision = _git("rev-parse", "HEAD")
    if revision and _git("status", "--porcelain", "--", "service", "Dockerfile", ".dockerignore"):
        revision += "-dirty"
    source = re.sub(r"//[^/@]*@", "//", _git("remote", "get-url", "origin"))
    if not re.match(r"https?://|ssh://|git@", source):
        source = ""  # a local path means nothing on another machine
    return {"VERSION": project["version"], "REVISION": revision or "unknown", "SOURCE": source}


def _git(*arguments: str) -> str:
    """Return git's output; empty if git is missing or this is not a checkout."""
    try:
        return git(ROOT, *arguments).strip()
    except (FileNotFoundError, GitError):
        return ""
