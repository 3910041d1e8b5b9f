"""`make up`, step by step: each can be stopped and taken up again, and does nothing where nothing is to do."""

import json
import time
from collections.abc import Iterator

from delivery.kubernetes import KubernetesObject
from tools import cache, programs
from tools.cluster import doctor, git_server, images, kustomize, node, secrets
from tools.errors import ToolError
from tools.progress import Say, console, step, wait_for

INITIALISED = "initialised"  # a file in the state's folder: kubeadm has done its work
MINUTES = 60.0


def up() -> None:
    """Bring the cluster up, or what is missing of it. Raises ToolError."""
    begun = time.monotonic()
    kubernetes()
    with step("platform") as say:
        _apply(kustomize.render("overlays/local/platform", say), say)
        _apply(secrets.objects(), say)
        _answer_as_load_balancer()
    with step("git server", node.log("git-server")) as say:
        git_server.update(say)
        git_server.start(secrets.git_server_token(), say)
    with step("pods", node.log("kubelet")) as say:
        wait_for(_workloads, 10 * MINUTES, say)
        wait_for(_metrics, 5 * MINUTES, say)
    with step("applications") as say:
        _apply(kustomize.render("overlays/local/argocd", say), say)
        wait_for(_applications, 5 * MINUTES, say)
    console.print(f"up in {time.monotonic() - begun:.0f} s; {measured(seconds=2)}")
    _say_what_next()


def kubernetes() -> None:
    """Bring up a Kubernetes without the platform, or what is missing of it. Raises ToolError."""
    with step("prerequisites"):
        doctor.prepare()
    with step("programs") as say:
        folders = [programs.folder(name, say) for name in programs.CLUSTER_PROGRAMS]
    # What the machine was started from cannot be changed while it runs; the platform can.
    made_from = cache.key(
        node.CONFIG, node.SCRIPT, *map(str, folders), *(image.key() for image in images.all_images())
    )
    if not (node.is_running(made_from) and (node.state() / INITIALISED).exists()):
        with step("node", node.log("node")) as say:
            node.start(folders, made_from)
            wait_for(_registry, 60, say)
    with step("images") as say:
        images.push_missing(say)
    if not (node.state() / INITIALISED).exists():
        with step("Kubernetes", node.log("kubeadm")):
            _init()
    with step("kubelet", node.log("kubelet")) as say:
        wait_for(_node, 5 * MINUTES, say)
    _make_folders_of_volumes()


def measured(seconds: float) -> str:
    """Return the cluster's memory and its use of processors over that time, for people."""
    before, _ = node.usage()
    time.sleep(seconds)
    after, memory = node.usage()
    return f"{memory / 2**30:.1f} GiB of memory, {(after - before) / seconds:.2f} cores"


def _registry() -> None:
    node.run("curl", "--silent", "--fail", f"http://{node.REGISTRY}/v2/")


def _init() -> None:
    """Have kubeadm make a cluster of the empty state."""
    command = f"kubeadm init --config {node.state()}/config/kubeadm.yaml > {node.log('kubeadm')} 2>&1"
    try:
        node.run("sh", "-c", command, seconds=10 * MINUTES)
    except ToolError as error:
        raise ToolError("kubeadm could not make a cluster; the next `make up` begins anew") from error
    # Argo CD's command looks for itself in the namespace of the context.
    node.run("kubectl", "config", "set-context", "--current", "--namespace=argocd")
    (node.state() / INITIALISED).touch()


def _node() -> str | None:
    """Sign the certificate that the kubelet has asked for, and say what keeps the node from being ready."""
    requests = _get("certificatesigningrequests")
    waiting = [
        request["metadata"]["name"]
        for request in requests
        if request["spec"]["signerName"] == "kubernetes.io/kubelet-serving" and not request["status"]
    ]
    if waiting:
        node.run("kubectl", "certificate", "approve", *waiting)
    if not requests:
        return "the kubelet has not asked for its certificate yet"
    ready = [c for node in _get("nodes") for c in node["status"]["conditions"] if c["type"] == "Ready"]
    return next((c["message"] for c in ready if c["status"] != "True"), None if ready else "no node yet")


def _apply(objects: str, say: Say) -> None:
    """Apply the objects, again and again: those of kinds that are defined among them come after the kinds."""

    def missing() -> None:
        node.run("kubectl", "apply", "--server-side", "--force-conflicts", "--filename=-", stdin=objects)

    wait_for(missing, 2 * MINUTES, say)


def _make_folders_of_volumes() -> None:
    """Make what the PersistentVolumes of overlays/local/platform lead to."""
    for name in ("dev", "prod", "prometheus"):
        (node.state() / "root/var/lib/kubelet/volumes" / name).mkdir(parents=True, exist_ok=True)


def _applications() -> str | None:
    """Say which applications are not yet as main says; a release may move it meanwhile."""
    found, commit = _get("applications", "--namespace=argocd"), git_server.head()
    behind = [reason for item in found if (reason := _behind(item, commit))]
    return "; ".join(behind) if found else "Argo CD has not found any yet"


def _behind(application: KubernetesObject, commit: str) -> str | None:
    name, status = application["metadata"]["name"], application.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"].endswith("Error"):
            return f"{name}: {condition['message']}"
    sync, health = status.get("sync", {}), status.get("health", {})
    # How an environment fares, and whether its image is signed, depends on what was released there: that is not
    # the cluster's business.
    environment = name.startswith("iris-")
    well = environment or health.get("status") == "Healthy"
    refused = environment and status.get("operationState", {}).get("phase") == "Failed"
    applied = sync.get("status") == "Synced" or refused
    if not applied or sync.get("revision") != commit or not well:
        state = f"{sync.get('status', 'Unknown')} and {health.get('status', 'Unknown')}"
        return f"{name} is {state} as {str(sync.get('revision'))[:10]}, main is {commit[:10]}"
    return None


def _answer_as_load_balancer() -> None:
    """Give the router's Service the node's address, as a cloud would give it one of its own."""
    status = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": node.IP}]}}})
    command = ("kubectl", "patch", "service", "traefik", "--namespace=traefik", "--subresource=status")
    node.run(*command, "--type=merge", f"--patch={status}")


def _workloads() -> str | None:
    """Say what keeps a workload from being ready."""
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
    """Yield why containers of a pod wait, where that is more than that they are being started."""
    status = pod["status"]
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container["state"].get("waiting", {})
        if waiting.get("message"):
            yield f"{pod['metadata']['name']}: {waiting['reason']}: {waiting['message']}"


def _metrics() -> None:
    node.run("kubectl", "top", "nodes")


def _get(kinds: str, *options: str) -> list[KubernetesObject]:
    found: list[KubernetesObject] = json.loads(node.run("kubectl", "get", kinds, *options, "--output=json"))[
        "items"
    ]
    return found


def _say_what_next() -> None:
    doors = "".join(f"\n  {door.name:<12} localhost:{door.port}" for door in node.PORT_FORWARDS)
    console.print(f"""{doors}
next:
  make shell  a shell in the cluster, with kubectl, argocd and the rest set up; in it, for instance
                kubectl get pods --all-namespaces
                kubectl argo rollouts list rollouts --all-namespaces   (and: get rollout NAME -n NAMESPACE --watch)
                argocd app list                                        (and: get NAME; Argo CD has no UI here)
              one command alone: .venv/bin/python -m tools.cluster exec -- kubectl get pods --all-namespaces
  make down   end it, and leave nothing""")
