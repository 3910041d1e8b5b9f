"""Where an environment is: what git asks for, what Argo CD has made of it, and how far the rollout has come."""

from collections.abc import Iterator

from delivery import changes, kubernetes
from delivery import rollout as rollouts
from delivery.explanation import unapplied
from delivery.repository import Repository


def lines(repository: Repository, environment: str) -> Iterator[str]:
    """Yield the lines for people. Raises ReleaseError, ClusterUnavailable."""
    asked = changes.current(repository, environment)
    yield f"git       {asked.name if asked else 'nothing released'} (at {repository.head()[:10]})"
    application = kubernetes.application(environment)
    status = application.get("status", {}) if application else {}
    sync = status.get("sync", {})
    health = status.get("health", {}).get("status", "Unknown")
    revision = f" as {sync['revision'][:10]}" if sync.get("revision") else ""
    yield f"Argo CD   {sync.get('status', 'does not know it')}{revision}, {health}"
    if refused := unapplied(environment):
        yield from (f"          {line}" for line in refused.text.splitlines())
    rollout = kubernetes.rollout(environment)
    if rollout is None:
        yield "rollout   not there"
        return
    now = rollout.get("status", {})
    steps = len(rollout["spec"]["strategy"].get("canary", {}).get("steps", []))
    over = rollouts.is_settled(rollout)
    where = f"step {now.get('currentStepIndex', 0)} of {steps}, " if steps and not over else ""
    where += f"{rollouts.weight(rollout)} % of the users have it"
    yield f"rollout   {now.get('phase', 'Unknown')}: {rollouts.digest(rollout)[:19]}, {where}"
    if now.get("message"):
        yield f"          {now['message']}"
    for run in [] if over else kubernetes.analysis_runs(environment, now.get("currentPodHash", "")):
        for result in run.get("status", {}).get("metricResults", []):
            last = result.get("measurements", [{}])[-1]
            said = "no data" if last.get("phase") == "Inconclusive" else last.get("value")
            yield f"gate      {result['name']}: {result['phase']}" + (f", last {said}" if said else "")
