"""`make up`, step by step: each step can be interrupted and repeated, and does nothing if its work is done."""

import json
import time
from collections.abc import Iterator

from delivery.kubernetes import KubernetesObject
from tools import cache, programs
from tools.cluster import doctor, git_server, images, kustomize, node, secrets
from tools.errors import ToolError
from tools.progress import Say, console, step, wait_for

MINUTES = 60.0
NEXT = """\
{ports}
next:
  make shell  open a shell on the node, with kubectl and argocd configured; for example:
                kubectl get pods --all-namespaces
                kubectl argo rollouts list rollouts --all-namespaces   (or: get rollout NAME -n NAMESPACE --watch)
                argocd app list                                        (or: get NAME; Argo CD has no UI here)
              a single command: .venv/bin/python -m tools.cluster exec -- kubectl get pods --all-namespaces
  make demo   release a good and a bad version, and watch the bad one being rolled back
  make down   stop the cluster and remove everything but the cache"""


def up() -> None:
    """Bring up the cluster and its platform, or the missing parts of a running one. Raises ToolError."""
    begun = time.monotonic()
    kubernetes()
    with step("platform") as say:
        _apply(kustomize.render("overlays/local/platform", say), say)
        _apply(secrets.objects(), say)
        _set_load_balancer_address()
    with step("git server", node.log("git-server")) as say:
        git_server.update(say)
        git_server.start(secrets.git_server_token(), say)
    with step("pods", node.log("kubelet")) as say:
        wait_for(_unready_workloads, 10 * MINUTES, say)
        wait_for(lambda: _run("kubectl", "top", "nodes"), 5 * MINUTES, say)
    with step("applications") as say:
        _apply(kustomize.render("overlays/local/argocd", say), say)
        wait_for(_outdated_applications, 5 * MINUTES, say)
    console.print(f"up in {time.monotonic() - begun:.0f} s; {measured(seconds=2)}")
    console.print(
        NEXT.format(ports="\n".join(f"  {name:<12} localhost:{port}" for name, port, _ in node.PORT_FORWARDS))
    )


def kubernetes() -> None:
    """Bring up Kubernetes without the platform, or the missing parts of a running one. Raises ToolError."""
    with step("prerequisites"):
        doctor.prepare()
    with step("programs") as say:
        folders = [programs.folder(name, say) for name in programs.CLUSTER_PROGRAMS]
    # Another version of these needs a new node; the platform is updated in place.
    made_from = cache.key(
        node.CONFIG, node.SCRIPT, *map(str, folders), *(image.key() for image in images.all_images())
    )
    record = node.state() / "made-from"  # written when kubeadm has finished
    is_new = node.init_pid() is None or not record.exists() or record.read_text() != made_from
    if is_new:
        with step("node", node.log("node")) as say:
            node.start(folders)
            registry = f"http://{node.REGISTRY}/v2/"
            wait_for(lambda: _run("curl", "--silent", "--fail", registry), 60, say)
    with step("images") as say:
        images.push_missing(say)
    if is_new:
        with step("Kubernetes", node.log("kubeadm")):
            _init()
            record.write_text(made_from)
    with step("kubelet", node.log("kubelet")) as say:
        wait_for(_node_not_ready, 5 * MINUTES, say)
    for name in ("dev", "prod", "prometheus"):  # the PersistentVolumes of overlays/local/platform
        (node.state() / "root/var/lib/kubelet/volumes" / name).mkdir(parents=True, exist_ok=True)


def measured(seconds: float) -> str:
    """Return a text with the cluster's memory and the average number of cores that it uses over that time."""
    before, _ = node.usage()
    time.sleep(seconds)
    after, memory = node.usage()
    return f"{memory / 2**30:.1f} GiB of memory, {(after - before) / seconds:.2f} cores"


def _run(*command: str) -> None:
    node.run(*command)


def _init() -> None:
    """Let kubeadm create the cluster in the empty state. Raises ToolError."""
    command = f"kubeadm init --config {node.state()}/config/kubeadm.yaml > {node.log('kubeadm')} 2>&1"
    try:
        node.run("sh", "-c", command, seconds=10 * MINUTES)
    except ToolError as error:
        raise ToolError("kubeadm could not create a cluster; the next `make up` starts again") from error
    # The argocd command reads its configuration from the namespace of the context.
    node.run("kubectl", "config", "set-context", "--current", "--namespace=argocd")


def _node_not_ready() -> str | None:
    """Approve the kubelet's certificate; return the reason why the node is not ready, None if it is."""
    requests = _get("certificatesigningrequests")
    waiting = [
        request["metadata"]["name"]
        for request in requests
        if request["spec"]["signerName"] == "kubernetes.io/kubelet-serving" and not request["status"]
    ]
    if waiting:
        node.run("kubectl", "certificate", "approve", *waiting)
    if not requests:
        return "the kubelet has not requested its certificate yet"
    for found in _get("nodes"):
        for condition in found["status"]["conditions"]:
            if condition["type"] == "Ready":
                return None if condition["status"] == "True" else condition["message"]
    return "the node is not registered yet"


def _apply(objects: str, say: Say) -> None:
    """Apply the objects, and repeat it: custom resources are refused until their definitions are established."""

    def apply() -> None:
        node.run("kubectl", "apply", "--server-side", "--force-conflicts", "--filename=-", stdin=objects)

    wait_for(apply, 2 * MINUTES, say)


def _outdated_applications() -> str | None:
    """Return which applications are not synced to main, None if all are; a release may move main meanwhile."""
    found, commit = _get("applications", "--namespace=argocd"), git_server.head()
    outdated = [reason for item in found if (reason := _outdated(item, commit))]
    return "; ".join(outdated) if found else "Argo CD has no applications yet"


def _outdated(application: KubernetesObject, commit: str) -> str | None:
    name, status = application["metadata"]["name"], application.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"].endswith("Error"):
            return f"{name}: {condition['message']}"
    sync, health = status.get("sync", {}), status.get("health", {})
    # An environment may be unhealthy, or its image unsigned, because of its release: that does not concern `up`.
    is_environment = name.startswith("iris-")
    is_healthy = is_environment or health.get("status") == "Healthy"
    is_refused = is_environment and status.get("operationState", {}).get("phase") == "Failed"
    is_applied = sync.get("status") == "Synced" or is_refused
    if is_applied and is_healthy and sync.get("revision") == commit:
        return None
    state = f"{sync.get('status', 'Unknown')} and {health.get('status', 'Unknown')}"
    return f"{name} is {state} at {str(sync.get('revision'))[:10]}, main is {commit[:10]}"


def _set_load_balancer_address() -> None:
    """Give the router's Service the node's address, as a cloud's load balancer would."""
    status = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": node.IP}]}}})
    command = ("kubectl", "patch", "service", "traefik", "--namespace=traefik", "--subresource=status")
    node.run(*command, "--type=merge", f"--patch={status}")


def _unready_workloads() -> str | None:
    """Return which workloads are not ready and why, None if all are."""
    unready = [
        f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        for item in _get("deployments,statefulsets,daemonsets", "--all-namespaces")
        if not _is_ready(item)
    ]
    reasons = [reason for pod in _get("pods", "--all-namespaces") for reason in _waiting(pod)]
    return "; ".join([f"not ready: {', '.join(unready)}", *reasons]) if unready else None


def _is_ready(item: KubernetesObject) -> bool:
    status = item["status"]
    wanted = status.get("desiredNumberScheduled", item["spec"].get("replicas", 1))
    ready = status.get("numberReady", status.get("readyReplicas", 0))
    return bool(status.get("observedGeneration") == item["metadata"]["generation"] and ready >= wanted > 0)


def _waiting(pod: KubernetesObject) -> Iterator[str]:
    """Yield the reasons with a message for which the pod's containers are waiting."""
    status = pod["status"]
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container["state"].get("waiting", {})
        if waiting.get("message"):
            yield f"{pod['metadata']['name']}: {waiting['reason']}: {waiting['message']}"


def _get(kinds: str, *options: str) -> list[KubernetesObject]:
    objects = json.loads(node.run("kubectl", "get", kinds, *options, "--output=json"))
    items: list[KubernetesObject] = objects["items"]
    return items
