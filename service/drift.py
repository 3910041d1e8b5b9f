"""`python -m service.drift`: export the drift of traffic from the model's training data as gauges.

This is a process of its own, from the serving image. It reads the prediction log, which has the predictions of all
pods, and delays no request. With IRIS_LOG_DAYS it also deletes old predictions.
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

from service import database, logs
from service.drift_statistics import DriftStatistic, Sample, compare
from service.model_metadata import ModelError, ModelMetadata, Reference, read_model_metadata
from service.retention import Retention
from service.settings import Settings, SettingsError, cannot_listen, from_environ

log = logging.getLogger(__name__)
MINIMUM_ROWS = 100
"""Rows of the model's version that a comparison needs; with fewer there is no verdict."""
QUANTILES = (0.1, 0.5, 0.9)
FIRST_RETRY_SECONDS = 1.0  # while PostgreSQL is unavailable; doubles up to the usual interval


class Measurement(NamedTuple):
    """One comparison with the reference. Without enough rows there are no statistics."""

    rows: int
    statistics: dict[str, DriftStatistic]
    """By feature, and for "prediction" and "confidence"."""
    confidence: dict[str, float]
    """The quantiles of the probabilities, by quantile ("0.5")."""


class Gauges(Collector):
    """The last measurement as metrics. A missing value has no series. Names and labels are a contract."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._measured: Measurement | None = None
        self._last_success: float | None = None

    def publish(self, measured: Measurement) -> None:
        """Export a new measurement."""
        self._measured, self._last_success = measured, time.time()

    def clear(self) -> None:
        """Export only the time of the last measurement, which is out of date."""
        self._measured = None

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families for the client library."""

        def gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, documentation, labels=labels)

        statistic = gauge(
            "iris_drift_statistic", "Distance of recent traffic from the reference, 0 to 1.", "about", "version"
        )
        critical_value = gauge(
            "iris_drift_limit", "Value of iris_drift_statistic that is unlikely to be chance.", "about", "version"
        )
        confidence = gauge("iris_confidence", "Quantiles of recent probabilities.", "quantile", "version")
        size = gauge("iris_drift_sample_size", "Number of predictions that were compared.", "version")
        success = gauge(
            "iris_drift_last_success_timestamp_seconds", "Unix time of the last successful comparison."
        )
        if measured := self._measured:
            size.add_metric([self._version], measured.rows)
            for about, drift in measured.statistics.items():
                statistic.add_metric([about, self._version], drift.value)
                critical_value.add_metric([about, self._version], drift.critical_value)
            for quantile, probability in measured.confidence.items():
                confidence.add_metric([quantile, self._version], probability)
        if self._last_success is not None:
            success.add_metric([], self._last_success)
        yield from (statistic, critical_value, confidence, size, success)


def measure(database_url: str, metadata: ModelMetadata, reference: Reference, window: int) -> Measurement:
    """Compare the newest `window` predictions of this version with the reference. Raises psycopg2.Error."""
    rows = database.newest_of(database_url, metadata.name, metadata.version, window)
    if len(rows) < MINIMUM_ROWS:
        return Measurement(len(rows), {}, {})
    features, predictions, probabilities = map(np.array, zip(*rows, strict=True))
    statistics = compare(metadata, reference, Sample(features, predictions, probabilities))
    confidence = {str(q): float(np.quantile(probabilities, q)) for q in QUANTILES}
    return Measurement(len(rows), statistics, confidence)


def monitor(
    settings: Settings, metadata: ModelMetadata, reference: Reference, gauges: Gauges, stopping: threading.Event
) -> None:
    """Measure every settings.drift_seconds until `stopping` is set. Log changes, and go on after any error."""
    pause = 0.0
    suspected: set[str] = set()
    failure = ""  # the reason why the last measurement failed
    while not stopping.wait(pause):
        try:
            measured = measure(settings.database_url, metadata, reference, settings.drift_window)
        except Exception as error:  # noqa: BLE001 - supervision: without measurements there must be no gauges either
            gauges.clear()
            if stopping.is_set():
                return
            pause = min(2 * pause, settings.drift_seconds) if failure else FIRST_RETRY_SECONDS
            reason = " ".join(str(error).split()) or type(error).__name__
            if reason != failure:
                log.warning("the prediction log cannot be compared", extra={"reason": reason})
            failure = reason
            continue
        gauges.publish(measured)
        if failure:
            log.info("the prediction log is compared again", extra={"rows": measured.rows})
        beyond = {about for about, statistic in measured.statistics.items() if statistic.suspected}
        if beyond != suspected:
            _log_change(measured, beyond)
        pause, suspected, failure = settings.drift_seconds, beyond, ""


def _log_change(measured: Measurement, suspected: set[str]) -> None:
    about = {name: measured.statistics[name]._asdict() for name in sorted(suspected)}
    extra = {"rows": measured.rows, "about": about}
    if suspected:
        log.warning("drift is suspected", extra=extra)
    else:
        log.info("drift is no longer suspected", extra=extra)


def main() -> int:
    """Measure until SIGTERM; return 0. If the process cannot start, print one line and return 1."""
    try:
        settings = from_environ(os.environ)
        logs.set_up(settings.log_level)
        metadata = read_model_metadata(settings.model_dir / "model.json")
        gauges, registry = Gauges(metadata.version), CollectorRegistry()
        registry.register(gauges)
        try:
            start_http_server(settings.port, settings.host, registry)
        except OSError as error:
            raise cannot_listen(settings, error) from error
    except (SettingsError, ModelError) as error:
        print(f"drift: cannot start: {error}", file=sys.stderr)  # noqa: T201
        return 1
    stopping, cancel_waits = threading.Event(), database.bound_waits()

    def stop(*_: object) -> None:
        stopping.set()
        cancel_waits()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if settings.log_days:
        Retention(settings, registry, stopping).start()
    extra: dict[str, object] = {"model": metadata.name, "version": metadata.version}
    if metadata.reference:
        log.info("ready", extra={**extra, "window": settings.drift_window, "minimum": MINIMUM_ROWS})
        monitor(settings, metadata, metadata.reference, gauges, stopping)
    else:
        log.warning("model.json has no reference; drift cannot be measured", extra=extra)
        stopping.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
