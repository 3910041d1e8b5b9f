"""Build the serving image of a model folder."""

import configparser
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from delivery.git import GitError, git
from tools.base_image import base_image
from tools.checkout import ROOT
from tools.engine import Engine, find_engine
from tools.errors import ToolError

TAG = "iris-classifier:local"
BASE = "python:3.13-slim"
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")


def build(
    model: Path,
    tag: str = TAG,
    *,
    engine: Engine | None = None,
    base: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> str:
    """Build the serving image of a model folder from this checkout; return the image's id.

    `engine` and `base` default to the results of `find_engine` and `find_base`. `fresh` ignores cached layers, and
    `quiet` hides the build's output. Raises ToolError.
    """
    try:
        (model / "model.onnx").stat()
        metadata = json.loads((model / "model.json").read_bytes())
        arguments = {"MODEL_VERSION": metadata["version"], "MODEL_SHA256": metadata["sha256"], **origin()}
    except (OSError, ValueError, KeyError) as error:
        raise ToolError(f"{model} is not a model folder ({error}); `python -m pipeline` writes one") from error
    engine = engine or find_engine()
    arguments["BASE"] = base or find_base(engine)
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    options += [f"--build-arg={name}" for name in PROXIES if name in os.environ]
    if fresh:
        options.append("--no-cache")
    if quiet:
        options.append("--quiet")
    with _context(model) as context, pip_secrets(os.environ) as secrets:
        return engine.build(context, tag, *options, *secrets)


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
        ("ca-certificates", "python3", "python3-pip"),
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


def pip_configuration(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return a pip.conf with this host's index and proxy for use in a build, and the path of its certificates.

    Where pip has no configuration, the text is empty and the path None.
    """
    parser = configparser.ConfigParser(interpolation=None)
    home = Path.home()
    parser.read(
        ("/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf", Path(sys.prefix) / "pip.conf"),
    )
    if named := environ.get("PIP_CONFIG_FILE"):
        parser.read(named)
    pip = {
        key: value
        for section in ("global", "install")
        if section in parser
        for key, value in parser[section].items()
    }
    pip |= {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("PIP_")
    }
    candidates = (pip.get("cert"), environ.get("REQUESTS_CA_BUNDLE"), environ.get("SSL_CERT_FILE"))
    certificates = next((file for file in candidates if file and Path(file).is_file()), None)
    lines = [f"{key} = {' '.join(pip[key].split())}" for key in PIP_OPTIONS if key in pip]
    if certificates:
        lines.append("cert = /run/secrets/certificates")
    return "\n".join(["[global]", *lines, ""]) if lines else "", certificates


@contextmanager
def pip_secrets(environ: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield build options that pass this host's index, proxy and certificates to pip as secrets."""
    text, certificates = pip_configuration(environ)
    with tempfile.TemporaryDirectory(prefix="iris-pip-") as folder:
        options = []
        if certificates:
            options.append(f"--secret=id=certificates,src={certificates}")
        if text:
            file = Path(folder) / "pip.conf"
            file.write_text(text)
            options.append(f"--secret=id=pip.conf,src={file}")
        yield options


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
