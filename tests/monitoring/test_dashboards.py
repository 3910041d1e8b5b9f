"""Check the dashboards against Grafana's published schema, and that each panel of the service shows data.

Panels about the router and the Rollout need a cluster: the drill (tools/drill/scenarios.py) tests those, and all
others once more.
"""

import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support.running import ROOT, RunningService, free_port, wait_until
from tools import local_http, programs
from tools.drill.dashboards import FOLDER, numbers, queries
from tools.postgres import temporary

BOARDS = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in board["panels"]]
NEEDS_A_CLUSTER = re.compile(r"\b(router:|rollout_|analysis_run_|ALERTS|iris_memory_limit_mb)\w*")


def _dropped(written: Any, read: Any, where: str = "") -> Iterator[str]:
    """Yield the path of each value that the schema does not know or changes. Defaults that it adds are ignored."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from _dropped(value, read[key], f"{where}.{key}") if key in read else (f"{where}.{key}",)
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from _dropped(one, other, f"{where}[{number}]")
    elif written != read:
        yield where


@pytest.mark.parametrize("name", BOARDS)
def test_grafana_schema_knows_every_field_of_a_dashboard(name: str) -> None:
    plugins.register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARDS[name])))
    assert list(_dropped(BOARDS[name], read)) == []


@pytest.mark.parametrize(("place", "key"), [("", "titel"), (".panels", "optoins"), (".options", "colourMode")])
def test_a_field_unknown_to_the_grafana_schema_is_found(place: str, key: str) -> None:
    plugins.register_default_plugins()
    board = json.loads(json.dumps(BOARDS["service"]))
    panel = board["panels"][-1]
    {"": board, ".panels": panel, ".options": panel["options"]}[place][key] = "x"
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert [where.rpartition(".")[2] for where in _dropped(board, read)] == [key]


def test_dashboards_and_panels_are_unique_linked_and_described() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)
    for board in BOARDS.values():
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({panel["title"] for panel in panels}) == len(panels)
        assert {link["url"].rpartition("/")[2] for link in board["links"]} == {
            other["uid"] for other in BOARDS.values() if other is not board
        }
        for one, other in combinations([panel["gridPos"] for panel in panels], 2):
            beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert beside or above
    for _, panel in PANELS:
        assert panel["description"]
        assert panel["datasource"]["uid"] == "prometheus"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["type"] == "table" or all(target["legendFormat"] for target in panel["targets"])


def test_threshold_lines_are_the_limits_of_the_slo_gate() -> None:
    slo = yaml.safe_load((ROOT / "manifests/iris/analysistemplate-slo.yaml").read_text())
    limits = {
        metric["name"]: float(metric["successCondition"].rpartition(" ")[2]) for metric in slo["spec"]["metrics"]
    }
    with_line = [panel for _, panel in PANELS if "the slo gate's limit" in panel["description"]]
    assert len(with_line) == 4
    for panel in with_line:
        _, step = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        metric = "server-errors" if "error" in panel["title"].lower() else "latency-p95"
        assert step["value"] == limits[metric]


def test_every_panel_of_the_service_shows_data_in_every_state(model: Path, tmp_path: Path) -> None:
    with (
        temporary() as postgres,
        RunningService(model, postgres.url, tmp_path / "journal") as service,
        RunningService(
            model, postgres.url, tmp_path / "drift", module="service.drift", drift_seconds="1"
        ) as drift,
        _prometheus([service, drift], tmp_path) as url,
    ):
        begin = time.time()
        time.sleep(3)  # no requests yet
        _send_requests(service)
        postgres.stop()
        _send_requests(service)
        postgres.start()
        service.wait_shipped()
        time.sleep(35)  # no requests any more: rates are zero, and ratios have no data
        shown = {query: numbers(url, query, begin, time.time(), 1) for query in queries()}

    without_cluster = {
        query: found for query, found in shown.items() if not NEEDS_A_CLUSTER.search(query.expression)
    }
    assert len(without_cluster) >= 17
    assert [query.name for query, found in without_cluster.items() if not found] == []
    assert [query.name for query, found in shown.items() if any(map(math.isnan, found))] == []
    depth = next(
        found for query, found in without_cluster.items() if query.expression.startswith("iris_journal_depth")
    )
    assert max(depth) > 0
    # A panel with data here does not need a cluster, and NEEDS_A_CLUSTER would hide it from this test.
    assert not any(found for query, found in shown.items() if query not in without_cluster)


def _send_requests(service: RunningService) -> None:
    """Send valid and invalid requests for 8 s."""
    end = time.monotonic() + 8
    while time.monotonic() < end:
        assert service.predict().status_code == 200
        assert service.predict([5.9, 3.0, 5.1, 1.8]).status_code == 200
        assert service.predict("nonsense").status_code == 422
        time.sleep(0.02)


@contextmanager
def _prometheus(services: list[RunningService], folder: Path) -> Iterator[str]:
    """Yield the URL of a Prometheus with the repository's rules that scrapes these processes."""
    targets = [service.url.removeprefix("http://") for service in services]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "monitoring/rules.yml")],
        "scrape_configs": [{"job_name": "iris", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    command: list[str | Path] = [
        programs.folder("prometheus", print) / "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_ready(url) or process.poll() is not None, "Prometheus to be ready")
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        local_http.get(f"{url}/-/ready", 1)
    except OSError:
        return False
    return True
