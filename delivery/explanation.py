"""Explain why a release was aborted or not applied, to a reader who knows neither Argo nor Prometheus.

The first line of an explanation is a summary: `delivery history` shows it.
"""

import json
import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from delivery import kubernetes, manifests
from delivery import rollout as rollouts
from delivery.changes import releases
from delivery.kubernetes import ClusterUnavailable, KubernetesObject
from delivery.release import ReleaseError
from delivery.repository import Commit, Repository

METRIC_LABELS = {
    "golden": "golden gate",
    "server-errors": "server errors at the pods",
    "router-errors": "server errors at the router",
    "router-unserved": "requests without a pod",
    "latency-p95": "P95 latency at the pods",
    "router-latency-p95": "P95 latency at the router",
}
"""What people call the metrics of the AnalysisTemplates."""
LABEL_WIDTH = max(map(len, METRIC_LABELS.values()))
FAILED_MARK = "failed"
"""The mark of a failed metric; two spaces and the metric's label follow it."""
NOT_READY = "not ready within"
ABORTED_BY_PERSON = "by a person"
SIGNATURE_NOT_VERIFIED = "the signature of its image could not be verified"
WHOLE_TRAFFIC = "the new version served all traffic from the switch to the abort"

BAD = frozenset({"Failed", "Error"})
SIGNATURE_JOB = ("Job", "signature")
SCRAPE = 5.0  # seconds between two scrapes of the router
WIDEST = 160  # characters of a quoted line
NEXT = """\
Next:
  Read the logs; the pods are kept until {delay} s after the revert:
    kubectl logs --namespace={namespace} --selector=rollouts-pod-template-hash={version} --tail=100
  {remedy}"""
FIX = "Release a fixed image. This digest is rejected; only --override releases it again."


class Abort(NamedTuple):
    """An aborted release, the digest of the stable version, and the explanation.

    `changed` are the commits, newest first, that changed the manifests since the stable version; None if that is
    not known.
    """

    digest: str
    stable: str
    text: str
    changed: list[Commit] | None

    @property
    def is_of_manifests(self) -> bool:
        """Return whether the stable version runs the same release, so that the manifests are to blame."""
        return self.digest == self.stable

    @property
    def needs_person(self) -> bool:
        """Return whether a person has to find the commit to revert, because it is not exactly one."""
        return self.is_of_manifests and (self.changed is None or len(self.changed) > 1)


class Unapplied(NamedTuple):
    """A commit that Argo CD could not apply, empty if Argo CD does not name one, and the explanation."""

    commit: str
    text: str


class Metric(NamedTuple):
    """A metric of an AnalysisRun: its last value, its limit, and the value of the stable version at that time.

    Values are ratios or seconds, None if unknown. `details` are lines that programs wrote.
    """

    name: str
    mark: str
    value: float | None = None
    limit: float | None = None
    stable: float | None = None
    details: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What people call the metric."""
        return METRIC_LABELS.get(self.name, self.name)

    def summary(self) -> str:
        """Return the label and the value against its limit, or what happened if there is no value."""
        if self.value is None or self.limit is None:
            return f"{self.label} {'failed' if self.mark == FAILED_MARK else 'could not be measured'}"
        return f"{self.label} {self._shown(self.value)}, limit {self._shown(self.limit)}"

    def lines(self) -> Iterator[str]:
        """Yield the metric as a row of a table, then its details as quotations."""
        limit = self._shown(self.limit, "limit ")
        stable = self._shown(self.stable, "stable ")
        cells = (f"{self.label:<{LABEL_WIDTH}}", f"{self._shown(self.value):<9}", f"{limit:<11}", stable)
        yield f"{self.mark:>9}  {'  '.join(cells)}".rstrip()
        yield from map(quoted, self.details)

    def _shown(self, value: float | None, title: str = "") -> str:
        if value is None:
            return ""
        return f"{title}{value:.3g} s" if self.name.endswith("p95") else f"{title}{100 * value:.3g} %"


def aborted(repository: Repository, environment: str) -> Abort | None:
    """Return the aborted release, None if the rollout is not aborted. Raises ClusterUnavailable."""
    rollout = kubernetes.rollout(environment)
    if rollout is None or not rollouts.is_observed(rollout) or not rollouts.is_aborted(rollout):
        return None  # or git was reverted, and the status is still that of the aborted release
    digest = rollouts.digest(rollout)
    stable = kubernetes.image(environment, rollout["status"].get("stableRS", "")).partition("@")[2]
    changed = changed_manifests(repository, environment, rollout)
    try:
        text = "\n\n".join(_explain(repository, environment, rollout, digest, stable, changed))
    except (LookupError, TypeError, ValueError) as error:  # the revert must not depend on the explanation
        text = f"Aborted. The status of the rollout could not be interpreted: {error!r}"
    return Abort(digest, stable, text, changed)


def changed_manifests(repository: Repository, environment: str, rollout: KubernetesObject) -> list[Commit] | None:
    """Return the commits, newest first, that changed the manifests since the stable version; None if not known."""
    try:
        return manifests.changed(repository, environment, rollout["status"].get("stableRS", ""))
    except (ReleaseError, ClusterUnavailable, LookupError, TypeError):
        return None


def listed(commits: list[Commit] | None) -> list[str]:
    """Return a line for each commit that changed the manifests: who changed what. None if that is not known."""
    if commits is None:
        return ["changed   not known: the commit that the stable version runs was not found"]
    return [f"changed   {commit.sha[:10]} by {commit.author}: {commit.subject}" for commit in commits]


def unapplied(environment: str) -> Unapplied | None:
    """Return the commit that Argo CD could not apply, None if there is none. Raises ClusterUnavailable."""
    status = (kubernetes.application(environment) or {}).get("status", {})
    operation = status.get("operationState", {})
    if operation.get("phase") not in BAD or status.get("sync", {}).get("status") == "Synced":
        return None
    result = operation.get("syncResult", {})
    commit: str = result.get("revision", "")
    summary = f"Argo CD could not apply {f'commit {commit[:10]}' if commit else 'the newest commit'}"
    failed = BAD | {"SyncFailed"}
    refused = [
        item for item in result.get("resources", []) if failed & {item.get("hookPhase"), item.get("status")}
    ]
    if any((item["kind"], item["name"]) == SIGNATURE_JOB for item in refused):
        summary += f": {SIGNATURE_NOT_VERIFIED}, and no pod was started"
        details = kubernetes.last_log_lines(environment, "job-name=signature", lines=1)
    elif refused:
        details = [f"{item['kind']} {item['name']}: {item.get('message')}" for item in refused]
    else:
        details = [operation.get("message", "no reason given")]
    return Unapplied(commit, "\n".join([summary, *map(quoted, details)]))


def read_metrics(environment: str, run: KubernetesObject, version: str, stable: str) -> list[Metric]:
    """Return the metrics of an AnalysisRun, failed ones first. `version` and `stable` are pod-template hashes."""
    specs = {metric["name"]: metric for metric in run["spec"]["metrics"]}
    results = run.get("status", {}).get("metricResults", [])
    results = sorted(results, key=lambda result: result["phase"] not in BAD)
    return [_metric(environment, result, specs[result["name"]], version, stable) for result in results]


def _metric(
    environment: str, result: KubernetesObject, spec: KubernetesObject, version: str, stable: str
) -> Metric:
    name, last = result["name"], (result.get("measurements") or [{}])[-1]
    if result["phase"] in BAD:
        mark = FAILED_MARK if result["phase"] == "Failed" else "error"
    else:
        mark = "ok" if last.get("phase") == "Successful" else "no data"
    if job := last.get("metadata", {}).get("job-name"):
        log = kubernetes.last_log_lines(environment, f"job-name={job}", lines=10) if result["phase"] in BAD else []
        return Metric(name, mark, details=tuple(log))
    value = _number(last.get("value", ""))
    limit = re.search(r"> ([0-9.]+)$", spec.get("failureCondition", ""))
    query = result.get("metadata", {}).get("ResolvedPrometheusQuery", "")
    stable_query = query.replace(version, stable).replace('"iris-canary"', '"iris-stable"')
    # A blue-green gate queries the whole traffic: there is no stable version to compare the new version with.
    comparable = stable_query != query and last.get("finishedAt")
    return Metric(
        name,
        mark,
        value,
        limit=float(limit[1]) if limit else None,
        stable=kubernetes.number(stable_query, datetime.fromisoformat(last["finishedAt"]).timestamp())
        if comparable
        else None,
        details=(last["message"],) if value is None and last.get("message") else (),
    )


def _explain(
    repository: Repository,
    environment: str,
    rollout: KubernetesObject,
    digest: str,
    stable: str,
    changed: list[Commit] | None,
) -> Iterator[str]:
    """Yield the paragraphs of an explanation."""
    status = rollout["status"]
    version, when = status["currentPodHash"], datetime.fromisoformat(status["abortedAt"])
    commits = [(commit, it) for commit, it in releases(repository, environment) if it and it.digest == digest]
    runs = kubernetes.analysis_runs(environment, version)
    if len(commits) > 1:  # the image was released before, and measured then
        runs = [run for run in runs if _created(run) >= commits[0][0].time]
    failed = next((run for run in reversed(runs) if _phase(run) in BAD), None)

    summary, evidence = _cause(environment, rollout, runs, failed)
    yield summary
    name, released = digest[:19], []
    if commits:
        commit, release = commits[0]
        name = release.name
        released = [f"released  {commit.time:%Y-%m-%d %H:%M:%S} UTC by {commit.author}, commit {commit.sha[:10]}"]
    if digest == stable:
        released = ["unchanged: the stable version runs this release, too; the manifests changed"]
    ended = f"aborted   {when:%Y-%m-%d %H:%M:%S} UTC; the stable version serves all traffic"
    yield "\n".join([f"release   {name} in {environment}", *released, *listed(changed), ended])
    if evidence:
        yield "\n".join(evidence)
    yield f"Requests: {_requests(environment, rollout, runs, when)}"
    log = readable(kubernetes.last_log_lines(environment, f"rollouts-pod-template-hash={version}", lines=20))[-5:]
    golden_failed = failed is not None and [metric["name"] for metric in failed["spec"]["metrics"]] == ["golden"]
    if log and not golden_failed:  # a wrong answer leaves no trace in the log
        yield "\n".join(["Last log lines of the new version:", *map(quoted, log)])
    remedy = "Mend the manifests. No release is rejected." if digest == stable else FIX
    if changed and digest != stable:
        remedy += "\n  The manifests changed, too: if they are the cause, mend them first."
    (strategy,) = rollout["spec"]["strategy"].values()
    yield NEXT.format(
        delay=strategy.get("scaleDownDelaySeconds", 30),
        namespace=kubernetes.namespace(environment),
        version=version,
        remedy=remedy,
    )


def _cause(
    environment: str, rollout: KubernetesObject, runs: list[KubernetesObject], failed: KubernetesObject | None
) -> tuple[str, list[str]]:
    """Return the cause of an abort in one line, and the lines that prove it."""
    if failed:
        status = rollout["status"]
        metrics = read_metrics(environment, failed, status["currentPodHash"], status["stableRS"])
        traffic = _traffic(rollout, failed)
        cause = metrics[0].summary() if metrics else "the gate ended before its first measurement"
        lines = [line for metric in metrics for line in metric.lines()]
        if not metrics:
            lines = [quoted(failed["status"].get("message", "no reason given"))]
        return f"Aborted {traffic}: {cause}", [f"Measured {traffic}:", *lines]
    if "timed out" in rollout["status"].get("message", ""):
        return _timeout(environment, rollout, runs)
    return f"Aborted {ABORTED_BY_PERSON} (kubectl argo rollouts abort); no gate had failed", []


def _traffic(rollout: KubernetesObject, run: KubernetesObject) -> str:
    """Say how much traffic the new version served during an AnalysisRun."""
    labels = run["metadata"]["labels"]
    if rollouts.is_blue_green(rollout):
        weight = 0 if labels.get("rollout-type") == "PrePromotion" else 100
    else:
        weight = rollouts.weight_at(rollout, int(labels.get("step-index", 0)))
    return f"at {weight} % of traffic" if weight else "before any traffic"


def _timeout(environment: str, rollout: KubernetesObject, runs: list[KubernetesObject]) -> tuple[str, list[str]]:
    """Return the cause and its proof for a rollout that missed its progress deadline.

    Its pods were not ready, or the gate had no verdict: the deadline of a blue-green Rollout includes the gate.
    """
    seconds = rollout["spec"]["progressDeadlineSeconds"]
    pods = kubernetes.pods(environment, rollout["status"]["currentPodHash"])
    problems = list(dict.fromkeys(_problems(pods)))
    if problems or not runs or _phase(runs[-1]) == "Successful":
        return f"Aborted: {NOT_READY} {seconds} s", ["Pods that are not ready:", *problems] if problems else []
    command = f"kubectl get events --namespace={kubernetes.namespace(environment)}"
    return f"Aborted: the pods were ready, but the gate had no verdict within {seconds} s", [
        "Events of the gate's pod:",
        f"  {command} --field-selector=involvedObject.kind=Pod",
    ]


def _problems(pods: list[KubernetesObject]) -> Iterator[str]:
    """Yield why pods are not ready."""
    for pod in pods:
        for condition in pod["status"].get("conditions", []):
            if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
                yield quoted(f"{condition.get('reason')}: {condition.get('message')}")
        for container in pod["status"].get("containerStatuses", []):
            if container.get("ready"):
                continue
            waiting = container["state"].get("waiting", {})
            if ended := container.get("lastState", {}).get("terminated"):
                yield f"  exited with code {ended['exitCode']}, {container['restartCount']} restarts"
            elif waiting.get("message"):
                yield quoted(f"{waiting['reason']}: {waiting['message']}")
            elif "running" in container["state"]:
                yield "  runs, but its readiness probe fails"


def _requests(environment: str, rollout: KubernetesObject, runs: list[KubernetesObject], when: datetime) -> str:
    """Say how many requests the new version served until the abort, and how many failed, by the router's count."""
    none = "none went to the new version"
    if rollouts.is_blue_green(rollout):
        switched = any(run["metadata"]["labels"].get("rollout-type") == "PostPromotion" for run in runs)
        return WHOLE_TRAFFIC if switched else none
    if not runs:
        return none
    service = f"{kubernetes.namespace(environment)}-iris-canary-80@kubernetescrd"
    counter = f'traefik_service_requests_total{{service="{service}"'
    # The last scrape may be as old as SCRAPE: the count is a lower bound.
    begin, end = _created(runs[0]).timestamp(), when.timestamp() + SCRAPE
    total = _increase(f"sum({counter}}})", begin, end)
    failed = _increase(f'sum({counter}, code=~"5.."}})', begin, end)
    if total is None or failed is None:
        return "not known, because Prometheus was unavailable"
    return f"at least {total:.0f} went to the new version, {failed:.0f} of them failed" if total else none


def _increase(counter: str, begin: float, end: float) -> float | None:
    after = kubernetes.number(f"{counter} or vector(0)", end)
    before = kubernetes.number(f"{counter} or vector(0)", begin)
    return None if after is None or before is None else max(0.0, after - before)


def readable(lines: list[str]) -> list[str]:
    """Return each line once; of a line of JSON, its message and how its traceback ends, or its detail."""
    texts = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = {}
        if isinstance(entry, dict) and "message" in entry:
            ends = str(entry.get("traceback") or entry.get("detail") or "").strip().splitlines()[-1:]
            texts.append(": ".join([str(entry["message"]), *ends]))
        else:
            texts.append(line)
    return list(dict.fromkeys(texts))


def quoted(line: str) -> str:
    """Return a line that a program wrote as a quotation, which cannot pass for our text or for a trailer."""
    printable = "".join(character if character.isprintable() else " " for character in line)
    return f"  | {printable[:WIDEST]}"


def _number(value: str) -> float | None:
    """Return the number in a measurement such as `[0.304]`, None for NaN and for anything else."""
    try:
        number = float(value.strip("[]"))
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _phase(run: KubernetesObject) -> str:
    return str(run.get("status", {}).get("phase", ""))


def _created(run: KubernetesObject) -> datetime:
    return datetime.fromisoformat(run["metadata"]["creationTimestamp"])
