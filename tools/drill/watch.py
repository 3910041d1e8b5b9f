"""What cluster, git and Prometheus say while a release is on its way, followed as it changes."""

import json
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal

from delivery.kubernetes import KubernetesObject
from tools.cluster import git_server, node
from tools.drill.recording import Mark, Sample
from tools.drill.traffic import Traffic
from tools.errors import ToolError

NAMESPACES = {"dev": "iris-dev", "prod": "iris-prod"}
KINDS = (
    ("rollouts.argoproj.io", "iris-prod"),
    ("rollouts.argoproj.io", "iris-dev"),
    ("analysisruns.argoproj.io", "iris-prod"),
    ("traefikservices.traefik.io", "iris-prod"),
    ("applications.argoproj.io", "argocd"),
)
PROMETHEUS = "http://127.0.0.1:9090"
NUMBERS = '{__name__=~"router:server_error_ratio|router:latency_p95_seconds", namespace="iris-prod"}'
GOOD = {"Successful": True, "Failed": False, "Error": None, "Inconclusive": None}


class Watch:
    """Follows the objects of a release as long as the block lasts, and writes down what changes.

    Marks are about prod; what is asked of it is the newest that is known.
    """

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.marks: list[Mark] = []
        self.samples: list[Sample] = []
        self._objects: dict[tuple[str, str, str], KubernetesObject] = {}
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Watch":
        self._begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # as Kubernetes writes it
        for kind, namespace in KINDS:
            threading.Thread(target=self._follow, args=(kind, namespace), daemon=True).start()
        threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for process in self._processes:
            process.kill()
            process.wait()

    def until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something is true. Raises ToolError with what has not become true."""
        deadline = time.time() + seconds
        with self._changed:
            while not true():
                if time.time() > deadline:
                    raise ToolError(f"after {seconds:.0f} s: {what} has not come about; prod: {self.state()}")
                self._changed.wait(0.5)

    def rollout(self, environment: str) -> KubernetesObject:
        """Return the Rollout of an environment, empty when there is none."""
        return self._objects.get(("Rollout", NAMESPACES[environment], "iris"), {})

    def runs(self, pod_hash: str) -> list[KubernetesObject]:
        """Return the AnalysisRuns of a version in prod, oldest first."""
        found = [
            item
            for (kind, _, _), item in self._objects.items()
            if kind == "AnalysisRun" and item["metadata"]["labels"].get("rollouts-pod-template-hash") == pod_hash
        ]
        return sorted(found, key=lambda run: str(run["metadata"]["creationTimestamp"]))

    def weight(self) -> int:
        """Return the percentage of the users that the canary gets in prod."""
        return _weight(self._objects.get(("TraefikService", "iris-prod", "iris"), {}))

    def synced(self, application: str) -> str:
        """Return the commit that an application is as, empty when it is not as any."""
        return _synced(self._objects.get(("Application", "argocd", application), {}))

    def argo_cd(self) -> str:
        """Return in one line what Argo CD says of prod."""
        status = self._objects.get(("Application", "argocd", "iris-prod"), {}).get("status", {})
        sync, health = status.get("sync", {}), status.get("health", {})
        parts = (
            sync.get("status", "Unknown"),
            f"as {sync.get('revision', '')[:10]},",
            health.get("status", "Unknown"),
        )
        return " ".join(parts)

    def state(self) -> str:
        """Return in one line where prod is."""
        status = self.rollout("prod").get("status", {})
        parts = [
            str(status.get("phase", "not there")),
            f"step {status.get('currentStepIndex', '-')}",
            f"weight {self.weight()} %",
            f"{status.get('message', '')}",
        ]
        return ", ".join(part for part in parts if part)

    def _follow(self, kind: str, namespace: str) -> None:
        options = ("--watch", "--output-watch-events", "--output=json")
        while not self._over.is_set():
            command = node.nsenter(
                ["kubectl", "get", kind, f"--namespace={namespace}", *options], "--net", "--mount"
            )
            process = subprocess.Popen(
                command,
                env=node.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._processes.append(process)
            assert process.stdout  # noqa: S101 - for the type checker
            for line in process.stdout:
                event = json.loads(line)
                self._take(event["type"], event["object"])
            process.wait()
            self._over.wait(1)  # the API server ended it, or is away

    def _take(self, what: str, item: KubernetesObject) -> None:
        if item["kind"] == "Status":
            return
        key = (item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])
        with self._changed:
            before = self._objects.get(key, {})
            if what == "DELETED":
                self._objects.pop(key, None)
            else:
                self._objects[key] = item
            prod = item["metadata"]["namespace"] == "iris-prod" or item["metadata"]["name"] == "iris-prod"
            known = before or item["metadata"]["creationTimestamp"] >= self._begun
            if prod and known:
                self.marks.extend(_differences(before, item))
            self._changed.notify_all()

    def _sample(self) -> None:
        """Take a sample every second, and see what the forge commits."""
        counted = 0
        head = git_server.head()
        while not self._over.wait(1):
            now = time.time()
            new = self.traffic.answers[counted:]
            counted += len(new)
            good = [answer.version for answer in new if answer.good]
            numbers = _numbers()
            self.samples.append(
                Sample(
                    at=now,
                    weight=self.weight(),
                    stable_errors=numbers.get(("router:server_error_ratio", "iris-stable")),
                    canary_errors=numbers.get(("router:server_error_ratio", "iris-canary")),
                    stable_p95=numbers.get(("router:latency_p95_seconds", "iris-stable")),
                    canary_p95=numbers.get(("router:latency_p95_seconds", "iris-canary")),
                    answers={version: good.count(version) for version in sorted(set(good))},
                    bad=len(new) - len(good),
                )
            )
            if (latest := git_server.head()) != head:
                head = latest
                subject = git_server.git("log", "-1", "--format=%s", head)
                taken_back = "taken back" in subject
                kind: Literal["revert", "commit"] = "revert" if taken_back else "commit"
                self.marks.append(Mark(now, kind, f"{head[:10]} {subject}", False if taken_back else None))
            with self._changed:
                self._changed.notify_all()


def _differences(before: KubernetesObject, after: KubernetesObject) -> Iterator[Mark]:
    """Yield what has changed in an object, where a person who watches would want to know."""
    now = time.time()
    yield from {
        "TraefikService": _reweighted,
        "Application": _sync,
        "AnalysisRun": _measurements,
        "Rollout": _phase,
    }[after["kind"]](before, after, now)


def _weight(split: KubernetesObject) -> int:
    services = split["spec"]["weighted"]["services"] if split else []
    return next((service["weight"] for service in services if service["name"] == "iris-canary"), 0)


def _reweighted(before: KubernetesObject, after: KubernetesObject, now: float) -> Iterator[Mark]:
    if before and _weight(before) != _weight(after):
        yield Mark(now, "weight", f"{_weight(after)} % to the new version")


def _synced(application: KubernetesObject) -> str:
    sync = application.get("status", {}).get("sync", {})
    return str(sync.get("revision", "")) if sync.get("status") == "Synced" else ""


def _sync(before: KubernetesObject, after: KubernetesObject, now: float) -> Iterator[Mark]:
    if before and _synced(after) and _synced(before) != _synced(after):
        yield Mark(now, "sync", f"Argo CD: prod is as {_synced(after)[:10]}")


def _measurements(before: KubernetesObject, after: KubernetesObject, now: float) -> Iterator[Mark]:
    """Yield one mark for all that was measured at once."""
    results = before.get("status", {}).get("metricResults", [])
    earlier = {result["name"]: _finished(result) for result in results}
    found = []
    for result in after.get("status", {}).get("metricResults", []):
        if _finished(result) > earlier.get(result["name"], 0):
            last = [one for one in result["measurements"] if one.get("finishedAt")][-1]
            found.append((result["name"], last["phase"], _value(last.get("value", ""))))
    if found:
        goods = [GOOD.get(phase) for _, phase, _ in found]
        good = False if False in goods else None if None in goods else True
        text = ", ".join(f"{name} {value or phase}" for name, phase, value in sorted(found))
        yield Mark(now, "gate", text, good)


def _value(value: str) -> str:
    """Return a measured value in three digits, empty where it is none."""
    with suppress(ValueError):
        return f"{float(value.strip('[]')):.3g}"
    return ""


def _finished(result: KubernetesObject) -> int:
    """Return how many measurements of a metric are over; only the last few are kept in full."""
    return sum(result.get(name, 0) for name in ("successful", "failed", "inconclusive", "error"))


def _phase(before: KubernetesObject, after: KubernetesObject, now: float) -> Iterator[Mark]:
    old, new = before.get("status", {}), after.get("status", {})
    if new.get("abort") and not old.get("abort"):
        yield Mark(now, "abort", "all users go back to the version before", good=False)
    if old.get("stableRS") and new.get("stableRS") != old["stableRS"]:
        yield Mark(now, "promoted", f"{version(after)} is the stable version", good=True)


def version(rollout: KubernetesObject) -> str:
    """Return the model version that a Rollout asks for, for people."""
    return f"model {rollout['spec']['template']['metadata'].get('annotations', {}).get('model-version', '?')}"


def _numbers() -> dict[tuple[str, str], float]:
    """Return the router's view of both Services; nothing while Prometheus is away."""
    query = urllib.parse.urlencode({"query": NUMBERS})
    with suppress(OSError, ValueError):
        with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/query?{query}", timeout=1) as answer:  # noqa: S310 - a constant
            found = json.load(answer)["data"]["result"]
        numbers = {(one["metric"]["__name__"], one["metric"]["service"]): float(one["value"][1]) for one in found}
        return {key: value for key, value in numbers.items() if value == value}  # noqa: PLR0124 - NaN is no number
    return {}
