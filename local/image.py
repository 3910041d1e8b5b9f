"""The serving image: built by docker where an engine answers, else by buildah, which needs none."""

import configparser
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TAG = "iris-classifier:local"
BASE = "python:3.13-slim"
PULL_SECONDS = 300.0  # for 45 MB; an address that swallows packets would keep it waiting for longer
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")

# What stands in for BASE where that cannot be pulled: the Debian release that it is made of, which has the same
# Python. Like BASE it holds neither manuals nor byte code.
STAND_IN_ROOT = (
    "mmdebstrap",
    "--variant=minbase",
    "--include=ca-certificates,python3,python3-pip",
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "info", "locale")),
    '--customize-hook=ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
    '--customize-hook=find "$1/usr/lib" -name __pycache__ -prune -exec rm -r {} +',
    "trixie",
)
STAND_IN_DOCKERFILE = """\
FROM scratch
ADD rootfs.tar /
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin
CMD ["python"]
"""
STAND_IN = (
    f"localhost/stand-in/{BASE}-"
    + hashlib.sha256("\n".join((*STAND_IN_ROOT, STAND_IN_DOCKERFILE)).encode()).hexdigest()[:12]
)


class ImageError(Exception):
    """The image could not be built; the message says why and what to do."""


@dataclass(frozen=True)
class Engine:
    """A program that builds and keeps images; docker and buildah understand the arguments that are used here."""

    name: str
    command: tuple[str, ...]
    """The program, and where it keeps images."""
    building: tuple[str, ...]
    """Its subcommand for a Dockerfile, and what it needs to be told to build like the other."""

    def has(self, image: str) -> bool:
        """Whether the image is there without pulling."""
        return self.run("inspect", "--type", "image", image).returncode == 0

    def build(self, context: Path, tag: str, *options: str) -> str:
        """Build the Dockerfile in `context`, its output shown; return the image's id. Raises ImageError."""
        with tempfile.TemporaryDirectory(prefix="iris-image-") as folder:
            iid = Path(folder) / "iid"
            arguments = (f"--tag={tag}", f"--iidfile={iid}", "--pull=false", *options, str(context))
            done = subprocess.run(
                [*self.command, *self.building, *arguments], env=_environment(), stdout=sys.stderr, check=False
            )
            if done.returncode:
                raise ImageError(f"{self.name} could not build {tag}; its last lines say why")
            return iid.read_text().strip().removeprefix("sha256:")

    def pull(self, image: str) -> str | None:
        """Fetch the image from its registry; return why that failed, None when it did not."""
        try:
            done = self.run("pull", image, timeout=PULL_SECONDS)
        except subprocess.TimeoutExpired:
            return f"not there after {PULL_SECONDS:.0f} s"
        return (done.stderr.strip() or "no reason given").splitlines()[-1] if done.returncode else None

    def run(self, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run another of the program's commands, and return its exit code and output."""
        return subprocess.run(
            [*self.command, *arguments],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def build(
    model: Path, tag: str = TAG, *, engine: Engine | None = None, base: str | None = None, fresh: bool = False
) -> str:
    """Build the serving image of a model folder from this checkout; return the image's id.

    Without `engine` or `base`, what `find_engine` and `find_base` say; `fresh` uses no cached layer.
    Raises ImageError.
    """
    try:
        (model / "model.onnx").stat()
        facts = json.loads((model / "model.json").read_bytes())
        arguments = {"MODEL_VERSION": facts["version"], "MODEL_SHA256": facts["sha256"], **origin()}
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"{model} is no model folder ({error}); `python -m pipeline` writes one") from error
    engine = engine or find_engine()
    arguments["BASE"] = base or find_base(engine)
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    options += [f"--build-arg={name}" for name in PROXIES if name in os.environ]
    if fresh:
        options.append("--no-cache")
    with _context(model) as context, _secrets(os.environ) as secrets:
        return engine.build(context, tag, *options, *secrets)


def find_engine() -> Engine:
    """Return docker when its engine answers, else buildah with a store in the user's cache. Raises ImageError."""
    docker = Engine("docker", ("docker",), ("build",))
    # Without buildx, docker's own builder knows no secrets.
    asked = (("version",), ("buildx", "version"))
    if shutil.which("docker") and all(docker.run(*question).returncode == 0 for question in asked):
        return docker
    _need("buildah", "buildah")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iris-gitops"
    store = [f"--root={cache / 'images'}", f"--runroot={cache / 'images-run'}"]
    if driver := os.environ.get("STORAGE_DRIVER"):  # which buildah ignores beside --root
        store.append(f"--storage-driver={driver}")
    building = [
        "bud",
        "--layers",
        "--force-rm",  # no working container stays behind, whatever happens
        "--format=docker",  # the one that knows HEALTHCHECK
        f"--timestamp={os.environ.get('SOURCE_DATE_EPOCH', '0')}",  # layers that do not tell when they were made
    ]
    # Newer buildahs raise these limits, others lower them, and not every root may raise them (again).
    for name, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        _, hard = resource.getrlimit(limit)
        enough = 32768 if hard == resource.RLIM_INFINITY else min(hard, 32768)
        building.append(f"--ulimit={name}={enough}:{enough}")
    if os.geteuid():
        _need("newuidmap", "uidmap")
    return Engine("buildah", ("buildah", *store), tuple(building))


def find_base(engine: Engine) -> str:
    """Return the name of the base image, or, where it cannot be pulled, of a stand-in, and say so.

    Both stay in the engine's store: neither is pulled or made a second time. Raises ImageError.
    """
    if engine.has(BASE):
        return BASE
    reason = engine.pull(BASE)
    if reason is None:
        return BASE
    print(  # noqa: T201
        f"{BASE} cannot be pulled: {reason}\n"
        f"{STAND_IN} stands in for it: Python of the same version, from Debian packages",
        file=sys.stderr,
        flush=True,
    )
    if not engine.has(STAND_IN):
        _make_stand_in(engine)
    return STAND_IN


def _make_stand_in(engine: Engine) -> None:
    _need("mmdebstrap", "mmdebstrap")
    with tempfile.TemporaryDirectory(prefix="iris-base-") as folder:
        context = Path(folder)
        (context / "Dockerfile").write_text(STAND_IN_DOCKERFILE)
        command = [*STAND_IN_ROOT, str(context / "rootfs.tar"), f"deb {_mirror()} trixie main"]
        environment = {"SOURCE_DATE_EPOCH": "0", **_apt_proxy(), **os.environ}
        if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode:
            raise ImageError("mmdebstrap could not make the stand-in; its last lines say why")
        engine.build(context, STAND_IN)


def _mirror() -> str:
    """Return the address of the Debian mirror that apt is set up with."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Component: main"]
    for attempt in ("as it is", "updated"):
        if attempt == "updated" and os.geteuid() == 0:  # without package lists apt does not know who is who
            subprocess.run(["apt-get", "update"], stdout=sys.stderr, check=False)
        for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
            address, _, who = line.partition(" ")
            if who == "Debian Debian":
                return address
    raise ImageError(
        "apt has no Debian mirror to make a base image from; is one set up, and `apt-get update` done?"
    )


def _apt_proxy() -> dict[str, str]:
    """Return apt's own proxy as an environment variable, which mmdebstrap's apt understands."""
    done = subprocess.run(
        ["apt-config", "dump", "--format", "%v", "Acquire::http::Proxy"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {"http_proxy": done.stdout} if done.stdout else {}


def _need(program: str, package: str) -> None:
    """Make sure that the program is there: root gets it installed, others the command that does it."""
    if shutil.which(program):
        return
    install = ["apt-get", "install", "--yes", package]
    if os.geteuid() or not shutil.which("apt-get"):
        raise ImageError(f"{program} is not installed; `sudo {' '.join(install)}`")
    for command in (["apt-get", "update"], install):
        subprocess.run(command, stdout=sys.stderr, check=False)
    if not shutil.which(program):
        raise ImageError(f"`{' '.join(install)}` did not bring {program}; its last lines say why")


@contextmanager
def _context(model: Path) -> Iterator[Path]:
    """Yield a folder with what the Dockerfile copies, for whichever model."""
    with tempfile.TemporaryDirectory(prefix="iris-context-") as folder:
        context = Path(folder)
        shutil.copytree(ROOT / "service", context / "service", ignore=shutil.ignore_patterns("__pycache__"))
        (context / "model").mkdir()
        for name in ("model.json", "model.onnx"):
            shutil.copy2(model / name, context / "model")
        for name in ("Dockerfile", ".dockerignore"):
            shutil.copy2(ROOT / name, context)
        yield context


@contextmanager
def _secrets(environ: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield the options that give pip in the build this machine's index, proxy and certificates, as secrets."""
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
    with tempfile.TemporaryDirectory(prefix="iris-pip-") as folder:
        lines = [f"{key} = {' '.join(pip[key].split())}" for key in PIP_OPTIONS if key in pip]
        options = []
        if certificates:
            lines.append("cert = /run/secrets/certificates")
            options.append(f"--secret=id=certificates,src={certificates}")
        if lines:
            file = Path(folder) / "pip.conf"
            file.write_text("\n".join(["[global]", *lines, ""]))
            options.append(f"--secret=id=pip.conf,src={file}")
        yield options


def origin() -> dict[str, str]:
    """Return where the image comes from: version, commit, and the repository's address without credentials."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    revision = _git("rev-parse", "HEAD")
    if revision and _git("status", "--porcelain", "--", "service", "Dockerfile", ".dockerignore"):
        revision += "-dirty"
    source = re.sub(r"//[^/@]*@", "//", _git("remote", "get-url", "origin"))
    if not re.match(r"https?://|ssh://|git@", source):
        source = ""  # a folder of this machine tells nobody anything
    return {"VERSION": project["version"], "REVISION": revision or "unknown", "SOURCE": source}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _environment() -> dict[str, str]:
    """Return the environment for a builder: no daemon and no OCI runtime needed, unless the caller's says more."""
    return {"BUILDAH_ISOLATION": "chroot", "DOCKER_BUILDKIT": "1", **os.environ}
