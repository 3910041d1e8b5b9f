"""The queries of the dashboards' panels, and what Prometheus answers: the data that Grafana would draw."""

import json
import math
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

from tools.checkout import ROOT

FOLDER = ROOT / "monitoring/grafana/dashboards"


class Query(NamedTuple):
    """A query of a panel."""

    dashboard: str
    panel: str
    expression: str

    @property
    def name(self) -> str:
        """Return the titles of dashboard and panel."""
        return f"{self.dashboard}: {self.panel}"


def queries() -> Iterator[Query]:
    """Yield every query of every panel, for all environments at once."""
    for file in sorted(FOLDER.glob("*.json")):
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield Query(board["title"], panel["title"], target["expr"].replace("$environment", ".*"))


def answer(url: str, query: Query, begin: float, end: float, step: float = 5.0) -> list[dict[str, Any]]:
    """Return the series of a range query to Prometheus. Raises OSError if Prometheus rejects the query."""
    wanted = urllib.parse.urlencode({"query": query.expression, "start": begin, "end": end, "step": step})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{wanted}", timeout=30) as response:  # noqa: S310 - http
        series: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return series


def numbers(series: list[dict[str, Any]]) -> list[float]:
    """Return all values of all series."""
    return [float(value) for one in series for _, value in one["values"]]


def faults(url: str, begin: float, end: float) -> Iterator[str]:
    """Yield a sentence for each panel that would be empty or show NaN."""
    for query in queries():
        found = numbers(answer(url, query, begin, end))
        if not found:
            yield f"{query.name} is empty"
        elif any(math.isnan(number) for number in found):
            yield f"{query.name} shows NaN"
