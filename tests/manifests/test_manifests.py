"""Check the overlays as they would be applied: all references resolve, and nothing is looser than necessary."""

import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import yaml

from delivery.kubernetes import KubernetesObject
from delivery.release import IMAGE
from service.journal import Journal
from service.settings import Settings
from tests.support.overlays import BUILT, RELEASE, build, copy_with_a_release
from tests.support.phase import phases
from tests.support.running import ROOT, SETOSA, RunningService, wait_until
from tests.support.schemas import problems
from tools.ci.supply_chain import SIGNATURE_JOB
from tools.cluster import images, node
from tools.drill.traffic import public_host

NUMBERS = ("server_error_ratio", "latency_p95_seconds")
SERVING = {"app.kubernetes.io/component": "serving"}
# The fields in which dev may differ from prod, apart from its database: kind and path.
DIFFERENT = {
    ("Deployment", "spec.template.spec.containers.0.env"),
    ("HorizontalPodAutoscaler", "spec.maxReplicas"),
    ("HorizontalPodAutoscaler", "spec.minReplicas"),
    ("IngressRoute", "spec.routes.0.match"),
    ("Rollout", "spec.strategy.canary.steps"),
    ("Rollout", "spec.template.spec.containers.0.env.2.value"),
}


class Rendered(dict[str, list[KubernetesObject]]):
    """The objects of each overlay, rendered when a test first reads them."""

    def __init__(self, copy: Path) -> None:
        copy_with_a_release(copy)
        self._copy = copy

    def __missing__(self, name: str) -> list[KubernetesObject]:
        self[name] = list(yaml.load_all(build(self._copy, name), yaml.CSafeLoader))
        return self[name]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[KubernetesObject]]:
    """The objects of each overlay, with a release in each environment."""
    return Rendered(tmp_path_factory.mktemp("manifests") / "copy")


def _named(objects: list[KubernetesObject], kind: str) -> dict[str, KubernetesObject]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def _pods(objects: list[KubernetesObject]) -> Iterator[tuple[str, dict[str, str], KubernetesObject]]:
    """Yield the name, the labels and the spec of each pod template, including the gates' Jobs."""
    for item in objects:
        if item["kind"] in {"Rollout", "StatefulSet", "Deployment", "Job"}:
            template = item["spec"]["template"]
            yield item["metadata"]["name"], template["metadata"]["labels"], template["spec"]
        if item["kind"] == "AnalysisTemplate":
            for metric in item["spec"]["metrics"]:
                if "job" in metric["provider"]:
                    template = metric["provider"]["job"]["spec"]["template"]
                    yield metric["name"], template["metadata"]["labels"], template["spec"]


@pytest.mark.parametrize("where", BUILT)
def test_the_api_server_accepts_every_object_and_drops_no_field(
    rendered: dict[str, list[KubernetesObject]], where: str
) -> None:
    found = [problem for item in rendered[where] for problem in problems(item)]
    assert not found, "\n".join(found)


def test_a_kind_without_a_schema_is_reported() -> None:
    unknown = ("apps/v1", "Rollout"), ("apps/v2", "Deployment"), ("traefik.io/v1", "Middleware"), ("a.io/v1", "A")
    for version, kind in unknown:
        item = {"apiVersion": version, "kind": kind, "metadata": {"name": "iris"}}
        assert problems(item) == [f"there is no schema for {version} {kind}"]


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_every_reference_resolves_to_exactly_one_object(
    rendered: dict[str, list[KubernetesObject]], environment: str
) -> None:
    objects = rendered[environment]
    kinds = (
        "ConfigMap",
        "Service",
        "ServiceAccount",
        "AnalysisTemplate",
        "TraefikService",
        "Middleware",
        "Rollout",
    )
    by_kind = {kind: _named(objects, kind) for kind in kinds}
    assert len({(item["kind"], item["metadata"]["name"]) for item in objects}) == len(objects)

    canary = by_kind["Rollout"]["iris"]["spec"]["strategy"]["canary"]
    assert {canary["stableService"], canary["canaryService"]} == {"iris-stable", "iris-canary"}
    split = by_kind["TraefikService"][canary["trafficRouting"]["traefik"]["weightedTraefikServiceName"]]
    weights = {service["name"]: service["weight"] for service in split["spec"]["weighted"]["services"]}
    assert weights == {canary["stableService"]: 100, canary["canaryService"]: 0}
    assert weights.keys() <= by_kind["Service"].keys()
    for name in re.findall(r"'templateName': '([^']+)'", str(canary["steps"])):
        assert name in by_kind["AnalysisTemplate"]
        arguments = by_kind["AnalysisTemplate"][name]["spec"].get("args", [])
        needed = {argument["name"] for argument in arguments if "value" not in argument}
        for step in canary["steps"]:
            if {"templateName": name} in step.get("analysis", {}).get("templates", []):
                assert {argument["name"] for argument in step["analysis"].get("args", [])} == needed

    for route in _named(objects, "IngressRoute")["iris"]["spec"]["routes"]:
        assert {middleware["name"] for middleware in route["middlewares"]} == by_kind["Middleware"].keys()
        assert [service["name"] for service in route["services"]] == [split["metadata"]["name"]]
    target = _named(objects, "HorizontalPodAutoscaler")["iris"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Rollout", "iris")

    for _, _, pod in _pods(objects):
        assert pod.get("serviceAccountName", "iris") in by_kind["ServiceAccount"]
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | {"data"}  # claimed by the StatefulSet
        for volume in pod.get("volumes", []):
            assert "configMap" not in volume or volume["configMap"]["name"] in by_kind["ConfigMap"]
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in re.findall(r"'port': '([^']+)'", str(container)):
                assert probe in ports
            secrets = re.findall(r"'secretKeyRef': \{'key': '([^']+)', 'name': '([^']+)'\}", str(container))
            assert {name for _, name in secrets} <= {"iris-database", "iris-signer"}


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_both_prediction_apis_are_public_and_log_and_metrics_are_not(
    rendered: dict[str, list[KubernetesObject]], environment: str
) -> None:
    (route,) = _named(rendered[environment], "IngressRoute")["iris"]["spec"]["routes"]
    assert route["match"].startswith(f"Host(`{public_host(environment)}`) && (Path(")
    whole = set(re.findall(r"\bPath\(`([^`]+)`\)", route["match"]))
    prefixes = tuple(re.findall(r"\bPathPrefix\(`([^`]+)`\)", route["match"]))
    model = "/v2/models/iris-classifier"
    for path in ("/predict", "/predict/batch", "/v2", "/v2/health/ready", model, f"{model}/versions/1/infer"):
        assert path in whole or path.startswith(prefixes), path
    for path in ("/", "/logs", "/metrics", "/metrics-prometheus", "/readyz"):
        assert path not in whole, path
        assert not path.startswith(prefixes), path


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_every_selector_selects_a_pod(rendered: dict[str, list[KubernetesObject]], environment: str) -> None:
    objects = rendered[environment]
    labels = [labels for _, labels, _ in _pods(objects)]
    selectors = [item["spec"]["selector"] for item in objects if item["kind"] == "Service"]
    selectors += [
        item["spec"]["selector"]["matchLabels"]
        for item in objects
        if item["kind"] in {"PodDisruptionBudget", "Rollout", "StatefulSet", "Deployment"}
    ]
    found = re.findall(r"'podSelector': \{'matchLabels': (\{[^}]*\})", str(_named(objects, "NetworkPolicy")))
    selectors += [yaml.safe_load(text) for text in found if "k8s-app" not in text]
    assert len(selectors) >= 9
    for selector in selectors:
        assert any(selector.items() <= candidate.items() for candidate in labels), selector
    ports = {
        port["name"] for _, _, pod in _pods(objects) for c in pod["containers"] for port in c.get("ports", [])
    }
    for service in _named(objects, "Service").values():
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_every_pod_runs_the_released_image_by_digest(
    rendered: dict[str, list[KubernetesObject]], environment: str
) -> None:
    images = {
        name: container["image"]
        for name, labels, pod in _pods(rendered[environment])
        for container in pod["containers"]
        if labels["app.kubernetes.io/component"] != "database"
    }
    checker = images.pop("signature")
    assert images == dict.fromkeys(("iris", "iris-drift", "golden"), f"{IMAGE}@{RELEASE.digest}")
    assert checker.startswith("ghcr.io/sigstore/cosign/")
    rollout = _named(rendered[environment], "Rollout")["iris"]
    assert rollout["spec"]["template"]["metadata"]["annotations"]["model-version"] == "7"
    gate = next(pod for name, _, pod in _pods(rendered[environment]) if name == "golden")
    maps = _named(rendered[environment], "ConfigMap")
    files = {file for volume in gate["volumes"] for file in maps[volume["configMap"]["name"]]["data"]}
    assert files == {"golden.py", "model.json"}


@pytest.mark.parametrize("where", ["dev", "prod", "monitoring"])
def test_every_pod_is_restricted_has_limits_and_no_unneeded_token(
    rendered: dict[str, list[KubernetesObject]], where: str
) -> None:
    pods = list(_pods(rendered[where]))
    assert pods
    for name, labels, pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        assert name == "prometheus" or pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
        if SERVING.items() <= labels.items():
            assert {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} <= pod["containers"][0].keys()
            # The preStop pause plus two drain periods.
            set_to = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
            assert pod["terminationGracePeriodSeconds"] >= 5 + 2 * float(set_to["IRIS_DRAIN_SECONDS"])
        for volume in pod.get("volumes", []):
            allowed = {"persistentVolumeClaim", "secret"} if where == "monitoring" else {"downwardAPI"}
            assert volume.keys() & {"configMap", "emptyDir", *allowed}
            assert volume.get("secret", {"optional": True})["optional"]  # created outside of git, or absent


def test_the_volume_of_the_journal_has_room_for_its_worst_case(
    rendered: dict[str, list[KubernetesObject]], tmp_path: Path
) -> None:
    """That is a full journal, a quarantined one, and its copy, which service.recover makes, each with a WAL."""
    with closing(Journal(tmp_path, max_mib=16)) as journal:
        with suppress(sqlite3.OperationalError):
            while True:
                journal.append(b"x" * 500_000, 2048)  # until it is full
        wal = (tmp_path / "journal.sqlite-wal").stat().st_size
    for environment in ("dev", "prod"):
        pod = next(pod for name, _, pod in _pods(rendered[environment]) if name == "iris")
        assert "IRIS_JOURNAL_MAX_MIB" not in {entry["name"] for entry in pod["containers"][0]["env"]}
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "journal")
        size, unit = re.fullmatch(r"(\d+)([MG]i)", volume["emptyDir"]["sizeLimit"]).groups()  # type: ignore[union-attr]
        limit = int(size) * {"Mi": 2**20, "Gi": 2**30}[unit]
        assert limit > 3 * (Settings.model_fields["journal_max_mib"].default * 2**20 + wal)


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_the_drift_process_serves_no_traffic_and_survives_a_bad_image(
    rendered: dict[str, list[KubernetesObject]], environment: str
) -> None:
    objects = rendered[environment]
    labels = next(labels for name, labels, _ in _pods(objects) if name == "iris-drift")
    for item in objects:
        if item["kind"] in {"Service", "PodDisruptionBudget", "Rollout"}:
            selector = item["spec"]["selector"]
            assert not selector.get("matchLabels", selector).items() <= labels.items(), item["metadata"]
    deployment = _named(objects, "Deployment")["iris-drift"]["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    (container,) = deployment["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "service.drift"]
    assert {"readinessProbe", "livenessProbe"} <= container.keys()
    policy = _named(objects, "NetworkPolicy")["drift"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    port = container["ports"][0]["name"]
    assert policy["ingress"] == [{"from": [monitoring], "ports": [{"port": port}]}]
    assert policy["egress"] == [{"ports": [{"port": 5432}]}]
    if environment == "dev":
        (rule,) = _named(objects, "NetworkPolicy")["database"]["spec"]["ingress"]
        assert any(peer["podSelector"]["matchLabels"].items() <= labels.items() for peer in rule["from"])
    jobs = yaml.safe_load((ROOT / "monitoring/scrape/kubernetes.yml").read_text())["scrape_configs"]
    for job in jobs:
        for found in job.get("kubernetes_sd_configs", []):
            for selector in found.get("selectors", []):
                name, _, value = selector["label"].partition("=")
                assert (labels[name] == value) == (job["job_name"] == "iris-drift")
    assert "iris-drift" in {job["job_name"] for job in jobs}


def test_dev_deletes_old_predictions_and_prod_keeps_them(rendered: dict[str, list[KubernetesObject]]) -> None:
    days = {}
    for where in ("dev", "local dev", "prod", "local prod"):
        pods = {name: pod for name, _, pod in _pods(rendered[where])}
        variables = {entry["name"]: entry.get("value") for entry in pods["iris-drift"]["containers"][0]["env"]}
        days[where] = variables.get("IRIS_LOG_DAYS")
    assert days == {"dev": "7", "local dev": "7", "prod": None, "local prod": None}


def test_before_the_first_release_no_object_needs_an_image(
    rendered: dict[str, list[KubernetesObject]],
) -> None:
    kinds = {item["kind"] for item in rendered["prod"]} - {item["kind"] for item in rendered["nothing"]}
    assert kinds == {"Rollout", "HorizontalPodAutoscaler", "Deployment", "Job"}
    # Only a Rollout creates the gate's Job.
    assert {name for name, _, _ in _pods(rendered["nothing"])} == {"golden"}


def test_dev_and_prod_differ_only_in_allowed_fields(rendered: dict[str, list[KubernetesObject]]) -> None:
    dev, prod = (
        {
            (item["kind"], item["metadata"]["name"]): item
            for item in rendered[environment]
            if item["metadata"].get("labels", {}).get("app.kubernetes.io/name") != "postgres"
        }
        for environment in ("dev", "prod")
    )
    assert dev.keys() == prod.keys()
    different = set()
    for key, item in prod.items():
        assert dev[key]["metadata"]["namespace"] == "iris-dev"
        assert item["metadata"]["namespace"] == "iris-prod"
        different |= {(key[0], path) for path in _different(dev[key], item)}
    assert different - {(kind, "metadata.namespace") for kind, _ in prod} == DIFFERENT


def _different(one: object, other: object, path: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            yield from _different(one.get(name), other.get(name), f"{path}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _different(a, b, f"{path}.{index}")
    elif one != other:
        yield path.removeprefix(".")


def test_the_blue_green_variant_has_the_same_services_and_gates(
    rendered: dict[str, list[KubernetesObject]],
) -> None:
    objects = rendered["blue-green"]
    strategy = _named(objects, "Rollout")["iris"]["spec"]["strategy"]
    assert strategy.keys() == {"blueGreen"}
    blue_green = strategy["blueGreen"]
    assert (blue_green["activeService"], blue_green["previewService"]) == ("iris-stable", "iris-canary")
    gates = [blue_green[f"{when}PromotionAnalysis"] for when in ("pre", "post")]
    assert [gate["templates"] for gate in gates] == [[{"templateName": "golden"}], [{"templateName": "slo"}]]
    known = {argument["name"] for argument in _named(objects, "AnalysisTemplate")["slo"]["spec"]["args"]}
    given = {argument["name"]: argument.get("value") for argument in gates[1]["args"]}
    assert known - {"interval"} == given.keys()
    assert given["service"] == blue_green["activeService"]  # the Service with all traffic
    assert {(item["kind"], item["metadata"]["name"]) for item in objects} == {
        (item["kind"], item["metadata"]["name"]) for item in rendered["prod"]
    }


@pytest.mark.parametrize("where", ["dev", "prod", "local dev", "local prod"])
def test_a_canary_has_time_to_get_a_node_and_to_start(
    rendered: dict[str, list[KubernetesObject]], where: str
) -> None:
    rollout = _named(rendered[where], "Rollout")["iris"]["spec"]
    steps = rollout["strategy"]["canary"]["steps"]
    # The controller stops the deadline during these two, and restarts it with the next step.
    assert {name for step in steps for name in step} <= {"analysis", "pause", "setCanaryScale", "setWeight"}
    node = 30 if where.startswith("local") else _golden_seconds(rendered[where])  # there, to be scheduled
    assert rollout["progressDeadlineSeconds"] >= node + _start_seconds(rollout)


@pytest.mark.parametrize("where", ["blue-green", "local blue-green"])
def test_the_deadline_of_blue_green_covers_both_gates(
    rendered: dict[str, list[KubernetesObject]], where: str
) -> None:
    objects = rendered[where]
    rollout = _named(objects, "Rollout")["iris"]["spec"]
    blue_green = rollout["strategy"]["blueGreen"]
    golden = _golden_seconds(objects)
    before_the_switch = golden + _start_seconds(rollout) + golden  # a node takes no longer than the Job may
    slo = _named(objects, "AnalysisTemplate")["slo"]["spec"]
    given = {arg["name"]: arg.get("value") for arg in [*slo["args"], *blue_green["postPromotionAnalysis"]["args"]]}
    for metric in slo["metrics"]:
        assert metric["interval"] == "{{args.interval}}"
        gate = _seconds(metric["initialDelay"]) + (int(given["measurements"]) - 1) * _seconds(given["interval"])
        # Measurements without data come on top.
        assert rollout["progressDeadlineSeconds"] >= max(before_the_switch, 2 * gate)


def test_no_measurement_contains_the_traffic_before_its_gate(rendered: dict[str, list[KubernetesObject]]) -> None:
    rules = yaml.safe_load((ROOT / "monitoring/rules.yml").read_text())
    gates = [
        rule["expr"] for group in rules["groups"] if group["name"] in {"iris", "router"} for rule in group["rules"]
    ]
    (window,) = set(re.findall(r"rate\(.+?\[(\w+)\]\)", "\n".join(gates)))
    (offset,), (ready,) = (re.findall(found, "\n".join(gates)) for found in (r"offset (\w+)", r"pods\[(\w+)\]"))
    for metric in _named(rendered["prod"], "AnalysisTemplate")["slo"]["spec"]["metrics"]:
        unserved = metric["name"] == "router-unserved"
        needed = max(_seconds(window) + _seconds(offset), _seconds(ready)) if unserved else _seconds(window)
        assert _seconds(metric["initialDelay"]) >= needed


def _golden_seconds(objects: list[KubernetesObject]) -> int:
    """Return how long the golden gate's Job may take, including the time to add a node."""
    (metric,) = _named(objects, "AnalysisTemplate")["golden"]["spec"]["metrics"]
    return int(metric["provider"]["job"]["spec"]["activeDeadlineSeconds"])


def _start_seconds(rollout: KubernetesObject) -> int:
    """Return how long a container of the service may take to start."""
    probe = rollout["template"]["spec"]["containers"][0]["startupProbe"]
    return int(probe["periodSeconds"] * probe["failureThreshold"])


def _seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_local_overlays_differ_only_in_signer_and_waits(
    rendered: dict[str, list[KubernetesObject]], environment: str
) -> None:
    local, original = (
        {(item["kind"], item["metadata"]["name"]): item for item in rendered[where]}
        for where in (f"local {environment}", environment)
    )
    assert local.keys() == original.keys()
    different = {(key[1], path) for key, item in original.items() for path in _different(local[key], item)}
    waits = {("iris", "spec.strategy.canary.scaleDownDelaySeconds")}
    if environment == "prod":
        waits |= {("iris", "spec.progressDeadlineSeconds"), ("slo", "spec.args.3.value")}
    signer = {
        ("signature", "spec.template.spec.containers.0.args"),
        ("signature", "spec.template.spec.containers.0.env"),
        ("signature", "spec.egress.0.ports.0.port"),
    }
    assert different == signer | waits


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_the_image_signature_is_verified_before_a_release_is_applied(
    rendered: dict[str, list[KubernetesObject]], environment: str
) -> None:
    containers, local = {}, f"local {environment}"
    for where in (environment, local):
        (job,) = _named(rendered[where], "Job").values()
        assert job["metadata"]["annotations"]["argocd.argoproj.io/hook"] == "PreSync"
        pod = job["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        (container,) = pod["containers"]
        assert "command" not in container
        assert (container["args"][0], container["args"][-1]) == ("verify", "$(IMAGE)")
        assert {"name": "IMAGE", "value": f"{IMAGE}@{RELEASE.digest}"} in container["env"]
        assert container["image"] in {image.name for image in images.all_images()}
        # The Job runs before the environment's ServiceAccount and ConfigMaps exist.
        assert "serviceAccountName" not in pod
        assert [volume.keys() for volume in pod["volumes"]] == [{"name", "emptyDir"}]
        containers[where] = container
    pushed_to = f"{node.REGISTRY}/{images.in_registry(IMAGE)}"
    assert {"name": "COSIGN_REPOSITORY", "value": pushed_to} in containers[local]["env"]
    repository = yaml.safe_load((ROOT / "monitoring/prometheus.yml").read_text())["global"]["external_labels"]
    by_workflow = [
        f"--certificate-identity={repository['repository']}/.github/workflows/release.yml@refs/heads/main",
        "--certificate-oidc-issuer=https://token.actions.githubusercontent.com",
        "--output=text",
    ]
    by_key = ["--key=env://SIGNER", "--insecure-ignore-tlog", "--output=text"]
    assert containers[environment]["args"][1:-1] in (by_workflow, by_key)
    [container] = yaml.safe_load(SIGNATURE_JOB.read_text())["spec"]["template"]["spec"]["containers"]
    assert container["args"][1:-1] == by_workflow


@pytest.mark.parametrize("where", ["argocd", "local argocd"])
def test_argo_cd_projects_allow_exactly_what_is_deployed(
    rendered: dict[str, list[KubernetesObject]], where: str
) -> None:
    applications = _named(rendered[where], "Application")
    projects = _named(rendered[where], "AppProject")
    built = {f"overlays/{name}": name for name in ("dev", "prod")} | {
        "overlays/local/dev": "local dev",
        "overlays/local/prod": "local prod",
        "overlays/local/argocd": "local argocd",
        "manifests/argocd": "argocd",
        "monitoring": "monitoring",
        "overlays/local/monitoring": "local monitoring",
    }
    used: dict[str, set[tuple[str, str]]] = {name: set() for name in projects}
    places: dict[str, set[str]] = {name: set() for name in projects}
    for application in applications.values():
        spec = application["spec"]
        project = projects[spec["project"]]["spec"]
        assert [spec["source"].get("repoURL")] == project["sourceRepos"]
        places[spec["project"]].add(spec["destination"]["namespace"])
        for item in rendered[built[spec["source"]["path"]]]:
            assert item["metadata"]["namespace"] == spec["destination"]["namespace"]
            group, _, _ = item["apiVersion"].rpartition("/")
            used[spec["project"]].add((group, item["kind"]))
    for name, project in projects.items():
        allowed = [(entry["group"], entry["kind"]) for entry in project["spec"]["namespaceResourceWhitelist"]]
        assert sorted(used[name]) == sorted(allowed)
        assert sorted(places[name]) == sorted(entry["namespace"] for entry in project["spec"]["destinations"])
        assert "clusterResourceWhitelist" not in project["spec"]
    assert len({str(project["spec"]["sourceRepos"]) for project in projects.values()}) == 1


def test_git_contains_no_secret_and_no_wildcard_right() -> None:
    files = [
        file for folder in ("manifests", "overlays", "monitoring") for file in (ROOT / folder).rglob("*.yaml")
    ]
    assert len(files) > 30
    for file in files:
        for item in yaml.safe_load_all(file.read_text()):
            assert item.get("kind") != "Secret", file
            for rule in item.get("rules") or []:
                assert "*" not in [*rule["verbs"], *rule.get("resources", []), *rule.get("apiGroups", [])], file


def test_a_gate_reaches_a_verdict_only_on_a_number(rendered: dict[str, list[KubernetesObject]]) -> None:
    slo = _named(rendered["prod"], "AnalysisTemplate")["slo"]["spec"]["metrics"]
    assert len(slo) == 5
    steps = _named(rendered["prod"], "Rollout")["iris"]["spec"]["strategy"]["canary"]["steps"]
    gates = [step["analysis"] for step in steps if "slo" in str(step.get("analysis"))]
    measurements = [{arg["name"]: arg.get("value") for arg in gate["args"]}["measurements"] for gate in gates]
    assert measurements == ["10", "3"]
    assert {"name": "interval", "value": "30s"} in _named(rendered["prod"], "AnalysisTemplate")["slo"]["spec"][
        "args"
    ]
    for metric in slo:
        limit = metric["successCondition"].rpartition(" ")[2]
        number = "len(result) == 1 && !isNaN(result[0]) && result[0]"
        assert metric["successCondition"] == f"{number} <= {limit}"
        assert metric["failureCondition"] == f"{number} > {limit}"
        assert float(limit) == {"errors": 0.01, "unserved": 0.001, "p95": 0.5}[metric["name"].rpartition("-")[2]]
        # The gate never ends without data: Argo Rollouts would then ignore a revert.
        assert (
            metric["count"] >= metric["inconclusiveLimit"] > 3600 * 24 * 300 / 30
        )  # 300 days of one measurement every 30 s
        assert metric["consecutiveSuccessLimit"] == "{{args.measurements}}"
        assert metric["consecutiveErrorLimit"] * 10 >= 60  # seconds for which Prometheus may be unavailable


def test_argo_rollouts_evaluates_the_gates_as_intended(rendered: dict[str, list[KubernetesObject]]) -> None:
    for metric in _named(rendered["prod"], "AnalysisTemplate")["slo"]["spec"]["metrics"]:
        limit = re.findall(r"\d+\.\d+", metric["successCondition"])[-1]
        intended = [
            ([], "Inconclusive"),
            (["NaN"], "Inconclusive"),
            (["0"], "Successful"),
            ([limit], "Successful"),
            ([str(math.nextafter(float(limit), math.inf))], "Failed"),
            (["+Inf"], "Failed"),
            (["0", "0"], "Inconclusive"),
        ]
        answers = [answer for answer, _ in intended]
        assert list(zip(answers, phases(metric, answers), strict=True)) == intended, metric["name"]


def test_gates_query_only_recording_rules(rendered: dict[str, list[KubernetesObject]]) -> None:
    rules = yaml.safe_load((ROOT / "monitoring/rules.yml").read_text())
    recorded = {rule.get("record") for group in rules["groups"] for rule in group["rules"]}
    read = set()
    for metric in _named(rendered["prod"], "AnalysisTemplate")["slo"]["spec"]["metrics"]:
        query = metric["provider"]["prometheus"]["query"]
        found = re.fullmatch(
            r'([\w:]+)\{namespace="\{\{args\.namespace\}\}", (\w+)="\{\{args\.(hash|service)\}\}"\}', query
        )
        assert found, query
        read.add(found[1])
    both = {f"{view}:{number}" for view in ("iris", "router") for number in NUMBERS}
    assert read == {*both, "iris:unserved_ratio"}
    assert read <= recorded


def test_the_service_exports_every_metric_and_label_that_a_rule_reads(
    shared_service: RunningService, model: Path, tmp_path: Path
) -> None:
    assert shared_service.predict().status_code == 200
    rows = {"features": [SETOSA] * 100}
    assert shared_service.client.post("/predict/batch", json=rows).status_code == 200
    exported = shared_service.client.get("/metrics").text
    log = shared_service.environ["DATABASE_URL"]
    settings = {"drift_seconds": "1", "log_days": "7"}
    with RunningService(model, log, tmp_path / "drift", module="service.drift", **settings) as drift:
        wait_until(lambda: drift.metric("iris_drift_statistic"), "drift to be measured")
        exported += drift.client.get("/metrics").text
    rules = (ROOT / "monitoring/rules.yml").read_text()
    read = set(re.findall(r"\b(iris_\w+)", rules))
    read -= {"iris_memory_limit_mb"}  # only where a limit is set: tests/service/test_metrics.py tests it
    assert len(read) > 10
    assert all(re.search(rf"^{name}[ {{]", exported, re.MULTILINE) for name in read), read
    needed = {
        "iris_requests_total": ("endpoint", "status"),
        "iris_request_latency_seconds_bucket": ("endpoint", "le"),
        "iris_predictions_total": ("prediction",),
        "iris_drift_statistic": ("about", "version"),
        "iris_drift_limit": ("about", "version"),
    }
    for name, labels in needed.items():
        series = re.findall(rf"^{name}\{{(.*)\}}", exported, re.MULTILINE)
        assert series
        assert all(f'{label}="' in series[0] for label in labels)
    assert 'iris_requests_total{endpoint="/predict"' in exported
    assert 'le="0.5"' in exported  # the gate's limit is a bucket edge


def test_local_monitoring_uses_the_images_and_volumes_of_the_local_cluster(
    rendered: dict[str, list[KubernetesObject]],
) -> None:
    objects = rendered["local monitoring"]
    built = {image.name for image in images.all_images()}
    pods = {name: pod for name, _, pod in _pods(objects)}
    assert pods.keys() == {"alertmanager", "prometheus"}
    labels = [labels for _, labels, _ in _pods(objects)]
    for service in _named(objects, "Service").values():
        assert service["spec"]["selector"] in labels
    maps, claims = _named(objects, "ConfigMap"), _named(objects, "PersistentVolumeClaim")
    files = {}
    for name, pod in pods.items():
        (container,) = pod["containers"]
        assert container["image"] in built
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == volumes.keys()
        files[name] = maps[volumes["config"]["configMap"]["name"]]["data"]
        assert f"--config.file={mounts['config']}/{name}.yml" in container["args"]
    assert files["alertmanager"].keys() == {"alertmanager.yml"}
    assert files["prometheus"].keys() == {"prometheus.yml", "rules.yml", "scrape.yml"}
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pods["prometheus"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claimed == claims.keys()
    local_volumes = list(yaml.safe_load_all((ROOT / "overlays/local/platform/volumes.yaml").read_text()))
    for name, claim in claims.items():
        reference = {"namespace": "monitoring", "name": name}
        (volume,) = [found["spec"] for found in local_volumes if found["spec"]["claimRef"] == reference]
        assert volume["capacity"] == claim["spec"]["resources"]["requests"]


def test_grafana_matches_compose_and_is_missing_only_from_the_local_cluster(
    rendered: dict[str, list[KubernetesObject]],
) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    (pod,) = (pod for name, _, pod in _pods(rendered["monitoring"]) if name == "grafana")
    (container,) = pod["containers"]
    assert container["image"] == compose["image"]
    assert str(pod["securityContext"]["runAsUser"]) == compose["user"].partition(":")[0]
    (folder,) = (volume.split(":")[1] for volume in compose["volumes"] if volume.startswith("./"))
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    maps = _named(rendered["monitoring"], "ConfigMap")
    shown = {}
    for volume in pod["volumes"]:
        data = maps[volume["configMap"]["name"]]["data"] if "configMap" in volume else {}
        paths = {item["key"]: item["path"] for item in volume.get("configMap", {}).get("items", [])}
        for key, text in data.items():
            shown[f"{mounts[volume['name']]}/{paths.get(key, key)}"] = text
    grafana = ROOT / "monitoring/grafana"
    (settings,) = compose["env_file"]
    files = [file for file in grafana.rglob("*") if file.is_file() and file != ROOT / settings]
    assert shown == {f"{folder}/{file.relative_to(grafana)}": file.read_text() for file in files}
    (source,) = container["envFrom"]
    lines = [line for line in (ROOT / settings).read_text().splitlines() if not line.startswith("#")]
    assert maps[source["configMapRef"]["name"]]["data"] == dict(line.split("=") for line in lines)

    everywhere, local = (
        {(item["kind"], item["metadata"]["name"]) for item in rendered[name]}
        for name in ("monitoring", "local monitoring")
    )
    assert everywhere - local == {("Deployment", "grafana"), ("Service", "grafana")}
    assert local < everywhere


def test_prometheus_discovers_pods_only_where_it_is_allowed() -> None:
    scraped = yaml.safe_load((ROOT / "monitoring/scrape/kubernetes.yml").read_text())["scrape_configs"]
    discovered = {
        name
        for job in scraped
        for discovery in job.get("kubernetes_sd_configs", [])
        for name in discovery["namespaces"]["names"]
    }
    file = ROOT / "manifests/platform/environments/prometheus-rolebindings.yaml"
    assert discovered == {item["metadata"]["namespace"] for item in yaml.safe_load_all(file.read_text())}
