"""Check with the real Traefik which series count a request for which a Service has no pod."""

import json
import re
import subprocess
from pathlib import Path

import httpx

from tests.support.running import free_port, wait_until
from tools import programs


def test_only_the_route_counts_a_request_without_a_pod(tmp_path: Path) -> None:
    # So the rules have to find out which version it was meant for: iris:unserved_ratio.
    web, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    services = {
        "iris": {"weighted": {"services": [{"name": "stable", "weight": 1}, {"name": "canary", "weight": 1}]}},
        "stable": {"loadBalancer": {"servers": [{"url": f"http://{metrics}"}]}},  # anything that answers
        "canary": {"loadBalancer": {"servers": []}},
    }
    router = {"rule": "PathPrefix(`/`)", "service": "iris", "entryPoints": ["web"]}
    file = tmp_path / "routes.yml"  # JSON is YAML
    file.write_text(json.dumps({"http": {"routers": {"iris": router}, "services": services}}))
    command = [
        str(programs.folder("prebuilt", print) / "traefik"),
        f"--entryPoints.web.address={web}",
        f"--entryPoints.metrics.address={metrics}",
        "--metrics.prometheus.entryPoint=metrics",
        "--metrics.prometheus.addRoutersLabels=true",
        f"--providers.file.filename={file}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, httpx.Client(timeout=5) as client:
        try:
            wait_until(lambda: _statuses(client, web) == [200, 503], "Traefik to use both Services")
            counted = client.get(f"http://{metrics}/metrics").text
        finally:
            process.terminate()
    unserved = re.findall(r'^traefik_(\w+)_requests_total\{code="503",.*service="(\w+)@', counted, re.MULTILINE)
    assert unserved == [("router", "iris")]


def _statuses(client: httpx.Client, address: str) -> list[int]:
    """Return the statuses of two requests in a row, sorted."""
    try:
        return sorted(client.get(f"http://{address}/metrics").status_code for _ in range(2))
    except httpx.TransportError:
        return []
