"""What git never holds: passwords, a token and a key, made at random for this cluster, and the Secrets of them."""

import json
import secrets
from pathlib import Path
from typing import Any

from tools.cluster import git_server, node


def git_server_token() -> str:
    """Return what the forge has to be shown."""
    return _secret("git-server-token")


def objects() -> str:
    """Return the Secrets of the databases, of the notification and of who signs, as JSON for kubectl."""
    dev, prod = _secret("database-dev"), _secret("database-prod")
    notified = {
        "forge-url": f"http://{node.IP}:{git_server.PORT}{git_server.DISPATCH_PATH}",
        "forge-token": git_server_token(),
    }
    items = [
        kubernetes_secret(
            "iris-dev", "iris-database", {"url": f"postgresql://iris:{dev}@postgres/iris", "password": dev}
        ),
        kubernetes_secret(
            "iris-prod", "iris-database", {"url": f"postgresql://iris:{prod}@postgres.database/iris"}
        ),
        kubernetes_secret("database", "iris-database", {"password": prod}),
        kubernetes_secret("argo-rollouts", "argo-rollouts-notification-secret", notified),
        *(
            kubernetes_secret(f"iris-{name}", "iris-signer", {"key": _key(".pub").read_text()})
            for name in ("dev", "prod")
        ),
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def sign_image(image: str) -> None:
    """Sign an image of this cluster's registry, by its digest, and tell no public log. Raises ToolError."""
    nobody = _folder() / "signing-config.json"
    nobody.write_text(json.dumps({"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}))
    key = ("sign", "--yes", f"--key={_key('.key')}", f"--signing-config={nobody}", "--allow-http-registry")
    node.run("env", "COSIGN_PASSWORD=", "cosign", *key, f"{node.REGISTRY}/{image}")


def _key(suffix: str) -> Path:
    """Return one file of the pair of keys with which images are signed here, made when it is asked for first."""
    pair = _folder() / "signer"
    if not pair.with_suffix(suffix).exists():
        node.run("env", "COSIGN_PASSWORD=", "cosign", "generate-key-pair", f"--output-key-prefix={pair}")
    return pair.with_suffix(suffix)


def _folder() -> Path:
    folder = node.state() / "secrets"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _secret(name: str) -> str:
    """Return a secret of the cluster's state, made when it is asked for first."""
    file = _folder() / name
    if not file.exists():
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


def kubernetes_secret(namespace: str, name: str, values: dict[str, str]) -> dict[str, Any]:
    """Return a Secret as an object of the API."""
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}
