"""`python -m service.drift`: gauges of how far traffic is from what the model learned from.

A process of its own, from the image that serves: it reads the prediction log, where the answers of all pods are,
and no request waits for it.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service import database, logs, shift
from service.facts import Facts, ModelError, Reference, read_facts
from service.settings import Settings, SettingsError, from_environ
from service.shift import Sample, Shift

log = logging.getLogger(__name__)
MINIMUM = 100
"""Rows of the model's version below which nothing is said: no data is no verdict."""
QUANTILES = (0.1, 0.5, 0.9)
FIRST_PAUSE = 1.0  # seconds until the next attempt while PostgreSQL is away, doubling up to the usual interval


class Measurement(NamedTuple):
    """What one look found: how many rows there were, and by what they are of the shifts, none of too few rows."""

    rows: int
    shifts: dict[str, Shift]
    confidence: dict[str, float]
    """Quantiles of the probabilities, by which they are."""


class Gauges(Collector):
    """The last measurement as metrics; what could not be measured has no series. Names are a contract."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._measured: Measurement | None = None
        self._last_success: float | None = None

    def show(self, measured: Measurement) -> None:
        """Expose what was found just now."""
        self._measured, self._last_success = measured, time.time()

    def withdraw(self) -> None:
        """Expose nothing but when the last measurement was: it is no longer true."""
        self._measured = None

    def collect(self) -> Iterator[Metric]:
        """Yield the families in the form that the client library exposes."""
        labels = ["about", "version"]
        statistic = GaugeMetricFamily(
            "iris_drift_statistic", "Distance of recent traffic from the reference, 0 to 1.", labels=labels
        )
        limit = GaugeMetricFamily("iris_drift_limit", "What chance alone hardly exceeds.", labels=labels)
        confidence = GaugeMetricFamily(
            "iris_confidence", "Quantiles of the probability of recent answers.", labels=["quantile", "version"]
        )
        size = GaugeMetricFamily("iris_drift_sample_size", "Predictions that were compared.", labels=["version"])
        success = GaugeMetricFamily(
            "iris_drift_last_success_timestamp_seconds", "When the prediction log was last read and compared."
        )
        if measured := self._measured:
            size.add_metric([self._version], measured.rows)
            for about, found in measured.shifts.items():
                statistic.add_metric([about, self._version], found.statistic)
                limit.add_metric([about, self._version], found.limit)
            for quantile, probability in measured.confidence.items():
                confidence.add_metric([quantile, self._version], probability)
        if self._last_success is not None:
            success.add_metric([], self._last_success)
        yield from (statistic, limit, confidence, size, success)


def measure(database_url: str, facts: Facts, reference: Reference, window: int) -> Measurement:
    """Compare the newest `window` predictions of this version with the reference. Raises psycopg2.Error."""
    rows = database.newest_of(database_url, facts.name, facts.version, window)
    if len(rows) < MINIMUM:
        return Measurement(len(rows), {}, {})
    features, predictions, probabilities = map(np.array, zip(*rows, strict=True))
    shifts = shift.compare(facts, reference, Sample(features, predictions, probabilities))
    return Measurement(len(rows), shifts, {str(q): float(np.quantile(probabilities, q)) for q in QUANTILES})


def watch(
    settings: Settings, facts: Facts, reference: Reference, gauges: Gauges, stopping: threading.Event
) -> None:
    """Measure every settings.drift_seconds until `stopping` is set, whatever fails in between."""
    pause, suspected, reason = 0.0, set[str](), None
    while not stopping.wait(pause):
        try:
            measured = measure(settings.database_url, facts, reference, settings.drift_window)
        except Exception as error:  # noqa: BLE001 - supervision: who no longer measures must not look like no drift
            gauges.withdraw()
            if stopping.is_set():
                return
            pause = min(2 * pause if reason else FIRST_PAUSE, settings.drift_seconds)
            said = " ".join(str(error).split()) or type(error).__name__
            if said != reason:
                log.warning("the prediction log cannot be compared", extra={"reason": said})
            reason = said
            continue
        gauges.show(measured)
        if reason:
            log.info("the prediction log is compared again", extra={"rows": measured.rows})
        beyond = {about for about, found in measured.shifts.items() if found.suspected}
        if beyond != suspected:
            _tell(measured, beyond)
        pause, suspected, reason = settings.drift_seconds, beyond, None


def _tell(measured: Measurement, beyond: set[str]) -> None:
    found = {about: measured.shifts[about]._asdict() for about in sorted(beyond)}
    level, message = (logging.WARNING, "drift is suspected") if beyond else (logging.INFO, "no drift any more")
    log.log(level, message, extra={"rows": measured.rows, "about": found})


def main() -> int:
    """Measure until SIGTERM; return 0 then, 1 with one line on standard error when it cannot start."""
    try:
        settings = from_environ(os.environ)
        logs.set_up(settings.log_level)
        facts = read_facts(settings.model_dir / "model.json")
        gauges, registry = Gauges(facts.version), CollectorRegistry()
        registry.register(gauges)
        start_http_server(settings.port, settings.host, registry)
    except (SettingsError, ModelError) as error:
        print(f"drift: cannot start: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        print(  # noqa: T201
            f"drift: cannot start: cannot listen on {settings.host}:{settings.port}: "
            f"{os.strerror(error.errno or 0)}; IRIS_HOST and IRIS_PORT set another address",
            file=sys.stderr,
        )
        return 1
    stopping, end_waits = threading.Event(), database.bound_waits()

    def end(*_: object) -> None:
        stopping.set()
        end_waits()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    extra = {"model": facts.name, "version": facts.version}
    if facts.reference:
        log.info("ready", extra={**extra, "window": settings.drift_window, "minimum": MINIMUM})
        watch(settings, facts, facts.reference, gauges, stopping)
    else:
        log.warning("model.json has no reference: there is no drift to measure", extra=extra)
        stopping.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
