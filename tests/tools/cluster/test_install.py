"""Follow docs/OPERATIONS.md on an empty Kubernetes: platform, secrets, applications, signer, first release.

The fixtures provide what the document expects of a cluster elsewhere: volumes, prod's database, git, a registry.
The registry has no TLS. Unlike `make up`, the test applies manifests/argocd itself, with the address of a fork.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from delivery.release import ENVIRONMENTS, IMAGE
from tests.support import clone, documents
from tests.support.cluster_commands import CLUSTER, get, kubectl
from tests.support.documents import Block
from tests.support.running import ROOT
from tools import image
from tools.cluster import git_server, images, kustomize, node, secrets
from tools.engine import buildah

pytestmark = pytest.mark.install

DATABASE = "database"  # the namespace of prod's database
REPOSITORY = f"{node.REGISTRY}/{images.in_registry(IMAGE)}"


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout with an origin that an empty cluster can read; this is step 1 of the document."""
    if node.init_pid() is not None:
        pytest.exit("a cluster is running, and this test needs an empty one; `make down` ends it", 1)
    fork = clone.make(tmp_path_factory.mktemp("install"))
    try:
        _run_python("from tools.cluster import node, up", "with node.exclusive(): up.kubernetes()")
        git_server.folder().mkdir()
        clone.git(fork, "init", "--quiet", "--bare", "--initial-branch=main", str(git_server.repository()))
        clone.git(fork, "remote", "set-url", "origin", str(git_server.repository()))
        file = "manifests/argocd/kustomization.yaml"
        [generator] = yaml.safe_load((fork / file).read_text())["configMapGenerator"]
        _commit_change(fork, file, {generator["literals"][0]: f"url=git://{node.IP}/{git_server.REPOSITORY}"})
        _run_python(
            "from tools.cluster import git_server, secrets", "git_server.start(secrets.git_server_token(), print)"
        )
        yield fork
    finally:
        subprocess.run([*CLUSTER, "down"], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def environ(
    fork: Path,  # noqa: ARG001 - its cluster
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, str]:
    """An operator's environment: programs, an identity, and the variables that the document uses."""
    private = tmp_path_factory.mktemp("private")
    for name in ("slack-url", "pagerduty-routing-key", "smtp-password"):
        (private / name).write_text("https://hooks.invalid/none")
    inside = node.environment()
    return {
        **inside,
        **clone.PERSON,
        "PATH": f"{Path(sys.executable).parent}:{inside['PATH']}",
        "PRIVATE": str(private),
        "COSIGN_PASSWORD": "of this test",  # otherwise cosign prompts for it
        "PROD_DATABASE_URL": _database(),
        "TOKEN": secrets.git_server_token(),
    }


def test_the_document_leads_from_an_empty_cluster_to_a_release_in_prod(
    fork: Path, environ: Mapping[str, str], model: Path
) -> None:
    def follow(block: Block, where: Path = fork, **variables: str) -> None:
        prefix = node.nsenter(["env", f"--chdir={where}"])
        documents.check(block, where, {**environ, **variables}, prefix=prefix)

    own, there = documents.blocks("install"), documents.blocks("cluster")
    platforms, applications, key, release, secret, restart, golden = own
    synced = next(block for block in there if "kubectl wait applications" in block.text)

    follow(platforms, _with_upstream(fork))
    follow(secret)
    follow(applications)
    follow(synced)
    follow(key)
    _verify_with_the_key(fork)
    digest = _push_signed(model, fork, environ)
    follow(release, digest=digest)
    before = _restarts()
    follow(restart, NS="iris-prod")
    after = _restarts()
    assert before
    assert {pod: after[pod] for pod in before} == {pod: count + 1 for pod, count in before.items()}
    follow(golden)


def _restarts() -> dict[str, int]:
    """Return the number of container restarts of each serving pod in prod, by the pod's name."""
    pods = get("pods", "--namespace=iris-prod", "--selector=app.kubernetes.io/component=serving")
    return {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods}


def _with_upstream(fork: Path) -> Path:
    """Return a copy of the fork that takes upstream's files from the module cache; the fork is not changed."""
    copy = fork.parent / "with-upstream"
    shutil.copytree(fork, copy)
    kustomize.take_upstream_from_modules(copy)
    return copy


def _database() -> str:
    """Start prod's PostgreSQL, create the volumes of dev's and of Prometheus, and return prod's address."""
    kubectl("apply", f"--filename={ROOT}/overlays/local/platform/volumes.yaml")
    kubectl("apply", f"--kustomize={ROOT}/overlays/local/database")
    password = secrets.git_server_token()
    kubectl("create", "secret", "generic", "iris-database", "-n", DATABASE, f"--from-literal=password={password}")
    return f"postgresql://iris:{password}@postgres.{DATABASE}/iris"


def _verify_with_the_key(fork: Path) -> None:
    """Verify signatures with a key, as the document describes, and allow a registry without TLS."""
    for environment in ENVIRONMENTS:
        components = "components:\n"
        new = {components: f"{components}  - ../../manifests/iris/signed-by-key\n"}
        _commit_change(fork, f"overlays/{environment}/kustomization.yaml", new)
    new = {
        "--insecure-ignore-tlog,": "--insecure-ignore-tlog, --allow-http-registry,",
        "env:\n": f'env:\n{" " * 18}- {{name: COSIGN_REPOSITORY, value: "{REPOSITORY}"}}\n',
    }
    _commit_change(fork, "manifests/iris/signed-by-key/kustomization.yaml", new)


def _push_signed(model: Path, fork: Path, environ: Mapping[str, str]) -> str:
    """Build the image of the model, push it and sign it with the operator's key; return its digest."""
    shutil.copytree(model, fork / "model")
    tag, reference = "localhost/install", images.in_registry(f"{IMAGE}:install")
    image.build(model, tag, "--quiet", engine=buildah())
    images.push(buildah(), tag, reference)
    digest = images.digest(reference)
    assert digest
    private = Path(environ["PRIVATE"])
    (private / "none.json").write_text('{"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}')
    command = ["cosign", "sign", "--yes", f"--key={private}/cosign.key", f"--signing-config={private}/none.json"]
    documents.run(node.nsenter([*command, "--allow-http-registry", f"{REPOSITORY}@{digest}"]), private, environ)
    return digest


def _commit_change(fork: Path, file: str, new: Mapping[str, str]) -> None:
    """Change a file of the fork, commit and push it."""
    text = (fork / file).read_text()
    for old in new:
        assert text.count(old) == 1, f"{file} does not contain {old!r} once"
        text = text.replace(old, new[old])
    (fork / file).write_text(text)
    clone.git(fork, "commit", "--quiet", f"--message=fork: {file}", file)
    clone.git(fork, "push", "--quiet", "origin", "main")


def _run_python(*statements: str) -> None:
    """Run statements that leave processes behind in a process of their own."""
    subprocess.run([sys.executable, "-c", "\n".join(statements)], cwd=ROOT, check=True)
