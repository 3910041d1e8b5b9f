"""Push an image, write its SBOM, sign both, and verify; an unsigned image is refused.

The registry and the programs are real. A key signs here: a workflow has its identity only on GitHub.
"""

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.go_program import go_program
from tests.support.running import ROOT, free_port, wait_until
from tools import programs
from tools.ci import image_push, supply_chain
from tools.ci.supply_chain import Signer
from tools.errors import ToolError

pytestmark = pytest.mark.supply
SERVICES = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
ROOTS = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"


@pytest.fixture(scope="module", autouse=True)
def _keys_without_password() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COSIGN_PASSWORD", "")
        yield


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry."""
    program = go_program(ROOT / "tests/support/registry.go", "cosign")
    address = ("127.0.0.1", free_port())
    log = tmp_path_factory.mktemp("registry") / "log"
    with log.open("w") as out, subprocess.Popen([program, "{}:{}".format(*address)], stderr=out) as process:
        try:
            wait_until(lambda: _listens(address), "the registry")
            yield "{}:{}".format(*address)
        finally:
            process.terminate()


def _listens(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


@pytest.fixture(scope="module")
def image(registry: str, model: Path) -> str:
    """The pushed serving image, by digest."""
    return f"{registry}/iris@{image_push.push(model, f'{registry}/iris', tls=False)}"


@pytest.fixture(scope="module")
def sbom(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SBOM of the image."""
    file = tmp_path_factory.mktemp("sbom") / "folder" / "sbom.cdx.json"
    supply_chain.write_sbom(image, file, print)
    return file


def _signer(folder: Path) -> Signer:
    """Return a signer with its own key, which uses neither the public roots nor the public log."""
    cosign = programs.folder("cosign", print) / "cosign"
    subprocess.run([cosign, "generate-key-pair"], cwd=folder, check=True, capture_output=True)
    (folder / "services.json").write_text(json.dumps({"mediaType": SERVICES}))
    (folder / "roots.json").write_text(json.dumps({"mediaType": ROOTS}))
    roots = f"--trusted-root={folder}/roots.json"
    signing = (f"--key={folder}/cosign.key", f"--signing-config={folder}/services.json", roots)
    return Signer(signing, (f"--key={folder}/cosign.pub", "--insecure-ignore-tlog", "--offline", roots))


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return _signer(tmp_path_factory.mktemp("key"))


def test_sbom_lists_the_packages_of_the_lock_and_of_the_base(sbom: Path) -> None:
    found = json.loads(sbom.read_text())
    assert found["bomFormat"] == "CycloneDX"
    versions = {component["name"]: component.get("version") for component in found["components"]}
    lock = (ROOT / "service/requirements.txt").read_text()
    for name in ("fastapi", "numpy", "onnxruntime", "psycopg2-binary", "uvicorn"):
        assert f"{name}=={versions[name]} " in lock
    assert {"libc6", "openssl-provider-legacy", "zlib1g"} & versions.keys()


def test_only_images_of_the_signer_are_verified(image: str, sbom: Path, signer: Signer, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="`cosign verify` failed: "):
        supply_chain.verify(image, signer, print)
    supply_chain.sign(image, sbom, signer, print)
    supply_chain.verify(image, signer, print)
    with pytest.raises(ToolError, match="`cosign verify` failed: "):
        supply_chain.verify(image, _signer(tmp_path), print)
    with pytest.raises(ToolError, match="`cosign verify` failed: "):
        supply_chain.verify(f"{image[:-64]}{'0' * 64}", signer, print)
