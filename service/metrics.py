"""Prometheus metrics: counters that requests update, and gauges that are read at each scrape."""

import os
import threading
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service import logs
from service.journal import Journal
from service.model import Model
from service.schema import Answer
from service.shipper import Shipper

# Seconds. Rules and gates need an edge at each of their thresholds (0.25, 0.5, 1.0), and buckets above the last.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
RATE_WINDOW = 10  # seconds over which iris_rps averages
CGROUP = Path("/sys/fs/cgroup")  # inside a container, its own control group
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Histogram(Collector):
    """A histogram for one writing thread at a time. Unlike the client library's, it takes no locks."""

    def __init__(self, name: str, documentation: str, label: str | None = None) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))
        self._sums: defaultdict[str, float] = defaultdict(float)

    def observe(self, seconds: float, label: str = "") -> None:
        """Count one duration."""
        self._sums[label] += seconds
        self._counts[label][bisect_left(BUCKETS, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the metric family for the client library."""
        family = HistogramMetricFamily(
            self._name, self._documentation, labels=[self._label] if self._label else []
        )
        edges = [*map(str, BUCKETS), "+Inf"]
        for label, counts in list(self._counts.items()):
            buckets = list(zip(edges, accumulate(counts), strict=True))
            family.add_metric([label] if self._label else [], buckets, self._sums[label])
        yield family


class Metrics:
    """All metrics of the service, in a registry. Names and labels are a contract: rules and gates query them."""

    def __init__(self, model: Model) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # _created series, which no rule reads
        self.registry = CollectorRegistry(auto_describe=True)
        gauge, counter = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        requests = counter("iris_requests", "Requests answered.", ["method", "endpoint", "status"])
        self._requests = cache(requests.labels)
        self._latency = Histogram(
            "iris_request_latency_seconds", "Time from the arrival of a request to its response.", "endpoint"
        )
        self.registry.register(self._latency)
        predictions = counter("iris_predictions", "Predictions answered, by class.", ["prediction"])
        self._predictions = [predictions.labels(name) for name in model.metadata.classes]
        self._predicting = threading.Lock()
        self._prediction_latency = Histogram(
            "iris_prediction_latency_seconds", "Time from the arrival of a request to its prediction."
        )
        self.registry.register(self._prediction_latency)
        errors = counter(
            "iris_errors",
            "Responses with status 4xx (client), 5xx (server), or 503 to a prediction request under an "
            "Idempotency-Key because PostgreSQL was unavailable (database).",
            ["kind"],
        )
        self._errors = {kind: errors.labels(kind) for kind in ("client", "server", "database")}
        self._rps = gauge("iris_rps", f"Requests per second, averaged over {RATE_WINDOW} s.")
        self._cpu = gauge("iris_cpu_usage_percent", "CPU usage of the process; 100 is one core.")
        self._memory = gauge("iris_memory_usage_mb", "Resident memory of the process (MiB).")
        if limit := memory_limit(CGROUP):
            gauge("iris_memory_limit_mb", "Memory limit of the container (MiB).").set(limit / 2**20)
        gauge("iris_model_loaded", "1 when the model is loaded and verified.").set(1)
        metadata = model.metadata
        info = gauge("iris_model_info", "The model that is served.", ["name", "version", "algorithm", "sha256"])
        info.labels(metadata.name, metadata.version, metadata.algorithm, metadata.sha256).set(1)
        self._total = 0
        self._samples: deque[tuple[float, int, float]] = deque(maxlen=RATE_WINDOW + 1)
        self.tick()
        self._sample_memory()

    def add_journal(self, journal: Journal, shipper: Shipper) -> None:
        """Expose the metrics of the journal and its shipper, too."""
        self.registry.register(_JournalCollector(journal, shipper))

    def count_request(
        self, method: str, endpoint: str, status: int, seconds: float, *, database: bool = False
    ) -> None:
        """Count a request and its latency; an error as one of the database. Call this on the event loop only."""
        self._requests(method, endpoint, status).inc()
        self._latency.observe(seconds, endpoint)
        self._total += 1
        if status >= 400:
            kind = "server" if status >= 500 else "client"
            self._errors["database" if database else kind].inc()

    def count_predictions(self, answers: Sequence[Answer]) -> None:
        """Count predictions that are in the journal or in PostgreSQL. May be called from any thread."""
        counts = [0] * len(self._predictions)
        with self._predicting:
            for answer in answers:
                counts[answer.prediction] += 1
                self._prediction_latency.observe(answer.latency_ms / 1000)
        for counter, count in zip(self._predictions, counts, strict=True):
            counter.inc(count)

    def tick(self) -> None:
        """Sample the running totals for the rates. Call this once a second."""
        self._samples.append((time.monotonic(), self._total, time.process_time()))

    def exposition(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        (then, total, cpu), now = self._samples[0], time.monotonic()
        if now > then:
            self._rps.set((self._total - total) / (now - then))
            self._cpu.set(100 * (time.process_time() - cpu) / (now - then))
        self._sample_memory()
        return generate_latest(self.registry)

    def _sample_memory(self) -> None:
        with suppress(OSError):  # while all descriptors are in use, the last value remains
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._memory.set(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def method_label(method: str) -> str:
    """Return the label for a request's method: unknown methods share one, so that clients cannot create series."""
    return method if method in KNOWN_METHODS else "OTHER"


def memory_limit(cgroup: Path) -> int | None:
    """Return the memory limit of a control group (bytes), None without a limit."""
    files = (cgroup / "memory.max", cgroup / "memory/memory.limit_in_bytes")  # version 2, version 1
    limit = next((file.read_text().strip() for file in files if file.exists()), "")
    # Without a limit, version 2 has "max" and version 1 a number larger than any memory.
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(limit) if limit.isdigit() and int(limit) <= physical else None


class _JournalCollector(Collector):
    def __init__(self, journal: Journal, shipper: Shipper) -> None:
        self._journal = journal
        self._shipper = shipper

    def collect(self) -> Iterator[Metric]:
        journal, shipper = self._journal, self._shipper
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        for family, name, documentation, value in (
            (gauge, "depth", "Predictions in the journal that PostgreSQL does not have yet.", journal.depth),
            (gauge, "oldest_age_seconds", "Age of the oldest prediction in the journal.", journal.oldest_age()),
            (gauge, "writable", "1 unless the last write to the journal failed.", journal.error is None),
            (gauge, "set_aside", "1 when there is a quarantined journal.", journal.quarantined),
            (counter, "written", "Predictions written to the journal.", journal.written),
            (counter, "shipped", "Predictions shipped from the journal to PostgreSQL.", journal.shipped),
            (counter, "rejected", "Predictions that PostgreSQL rejected permanently.", shipper.rejected),
        ):
            yield family(f"iris_journal_{name}", documentation, float(value))
        yield counter("iris_log_lines_dropped", "Log lines dropped because nobody read them.", logs.dropped())
