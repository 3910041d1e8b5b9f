"""The drill's scenarios: every course that a release can take on the real cluster, started by commits only."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from delivery import rollout as rollouts
from delivery.__main__ import NOTHING_TO_DO
from delivery.explanation import ABORTED_BY_PERSON, NOT_READY, SIGNATURE_NOT_VERIFIED, WHOLE_TRAFFIC
from tools.cluster import git_server, node, secrets
from tools.drill import checks, dashboards, release_images
from tools.drill.checks import Outcome, Rollback, expect_promotion, expect_rollback, require
from tools.drill.cluster_watch import PROMETHEUS
from tools.drill.environment import Environment, Shipment
from tools.drill.operator import CommandFailed
from tools.errors import ToolError
from tools.progress import wait_for

GOLDEN = frozenset({"golden"})
SERVER_ERRORS = frozenset({"server-errors", "router-errors"})  # whichever view has enough requests first
ROUTER_ERRORS = frozenset({"router-errors"})
RESTARTS = ROUTER_ERRORS | {"router-unserved"}  # while a pod restarts, too few requests may reach one
ERRORS_AT_10 = Rollback(10, SERVER_ERRORS)
NO_ROUTER = ERRORS_AT_10._replace(min_percent=50)  # nothing is answered until the router's next pod is ready
REVERT = ("revert", "prod")
BLUE_GREEN = (
    ("overlays/prod/kustomization.yaml", "  - release\n", "  - release\n  - ../../manifests/iris/blue-green\n"),
    (
        "overlays/local/prod/kustomization.yaml",
        "{op: replace, path: /spec/progressDeadlineSeconds, value: 90} # no node is ever added\n"
        "      - {op: replace, path: /spec/strategy/canary/scaleDown",
        "{op: replace, path: /spec/strategy/blueGreen/scaleDown",
    ),
)
"""The edits (path, old text, new text) that make prod blue-green, with that variant's own deadline."""
NEVER_READY = Rollback(0, phrase=NOT_READY)


def roll_back_fault(fault: str, expected: Rollback, environment: Environment) -> Outcome:
    """Roll back an image with that fault."""
    return expect_rollback(environment, environment.ship(environment.faulty_image(fault)), expected)


def roll_back_many_errors(environment: Environment) -> Outcome:
    """Roll back 30 % errors: `delivery watch` fails, an alert fires, and every dashboard panel has data."""
    begun = time.time()
    shipment = environment.ship(environment.faulty_image("errors-30"), wait_for_canary=True)
    watch_until_failed(environment, "prod")
    outcome = expect_rollback(environment, shipment, ERRORS_AT_10)
    # The series of the alert appear with the next evaluation of the rules.
    wait_for(lambda: next(dashboards.faults(PROMETHEUS, begun, time.time()), None), 30)
    # An abort just before the drill has the same alert, so a message about that one counts as well.
    checks.assert_alerted(environment, "RolloutAborted", "iris-prod")
    return outcome


def watch_until_failed(environment: Environment, name: str) -> str:
    """Run `delivery watch` for dev or prod until it reports a failed release; return its output."""
    try:
        environment.operator.delivery("watch", name, "--minutes=10")
    except CommandFailed as error:
        require(f"python -m delivery why {name}" in str(error), f"delivery watch: {error}")
        return str(error)
    raise ToolError("delivery watch reported a promotion")


def promote_good_release(environment: Environment) -> Outcome:
    """Promote a good release without a failed request; `delivery watch` succeeds."""
    shipment = environment.ship(environment.other_image(), "--override", wait_for_canary=True)
    environment.operator.delivery("watch", "prod")
    outcome = expect_promotion(environment, shipment)
    checks.assert_no_failures(environment, shipment.begun)
    return outcome


def roll_back_other_model(environment: Environment) -> Outcome:
    """Roll back an image that contains another model than git's model.json describes."""
    image = release_images.build_faulty(environment.running_image())
    mismatched = image._replace(model=environment.other_image().model)
    return expect_rollback(environment, environment.ship(mismatched), Rollback(0, GOLDEN))


def roll_back_deleted_image(environment: Environment) -> Outcome:
    """Roll back an image that was signed and has since been deleted from the registry."""
    image = environment.faulty_image("none")
    release_images.delete(image)
    return expect_rollback(environment, environment.ship(image), NEVER_READY)


def start_no_unsigned_image(environment: Environment) -> Outcome:
    """Start no pod of an unsigned image; `delivery watch` and `status` say why, and a person reverts."""
    image = release_images.build_faulty(environment.other_image(), sign=False)
    begun = environment.ship(image).begun
    for name in ("dev", "prod"):
        outputs = watch_until_failed(environment, name), environment.operator.delivery("status", name)
        require(all(SIGNATURE_NOT_VERIFIED in output for output in outputs), f"the reason is missing: {outputs}")
    query = ("rollouts,replicasets,deployments,pods", "--all-namespaces", "--output=jsonpath={..image}")
    require(image.digest not in node.run("kubectl", "get", *query), "the cluster was asked to run it")
    environment.operator.run(REVERT)
    environment.wait_until_synced(90)
    commit, message = checks.find_revert(image.digest)
    require(SIGNATURE_NOT_VERIFIED in message, f"the revert does not say why: {message}")
    checks.assert_no_events(environment, begun, "weight", "gate", "abort", "promoted")
    checks.assert_no_failures(environment, begun)
    return Outcome("not started", 0, revert=commit[:10])


def revert_manifests(environment: Environment) -> Outcome:
    """Break the pods by a commit to the manifests: only that commit is reverted, and no release is rejected."""
    operator, watch, image = environment.operator, environment.watch, environment.running_image()
    operator.run(image.release("--override"))
    watch.until(lambda: environment.runs_only("dev", image), 300, "dev to run prod's release")
    begun, log = time.time(), node.log("git-server")
    logged = len(log.read_text())
    drain = '{name: IRIS_DRAIN_SECONDS, value: "120"}'
    workers = (
        f'{drain}\n            - {{name: IRIS_WORKERS, value: "4"}}'  # the service does not know it, and exits
    )
    bad = operator.commit("iris: four workers", ("manifests/iris/rollout.yaml", drain, workers))
    watch.until(lambda: bool(environment.events(begun, "abort", "promoted")), 420, "an abort of prod")
    require(not environment.events(begun, "promoted"), "it was promoted")
    argo_rollouts("abort", environment="dev")  # its own deadline is later than the revert
    watch.until(lambda: git_server.head() != bad, 60, "the revert in git")
    environment.wait_until_stable()
    watch.until(lambda: environment.runs_only("dev", image), 90, "dev to be healthy again")
    watch.until(lambda: NOTHING_TO_DO in log.read_text()[logged:], 60, "the second abort to change nothing")
    revert, message = checks.find_undo(bad)
    for text in (NOT_READY, f"changed   {bad[:10]} by Ada <ada@example.org>: iris: four workers (drill)"):
        require(text in message, f"the revert does not say {text!r}: {message}")
    operator.pull()
    require(message in operator.delivery("why", "prod"), "delivery why does not show the revert")
    environment.wait_until_synced()
    require(not any(environment.weights(begun)), "the new pods got traffic")
    checks.assert_no_failures(environment, begun)
    return Outcome(checks.ROLLED_BACK, 0, revert=revert[:10])


def wait_without_traffic(environment: Environment) -> Outcome:
    """Wait at 10 % while there is no traffic; an alert fires, and a person reverts after pods were added."""
    image, watch = environment.faulty_image("none"), environment.watch
    three_replicas = ("manifests/iris/hpa.yaml", "minReplicas: 2", "minReplicas: 3")
    with environment.traffic.paused():
        shipment = environment.ship(image, wait_for_canary=True)
        checks.assert_alerted(environment, "RolloutWaiting", "iris-prod", since=shipment.begun, minutes=15)
        require_waiting(environment)
        with environment.operator.committed("iris: at least three pods", three_replicas):
            watch.until(lambda: watch.rollout("prod")["spec"]["replicas"] >= 3, 90, "the third pod")
            reason = "--reason=There is no traffic, so the release waits without end."
            environment.operator.run((*REVERT, reason))
            environment.wait_until_stable()
    return reverted_at_10(environment, shipment, "waits")


def require_waiting(environment: Environment) -> None:
    """Raise ToolError unless the canary waits at 10 %."""
    is_waiting = environment.watch.weight() == 10 and not environment.is_aborted()
    require(is_waiting, f"it did not wait: {environment.watch.state()}")


def reverted_at_10(environment: Environment, shipment: Shipment, verdict: str) -> Outcome:
    """Return the outcome of a person's revert, before which the canary got 10 % of the traffic and no more."""
    weights = environment.weights(shipment.begun)
    require(weights == [10, 0], f"the weights were {weights}")
    commit, _ = checks.find_revert(shipment.image.digest)
    return Outcome(verdict, checks.count_failed(environment, shipment.begun), revert=commit[:10])


def wait_without_prometheus(environment: Environment, *, healthy: bool) -> Outcome:
    """Make Prometheus unavailable for a minute: a canary waits, and is judged once there is data again."""
    watch = environment.watch
    image = environment.other_image() if healthy else environment.faulty_image("errors-30")
    shipment = environment.ship(image, "--override", wait_for_canary=True)
    edit = ("monitoring/kubernetes/prometheus-deployment.yaml", "  replicas: 1", "  replicas: 0")
    with environment.operator.committed("monitoring: no Prometheus", edit) as commit:
        watch.until(lambda: watch.synced_commit("monitoring") == commit, 60, "Prometheus to be removed")
        time.sleep(10)
        begun = time.time()
        time.sleep(60)
        measured = [event for event in environment.events(begun, "gate") if event.good is not None]
        require(not measured, f"something was measured without Prometheus: {measured}")
        require_waiting(environment)
    if healthy:
        return expect_promotion(environment, shipment)
    return expect_rollback(environment, shipment, ERRORS_AT_10)


def promote_despite_dead_stable(environment: Environment) -> Outcome:
    """Delete all pods of the stable version while a good canary has 10 %: the canary is promoted."""
    shipment = environment.ship(environment.other_image(), "--override", wait_for_canary=True)
    stable = environment.watch.rollout("prod")["status"]["stableRS"]
    nodes = "--selector=kubernetes.io/os=linux"
    node.run("kubectl", "cordon", nodes)  # so that no other pods take their place
    try:
        of_stable = ("--namespace=iris-prod", f"--selector=rollouts-pod-template-hash={stable}", "--wait=false")
        node.run("kubectl", "delete", "pods", *of_stable)
        time.sleep(30)
        answers = environment.traffic.between(time.time() - 5)
        require(any(answer.status == "503" for answer in answers), "no request was unserved")
    finally:
        node.run("kubectl", "uncordon", nodes)
    return expect_promotion(environment, shipment)


def replace_canary(environment: Environment) -> Outcome:
    """Replace a canary by a second release, which passes all gates by itself."""
    second = environment.other_image()
    begun = environment.ship(environment.faulty_image("none"), wait_for_canary=True).begun
    shipment = environment.ship(second, "--override")
    outcome = expect_promotion(environment, shipment)
    checks.assert_no_failures(environment, shipment.begun)
    checks.assert_no_events(environment, begun, "abort")
    return outcome


def revert_canary(environment: Environment) -> Outcome:
    """Run `delivery revert` while the canary has 10 %: the weight drops to 0, and nothing is aborted."""
    shipment = environment.ship(environment.faulty_image("none"), wait_for_canary=True)
    environment.operator.run(REVERT)
    environment.wait_until_stable()
    checks.assert_no_events(environment, shipment.begun, "abort", "promoted")
    return reverted_at_10(environment, shipment, checks.ROLLED_BACK)


def abort_canary(environment: Environment) -> Outcome:
    """Run `kubectl argo rollouts abort` while the canary has 10 %: git is reverted."""
    shipment = environment.ship(environment.faulty_image("none"), wait_for_canary=True)
    argo_rollouts("abort")
    return expect_rollback(environment, shipment, Rollback(10, phrase=ABORTED_BY_PERSON))


def promote_canary_by_hand(environment: Environment) -> Outcome:
    """Run `kubectl argo rollouts promote --full` while the canary has 10 %: it is promoted at once."""
    image = environment.other_image()
    begun = environment.ship(image, "--override", wait_for_canary=True).begun
    argo_rollouts("promote", "--full")
    environment.watch.until(lambda: environment.is_promoted(begun), 60, "the promotion")
    environment.wait_until_served_by(image)
    require(environment.operator.current_release().digest == image.digest, "git has another release")
    return Outcome(checks.PROMOTED, checks.count_failed(environment, begun))


def undo_release_in_cluster(environment: Environment) -> Outcome:
    """Run `kubectl argo rollouts undo`: Argo CD restores git's release before any traffic goes elsewhere."""
    digest, begun = environment.operator.current_release().digest, time.time()
    argo_rollouts("undo")
    time.sleep(20)
    environment.wait_until_stable()
    require(rollouts.digest(environment.watch.rollout("prod")) == digest, "the cluster does not run git's release")
    require(not any(environment.weights(begun)), "another release than git's got traffic")
    return Outcome("restored", checks.count_failed(environment, begun))


def revert_promoted_release(environment: Environment) -> Outcome:
    """Run `delivery revert` after a promotion: the previous release passes the golden gate and is promoted."""
    previous = environment.running_image()
    promote_canary_by_hand(environment)
    shipment = Shipment(previous, time.time())
    environment.operator.run((*REVERT, "--reason=It was promoted by mistake."))
    require(environment.running_image() == previous, "git does not have the previous release")
    outcome = expect_promotion(environment, shipment, at_once=True)
    checks.assert_no_failures(environment, shipment.begun)
    return outcome._replace(revert=git_server.head()[:10])


def rescue(environment: Environment) -> Outcome:
    """Run `delivery revert` when all pods of the promoted version die: the previous release serves again."""
    watch, good = environment.watch, environment.running_image()
    bad = environment.faulty_image("dies-under-load")
    begun = environment.ship(bad, wait_for_canary=True).begun
    argo_rollouts("promote", "--full")
    watch.until(lambda: bool(environment.events(begun, "promoted")), 60, "the promotion")
    watch.until(
        lambda: not any(answer.good for answer in environment.traffic.between(time.time() - 2)), 60, "its end"
    )
    reverted, head = time.time(), git_server.head()
    environment.operator.run((*REVERT, "--reason=All its pods die."))
    watch.until(lambda: environment.is_serving(good.version), 120, f"model {good.version} to answer all requests")
    served = time.time()
    environment.wait_until_stable()
    time.sleep(3)  # for some answers
    require(environment.weights(reverted) == [100, 0], f"the weights were {environment.weights(reverted)}")
    checks.assert_no_events(environment, reverted, "abort")
    commit, _ = checks.find_revert(bad.digest)
    require(git_server.git("rev-list", f"{head}..main").split() == [commit], "more was committed than the revert")
    checks.assert_no_failures(environment, served)
    checks.assert_all_logged(environment, served)
    return Outcome(
        "served again", checks.count_failed(environment, begun), round(served - reverted, 1), commit[:10]
    )


def refuse_rejected_release(environment: Environment) -> Outcome:
    """Refuse a rejected release; with --override it is released, and rolled back again."""
    image = environment.faulty_image("errors-30")
    expect_rollback(environment, environment.ship(image), ERRORS_AT_10)
    environment.settle()
    try:
        environment.ship(image)
    except CommandFailed as error:
        require("--override" in str(error), f"it was refused for another reason: {error}")
    else:
        raise ToolError("it was not refused")
    return expect_rollback(environment, environment.ship(image, "--override"), ERRORS_AT_10)


def kill_pod(namespace: str, name: str, environment: Environment, expected: Rollback = ERRORS_AT_10) -> Outcome:
    """Kill a part of the platform while a bad canary has 10 %: it is rolled back all the same."""
    shipment = environment.ship(environment.faulty_image("errors-30"), wait_for_canary=True)
    pod = (f"--namespace={namespace}", f"--selector=app.kubernetes.io/name={name}")
    output = node.run("kubectl", "delete", "pod", *pod, "--wait=false", "--grace-period=0", "--force")
    require("deleted" in output, f"there was no pod of {name}")
    return expect_rollback(environment, shipment, expected)


def forge_abort_event(environment: Environment) -> Outcome:
    """Report an abort of the healthy release, with and without the git server's token: nothing changes."""
    begun, head = time.time(), git_server.head()
    image = environment.watch.rollout("prod")["spec"]["template"]["spec"]["containers"][0]["image"]
    payload = {"namespace": "iris-prod", "rollout": "iris", "image": image}
    message = json.dumps({"event_type": "rollout-aborted", "client_payload": payload})
    curl = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--data-binary", "@-")
    statuses = [
        node.run(*curl, f"--header=Authorization: Bearer {token}", git_server.dispatch_url(), stdin=message)
        for token in ("", "guessed", secrets.git_server_token())
    ]
    require(statuses == ["401", "401", "204"], f"the git server answered {statuses}")
    time.sleep(5)
    require(git_server.head() == head, "git was changed")
    require(environment.is_stable(), "the Rollout was changed")
    return Outcome("nothing changed", checks.count_failed(environment, begun))


def blue_green(environment: Environment) -> Outcome:
    """With the blue-green variant, promote a good release and switch a bad one back."""
    watch = environment.watch
    with environment.operator.committed("prod: blue-green", *BLUE_GREEN):
        watch.until(lambda: is_blue_green(environment), 90, "blue-green, with the pods of one version")
        environment.settle()
        begun = environment.ship(environment.other_image(), "--override").begun
        watch.until(lambda: bool(environment.events(begun, "promoted", "abort")), 420, "a promotion or an abort")
        require(not environment.is_aborted(), "the good release was rolled back")
        checks.assert_no_failures(environment, begun)
        environment.settle()
        shipment = environment.ship(environment.faulty_image("errors-30"))
        return expect_rollback(environment, shipment, Rollback(None, SERVER_ERRORS, WHOLE_TRAFFIC))


def is_blue_green(environment: Environment) -> bool:
    """Return whether prod is blue-green without the pods of a canary: three versions fit on the node, not four."""
    rollout = environment.watch.rollout("prod")
    has_one_version = rollout["status"]["replicas"] == rollout["spec"]["replicas"]
    return rollouts.is_blue_green(rollout) and has_one_version


def stop_database_and_controller(environment: Environment) -> Outcome:
    """Stop the log's database and the rollouts controller: no request fails, alerts fire, nothing is lost."""
    begun = time.time()
    with stopped("database", "statefulset/postgres"), stopped("argo-rollouts", "deployment/argo-rollouts"):
        checks.assert_alerted(environment, "TargetGone", "argo-rollouts", since=begun)
        checks.assert_alerted(environment, "JournalGrowing", "iris-prod", since=begun, minutes=15)
    checks.assert_no_failures(environment, begun)
    checks.assert_all_logged(environment, begun)
    return Outcome("alerted, nothing lost", 0)


@contextmanager
def stopped(namespace: str, workload: str) -> Iterator[None]:
    """Scale a workload to 0 for the duration of the block."""
    scale = ("kubectl", "scale", workload, f"--namespace={namespace}")
    node.run(*scale, "--replicas=0")
    try:
        yield
    finally:
        node.run(*scale, "--replicas=1")
        node.run("kubectl", "rollout", "status", workload, f"--namespace={namespace}", "--timeout=90s")


def argo_rollouts(*command: str, environment: str = "prod") -> None:
    """Run a command of `kubectl argo rollouts` on the Rollout of dev or prod."""
    node.run("kubectl", "argo", "rollouts", command[0], "iris", *command[1:], f"--namespace=iris-{environment}")


BEFORE, AT_10 = "rolled back before any traffic", "rolled back at 10 %"
SCENARIOS: dict[str, tuple[str, Callable[[Environment], Outcome]]] = {
    "good": ("promoted, 0 failed requests", promote_good_release),
    "errors-30": (AT_10, roll_back_many_errors),
    "wrong-answers": (BEFORE, partial(roll_back_fault, "swapped", Rollback(0, GOLDEN))),
    "crash": (BEFORE, partial(roll_back_fault, "crash", NEVER_READY)),
    "unsigned": ("not started", start_no_unsigned_image),
    "manifest": ("the commit is reverted, no release is rejected", revert_manifests),
    "errors-3": (AT_10, partial(roll_back_fault, "errors-3", ERRORS_AT_10)),
    "slow": (AT_10, partial(roll_back_fault, "slow", Rollback(10, frozenset({"latency-p95"})))),
    "resets": (AT_10, partial(roll_back_fault, "resets", Rollback(10, ROUTER_ERRORS))),
    "exits": (AT_10, partial(roll_back_fault, "exits", Rollback(10, RESTARTS))),
    "other-model": (BEFORE, roll_back_other_model),
    "never-ready": (BEFORE, partial(roll_back_fault, "never-ready", NEVER_READY)),
    "no-image": (BEFORE, roll_back_deleted_image),
    "fails-at-100": ("rolled back at 100 %", partial(roll_back_fault, "under-load", Rollback(100, SERVER_ERRORS))),
    "no-traffic": ("waits, and an alert fires", wait_without_traffic),
    "unmeasured-good": ("promoted", partial(wait_without_prometheus, healthy=True)),
    "unmeasured-bad": (AT_10, partial(wait_without_prometheus, healthy=False)),
    "stable-dies": ("the canary is promoted", promote_despite_dead_stable),
    "second-release": ("the second is promoted", replace_canary),
    "person-reverts": ("rolled back", revert_canary),
    "person-aborts": ("rolled back, git reverted", abort_canary),
    "person-promotes": ("promoted", promote_canary_by_hand),
    "person-undoes": ("Argo CD restores git's release", undo_release_in_cluster),
    "reverted-later": ("the previous release is promoted", revert_promoted_release),
    "rescue": ("the previous release serves again", rescue),
    "rejected-again": ("refused; rolled back with --override", refuse_rejected_release),
    "forged-event": ("nothing changes", forge_abort_event),
    "controller-dies": (AT_10, partial(kill_pod, "argo-rollouts", "argo-rollouts")),
    "argocd-dies": (AT_10, partial(kill_pod, "argocd", "argocd-application-controller")),
    "router-dies": (AT_10, partial(kill_pod, "traefik", "traefik", expected=NO_ROUTER)),
    "blue-green": ("good: promoted; bad: switched back", blue_green),
    "no-database": ("alerts fire, nothing is lost", stop_database_and_controller),
}
"""The expected outcome of each scenario, and the function that plays it; the most informative first."""
CORE = ("good", "errors-30", "wrong-answers", "crash", "unsigned")
"""The scenarios that CI plays: a good release, a rejection by each kind of gate, and an unsigned image."""
