"""What git never holds: passwords and a token, made at random for this cluster, and the Secrets that hold them."""

import json
import secrets
from typing import Any

from cluster import forge, machine


def token() -> str:
    """Return what the forge has to be shown."""
    return _secret("forge-token")


def objects() -> str:
    """Return the Secrets of the databases and of the notification, as JSON for kubectl."""
    dev, prod = _secret("database-dev"), _secret("database-prod")
    notified = {"forge-url": f"http://{machine.NODE}:{forge.PORT}{forge.DISPATCHES}", "forge-token": token()}
    items = [
        secret("iris-dev", "iris-database", {"url": f"postgresql://iris:{dev}@postgres/iris", "password": dev}),
        secret("iris-prod", "iris-database", {"url": f"postgresql://iris:{prod}@postgres.database/iris"}),
        secret("database", "iris-database", {"password": prod}),
        secret("argo-rollouts", "argo-rollouts-notification-secret", notified),
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _secret(name: str) -> str:
    """Return a secret of the cluster's state, made when it is asked for first."""
    file = machine.state() / "secrets" / name
    if not file.exists():
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


def secret(namespace: str, name: str, values: dict[str, str]) -> dict[str, Any]:
    """Return a Secret as an object of the API."""
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}
