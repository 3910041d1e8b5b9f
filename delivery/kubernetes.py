"""Read the state of an environment from the cluster, through kubectl. Nothing is changed."""

import json
import math
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

KubernetesObject = dict[str, Any]
"""An object of the Kubernetes API, decoded from JSON."""
PROMETHEUS = "/api/v1/namespaces/monitoring/services/prometheus:http/proxy/api/v1/query"


class ClusterUnavailable(Exception):
    """The cluster does not answer, or kubectl is not set up; the message says why."""


def namespace(environment: str) -> str:
    """Return the namespace of an environment."""
    return f"iris-{environment}"


def rollout(environment: str) -> KubernetesObject | None:
    """Return the Rollout of an environment, None if nothing was ever released. Raises ClusterUnavailable."""
    found = _list("rollouts.argoproj.io", environment)
    return next((item for item in found if item["metadata"]["name"] == "iris"), None)


def analysis_runs(environment: str, version: str) -> list[KubernetesObject]:
    """Return the AnalysisRuns of a pod-template hash, oldest first. Raises ClusterUnavailable."""
    selector = f"--selector=rollouts-pod-template-hash={version}"
    found = _list("analysisruns.argoproj.io", environment, selector)
    return sorted(found, key=lambda run: str(run["metadata"]["creationTimestamp"]))


def replica_set(environment: str, version: str) -> KubernetesObject | None:
    """Return the ReplicaSet of a pod-template hash, None if there is none. Raises ClusterUnavailable."""
    found = _list("replicasets.apps", environment, f"--selector=rollouts-pod-template-hash={version}")
    return found[0] if found else None


def image(environment: str, version: str) -> str:
    """Return the image of a pod-template hash, empty if it has no ReplicaSet. Raises ClusterUnavailable."""
    found = replica_set(environment, version)
    return str(found["spec"]["template"]["spec"]["containers"][0]["image"]) if found else ""


def stable(environment: str) -> str:
    """Return the digest of the stable version, empty if there is none. Raises ClusterUnavailable."""
    found = rollout(environment)
    version = found.get("status", {}).get("stableRS") if found else ""
    return image(environment, version).partition("@")[2] if version else ""


def kustomize(folder: Path) -> str:
    """Return what a folder renders, or the error if it cannot be rendered. Raises ClusterUnavailable."""
    try:
        return _kubectl("kustomize", str(folder))
    except ClusterUnavailable as error:
        if not shutil.which("kubectl"):
            raise
        return str(error)


def pods(environment: str, version: str) -> list[KubernetesObject]:
    """Return the serving pods of a pod-template hash. Raises ClusterUnavailable."""
    selector = f"--selector=rollouts-pod-template-hash={version},app.kubernetes.io/component=serving"
    return _list("pods", environment, selector)


def last_log_lines(environment: str, selector: str, lines: int) -> list[str]:
    """Return the last log lines of the first pod that a selector finds, also of a container that has ended.

    A program wrote them: they are data, to be quoted. Raises ClusterUnavailable.
    """
    found = _list("pods", environment, f"--selector={selector}")
    if not found:
        return []
    # If the container was restarted, the previous one logged the reason.
    statuses = found[0]["status"].get("containerStatuses", [])
    earlier = ["--previous"] if any(status["restartCount"] for status in statuses) else []
    options = (f"--namespace={namespace(environment)}", f"--tail={lines}", *earlier)
    try:
        text = _kubectl("logs", found[0]["metadata"]["name"], *options)
    except ClusterUnavailable:
        return []  # the container never ran
    return text.splitlines()


def application(environment: str) -> KubernetesObject | None:
    """Return Argo CD's Application of an environment. Raises ClusterUnavailable."""
    found = json.loads(_kubectl("get", "applications.argoproj.io", "--namespace=argocd", "--output=json"))["items"]
    return next((item for item in found if item["metadata"]["name"] == namespace(environment)), None)


def number(query: str, at: float) -> float | None:
    """Return the value of a Prometheus query at a time, None if it has no value or Prometheus is unavailable."""
    parameters = urllib.parse.urlencode({"query": query, "time": f"{at:.3f}"})
    try:
        result = json.loads(_kubectl("get", "--raw", f"{PROMETHEUS}?{parameters}"))["data"]["result"]
    except (ClusterUnavailable, ValueError, KeyError):
        return None
    value = float(result[0]["value"][1]) if len(result) == 1 else float("nan")
    return None if math.isnan(value) else value


def _list(kind: str, environment: str, *options: str) -> list[KubernetesObject]:
    answer = _kubectl("get", kind, f"--namespace={namespace(environment)}", "--output=json", *options)
    found: list[KubernetesObject] = json.loads(answer)["items"]
    return found


def _kubectl(*arguments: str) -> str:
    command = ["kubectl", "--request-timeout=20s", *arguments]
    try:
        # A log may contain any bytes.
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=60
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ClusterUnavailable(f"kubectl: {error}") from error
    if done.returncode:
        raise ClusterUnavailable((done.stderr.strip().splitlines() or ["kubectl failed without a message"])[-1])
    return done.stdout
