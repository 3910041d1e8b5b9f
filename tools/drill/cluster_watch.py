"""Follow a release: the cluster's objects, git and Prometheus, recorded as events and samples."""

import json
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import suppress

from delivery.changes import REJECTED
from delivery.kubernetes import KubernetesObject, namespace
from tools import local_http
from tools.cluster import git_server, node
from tools.drill.recording import Event, Measurement, Sample
from tools.drill.traffic import Answer, Traffic
from tools.progress import wait_for

KINDS = ("rollouts", "analysisruns", "traefikservices", "applications")
PROMETHEUS = "http://127.0.0.1:9090"
# The comparison drops NaN, the value of a metric without requests.
METRICS = '{__name__=~"router:server_error_ratio|router:latency_p95_seconds", namespace="iris-prod"} >= 0'


class Watch:
    """Follow dev's and prod's objects for the duration of the block, and record events and samples of prod.

    The methods return the latest known state.
    """

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.events: list[Event] = []
        self.samples: list[Sample] = []
        self._objects: dict[tuple[str, str, str], KubernetesObject] = {}
        self._over = threading.Event()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Watch":
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # as Kubernetes writes it
        for kind in KINDS:
            threading.Thread(target=self._follow, args=(kind,), daemon=True).start()
        threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for process in self._processes:
            process.kill()
            process.wait()

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until a condition is true. Raises ToolError, which names `what` the wait was for."""
        wait_for(lambda: None if condition() else f"still waiting for {what}; prod: {self.state()}", seconds)

    def rollout(self, environment: str) -> KubernetesObject:
        """Return the Rollout of an environment, empty if it has none."""
        return self._objects.get(("Rollout", namespace(environment), "iris"), {})

    def weight(self) -> int:
        """Return the weight of prod's canary in percent."""
        return _weight(self._objects.get(("TraefikService", "iris-prod", "iris"), {}))

    def synced_commit(self, application: str) -> str:
        """Return the commit that an Application is synced to, empty if it is not synced."""
        return _synced_commit(self._objects.get(("Application", "argocd", application), {}))

    def argo_cd(self) -> str:
        """Return the sync and health status of prod's Application in one line."""
        status = self._objects.get(("Application", "argocd", "iris-prod"), {}).get("status", {})
        sync, health = status.get("sync", {}), status.get("health", {})
        commit = sync.get("revision", "")[:10]
        return f"{sync.get('status', 'Unknown')} to {commit}, {health.get('status', 'Unknown')}"

    def state(self) -> str:
        """Return the state of prod's Rollout in one line."""
        status = self.rollout("prod").get("status", {})
        step = f"step {status.get('currentStepIndex', '-')}"
        parts = (status.get("phase", "no Rollout"), step, f"weight {self.weight()} %", status.get("message"))
        return ", ".join(filter(None, parts))

    def _follow(self, kind: str) -> None:
        options = ("--all-namespaces", "--watch", "--output-watch-events", "--output=json")
        while not self._over.is_set():
            command = node.nsenter(["kubectl", "get", kind, *options], "--net", "--mount")
            process = subprocess.Popen(
                command, env=node.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._processes.append(process)
            for line in process.stdout or ():
                event = json.loads(line)
                self._take(event["type"], event["object"])
            process.wait()
            self._over.wait(1)  # the API server ended the watch or is unavailable

    def _take(self, change: str, item: KubernetesObject) -> None:
        if item["kind"] == "Status":
            return
        metadata = item["metadata"]
        key = (item["kind"], metadata["namespace"], metadata["name"])
        before = self._objects.get(key, {})
        known = before or metadata["creationTimestamp"] >= self._started
        if known and "iris-prod" in key:
            self.events.extend(_events(before, item))
        # Last, so that a thread that sees the new state also finds its events.
        self._objects[key] = {} if change == "DELETED" else item

    def _poll(self) -> None:
        """Take a sample every second, and record what is committed to main."""
        counted, head = 0, git_server.head()
        while not self._over.wait(1):
            now = time.time()
            answers = self.traffic.received[counted:]
            counted += len(answers)
            self.samples.append(self._sample(now, answers))
            latest = git_server.head()
            if latest != head:
                head = latest
                self.events.append(_committed(now, head))

    def _sample(self, now: float, answers: list[Answer]) -> Sample:
        good = [answer.version for answer in answers if answer.good]
        metrics = _metrics()
        return Sample(
            at=now,
            weight=self.weight(),
            stable_errors=metrics.get(("router:server_error_ratio", "iris-stable")),
            canary_errors=metrics.get(("router:server_error_ratio", "iris-canary")),
            stable_p95=metrics.get(("router:latency_p95_seconds", "iris-stable")),
            canary_p95=metrics.get(("router:latency_p95_seconds", "iris-canary")),
            answers={version: good.count(version) for version in sorted(set(good))},
            failed=len(answers) - len(good),
        )


def _committed(now: float, commit: str) -> Event:
    """Return the event of a commit: a revert if one of its trailers rejects a release."""
    log = git_server.git("log", "-1", f"--format=%s%n%(trailers:key={REJECTED},valueonly)", commit)
    subject, _, rejected = log.partition("\n")
    return Event(now, "revert" if rejected else "commit", commit=commit, subject=subject)


def _events(before: KubernetesObject, after: KubernetesObject) -> Iterator[Event]:
    """Yield the events in which two states of an object differ."""
    now = time.time()
    match after["kind"]:
        case "AnalysisRun":
            yield from _measurements(before, after, now)
        case "Rollout":
            yield from _verdicts(before, after, now)
        case "TraefikService" if before and _weight(before) != _weight(after):
            yield Event(now, "weight", weight=_weight(after))
        case "Application" if before and _synced_commit(after) not in {"", _synced_commit(before)}:
            yield Event(now, "sync", commit=_synced_commit(after))


def _weight(split: KubernetesObject) -> int:
    services = split["spec"]["weighted"]["services"] if split else []
    return next((service["weight"] for service in services if service["name"] == "iris-canary"), 0)


def _synced_commit(application: KubernetesObject) -> str:
    sync = application.get("status", {}).get("sync", {})
    return str(sync.get("revision", "")) if sync.get("status") == "Synced" else ""


def _measurements(before: KubernetesObject, after: KubernetesObject, now: float) -> Iterator[Event]:
    """Yield one event for all metrics that were measured since `before`."""
    old, new = (run.get("status", {}).get("metricResults", []) for run in (before, after))
    counts = {result["name"]: _finished(result) for result in old}
    measured = []
    for result in new:
        if _finished(result) > counts.get(result["name"], 0):
            last = [one for one in result["measurements"] if one.get("finishedAt")][-1]
            measured.append(Measurement(result["name"], last["phase"], _number(last.get("value", ""))))
    if measured:
        yield Event(now, "gate", measurements=tuple(sorted(measured)))


def _number(value: str) -> float | None:
    """Return the number in a measured value, for instance "[0.304]"; None where it has none."""
    with suppress(ValueError):
        return float(value.strip("[]"))
    return None


def _finished(result: KubernetesObject) -> int:
    """Return how many measurements of a metric have finished; the object holds only the latest in full."""
    return sum(result.get(name, 0) for name in ("successful", "failed", "inconclusive", "error"))


def _verdicts(before: KubernetesObject, after: KubernetesObject, now: float) -> Iterator[Event]:
    old, new = before.get("status", {}), after.get("status", {})
    if new.get("abort") and not old.get("abort"):
        yield Event(now, "abort")
    if old.get("stableRS") and new.get("stableRS") != old["stableRS"]:
        annotations = after["spec"]["template"]["metadata"].get("annotations", {})
        yield Event(now, "promoted", model_version=annotations.get("model-version", "?"))


def _metrics() -> dict[tuple[str, str], float]:
    """Return the router's metrics by name and Service; none while Prometheus is unavailable."""
    query = urllib.parse.urlencode({"query": METRICS})
    with suppress(OSError, ValueError):
        found = json.loads(local_http.get(f"{PROMETHEUS}/api/v1/query?{query}", 1))["data"]["result"]
        return {(one["metric"]["__name__"], one["metric"]["service"]): float(one["value"][1]) for one in found}
    return {}
