"""Validate Kubernetes objects against the schemas of the API server and of the custom resources."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from delivery.kubernetes import KubernetesObject
from tools import programs

Schema = dict[str, Any]
COMPONENTS = "#/components/schemas/"
# The API groups of custom resources, and the modules and files with their definitions.
CUSTOM = {
    "argoproj.io": (("argo-rollouts", "manifests/crds/*-crd.yaml"), ("argo-cd", "manifests/crds/*-crd.yaml")),
    "traefik.io": (("traefik", "docs/content/reference/dynamic-configuration/kubernetes-crd-definition-v1.yml"),),
}
# Where custom kinds embed native types. Argo's definitions do not validate the volumes and resources in them.
EMBEDDED = {
    "Rollout": ("spec.template", "io.k8s.api.core.v1.PodTemplateSpec"),
    "AnalysisTemplate": ("spec.metrics.items.provider.job.spec", "io.k8s.api.batch.v1.JobSpec"),
}
KNOWS_EMBEDDED = "batch/v1"  # the published schemas of this version include both types
# Matches, in the Go source of Kubernetes' schemas, a type, a field of it, and the enum of the field or its items.
# The published schemas omit the enums.
ENUMS = re.compile(
    r"^func schema_(?P<type>\w+)\("
    r'|^\t{5}"(?P<field>\w+)": \{'
    r"|^\t{7}(?P<of_items>\t{3})?Enum: +\[\]interface\{\}\{(?P<values>.*)\},$",
    re.MULTILINE,
)
QUANTITY = r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$"


def problems(item: KubernetesObject) -> list[str]:
    """Return what the API server would reject in an object or silently drop from it: the place and the problem."""
    version, kind = item["apiVersion"], item["kind"]
    validator = _validator(version, kind)
    if not validator:
        return [f"there is no schema for {version} {kind}"]
    found = {
        f"{kind} {item['metadata']['name']}, {'.'.join(map(str, error.instance_path))}: {error.message}"
        for error in validator.iter_errors(item)
    }
    return sorted(found)


@functools.cache
def _validator(version: str, kind: str) -> jsonschema_rs.Draft4Validator | None:
    group, _, number = version.rpartition("/")
    custom = group in CUSTOM
    components = _components(KNOWS_EMBEDDED if custom else version)
    schema = _custom(group, number, kind) if custom else _native(components, group, number, kind)
    if not schema:
        return None
    # Draft 4 is the closest to OpenAPI 3.0.
    return jsonschema_rs.Draft4Validator({**schema, "components": {"schemas": components}})


def _native(components: Schema, group: str, number: str, kind: str) -> Schema | None:
    wanted = {"group": group, "version": number, "kind": kind}
    for name, schema in components.items():
        if wanted in schema.get("x-kubernetes-group-version-kind", []):
            return {"allOf": [_component(name)]}
    return None


def _component(name: str) -> Schema:
    return {"$ref": COMPONENTS + name}


@functools.cache
def _components(version: str) -> Schema:
    """Return the native schemas of an API version, like apps/v1, and all that they refer to, by name."""
    name = f"apis__{version.replace('/', '__')}" if "/" in version else f"api__{version}"
    file = _source("kubernetes") / f"api/openapi-spec/v3/{name}_openapi.json"
    if not file.exists():
        return {}
    schemas = json.loads(file.read_text())["components"]["schemas"]
    components = {name: _strict(schema) for name, schema in schemas.items()}
    for name, schema in components.items():
        enums = _enums().get(name.replace("io.k8s.", "k8sio.").replace(".", "_"), {})
        for field, enum in enums.items():
            schema["properties"][field].update(enum)
        if name.endswith(".Quantity"):
            schema["pattern"] = QUANTITY
    return components


@functools.cache
def _enums() -> dict[str, dict[str, Schema]]:
    """Return the enum of each field of each type, as a part of a schema."""
    enums: dict[str, dict[str, Schema]] = {}
    text = (_source("kubernetes") / "pkg/generated/openapi/zz_generated.openapi.go").read_text()
    for found in ENUMS.finditer(text):
        if found["type"]:
            fields = enums.setdefault(found["type"], {})
        elif found["field"]:
            field = found["field"]
        else:
            enum = {"enum": json.loads(f"[{found['values']}]")}
            fields[field] = {"items": {"type": "string", **enum}} if found["of_items"] else enum
    return enums


def _custom(group: str, number: str, kind: str) -> Schema | None:
    for definition in _definitions(group, kind):
        for version in definition["spec"]["versions"]:
            if version["name"] == number and definition["spec"]["names"]["kind"] == kind:
                schema = _strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = _component("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
                if kind in EMBEDDED:
                    _embed(schema, *EMBEDDED[kind])
                return schema
    return None


def _definitions(group: str, kind: str) -> Iterator[Schema]:
    """Yield the definitions in those files of a group that mention the kind. Parsing all files would take long."""
    for module, pattern in CUSTOM[group]:
        for file in sorted(_source(module).glob(pattern)):
            text = file.read_text()
            if f"kind: {kind}\n" in text:
                yield from yaml.load_all(text, yaml.CSafeLoader)


def _embed(schema: Schema, path: str, native: str) -> None:
    """Require at that path both the definition's own schema and the native one."""
    *parents, last = path.split(".")
    for step in parents:
        schema = schema["items"] if step == "items" else schema["properties"][step]
    schema["properties"][last] = {"allOf": [schema["properties"][last], _component(native)]}


def _strict(schema: Schema) -> Schema:
    """Return a copy of the schema that rejects unknown fields, unless the schema preserves them."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: _strict(inner) for name, inner in schema["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            strict[name] = _strict(schema[name])
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


@functools.cache
def _source(module: str) -> Path:
    return programs.source(module)
