"""A cluster that was killed during its start and brought up again is used, and brought up once more."""

import json
import os
import re
import subprocess
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from delivery.event import LARGEST
from delivery.kubernetes import KubernetesObject
from tests.support.cluster_commands import CLUSTER, MINUTES, get, kubectl, run_cluster, up, wait_for_rollout
from tests.support.overlays import render
from tests.support.running import ROOT, wait_until
from tools.cluster import git_server, node, secrets
from tools.image import BASE
from tools.progress import wait_for

pytestmark = pytest.mark.cluster

SYSTEM = "system:serviceaccount"
PLATFORM = {"argo-rollouts", "argocd", "database", "kube-system", "monitoring", "traefik"}


def test_up_prints_each_step_with_its_time_and_the_next_command(cluster: str) -> None:
    for step in (
        "prerequisites",
        "programs",
        "node",
        "images",
        "Kubernetes",
        "kubelet",
        "platform",
        "git server",
        "pods",
        "applications",
    ):
        assert f"  ok  {step} (" in cluster
    assert "GiB of memory" in cluster
    assert "localhost:8080" in cluster
    assert "make shell" in cluster


def test_every_pod_of_the_platform_is_ready(cluster: str) -> None:  # noqa: ARG001
    pods = get("pods", "--all-namespaces")
    namespaces = {pod["metadata"]["namespace"] for pod in pods}
    assert namespaces == {*PLATFORM, "iris-dev"}  # Argo CD has started dev's database
    assert [pod["metadata"]["name"] for pod in pods if not _is_ready(pod) and _is_of_platform(pod)] == []
    # `up` waits for the platform, not for what is released in an environment.
    wait_until(lambda: all(map(_is_ready, get("pods", "--namespace=iris-dev"))), "dev's database")


def test_the_router_forwards_requests_from_the_host_to_a_deployment(placeholder: None) -> None:  # noqa: ARG001
    wait_until(lambda: _ask("one.example").text == "one", "the router to know the route")
    assert _ask("unknown.example").status_code == 404


def test_a_canary_with_a_weight_of_ten_percent_gets_ten_percent_of_the_requests(placeholder: None) -> None:  # noqa: ARG001
    kubectl("argo", "rollouts", "status", "two", "--namespace=iris-dev", "--timeout=1m")
    new = [{"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": "canary"}]
    kubectl("patch", "rollout", "two", "--namespace=iris-dev", "--type=json", f"--patch={json.dumps(new)}")
    wait_for_rollout("Paused")
    wait_until(lambda: _weights() == {"stable": 90, "canary": 10}, "the controller to set the weights")
    with httpx.Client() as client:
        wait_until(lambda: "canary" in {_ask("two.example", client).text for _ in range(20)}, "the router to know")
        answers = [_ask("two.example", client).text for _ in range(1000)]
    assert 60 <= answers.count("canary") <= 140
    assert answers.count("canary") + answers.count("one") == 1000
    kubectl("argo", "rollouts", "promote", "two", "--namespace=iris-dev")
    wait_for_rollout("Healthy")
    wait_until(lambda: _ask("two.example").text == "canary", "the router to know that the canary is stable now")


def test_the_autoscaler_reads_metrics(placeholder: None) -> None:  # noqa: ARG001
    def reads() -> bool:
        status = get("horizontalpodautoscalers", "--namespace=iris-dev")[0]["status"]
        read = {
            metric["resource"]["name"]: metric["resource"]["current"].get("averageUtilization", 0)
            for metric in status.get("currentMetrics") or []
        }
        return read.keys() == {"cpu", "memory"} and read["memory"] > 0

    wait_until(reads, "the autoscaler to read metrics", 3 * MINUTES)


def test_a_pod_that_uses_too_much_memory_is_killed_and_restarted(placeholder: None) -> None:  # noqa: ARG001
    def killed() -> bool:
        pod = json.loads(kubectl("get", "pod", "hungry", "--namespace=iris-dev", "--output=json"))
        container = pod["status"]["containerStatuses"][0]
        ended = container["lastState"].get("terminated", {}).get("reason")
        return bool(ended == "OOMKilled" and container["restartCount"] >= 1)

    wait_until(killed, "the pod to be killed for its memory", 3 * MINUTES)


@pytest.mark.parametrize(
    "namespace", ["argo-rollouts", "argocd", "iris-dev", "iris-prod", "monitoring", "traefik"]
)
def test_a_privileged_pod_is_refused(cluster: str, namespace: str) -> None:  # noqa: ARG001
    container = {"name": "greedy", "image": BASE, "securityContext": {"privileged": True}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "greedy"}, "spec": {"containers": [container]}}
    done = _run("kubectl", "apply", f"--namespace={namespace}", "--filename=-", stdin=json.dumps(pod))
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted' in done.stderr


@pytest.mark.parametrize(
    ("who", "verb", "what", "where", "may"),
    [
        ("traefik:traefik", "list", "secrets", "iris-prod", True),
        ("traefik:traefik", "list", "secrets", "argocd", False),
        ("traefik:traefik", "update", "traefikservices.traefik.io", "iris-prod", False),
        ("argo-rollouts:argo-rollouts", "update", "traefikservices.traefik.io", "iris-prod", True),
        ("argo-rollouts:argo-rollouts", "get", "secrets", "argo-rollouts", True),
        ("argo-rollouts:argo-rollouts", "get", "secrets", "iris-prod", False),
        ("argo-rollouts:argo-rollouts", "create", "deployments.apps", "iris-prod", False),
        ("argocd:argocd-application-controller", "update", "rollouts.argoproj.io", "iris-prod", True),
        ("argocd:argocd-application-controller", "create", "deployments.apps", "monitoring", True),
        ("argocd:argocd-application-controller", "create", "deployments.apps", "kube-system", False),
        ("argocd:argocd-application-controller", "get", "secrets", "argocd", True),
        ("argocd:argocd-application-controller", "get", "secrets", "iris-prod", False),
        ("argocd:argocd-application-controller", "create", "pods", "iris-prod", False),
        ("argocd:argocd-application-controller", "create", "clusterrolebindings", "iris-prod", False),
        ("argocd:argocd-applicationset-controller", "get", "secrets", "iris-prod", False),
        ("kube-system:metrics-server", "get", "secrets", "kube-system", False),
    ],
)
def test_each_component_has_only_the_permissions_that_it_needs(
    cluster: str,  # noqa: ARG001
    who: str,
    verb: str,
    what: str,
    where: str,
    *,
    may: bool,
) -> None:
    done = _run("kubectl", "auth", "can-i", verb, what, f"--namespace={where}", f"--as={SYSTEM}:{who}")
    assert done.stdout.strip() == ("yes" if may else "no")


def test_argo_cd_syncs_a_commit_and_undoes_manual_changes(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    clone, who = tmp_path / "clone", ("-c", "user.name=test", "-c", "user.email=test@example")
    _git(tmp_path, "clone", "--quiet", str(git_server.repository()), str(clone))
    file = clone / "manifests/iris/pdb.yaml"
    file.write_text(file.read_text().replace("maxUnavailable: 1", "maxUnavailable: 2"))
    _git(clone, *who, "commit", "--quiet", "--all", "--message=two at once")
    _git(clone, "push", "--quiet")
    wait_until(lambda: _max_unavailable() == {2}, "the commit to be synced", MINUTES)
    budget = ("poddisruptionbudget", "iris", "--namespace=iris-prod")
    kubectl("patch", *budget, "--type=merge", '--patch={"spec": {"maxUnavailable": 3}}')
    wait_until(lambda: _max_unavailable() == {2}, "the manual change to be undone", MINUTES)
    assert "Synced" in _exec("argocd", "app", "get", "iris-prod").stdout
    # Another `up` merges the checkout and keeps the commits in the cluster's repository.
    up()
    assert _max_unavailable() == {2}
    _git(clone, *who, "revert", "--no-edit", "HEAD")
    _git(clone, "pull", "--quiet", "--rebase")
    _git(clone, "push", "--quiet")
    wait_until(lambda: _max_unavailable() == {1}, "the revert to be synced", MINUTES)


@pytest.mark.parametrize(
    ("token", "path", "message", "status"),
    [
        ("", git_server.DISPATCH_PATH, {"event_type": "rollout-aborted"}, 401),
        ("guessed", git_server.DISPATCH_PATH, {"event_type": "rollout-aborted"}, 401),
        (None, "/", {"event_type": "rollout-aborted"}, 404),
        (None, f"/{git_server.REPOSITORY}/config", {}, 404),
        (None, git_server.DISPATCH_PATH, {"event_type": "other"}, 422),
        (None, git_server.DISPATCH_PATH, [], 422),
        (None, git_server.DISPATCH_PATH, {"event_type": "rollout-aborted", "padding": "x" * LARGEST}, 413),
        (
            None,
            git_server.DISPATCH_PATH,
            {"event_type": "rollout-aborted", "client_payload": {"namespace": "x"}},
            204,
        ),
    ],
)
def test_the_webhook_accepts_one_event_with_the_token_and_a_forged_event_changes_nothing(
    cluster: str,  # noqa: ARG001
    token: str | None,
    path: str,
    message: object,
    status: int,
) -> None:
    head, logged = _git(git_server.repository(), "rev-parse", "main"), node.log("git-server").stat().st_size
    token_sent = secrets.git_server_token() if token is None else token
    options = ("--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--data-binary", "@-")
    url = f"http://{node.IP}:{git_server.PORT}{path}"
    authorization = ("--header", f"Authorization: Bearer {token_sent}")
    done = _run("curl", *options, *authorization, url, stdin=json.dumps(message))
    assert done.stdout == str(status)
    if status == HTTPStatus.NO_CONTENT:  # the event is handled after the answer
        said = "nothing was changed"
        wait_until(lambda: said in node.log("git-server").read_text()[logged:], "the event to be handled", MINUTES)
    assert _git(git_server.repository(), "rev-parse", "main") == head


def test_the_git_server_is_read_only(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    address = f"git://{node.IP}/{git_server.REPOSITORY}"
    assert _run("git", "clone", "--quiet", address, str(tmp_path / "clone")).returncode == 0
    done = _run("git", "-C", str(tmp_path / "clone"), "push", "--quiet", address, "HEAD:refs/heads/other")
    assert done.returncode != 0
    assert "not enabled" in done.stderr


def test_kube_proxy_reads_back_the_rules_that_it_wrote(cluster: str) -> None:  # noqa: ARG001
    """Otherwise kube-proxy would delete all rules at its next start, or an hour after this one."""
    command = ("nft", "list", "map", "ip", "kube-proxy", "service-ips")
    rules = node.run("kubectl", "exec", "--namespace=kube-system", "daemonset/kube-proxy", "--", *command)
    assert re.search(r"10\.96\.0\.1 \. tcp \. 443 : goto", rules), rules


def test_the_prometheus_of_the_release_gates_is_reachable_on_this_host(cluster: str) -> None:  # noqa: ARG001
    def scraped() -> bool:
        url = "http://localhost:9090/api/v1/query"
        try:
            answer = httpx.get(url, params={"query": "count(up{namespace!~'iris-.*'} == 1)"}).json()
        except httpx.TransportError:
            return False
        return bool(answer["data"]["result"]) and answer["data"]["result"][0]["value"][1] == "5"

    wait_until(scraped, "Prometheus to have scraped the platform and the monitoring", 2 * MINUTES)
    targets = httpx.get("http://localhost:9090/api/v1/targets").json()["data"]["activeTargets"]
    assert {target["health"] for target in targets} == {"up"}
    rules = httpx.get("http://localhost:9090/api/v1/rules").json()["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}
    alertmanagers = httpx.get("http://localhost:9090/api/v1/alertmanagers").json()["data"]
    assert (len(alertmanagers["activeAlertmanagers"]), alertmanagers["droppedAlertmanagers"]) == (1, [])


def test_every_object_passes_the_api_servers_strict_validation(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    # The same as Argo CD, which has already applied some of them.
    how = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    rendered = render(tmp_path)
    for name, objects in rendered.items():
        done = _run("kubectl", "apply", *how, "--filename=-", stdin=objects)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert "Warning" not in done.stderr, f"{name}: {done.stderr}"
        assert done.stdout.count("server dry run") == objects.count("\nkind: ")
    typo = rendered["prod"].replace("readinessProbe:", "readynessProbe:")
    done = _run("kubectl", "apply", *how, "--filename=-", stdin=typo)
    assert done.returncode != 0
    assert "readynessProbe" in done.stderr


def test_a_database_keeps_its_data_when_its_pod_is_deleted(cluster: str) -> None:  # noqa: ARG001
    where = ("--namespace=iris-dev", "postgres-0")
    psql = ("kubectl", "exec", *where, "--", "psql", "--username=iris", "--no-align", "--tuples-only", "--command")
    node.run(*psql, "CREATE TABLE held AS SELECT 7 AS number")
    kubectl("delete", "pod", *where)

    def missing() -> None:
        kubectl("wait", "pod", *where, "--for=condition=Ready", "--timeout=30s")

    wait_for(missing, 60, print)  # the new pod has the same name and does not exist at once
    assert node.run(*psql, "SELECT number FROM held").strip() == "7"
    node.run(*psql, "DROP TABLE held")


def test_the_kubeconfig_works_on_the_host(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    config = tmp_path / "kubeconfig"
    config.write_text(run_cluster("kubeconfig").stdout)
    path = (node.state() / "path").read_text()
    done = subprocess.run(
        ["kubectl", f"--kubeconfig={config}", "get", "nodes", "--output=name"],
        env={**os.environ, "PATH": path, "KUBECACHEDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "node/iris", done.stderr


def test_exec_preserves_the_working_directory_the_output_and_the_exit_code(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    command = [*CLUSTER, "exec", "--", "sh", "-c", "pwd; exit 3"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == (str(tmp_path), 3)


def test_logs_and_status_show_the_running_components(cluster: str) -> None:  # noqa: ARG001
    names = run_cluster("logs").stdout.split()
    assert {"containerd", "haproxy", "kubeadm", "kubelet", "node", "registry"} <= set(names)
    assert "initialized successfully" in run_cluster("logs", "kubeadm").stdout
    missing = run_cluster("logs", "nothing")
    assert missing.returncode == 1
    assert "kubeadm" in missing.stderr
    assert "argocd-application-controller" in run_cluster("status").stdout


def test_a_second_up_changes_nothing(placeholder: None) -> None:  # noqa: ARG001
    first, pid = _platform_pods(), node.init_pid()
    done = up()
    assert node.init_pid() == pid
    assert "  ok  Kubernetes (" not in done.stderr
    assert _platform_pods() == first


def test_a_second_cluster_is_refused_because_its_ports_are_in_use(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    done = run_cluster("doctor", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "port 8080" in done.stderr
    assert "fix: ss -ltnp 'sport = :8080'" in done.stderr


def _exec(*command: str) -> subprocess.CompletedProcess[str]:
    return run_cluster("exec", "--", *command)


def _run(*command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        node.nsenter(command),
        env=node.environment(),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def _platform_pods() -> dict[str, int]:
    """Return the number of restarts of each pod of the platform, without those of the placeholder."""
    return {
        pod["metadata"]["uid"]: sum(container["restartCount"] for container in pod["status"]["containerStatuses"])
        for pod in get("pods", "--all-namespaces")
        if pod["metadata"]["namespace"] in PLATFORM
    }


def _is_ready(pod: KubernetesObject) -> bool:
    conditions = {condition["type"]: condition["status"] for condition in pod["status"]["conditions"]}
    return conditions.get("Ready") == "True"


def _is_of_platform(pod: KubernetesObject) -> bool:
    return pod["metadata"]["namespace"] in PLATFORM


def _ask(host: str, client: httpx.Client | None = None) -> httpx.Response:
    return (client or httpx).get("http://localhost:8080/", headers={"Host": host})


def _weights() -> dict[str, int]:
    splits = {item["metadata"]["name"]: item["spec"] for item in get("traefikservices", "--namespace=iris-dev")}
    return {service["name"]: service["weight"] for service in splits["split"]["weighted"]["services"]}


def _max_unavailable() -> set[int]:
    """Return maxUnavailable of the environments' PodDisruptionBudgets."""
    return {
        budget["spec"]["maxUnavailable"]
        for environment in ("iris-dev", "iris-prod")
        for budget in get("poddisruptionbudgets", f"--namespace={environment}")
    }


def _git(where: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", where, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
