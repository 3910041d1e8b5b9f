"""Prometheus metrics: what is counted while serving, and what is read when it is asked for."""

import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.schema import Answer

if TYPE_CHECKING:
    from service.journal import Journal
    from service.model import Model
    from service.shipper import Shipper

# Seconds. An edge at each threshold that a rule or gate uses (0.25, 0.5, 1.0), and room above the last of them.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
RATE_WINDOW = 10  # seconds that iris_rps looks back
CGROUP = Path("/sys/fs/cgroup")  # in a container: its own


class Histogram(Collector):
    """A histogram, written by one thread at a time: adding is a bisection; the client library's takes locks."""

    def __init__(self, name: str, documentation: str, label: str | None = None) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, seconds: float, label: str = "") -> None:
        """Count one duration."""
        counts = self._counts.get(label)
        if counts is None:
            counts = self._counts[label] = [0] * (len(BUCKETS) + 1)
            self._sums[label] = 0.0
        counts[bisect_left(BUCKETS, seconds)] += 1
        self._sums[label] += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the family in the form that the client library exposes."""
        family = HistogramMetricFamily(
            self._name, self._documentation, labels=[self._label] if self._label else []
        )
        edges = [*map(str, BUCKETS), "+Inf"]
        for label, counts in list(self._counts.items()):
            total = 0
            buckets = []
            for edge, count in zip(edges, list(counts), strict=True):
                total += count
                buckets.append((edge, total))
            family.add_metric([label] if self._label else [], buckets, self._sums[label])
        yield family


class Metrics:
    """All metrics of the service in a registry of their own. Names and labels are a contract: rules read them."""

    def __init__(self, model: "Model") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which no rule reads
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "iris_requests", "Requests answered.", ["method", "endpoint", "status"], registry=self.registry
        )
        self._by_label: dict[tuple[str, str, int], Counter] = {}
        self._latency = Histogram(
            "iris_request_latency_seconds", "From a request's arrival to its answer.", "endpoint"
        )
        self.registry.register(self._latency)
        predictions = Counter(
            "iris_predictions", "Predictions answered, by class.", ["prediction"], registry=self.registry
        )
        self._predictions = [predictions.labels(name) for name in model.facts.classes]
        self._predicting = threading.Lock()
        self._prediction_latency = Histogram(
            "iris_prediction_latency_seconds", "From a request's arrival to the model's answer."
        )
        self.registry.register(self._prediction_latency)
        errors = Counter(
            "iris_errors", "Answers of 4xx (client) and 5xx (server).", ["kind"], registry=self.registry
        )
        self._client_errors, self._server_errors = errors.labels("client"), errors.labels("server")
        self._rps = Gauge("iris_rps", f"Requests a second over the last {RATE_WINDOW} s.", registry=self.registry)
        self._cpu = Gauge("iris_cpu_usage_percent", "CPU of the process, 100 a core.", registry=self.registry)
        self._memory = Gauge("iris_memory_usage_mb", "Resident memory (MiB).", registry=self.registry)
        if limit := memory_limit(CGROUP):
            Gauge(
                "iris_memory_limit_mb", "Memory at which the container is killed (MiB).", registry=self.registry
            ).set(limit / 2**20)
        Gauge("iris_model_loaded", "1 when the model is verified.", registry=self.registry).set(1)
        facts = model.facts
        Gauge(
            "iris_model_info",
            "The model that answers.",
            ["name", "version", "algorithm", "sha256"],
            registry=self.registry,
        ).labels(facts.name, facts.version, facts.algorithm, facts.sha256).set(1)
        self._total = 0
        self._samples: deque[tuple[float, int, float]] = deque(maxlen=RATE_WINDOW + 1)
        self.tick()

    def watch(self, journal: "Journal", shipper: "Shipper") -> None:
        """Expose the journal and its shipper, too."""
        self.registry.register(_JournalCollector(journal, shipper))

    def requested(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request. Called on the event loop only."""
        key = (method, endpoint, status)
        counter = self._by_label.get(key)
        if counter is None:
            counter = self._by_label[key] = self._requests.labels(method, endpoint, str(status))
        counter.inc()
        self._latency.observe(seconds, endpoint)
        self._total += 1
        if status >= 500:
            self._server_errors.inc()
        elif status >= 400:
            self._client_errors.inc()

    def predicted(self, answers: Sequence[Answer]) -> None:
        """Count predictions that are in the journal or in PostgreSQL. Called in any thread."""
        counts = [0] * len(self._predictions)
        with self._predicting:
            for answer in answers:
                counts[answer.prediction] += 1
                self._prediction_latency.observe(answer.latency_ms / 1000)
        for counter, count in zip(self._predictions, counts, strict=True):
            counter.inc(count)

    def tick(self) -> None:
        """Take a sample of the running totals; to be called once a second."""
        self._samples.append((time.monotonic(), self._total, time.process_time()))

    def exposition(self) -> bytes:
        """Return the Prometheus text format."""
        (then, total, cpu), now = self._samples[0], time.monotonic()
        if now > then:
            self._rps.set((self._total - total) / (now - then))
            self._cpu.set(100 * (time.process_time() - cpu) / (now - then))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self._memory.set(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return generate_latest(self.registry)


def memory_limit(cgroup: Path) -> int | None:
    """Return the memory that a control group may use (bytes), None where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2, version 1
        try:
            limit = (cgroup / name).read_text().strip()
        except OSError:
            continue
        # Version 2 says "max", version 1 a number that no machine reaches.
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return int(limit) if limit.isdigit() and int(limit) <= machine else None
    return None


class _JournalCollector(Collector):
    def __init__(self, journal: "Journal", shipper: "Shipper") -> None:
        self._journal = journal
        self._shipper = shipper

    def collect(self) -> Iterator[Metric]:
        journal, shipper = self._journal, self._shipper
        yield GaugeMetricFamily("iris_journal_depth", "Predictions that wait for PostgreSQL.", journal.depth)
        yield GaugeMetricFamily(
            "iris_journal_oldest_age_seconds",
            "Age of the oldest prediction that waits.",
            journal.oldest_age(),
        )
        yield CounterMetricFamily("iris_journal_written", "Predictions put on disk.", journal.written)
        yield CounterMetricFamily("iris_journal_shipped", "Predictions that PostgreSQL has.", journal.shipped)
        yield CounterMetricFamily(
            "iris_journal_rejected", "Predictions that PostgreSQL refused, for good.", shipper.rejected
        )
        yield GaugeMetricFamily(
            "iris_journal_writable", "1 unless the last write failed.", float(journal.error is None)
        )
        yield GaugeMetricFamily(
            "iris_journal_set_aside", "1 when a corrupt journal was found at start.", float(journal.set_aside)
        )
