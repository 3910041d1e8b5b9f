"""Generate the cluster's passwords, token and signing key, which are never in git, and its Secrets."""

import json
import secrets
from pathlib import Path

from delivery.kubernetes import KubernetesObject
from tools.cluster import git_server, node


def git_server_token() -> str:
    """Return the token that the git server's webhook requires."""
    return _generated("git-server-token")


def objects() -> str:
    """Return the Secrets of the databases, the notifications and the signer as a List in JSON."""
    dev, prod = _generated("database-dev"), _generated("database-prod")
    dev_database = {"url": f"postgresql://iris:{dev}@postgres/iris", "password": dev}
    prod_database = {"url": f"postgresql://iris:{prod}@postgres.database/iris"}
    webhook = {"forge-url": git_server.dispatch_url(), "forge-token": git_server_token()}
    key = {"key": _key(".pub").read_text()}
    items = [
        kubernetes_secret("iris-dev", "iris-database", dev_database),
        kubernetes_secret("iris-prod", "iris-database", prod_database),
        kubernetes_secret("database", "iris-database", {"password": prod}),
        kubernetes_secret("argo-rollouts", "argo-rollouts-notification-secret", webhook),
        kubernetes_secret("iris-dev", "iris-signer", key),
        kubernetes_secret("iris-prod", "iris-signer", key),
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def sign_image(image: str) -> None:
    """Sign an image in the cluster's registry by digest, without a transparency log. Raises ToolError."""
    no_log = _folder() / "signing-config.json"
    no_log.write_text(json.dumps({"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}))
    options = ("--yes", f"--key={_key('.key')}", f"--signing-config={no_log}", "--allow-http-registry")
    node.run("env", "COSIGN_PASSWORD=", "cosign", "sign", *options, f"{node.REGISTRY}/{image}")


def kubernetes_secret(namespace: str, name: str, values: dict[str, str]) -> KubernetesObject:
    """Return a Secret."""
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}


def _key(suffix: str) -> Path:
    """Return the private (.key) or public (.pub) signing key; both are generated on first use."""
    pair = _folder() / "signer"
    if not pair.with_suffix(suffix).exists():
        node.run("env", "COSIGN_PASSWORD=", "cosign", "generate-key-pair", f"--output-key-prefix={pair}")
    return pair.with_suffix(suffix)


def _generated(name: str) -> str:
    """Return a secret that is generated on first use and stored in the cluster's state."""
    file = _folder() / name
    if not file.exists():
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


def _folder() -> Path:
    folder = node.state() / "secrets"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
