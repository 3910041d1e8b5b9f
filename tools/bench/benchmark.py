"""`make bench`: compare the service with bare uvicorn, with all servers on one core and wrk on another."""

import json
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psycopg2
from prometheus_client.parser import text_string_to_metric_families

from tools import local_http, packages
from tools.child_process import child, output, run_visibly, serving, wait_ready
from tools.errors import ToolError
from tools.postgres import temporary

ROUNDS = 3  # every round measures everything once, so that a slow moment of the host affects both sides
SECONDS = 5  # the duration of a measurement
PORT = 8010
URL = f"http://127.0.0.1:{PORT}"
UNAVAILABLE = "postgresql://nobody@127.0.0.1:1/nothing"
"""The address of a PostgreSQL that does not answer."""
SCRIPT = Path(__file__).with_name("predict.lua")


class Load(NamedTuple):
    """The result of one run of wrk; the rate is in requests per second."""

    rate: float
    p50_ms: float
    p99_ms: float


class Bench:
    """Run the measurements; all child processes but wrk share the core that this process is bound to."""

    def __init__(self, state: Path, wrk_core: int) -> None:
        self._journal = state / "journal"
        self._wrk = ("taskset", "--cpu-list", str(wrk_core), "wrk", "--threads=1", f"--script={SCRIPT}")
        self.loads: dict[str, list[Load]] = defaultdict(list)
        self.start_seconds: list[float] = []
        self.memory_mib: list[float] = []

    def round(self, forest: Path) -> None:
        """Measure everything once. Raises ToolError."""
        with child([sys.executable, "-m", "tools.bench.baseline", str(PORT)], os.environ) as process:
            wait_ready(process, f"{URL}/")
            self._load("baseline", 32)
            self._load("baseline 128", 128)
        with self._shipping(Path("model")):
            self._load("shipping", 32)
            _wait_shipped()
            self._load("shipping 128", 128)
            _wait_shipped()
            half = self.loads["shipping"][-1].rate / 2
            self._load("half", 32, pause_ms=32 / half * 1000 - 1)  # a request itself takes about 1 ms
        with self._service(UNAVAILABLE, Path("model")):
            self._load("unavailable", 32)
        with self._shipping(forest):
            self._load("forest", 32)

    @contextmanager
    def _shipping(self, model: Path) -> Iterator[None]:
        """Run the service with an empty PostgreSQL, which in the end has to have a row for each answer."""
        with temporary() as postgres, self._service(postgres.url, model):
            _wait_shipped()
            yield
            _wait_shipped()
            answers = _metric("iris_requests_total", endpoint="/predict", method="POST", status="200")
            with closing(psycopg2.connect(postgres.url)) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM predictions")
                ((rows,),) = cursor.fetchall()
        if rows != answers:
            raise ToolError(f"{answers:.0f} predictions were answered, but {rows} are in the log")

    @contextmanager
    def _service(self, database: str, model: Path) -> Iterator[None]:
        shutil.rmtree(self._journal, ignore_errors=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IRIS_")}
        own = {"DATABASE_URL": database, "IRIS_JOURNAL_DIR": str(self._journal), "IRIS_MODEL_DIR": str(model)}
        begun = time.monotonic()
        with serving(kept | own, "127.0.0.1", PORT):
            self.start_seconds.append(time.monotonic() - begun)
            self._load("warm-up", 32)
            yield
            self.memory_mib.append(_metric("iris_memory_usage_mb"))

    def _load(self, kind: str, connections: int, pause_ms: float = 0) -> None:
        path = "/" if kind.startswith("baseline") else "/predict"
        command = [*self._wrk, f"--connections={connections}", f"--duration={SECONDS}s", f"{URL}{path}"]
        environ = {**os.environ, "PAUSE_MS": str(round(pause_ms))}
        result = json.loads(output(command, name="wrk", env=environ, seconds=SECONDS + 30).splitlines()[-1])
        if result["failed"]:
            raise ToolError(f"{result['failed']} of {result['requests']} requests failed while measuring {kind}")
        load = Load(result["requests"] / result["seconds"], result["p50_ms"], result["p99_ms"])
        print(f"{kind:14} {load.rate:8.0f}/s  p50 {load.p50_ms:6.2f} ms  p99 {load.p99_ms:6.2f} ms", flush=True)  # noqa: T201
        self.loads[kind].append(load)


def bench(state: Path) -> None:
    """Measure and print the table.

    Raises ToolError without wrk or a second core, and if requests fail or the log does not have as many rows as
    predictions were answered.
    """
    packages.need("wrk", "wrk")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ToolError("the benchmark needs two cores: one for the servers, one for the load")
    state.mkdir(parents=True, exist_ok=True)
    forest = _forest(state)
    os.sched_setaffinity(0, {cores[0]})  # child processes inherit it, also PostgreSQL
    bench = Bench(state, cores[-1])
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", flush=True)  # noqa: T201
        bench.round(forest)
    print("\n" + table(bench))  # noqa: T201


def table(bench: Bench) -> str:
    """Return the measurements as a Markdown table, with medians of the rounds; ratios are taken within a round."""

    def rate(kind: str) -> str:
        return f"{median(load.rate for load in bench.loads[kind]):,.0f}/s"

    def ratio(kind: str, against: str = "baseline") -> str:
        pairs = zip(bench.loads[kind], bench.loads[against], strict=True)
        return f"{median(load.rate / base.rate for load, base in pairs):.2f}"

    def times(kind: str) -> str:
        loads = bench.loads[kind]
        return f"{median(x.p50_ms for x in loads):.1f} / {median(x.p99_ms for x in loads):.1f} ms"

    at_128 = f"{ratio('shipping 128')}; {ratio('shipping 128', 'baseline 128')} of bare uvicorn at 128"
    processor = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"""\
{datetime.now(UTC):%Y-%m-%d}, {processor[1] if processor else "unknown processor"}, {os.cpu_count()} cores, \
`make bench`: medians of {ROUNDS} rounds of {SECONDS} s. \
Server and PostgreSQL share one core, wrk has another. The log has a row for every answer.

| what | measured | against bare uvicorn |
|---|---|---|
| bare uvicorn answering a POST, 32 connections | {rate("baseline")} | 1 |
| POST /predict, shipping to PostgreSQL, 32 connections | {rate("shipping")} | {ratio("shipping")} |
| the same at 128 connections | {rate("shipping 128")} | {at_128} |
| the same with PostgreSQL unavailable | {rate("unavailable")} | {ratio("unavailable")} |
| the same with a random forest of 100 trees | {rate("forest")} | {ratio("forest")} |
| p50 / p99 at the full rate, 32 connections | {times("shipping")} | |
| p50 / p99 at half of that rate ({rate("half")}) | {times("half")} | |
| start to ready | {median(bench.start_seconds):.2f} s | |
| resident memory after the load | {median(bench.memory_mib):.0f} MiB | |"""


def _forest(state: Path) -> Path:
    folder = state / "forest"
    if not (folder / "model.json").exists():
        command = [sys.executable, "-m", "pipeline", "--algorithm=random_forest", f"--out={folder}"]
        environ = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{state.resolve()}/mlflow.db"}
        run_visibly(command, env=environ, failure="the random forest was not trained")
    return folder


def _metric(name: str, **labels: str) -> float:
    families = text_string_to_metric_families(local_http.get(f"{URL}/metrics", 30).decode())
    samples = (sample for family in families for sample in family.samples)
    return next((one.value for one in samples if one.name == name and one.labels == labels), 0.0)


def _wait_shipped() -> None:
    """Wait until the rows of the last run are shipped, so that runs do not affect each other."""
    while _metric("iris_journal_depth"):
        time.sleep(0.1)
