"""Why a release was taken back, told to someone who knows neither Argo nor Prometheus."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from delivery import kubernetes
from delivery import rollout as rollouts
from delivery.changes import releases
from delivery.kubernetes import KubernetesObject
from delivery.repository import Repository

METRIC_LABELS = {
    "golden": "golden gate",
    "server-errors": "server errors at the pods",
    "router-errors": "server errors at the router",
    "router-unserved": "requests without a pod",
    "latency-p95": "P95 latency at the pods",
    "router-latency-p95": "P95 latency at the router",
}
"""How people call the metrics of the AnalysisTemplates."""
FAILED_MARK = "failed"
"""The status that precedes the label of a failed metric, with two spaces between them."""
NOT_READY = "not ready within"
ABORTED_BY_PERSON = "a person aborted the rollout"
SIGNATURE_NOT_VERIFIED = "the signature of its image could not be verified"
WHOLE_TRAFFIC = "the new version served all traffic from the switch to the abort"
BAD = frozenset({"Failed", "Error"})
SIGNATURE = ("Job", "signature")
SCRAPE = 5.0  # seconds
WIDEST = 160  # characters of a line that a program wrote


class Abort(NamedTuple):
    """A release that the cluster has taken back, the one that it went back to, and why."""

    digest: str
    stable: str
    text: str


def aborted(repository: Repository, environment: str) -> Abort | None:
    """Return what was taken back in an environment and why, None when nothing is. Raises ClusterUnavailable."""
    rollout = kubernetes.rollout(environment)
    if rollout is None or not rollouts.is_aborted(rollout):
        return None
    digest = rollouts.digest(rollout)
    stable = kubernetes.image(environment, rollout["status"].get("stableRS", "")).partition("@")[2]
    try:
        text = "\n".join(_tell(repository, environment, rollout, digest))
    except (LookupError, TypeError, ValueError) as error:  # git is reverted all the same
        text = f"{digest[:19]} was taken back. What the cluster says of it is not understood: {error!r}."
    return Abort(digest, stable, text)


class Unapplied(NamedTuple):
    """A commit that Argo CD could not apply, and why; the commit is empty where it says none."""

    commit: str
    text: str


def unapplied(environment: str) -> Unapplied | None:
    """Return what Argo CD could not make of what git says, None when it could. Raises ClusterUnavailable."""
    status = (kubernetes.application(environment) or {}).get("status", {})
    operation = status.get("operationState", {})
    if operation.get("phase") not in BAD or status.get("sync", {}).get("status") == "Synced":
        return None
    result = operation.get("syncResult", {})
    commit: str = result.get("revision", "")
    lines = [f"Argo CD could not apply {commit[:10] or 'what git says'}:"]
    failed = BAD | {"SyncFailed"}
    refused = [
        item for item in result.get("resources", []) if failed & {item.get("hookPhase"), item.get("status")}
    ]
    if any((item["kind"], item["name"]) == SIGNATURE for item in refused):
        lines[0] += f" {SIGNATURE_NOT_VERIFIED}, so nothing of it was started."
        lines += map(quoted, kubernetes.last_words(environment, "job-name=signature", lines=1))
    else:
        said = [f"{item['kind']} {item['name']}: {item.get('message')}" for item in refused]
        lines += map(quoted, said or [operation.get("message", "no reason given")])
    return Unapplied(commit, "\n".join(lines))


def _tell(repository: Repository, environment: str, rollout: KubernetesObject, digest: str) -> Iterator[str]:
    status = rollout["status"]
    version, stable, when = status["currentPodHash"], status["stableRS"], _time(status["abortedAt"])
    brought = [(it, by) for by, it in releases(repository, environment) if it and it.digest == digest]
    shipped, by = brought[0] if brought else (None, None)
    runs = kubernetes.analysis_runs(environment, version)
    if by and len(brought) > 1:  # what was measured when it was released before is of no interest
        runs = [run for run in runs if _created(run) >= by.time]
    failed = next((run for run in reversed(runs) if _phase(run) in BAD), None)

    name = shipped.name if shipped else digest[:19]
    yield f"{name} was taken back from {environment} at {when:%Y-%m-%d %H:%M:%S} UTC."
    yield ""
    if by:
        yield f"Shipped by {by.author} in {by.sha[:10]}, {by.time:%Y-%m-%d %H:%M:%S} UTC: {by.subject}"
        yield ""
    if failed:
        yield from _measured(environment, failed, _who_had_it(rollout, failed), version, stable)
    elif "timed out" in status.get("message", ""):
        yield from _late(environment, rollout, runs)
    else:
        yield f"No gate has failed: {ABORTED_BY_PERSON} (`kubectl argo rollouts abort`)."
    words = readable(kubernetes.last_words(environment, f"rollouts-pod-template-hash={version}", lines=20))[-5:]
    if words and not (failed and _failed_metrics(failed) == {"golden"}):
        yield "Its last words:"
        yield from map(quoted, words)
    yield ""
    yield _users(environment, rollout, runs, when)
    yield ""
    (strategy,) = rollout["spec"]["strategy"].values()
    keep = strategy.get("scaleDownDelaySeconds", 30)
    yield f"What to do: its pods stay until git is reverted, and {keep} seconds longer, for a look:"
    space = kubernetes.namespace(environment)
    yield f"  kubectl logs --namespace={space} --selector=rollouts-pod-template-hash={version} --tail=100"
    yield "When it is mended, release the new image. This one is refused from now on, unless with --override."


def _who_had_it(rollout: KubernetesObject, run: KubernetesObject) -> str:
    if rollouts.is_blue_green(rollout):
        before = run["metadata"]["labels"].get("rollout-type") == "PrePromotion"
        return "before any user was sent to it" if before else "with all users"
    weight = rollouts.weight_at(rollout, _step(run))
    return f"with {weight} % of the users" if weight else "before any user was sent to it"


def _measured(environment: str, run: KubernetesObject, who: str, version: str, stable: str) -> Iterator[str]:
    """Yield what a gate measured, the worst first."""
    yield f"Measured {who}, against its limits:"
    conditions = {metric["name"]: metric.get("failureCondition", "") for metric in run["spec"]["metrics"]}
    results = sorted(run["status"].get("metricResults", []), key=lambda result: result["phase"] not in BAD)
    if not results:
        yield quoted(run["status"].get("message", "it ended before it measured anything"))
    for result in results:
        last = result["measurements"][-1] if result.get("measurements") else {}
        sign = FAILED_MARK if result["phase"] in BAD else "ok" if last.get("phase") == "Successful" else "--"
        if job := last.get("metadata", {}).get("job-name"):
            yield f"  {sign}  {METRIC_LABELS['golden']}" + (":" if sign == FAILED_MARK else "")
            if sign == FAILED_MARK:
                yield from map(quoted, kubernetes.last_words(environment, f"job-name={job}", lines=10))
            continue
        name, limit = result["name"], re.search(r"> ([0-9.]+)$", conditions[result["name"]])
        bound = f", the limit is {_shown(name, float(limit[1]))}" if limit else ""
        query = result.get("metadata", {}).get("ResolvedPrometheusQuery", "")
        asked = query.replace(version, stable).replace('"iris-canary"', '"iris-stable"')
        # With blue-green the gate asks for what all users get: there is no version before that anybody uses.
        compared = asked != query and last.get("finishedAt")
        before = kubernetes.number(asked, _time(last["finishedAt"]).timestamp()) if compared else None
        meanwhile = "" if before is None else f"; the version before: {_shown(name, before)}"
        yield f"  {sign}  {METRIC_LABELS.get(name, name)}: {_value(name, last)}{bound}{meanwhile}"


def _failed_metrics(run: KubernetesObject) -> set[str]:
    return {result["name"] for result in run["status"].get("metricResults", []) if result["phase"] in BAD}


def _value(name: str, measurement: KubernetesObject) -> str:
    value = re.fullmatch(r"\[([0-9.e+-]+)\]", measurement.get("value", ""))
    return (
        _shown(name, float(value[1])) if value else f"no number ({measurement.get('message', 'no data')[:WIDEST]})"
    )


def _shown(name: str, value: float) -> str:
    return f"{value:.3g} s" if name.endswith("p95") else f"{100 * value:.3g} %"


def _late(environment: str, rollout: KubernetesObject, runs: list[KubernetesObject]) -> Iterator[str]:
    """Yield what was not there in time: ready pods or, as with blue-green it counts too, a gate's verdict."""
    seconds = rollout["spec"]["progressDeadlineSeconds"]
    waiting = dict.fromkeys(_waiting(kubernetes.pods(environment, rollout["status"]["currentPodHash"])))
    if waiting or not runs or _phase(runs[-1]) == "Successful":
        yield f"It was {NOT_READY} its {seconds} seconds."
        yield from waiting
        return
    yield f"Its pods were ready, but its gate had no verdict within the {seconds} seconds. What became of its pod:"
    events = f"kubectl get events --namespace={kubernetes.namespace(environment)}"
    yield f"  {events} --field-selector=involvedObject.kind=Pod"


def _waiting(pods: list[KubernetesObject]) -> Iterator[str]:
    """Yield what keeps pods from being ready, as Kubernetes puts it."""
    for pod in pods:
        for condition in pod["status"].get("conditions", []):
            if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
                yield quoted(f"{condition.get('reason')}: {condition.get('message')}")
        for container in pod["status"].get("containerStatuses", []):
            state: dict[str, Any] = container["state"]
            if container.get("ready"):
                continue
            reason = state.get("waiting", {})
            ended = container.get("lastState", {}).get("terminated", {})
            if ended:
                yield f"  It ended with exit code {ended['exitCode']}, {container['restartCount']} times."
            elif reason.get("message"):
                yield quoted(f"{reason['reason']}: {reason['message']}")
            elif "running" in state:
                yield "  It runs, and says that it is not ready."


def _users(environment: str, rollout: KubernetesObject, runs: list[KubernetesObject], when: datetime) -> str:
    """Say how many requests of users met the release, as the router counted them until just then."""
    if rollouts.is_blue_green(rollout):
        switched = any(run["metadata"]["labels"].get("rollout-type") == "PostPromotion" for run in runs)
        return f"Requests: {WHOLE_TRAFFIC if switched else 'none was sent to it'}."
    if not runs:
        return "Users: none was sent to it."
    space = kubernetes.namespace(environment)
    counter = f'traefik_service_requests_total{{service="{space}-iris-canary-80@kubernetescrd"'
    # The router has been asked for the last time up to a scrape ago: what is counted is the least.
    ends = (_created(runs[0]).timestamp(), when.timestamp() + SCRAPE)
    asked, failed = (_grown(f"sum({counter}{only}}})", *ends) for only in ("", ', code=~"5.."'))
    if asked is None or failed is None:
        return "Users: how many met it is not known; Prometheus could not be asked."
    if not asked:
        return "Users: none was sent to it."
    return (
        f"Users: it was sent at least {asked:.0f} requests, {failed:.0f} failed; all go to the one before again."
    )


def _grown(counter: str, begin: float, end: float) -> float | None:
    after = kubernetes.number(f"{counter} or vector(0)", end)
    before = kubernetes.number(f"{counter} or vector(0)", begin)
    return None if after is None or before is None else max(0.0, after - before)


def readable(lines: list[str]) -> list[str]:
    """Return each line once; of a line of JSON, its message and how its traceback ends, or its detail."""
    said = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = {}
        if isinstance(entry, dict) and "message" in entry:
            ends = str(entry.get("traceback") or entry.get("detail") or "").strip().splitlines()[-1:]
            said.append(": ".join([str(entry["message"]), *ends]))
        else:
            said.append(line)
    return list(dict.fromkeys(said))


def quoted(line: str) -> str:
    """Return a line of a program as a quotation: it can neither pass for ours nor for a trailer of the commit."""
    printable = "".join(character if character.isprintable() else " " for character in line)
    return f"  | {printable[:WIDEST]}"


def _phase(run: KubernetesObject) -> str:
    return str(run.get("status", {}).get("phase", ""))


def _created(run: KubernetesObject) -> datetime:
    return _time(run["metadata"]["creationTimestamp"])


def _step(run: KubernetesObject) -> int:
    return int(run["metadata"]["labels"].get("step-index", 0))


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
