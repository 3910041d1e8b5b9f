"""The queries of the dashboards' panels, and what Prometheus answers: the data that Grafana would draw."""

import json
import math
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple

from tools import local_http
from tools.checkout import ROOT

FOLDER = ROOT / "monitoring/grafana/dashboards"


class Query(NamedTuple):
    """A query of a panel."""

    name: str  # the titles of its dashboard and its panel
    expression: str


def queries() -> Iterator[Query]:
    """Yield every query of every panel, for all environments at once."""
    for file in sorted(FOLDER.glob("*.json")):
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield Query(f"{board['title']}: {panel['title']}", target["expr"].replace("$environment", ".*"))


def numbers(url: str, query: Query, begin: float, end: float, step: float = 5.0) -> list[float]:
    """Return all values of a range query to Prometheus. Raises OSError if Prometheus rejects the query."""
    wanted = urllib.parse.urlencode({"query": query.expression, "start": begin, "end": end, "step": step})
    series = json.loads(local_http.get(f"{url}/api/v1/query_range?{wanted}", 30))["data"]["result"]
    return [float(value) for one in series for _, value in one["values"]]


def faults(url: str, begin: float, end: float) -> Iterator[str]:
    """Yield a sentence for each panel that would be empty or show NaN."""
    for query in queries():
        found = numbers(url, query, begin, end)
        if not found:
            yield f"{query.name} is empty"
        elif any(map(math.isnan, found)):
            yield f"{query.name} shows NaN"
