"""The kustomizations of the platform name the versions of the Go modules, and everything they render is valid."""

import re

import pytest
import yaml

from tests.support.running import ROOT
from tests.support.schemas import problems
from tools import programs
from tools.cluster import images, kustomize
from tools.errors import ToolError

KUSTOMIZATIONS = sorted((ROOT / "manifests/platform").glob("*/kustomization.yaml"))
ADDRESSES = [
    (file.parent.name, address)
    for file in KUSTOMIZATIONS
    for address in re.findall(r"https?://\S+", file.read_text())
]
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def test_each_component_has_a_kustomization_and_each_refers_to_upstream() -> None:
    components = {"argo-cd", "argo-rollouts", "metrics-server", "traefik"}
    assert {name for name, _ in ADDRESSES} == components
    assert {file.parent.name for file in KUSTOMIZATIONS} == components | {"environments"}


@pytest.mark.parametrize(("name", "address"), ADDRESSES)
def test_an_address_names_the_version_that_go_mod_requires(name: str, address: str) -> None:
    found = kustomize.FOLDER.fullmatch(address) or kustomize.FILE.fullmatch(address)
    assert found, f"{address} is not a pinned address of upstream's manifests"
    assert found["version"] == programs.version(name)


def test_different_versions_are_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "version", lambda _: "v0.0.1")
    with pytest.raises(ToolError, match=r"requires \S+ v\S+, tools/modules/\S+/go.mod v0.0.1: make them"):
        kustomize.render("overlays/local/platform", print)


@pytest.mark.cluster
def test_the_cluster_builds_every_image_of_the_platform_at_that_version() -> None:
    rendered = kustomize.render("overlays/local/platform", print)
    used = set(re.findall(r"^\s+(?:- )?image: (\S+)$", rendered, re.MULTILINE))
    assert {name.partition(":")[0].rpartition("/")[2] for name in used} == {
        "argocd", "argo-rollouts", "metrics-server", "postgres", "redis", "traefik",
    }  # fmt: skip
    assert used <= {image.name for image in images.all_images()}


@pytest.mark.cluster
def test_every_container_of_the_platform_has_requests_a_memory_limit_and_no_privileges() -> None:
    rendered = kustomize.render("overlays/local/platform", print)
    items = [item for item in yaml.load_all(rendered, yaml.CSafeLoader) if "template" in item.get("spec", {})]
    assert len(items) == 8
    for item in items:
        pod = item["spec"]["template"]["spec"]
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            name = f"{item['metadata']['name']}/{container['name']}"
            resources = {"requests": {}, "limits": {}} | container.get("resources", {})
            assert {"cpu", "memory"} <= resources["requests"].keys(), name
            assert "memory" in resources["limits"], name
            security = pod.get("securityContext", {}) | container.get("securityContext", {})
            assert RESTRICTED.items() <= security.items(), name


@pytest.mark.cluster
def test_every_object_of_the_platform_matches_its_schema() -> None:
    texts = kustomize.render("overlays/local/platform", print), kustomize.render("overlays/local/argocd", print)
    items = [item for text in texts for item in yaml.load_all(text, yaml.CSafeLoader)]
    assert {"AppProject", "Application", "CustomResourceDefinition"} <= {item["kind"] for item in items}
    found = [problem for item in items for problem in problems(item)]
    assert not found, "\n".join(found)
