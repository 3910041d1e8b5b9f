"""The dashboards' panels, and what a Prometheus answers to their queries: all that Grafana would draw."""

import json
import math
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

from tools.checkout import ROOT

FOLDER = ROOT / "monitoring/grafana/dashboards"


class Query(NamedTuple):
    """What a panel asks."""

    dashboard: str
    panel: str
    expression: str

    @property
    def name(self) -> str:
        """How people find it."""
        return f"{self.dashboard}: {self.panel}"


def queries() -> Iterator[Query]:
    """Yield every query of every panel, for all environments at once."""
    for file in sorted(FOLDER.glob("*.json")):
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield Query(board["title"], panel["title"], target["expr"].replace("$environment", ".*"))


def answer(url: str, query: Query, begin: float, end: float, step: float = 5.0) -> list[dict[str, Any]]:
    """Return the series that a Prometheus answers a query with. Raises OSError when it refuses it."""
    wanted = urllib.parse.urlencode({"query": query.expression, "start": begin, "end": end, "step": step})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{wanted}", timeout=30) as response:  # noqa: S310 - http
        series: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return series


def numbers(series: list[dict[str, Any]]) -> list[float]:
    """Return all values of all series."""
    return [float(value) for one in series for _, value in one["values"]]


def faults(url: str, begin: float, end: float) -> Iterator[str]:
    """Yield each panel that would stay empty, or show what is no number."""
    for query in queries():
        found = numbers(answer(url, query, begin, end))
        if not found:
            yield f"{query.name} shows nothing"
        elif any(math.isnan(number) for number in found):
            yield f"{query.name} shows what is no number"
