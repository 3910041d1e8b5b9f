"""Report the state of an environment: git's release, Argo CD's sync, changed manifests, the rollout's progress."""

from collections.abc import Iterator

from delivery import changes, kubernetes
from delivery import rollout as rollouts
from delivery.explanation import changed_manifests, listed, read_metrics, unapplied
from delivery.kubernetes import KubernetesObject
from delivery.repository import Repository


def lines(repository: Repository, environment: str) -> Iterator[str]:
    """Yield the report's lines. Raises ReleaseError, ClusterUnavailable."""
    release = changes.current(repository, environment)
    yield f"git       {release.name if release else 'nothing released'}, commit {repository.head()[:10]}"
    yield f"Argo CD   {_sync(kubernetes.application(environment))}"
    if refused := unapplied(environment):
        yield from (f"          {line}" for line in refused.text.splitlines())
    rollout = kubernetes.rollout(environment)
    if rollout is None:
        yield "rollout   none"
        return
    yield from listed(changed_manifests(repository, environment, rollout) or [])
    yield f"rollout   {_progress(rollout)}"
    status = rollout.get("status", {})
    if status.get("message"):
        yield f"          {status['message']}"
    if rollouts.is_settled(rollout):
        return
    version, stable = status.get("currentPodHash", ""), status.get("stableRS", "")
    for run in kubernetes.analysis_runs(environment, version):
        yield f"gate      {run.get('status', {}).get('phase', 'Pending')}"
        for metric in read_metrics(environment, run, version, stable):
            yield from metric.lines()


def _sync(application: KubernetesObject | None) -> str:
    if application is None:
        return "no Application"
    status = application.get("status", {})
    sync = status.get("sync", {})
    revision = f" to commit {sync['revision'][:10]}" if sync.get("revision") else ""
    return f"{sync.get('status', 'Unknown')}{revision}, {status.get('health', {}).get('status', 'Unknown')}"


def _progress(rollout: KubernetesObject) -> str:
    status = rollout.get("status", {})
    steps = len(rollout["spec"]["strategy"].get("canary", {}).get("steps", []))
    text = f"{status.get('phase', 'Unknown')}: {rollouts.digest(rollout)[:19]}"
    text += f" serves {rollouts.weight(rollout)} % of traffic"
    if steps and not rollouts.is_settled(rollout):
        text += f", step {status.get('currentStepIndex', 0)} of {steps}"
    return text
