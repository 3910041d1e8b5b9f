"""/openapi.json describes the endpoints correctly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import RunningService

MODEL = "/v2/models/iris-classifier"
PATHS = {
    "/healthz",
    "/readyz",
    "/info",
    "/predict",
    "/predict/batch",
    "/logs",
    "/metrics",
    "/metrics-prometheus",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    *(f"{address}{of}" for address in (MODEL, f"{MODEL}/versions/1") for of in ("", "/ready", "/infer")),
}


@pytest.fixture(scope="session")
def document(shared_service: RunningService) -> dict[str, Any]:
    """/openapi.json."""
    content: dict[str, Any] = shared_service.client.get("/openapi.json").json()
    return content


# The default lists of schemathesis, plus 413: a body that is too large is rejected unread, valid or not. For
# tensors, 400 as well: no schema can express that data match their shape and the bounds of their column.
EXPECTED = """
[checks]
negative_data_rejection.expected-statuses = [
    400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"
]
positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 413, "5xx"]

[[operations]]
include-path-regex = "/infer$"
[operations.checks]
positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409, 413, "5xx"]
"""


def test_every_endpoint_behaves_as_documented(shared_service: RunningService, tmp_path: Path) -> None:
    # The command runs all phases and checks. The seed is fixed, so that a commit always has the same result.
    (tmp_path / "schemathesis.toml").write_text(EXPECTED)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{shared_service.url}/openapi.json"),
            *("--max-examples=50", "--checks=all", "--generation-database=none", "--no-color", "--seed=1"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {len(PATHS)}" in done.stdout


def test_every_endpoint_is_documented(document: dict[str, Any]) -> None:
    assert document["paths"].keys() == PATHS


def test_bounds_are_those_of_the_model(document: dict[str, Any], model: Path) -> None:
    features = json.loads((model / "model.json").read_text())["features"]
    expected = [
        {"type": "number", "title": feature["name"], "minimum": feature["min"], "maximum": feature["max"]}
        for feature in features
    ]
    schemas = document["components"]["schemas"]
    one = schemas["PredictRequest"]["properties"]["features"]
    batch = schemas["BatchRequest"]["properties"]["features"]
    assert (one["prefixItems"], one["minItems"], one["maxItems"], one["items"]) == (expected, 4, 4, False)
    assert (batch["minItems"], batch["maxItems"], batch["items"]) == (1, 1000, one)


def test_requests_have_exactly_one_field(document: dict[str, Any]) -> None:
    for name in ("PredictRequest", "BatchRequest"):
        request = document["components"]["schemas"][name]
        assert request["required"] == ["features"]
        assert list(request["properties"]) == ["features"]
        assert request["additionalProperties"] is False


def test_title_and_version_are_those_of_the_model(document: dict[str, Any], model: Path) -> None:
    metadata = json.loads((model / "model.json").read_text())
    assert (document["info"]["title"], document["info"]["version"]) == (metadata["name"], metadata["version"])


@pytest.mark.parametrize(
    ("path", "invalid"),
    [
        ("/predict", "422"),
        ("/predict/batch", "422"),
        (f"{MODEL}/infer", "400"),
        (f"{MODEL}/versions/1/infer", "400"),
    ],
)
def test_all_statuses_of_predictions_are_documented(document: dict[str, Any], path: str, invalid: str) -> None:
    (operation,) = document["paths"][path].values()
    assert operation["responses"].keys() == {"200", "400", "409", "413", "415", invalid, "503"}
