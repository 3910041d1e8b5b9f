"""`make bench`: compare the service with bare uvicorn, with all servers on one core and wrk on another."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psycopg2
from prometheus_client.parser import text_string_to_metric_families

from tools.child_process import child, output, serving, wait_ready
from tools.errors import ToolError
from tools.postgres import Postgres, temporary

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
    """Run the measurements; all child processes share the core that this process is bound to."""

    def __init__(self, state: Path, postgres: Postgres, wrk: Sequence[str]) -> None:
        self._state = state
        self._postgres = postgres
        self._wrk = wrk
        self.loads: dict[str, list[Load]] = defaultdict(list)
        self.start_seconds: list[float] = []
        self.memory_mib: list[float] = []

    def round(self, forest: Path) -> None:
        """Measure everything once."""
        with child([sys.executable, "-m", "tools.bench.baseline", str(PORT)], os.environ) as process:
            wait_ready(process, f"{URL}/")
            self._load("baseline", 32)
            self._load("baseline 128", 128)
        with self._service(self._postgres.url, Path("model")):
            self._load("shipping", 32)
            self._load("shipping 128", 128)
            half = self.loads["shipping"][-1].rate / 2
            self._load("half", 32, 32 / half * 1000 - 1)  # a request itself takes about 1 ms
        with self._service(UNAVAILABLE, Path("model")):
            self._load("unavailable", 32)
        with self._service(self._postgres.url, forest):
            self._load("forest", 32)

    @contextmanager
    def _service(self, url: str, model: Path) -> Iterator[None]:
        before = self._rows()
        journal = self._state / "journal"
        shutil.rmtree(journal, ignore_errors=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IRIS_")}
        environ = {
            **kept,
            "DATABASE_URL": url,
            "IRIS_JOURNAL_DIR": str(journal),
            "IRIS_MODEL_DIR": str(model),
        }
        begun = time.monotonic()
        with serving(environ, "127.0.0.1", PORT) as process:
            self.start_seconds.append(time.monotonic() - begun)
            self._load("warm-up", 32)
            yield
            self.memory_mib.append(_resident_mib(process.pid))
            if url != UNAVAILABLE:
                self._compare_rows(before)

    def _load(self, kind: str, connections: int, pause_ms: float = 0) -> None:
        """Run wrk, after the rows of the last run are shipped, so that runs do not affect each other."""
        if kind not in ("baseline", "baseline 128", "unavailable"):
            _wait_shipped()
        sizes = ["--threads=1", f"--connections={connections}", f"--duration={SECONDS}s", f"--script={SCRIPT}"]
        path = "/" if kind.startswith("baseline") else "/predict"
        environ = {**os.environ, "PAUSE_MS": str(round(pause_ms))}
        printed = output([*self._wrk, *sizes, f"{URL}{path}"], name="wrk", env=environ, seconds=SECONDS + 30)
        result = json.loads(printed.splitlines()[-1])
        if result["failed"]:
            raise ToolError(f"{result['failed']} of {result['requests']} requests failed while measuring {kind}")
        load = Load(result["requests"] / result["seconds"], result["p50_ms"], result["p99_ms"])
        print(f"{kind:14} {load.rate:8.0f}/s  p50 {load.p50_ms:6.2f} ms  p99 {load.p99_ms:6.2f} ms", flush=True)  # noqa: T201
        self.loads[kind].append(load)

    def _compare_rows(self, before: float) -> None:
        _wait_shipped()
        answers = _metric("iris_requests_total", endpoint="/predict", method="POST", status="200")
        rows = self._rows() - before
        if rows != answers:
            raise ToolError(f"{answers:.0f} predictions were answered, but {rows:.0f} are in the log")

    def _rows(self) -> int:
        connection = psycopg2.connect(self._postgres.url)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT to_regclass('predictions') IS NOT NULL")
                if cursor.fetchone() == (False,):
                    return 0
                cursor.execute("SELECT count(*) FROM predictions")
                ((count,),) = cursor.fetchall()
                return int(count)
        finally:
            connection.close()


def bench(state: Path) -> None:
    """Measure and print the table.

    Raises ToolError without wrk or a second core, and if requests fail or the log does not have as many rows as
    predictions were answered.
    """
    server, client = _cores()
    wrk = ["taskset", "--cpu-list", str(client), _wrk()]
    state.mkdir(parents=True, exist_ok=True)
    forest = _forest(state)
    os.sched_setaffinity(0, {server})  # child processes inherit it, also PostgreSQL
    with temporary() as postgres:
        bench = Bench(state, postgres, wrk)
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", flush=True)  # noqa: T201
            bench.round(forest)
    print("\n" + table(bench))  # noqa: T201


def table(bench: Bench) -> str:
    """Return the measurements as a Markdown table, with medians of the rounds; ratios are taken within a round."""

    def rate(kind: str) -> float:
        return median(load.rate for load in bench.loads[kind])

    def ratio(kind: str, against: str = "baseline") -> str:
        pairs = zip(bench.loads[kind], bench.loads[against], strict=True)
        return f"{median(load.rate / base.rate for load, base in pairs):.2f}"

    def times(kind: str) -> str:
        loads = bench.loads[kind]
        return f"{median(x.p50_ms for x in loads):.1f} / {median(x.p99_ms for x in loads):.1f} ms"

    rows = [
        ("bare uvicorn answering a POST, 32 connections", f"{rate('baseline'):,.0f}/s", "1"),
        ("POST /predict, shipping to PostgreSQL, 32 connections", f"{rate('shipping'):,.0f}/s", ratio("shipping")),
        (
            "the same at 128 connections",
            f"{rate('shipping 128'):,.0f}/s",
            f"{ratio('shipping 128')}; {ratio('shipping 128', 'baseline 128')} of bare uvicorn at 128",
        ),
        ("the same with PostgreSQL unavailable", f"{rate('unavailable'):,.0f}/s", ratio("unavailable")),
        ("the same with a random forest of 100 trees", f"{rate('forest'):,.0f}/s", ratio("forest")),
        ("p50 / p99 at the full rate, 32 connections", times("shipping"), ""),
        (f"p50 / p99 at half of that rate ({rate('half'):,.0f}/s)", times("half"), ""),
        ("start to ready", f"{median(bench.start_seconds):.2f} s", ""),
        ("resident memory after the load", f"{median(bench.memory_mib):.0f} MiB", ""),
    ]
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, `make bench`: medians of {ROUNDS} rounds of {SECONDS} s. "
        "Server and PostgreSQL share one core, wrk has another. The log has a row for every answer.",
        "",
        "| what | measured | against bare uvicorn |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines)


def _cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ToolError("the benchmark needs two cores: one for the servers, one for the load")
    return cores[0], cores[-1]


def _wrk() -> str:
    if (found := shutil.which("wrk")) is None:
        raise ToolError("wrk is not installed; `apt-get install wrk` installs it")
    return found


def _forest(state: Path) -> Path:
    folder = state / "forest"
    if not (folder / "model.json").exists():
        subprocess.run(
            [sys.executable, "-m", "pipeline", "--algorithm", "random_forest", "--out", str(folder)],
            env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{state.resolve()}/mlflow.db"},
            check=True,
        )
    return folder


def _metric(name: str, **labels: str) -> float:
    with urllib.request.urlopen(f"{URL}/metrics", timeout=30) as answer:  # noqa: S310 - this host
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return next((one.value for one in samples if one.name == name and one.labels == labels), 0.0)


def _wait_shipped() -> None:
    while _metric("iris_journal_depth"):
        time.sleep(0.1)


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    return f"{found[1] if found else 'unknown processor'}, {os.cpu_count()} cores"
