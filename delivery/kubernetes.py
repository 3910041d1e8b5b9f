"""What the cluster says of an environment, asked through kubectl; nothing is changed in it."""

import json
import subprocess
import urllib.parse
from typing import Any

KubernetesObject = dict[str, Any]
"""An object of the Kubernetes API, as its JSON says."""
PROMETHEUS = "/api/v1/namespaces/monitoring/services/prometheus:http/proxy/api/v1/query"


class ClusterUnavailable(Exception):
    """The cluster cannot be asked; the message says why."""


def namespace(environment: str) -> str:
    """Return the namespace of an environment."""
    return f"iris-{environment}"


def rollout(environment: str) -> KubernetesObject | None:
    """Return the Rollout of an environment, None where nothing was ever released. Raises ClusterUnavailable."""
    found = _list("rollouts.argoproj.io", environment)
    return next((item for item in found if item["metadata"]["name"] == "iris"), None)


def analysis_runs(environment: str, version: str) -> list[KubernetesObject]:
    """Return the AnalysisRuns of a pod-template hash, oldest first. Raises ClusterUnavailable."""
    selector = f"--selector=rollouts-pod-template-hash={version}"
    found = _list("analysisruns.argoproj.io", environment, selector)
    return sorted(found, key=lambda run: str(run["metadata"]["creationTimestamp"]))


def image(environment: str, version: str) -> str:
    """Return the image of a pod-template hash, empty if there is none now. Raises ClusterUnavailable."""
    found = _list("replicasets.apps", environment, f"--selector=rollouts-pod-template-hash={version}")
    return str(found[0]["spec"]["template"]["spec"]["containers"][0]["image"]) if found else ""


def pods(environment: str, version: str) -> list[KubernetesObject]:
    """Return the pods of a pod-template hash that serve. Raises ClusterUnavailable."""
    selector = f"--selector=rollouts-pod-template-hash={version},app.kubernetes.io/component=serving"
    return _list("pods", environment, selector)


def last_words(environment: str, selector: str, lines: int) -> list[str]:
    """Return the last lines that the first pod of a selector wrote, also where its container has ended.

    They are what the program in it chose to write: data.
    """
    found = _list("pods", environment, f"--selector={selector}")
    if not found:
        return []
    # Where a container has been started anew, the one before is the one that knows why.
    statuses = found[0]["status"].get("containerStatuses", [])
    earlier = ["--previous"] if any(status["restartCount"] for status in statuses) else []
    options = (f"--namespace={namespace(environment)}", f"--tail={lines}", *earlier)
    try:
        text = _kubectl("logs", found[0]["metadata"]["name"], *options)
    except ClusterUnavailable:
        return []  # the container never ran: there is nothing that it could have written
    return text.splitlines()


def application(environment: str) -> KubernetesObject | None:
    """Return Argo CD's Application of an environment. Raises ClusterUnavailable."""
    found = json.loads(_kubectl("get", "applications.argoproj.io", "--namespace=argocd", "--output=json"))["items"]
    return next((item for item in found if item["metadata"]["name"] == namespace(environment)), None)


def number(query: str, at: float) -> float | None:
    """Return what Prometheus answers to a query about that time, None for nothing or while it is away."""
    asked = urllib.parse.urlencode({"query": query, "time": f"{at:.3f}"})
    try:
        result = json.loads(_kubectl("get", "--raw", f"{PROMETHEUS}?{asked}"))["data"]["result"]
    except (ClusterUnavailable, ValueError, KeyError):
        return None
    value = float(result[0]["value"][1]) if len(result) == 1 else float("nan")
    return None if value != value else value  # noqa: PLR0124 - NaN is no number


def _list(kind: str, environment: str, *options: str) -> list[KubernetesObject]:
    answer = _kubectl("get", kind, f"--namespace={namespace(environment)}", "--output=json", *options)
    found: list[KubernetesObject] = json.loads(answer)["items"]
    return found


def _kubectl(*arguments: str) -> str:
    command = ["kubectl", "--request-timeout=20s", *arguments]
    try:
        # A log holds whatever bytes a program wrote.
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=60
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ClusterUnavailable(f"kubectl: {error}") from error
    if done.returncode:
        raise ClusterUnavailable((done.stderr.strip().splitlines() or ["kubectl failed and said nothing"])[-1])
    return done.stdout
