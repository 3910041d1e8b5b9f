"""The schemas by which the cluster's API server judges objects, and what is wrong with an object by them."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from tools import programs

Schema = dict[str, Any]
COMPONENTS = "#/components/schemas/"
# Groups that Kubernetes itself does not have, and the modules and files that define their kinds.
CUSTOM = {
    "argoproj.io": (("argo-rollouts", "manifests/crds/*-crd.yaml"), ("argo-cd", "manifests/crds/*-crd.yaml")),
    "traefik.io": (("traefik", "docs/content/reference/dynamic-configuration/kubernetes-crd-definition-v1.yml"),),
}
# Where those kinds hold native ones. Argo's definitions leave volumes and resources open, so that anything goes.
EMBEDDED = {
    "Rollout": ("spec.template", "io.k8s.api.core.v1.PodTemplateSpec"),
    "AnalysisTemplate": ("spec.metrics.items.provider.job.spec", "io.k8s.api.batch.v1.JobSpec"),
}
KNOWS_EMBEDDED = "batch/v1"
# In the Go source from which Kubernetes makes its schemas: a type, a field of it, and the field's (or its items')
# only values. The published schemas leave the values out.
VALUES = re.compile(
    r"^func schema_(?P<type>\w+)\("
    r'|^\t{5}"(?P<field>\w+)": \{'
    r"|^\t{7}(?P<of_items>\t{3})?Enum: +\[\]interface\{\}\{(?P<values>.*)\},$",
    re.MULTILINE,
)
QUANTITY = r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$"


def problems(item: dict[str, Any]) -> list[str]:
    """Return what the API server would refuse in an object, or drop from it without a word: where, and what."""
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
    # OpenAPI 3.0 is nearest to draft 4.
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
    """Return the native schemas of a version, like apps/v1, and of all that they refer to, by name."""
    name = f"apis__{version.replace('/', '__')}" if "/" in version else f"api__{version}"
    file = _source("kubernetes") / f"api/openapi-spec/v3/{name}_openapi.json"
    if not file.exists():
        return {}
    schemas = json.loads(file.read_text())["components"]["schemas"]
    components = {name: _strict(schema) for name, schema in schemas.items()}
    for name, schema in components.items():
        values = _values().get(name.replace("io.k8s.", "k8sio.").replace(".", "_"), {})
        for field, only in values.items():
            schema["properties"][field].update(only)
        if name.endswith(".Quantity"):
            schema["pattern"] = QUANTITY
    return components


@functools.cache
def _values() -> dict[str, dict[str, Schema]]:
    """Return, for types and their fields, the part of a schema that names the only values."""
    values: dict[str, dict[str, Schema]] = {}
    text = (_source("kubernetes") / "pkg/generated/openapi/zz_generated.openapi.go").read_text()
    for found in VALUES.finditer(text):
        if found["type"]:
            fields = values.setdefault(found["type"], {})
        elif found["field"]:
            field = found["field"]
        else:
            only = {"enum": json.loads(f"[{found['values']}]")}
            fields[field] = {"items": {"type": "string", **only}} if found["of_items"] else only
    return values


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
    """Yield the definitions of a group's kinds, from those files alone that name the kind: they are long."""
    for module, pattern in CUSTOM[group]:
        for file in sorted(_source(module).glob(pattern)):
            text = file.read_text()
            if f"kind: {kind}\n" in text:
                yield from yaml.load_all(text, yaml.CSafeLoader)


def _embed(schema: Schema, path: str, native: str) -> None:
    """Demand at that path what the definition says and what the native schema says."""
    *way, last = path.split(".")
    for step in way:
        schema = schema["items"] if step == "items" else schema["properties"][step]
    schema["properties"][last] = {"allOf": [schema["properties"][last], _component(native)]}


def _strict(schema: Schema) -> Schema:
    """Return a schema by which a field that it does not name is wrong, unless it says that it keeps those."""
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
