"""/v2 conforms to the published Open Inference Protocol and gives the same predictions as /predict."""

import json
import math
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jsonschema_rs
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support.running import ROOT, SETOSA, RunningService, free_port, wait_until

OTHER = [6.5, 3.0, 5.8, 2.2]
OUTPUTS = {"prediction": "INT64", "class": "BYTES", "probability": "FP64", "request_id": "BYTES"}
MARK = "MARK7f3a"  # stands for any text of a client; no error response may contain it
NUMPY = {"FP64": np.float64, "FP32": np.float32}
old_enough = pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="the package with the protocol's types needs pydantic 1, which does not run on Python 3.14",
)


class Served(NamedTuple):
    """Name and version from model.json, and the paths with them."""

    name: str
    version: str

    @property
    def address(self) -> str:
        return f"/v2/models/{self.name}"

    @property
    def addresses(self) -> list[str]:
        return [self.address, f"{self.address}/versions/{self.version}"]


@pytest.fixture(scope="session")
def served(model: Path) -> Served:
    metadata = json.loads((model / "model.json").read_text())
    return Served(metadata["name"], metadata["version"])


@pytest.fixture(scope="session")
def published() -> Callable[[str, Any], list[str]]:
    """Return a function that validates a document against the published schema of that name.

    The package generated its types from the protocol's OpenAPI document; this converts them back to JSON Schema.
    """
    from open_inference.openapi import types  # noqa: PLC0415 - see above

    def problems(name: str, document: Any) -> list[str]:
        validator = jsonschema_rs.validator_for(getattr(types, name).schema())
        return [error.message for error in validator.iter_errors(document)]

    return problems


@pytest.fixture
def client(shared_service: RunningService) -> Iterator[triton.InferenceServerClient]:
    """The client of Triton, the server from which the protocol originates."""
    with closing(triton.InferenceServerClient(f"127.0.0.1:{shared_service.port}")) as client:
        yield client


def _tensor(
    rows: list[list[float]], datatype: str = "FP64", *, flat: bool = True, **other: object
) -> dict[str, Any]:
    data = [value for row in rows for value in row] if flat else rows
    return {"name": "features", "datatype": datatype, "shape": [len(rows), 4], "data": data, **other}


def _request(rows: list[list[float]], **other: object) -> dict[str, Any]:
    return {"inputs": [_tensor(rows)], **other}


def _infer(service: RunningService, served: Served, request: object, **headers: str) -> httpx.Response:
    return service.client.post(f"{served.address}/infer", json=request, headers=headers)


def _columns(response: httpx.Response) -> dict[str, list[Any]]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


# Conformance with the published schemas.


@old_enough
def test_server_and_model_metadata_match_the_published_schema(
    shared_service: RunningService, served: Served, published: Callable[[str, Any], list[str]]
) -> None:
    for address in ("/v2", "/v2/"):
        server = shared_service.client.get(address).json()
        assert published("MetadataServerResponse", server) == []
        assert server == {"name": served.name, "version": served.version, "extensions": []}
    for address in served.addresses:
        described = shared_service.client.get(address).json()
        assert published("MetadataModelResponse", described) == []
        assert (described["name"], described["versions"]) == (served.name, [served.version])
        assert described["inputs"] == [{"name": "features", "datatype": "FP64", "shape": [-1, 4]}]
        assert {output["name"]: output["datatype"] for output in described["outputs"]} == OUTPUTS
        assert all(output["shape"] == [-1] for output in described["outputs"])


@old_enough
def test_answers_and_errors_match_the_published_schema(
    shared_service: RunningService, served: Served, published: Callable[[str, Any], list[str]]
) -> None:
    for address in served.addresses:
        for request in (
            _request([SETOSA, OTHER], id="42"),
            _request([SETOSA], outputs=[{"name": "class"}], parameters={"anything": 1}),
            {"inputs": [_tensor([SETOSA, OTHER], "FP32", flat=False)]},
        ):
            assert published("InferenceRequest", request) == []
            response = shared_service.client.post(f"{address}/infer", json=request)
            assert response.status_code == 200
            answer = response.json()
            assert published("InferenceResponse", answer) == []
            assert (answer["model_name"], answer["model_version"]) == tuple(served)
            assert answer.get("id") == request.get("id")
            for output in answer["outputs"]:
                assert output["shape"] == [len(output["data"])] == request["inputs"][0]["shape"][:1]
        rejected = shared_service.client.post(f"{address}/infer", json={})
        assert published("InferenceErrorResponse", rejected.json()) == []


@old_enough
def test_the_documented_example_is_valid_and_is_answered(
    shared_service: RunningService, served: Served, published: Callable[[str, Any], list[str]]
) -> None:
    paths = shared_service.client.get("/openapi.json").json()["paths"]
    for address in served.addresses:
        body = paths[f"{address}/infer"]["post"]["requestBody"]["content"]["application/json"]
        assert published("InferenceRequest", body["example"]) == []
        assert _columns(_infer(shared_service, served, body["example"])).keys() == OUTPUTS.keys()


@old_enough
@pytest.mark.parametrize("missing", ["name", "shape", "datatype", "data"])
def test_the_published_schema_detects_a_missing_field(
    shared_service: RunningService, served: Served, published: Callable[[str, Any], list[str]], missing: str
) -> None:
    answer = _infer(shared_service, served, _request([SETOSA])).json()
    del answer["outputs"][1][missing]
    assert published("InferenceResponse", answer) == [f'"{missing}" is a required property']


@old_enough
def test_the_published_client_gets_the_same_answers_as_predict(
    shared_service: RunningService, served: Served
) -> None:
    from open_inference.openapi.client import OpenInferenceClient  # noqa: PLC0415 - see above
    from open_inference.openapi.errors import NotFoundError  # noqa: PLC0415
    from open_inference.openapi.types import InferenceRequest  # noqa: PLC0415

    client = OpenInferenceClient(base_url=shared_service.url, httpx_client=shared_service.client)
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness(served.name)
    client.check_model_version_readiness(*served)
    assert client.read_server_metadata().extensions == []
    assert client.read_model_version_metadata(*served) == client.read_model_metadata(served.name)
    with pytest.raises(NotFoundError):
        client.check_model_readiness("another")
    request = InferenceRequest.parse_obj(_request([SETOSA, OTHER], id="7"))
    for answer in (
        client.model_infer(served.name, request=request),
        client.model_version_infer(*served, request=request),
    ):
        assert answer.id == "7"
        columns = {output.name: output.data.__root__ for output in answer.outputs}
        assert columns["class"] == _of_predict(shared_service, [SETOSA, OTHER])["class"]


# Triton's client.


def test_tritons_client_finds_server_and_model(client: triton.InferenceServerClient, served: Served) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(served.name)
    assert client.is_model_ready(*served)
    assert not client.is_model_ready(served.name, f"{served.version}0")
    assert not client.is_model_ready("another")
    assert client.get_server_metadata()["name"] == served.name
    assert client.get_model_metadata(*served)["versions"] == [served.version]


@pytest.mark.parametrize("datatype", NUMPY)
def test_tritons_client_gets_the_same_answers_as_predict(
    shared_service: RunningService,
    client: triton.InferenceServerClient,
    served: Served,
    model: Path,
    datatype: str,
) -> None:
    rows = [row["features"] for row in json.loads((model / "model.json").read_text())["golden"]]
    expected = _of_predict(shared_service, rows)
    tensor = triton.InferInput("features", [len(rows), 4], datatype)
    tensor.set_data_from_numpy(np.array(rows, NUMPY[datatype]), binary_data=False)
    outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in OUTPUTS]
    answer = client.infer(served.name, [tensor], model_version=served.version, request_id="a", outputs=outputs)
    assert answer.get_response()["id"] == "a"
    assert answer.as_numpy("prediction").tolist() == expected["prediction"]
    assert answer.as_numpy("class").tolist() == expected["class"]
    assert answer.as_numpy("probability").tolist() == expected["probability"]
    assert len(set(answer.as_numpy("request_id"))) == len(rows)


def test_tritons_client_gets_json_although_it_requests_binary_outputs_by_default(
    client: triton.InferenceServerClient, served: Served
) -> None:
    tensor = triton.InferInput("features", [1, 4], "FP64")
    tensor.set_data_from_numpy(np.array([SETOSA]), binary_data=False)
    assert client.infer(served.name, [tensor]).as_numpy("class").tolist() == ["setosa"]


def test_the_error_for_binary_tensors_of_tritons_client_says_what_to_send(
    client: triton.InferenceServerClient, served: Served
) -> None:
    tensor = triton.InferInput("features", [1, 4], "FP64")
    tensor.set_data_from_numpy(np.array([SETOSA]))
    with pytest.raises(InferenceServerException, match=r"inputs\[0\]: data is missing; tensors must be JSON"):
        client.infer(served.name, [tensor])


def _of_predict(service: RunningService, rows: list[list[float]]) -> dict[str, list[Any]]:
    answers = service.client.post("/predict/batch", json={"features": rows}).json()["predictions"]
    return {name: [answer[name] for answer in answers] for name in ("prediction", "class", "probability")}


# Outputs and rows.


@pytest.mark.parametrize(
    ("requested", "returned"),
    [
        (None, list(OUTPUTS)),
        ([], list(OUTPUTS)),
        (["class"], ["class"]),
        (["probability", "prediction"], ["probability", "prediction"]),
        (["class"] * 3000, ["class"]),
    ],
    ids=["not requested", "empty", "one", "two", "one 3,000 times"],
)
def test_each_requested_output_is_returned_once(
    shared_service: RunningService, served: Served, requested: list[str] | None, returned: list[str]
) -> None:
    request = _request([SETOSA])
    if requested is not None:
        request["outputs"] = [{"name": name} for name in requested]
    response = _infer(shared_service, served, request)
    assert response.status_code == 200
    assert [output["name"] for output in response.json()["outputs"]] == returned


def test_flat_and_nested_data_are_the_same_rows(service: RunningService, served: Served) -> None:
    for flat in (True, False):
        _columns(_infer(service, served, {"inputs": [_tensor([SETOSA, OTHER], flat=flat)]}))
    service.wait_shipped()
    assert _features(service.client.get("/logs").json()["logs"][::-1]) == [SETOSA, OTHER] * 2


def test_1000_rows_are_answered_in_order(shared_service: RunningService, served: Served) -> None:
    rows = [SETOSA if number % 7 else OTHER for number in range(1000)]
    names = _columns(_infer(shared_service, served, _request(rows)))["class"]
    assert names == ["setosa" if number % 7 else "virginica" for number in range(1000)]


def test_the_content_type_is_optional(shared_service: RunningService, served: Served) -> None:
    body = json.dumps(_request([SETOSA])).encode()
    response = shared_service.client.post(f"{served.address}/infer", content=body)
    assert "content-type" not in response.request.headers
    assert _columns(response)["class"] == ["setosa"]


def _features(logged: list[dict[str, Any]]) -> list[list[float]]:
    return [[float(value) for value in row["features"].split()] for row in logged]


# Invalid requests.

INVALID = {
    "an array": ("expected object, got array", []),
    "no inputs": ("object missing required field inputs", {}),
    "no tensor": ("inputs: expected one tensor, features", {"inputs": []}),
    "two tensors": ("inputs: expected one tensor, features", {"inputs": [_tensor([SETOSA])] * 2}),
    "another tensor": ("inputs[0].name: expected features", {"inputs": [_tensor([SETOSA], name=MARK)]}),
    "a name like a path": (
        "inputs[0].name: expected features",
        {"inputs": [_tensor([SETOSA], name=f"' - at `$.{MARK}`")]},
    ),
    "integers": ("inputs[0].datatype: expected FP64 or FP32", {"inputs": [_tensor([SETOSA], "INT64")]}),
    "no such type": ("inputs[0].datatype: expected FP64 or FP32", {"inputs": [_tensor([SETOSA], MARK)]}),
    "one dimension": (
        "inputs[0].shape: expected [n, 4], for n from 1 to 1000",
        {"inputs": [_tensor([SETOSA], shape=[4])]},
    ),
    "five columns": (
        "inputs[0].shape: expected [n, 4], for n from 1 to 1000",
        {"inputs": [_tensor([SETOSA], shape=[1, 5])]},
    ),
    "no rows": (
        "inputs[0].shape: expected [n, 4], for n from 1 to 1000",
        {"inputs": [_tensor([SETOSA], shape=[0, 4])]},
    ),
    "1,001 rows": ("inputs[0].shape: expected [n, 4], for n from 1 to 1000", _request([SETOSA] * 1001)),
    "a shape in words": (
        "inputs[0].shape: expected [n, 4], for n from 1 to 1000",
        {"inputs": [_tensor([SETOSA], shape=[MARK, 4])]},
    ),
    "more rows than the shape has": (
        "inputs[0].data: shape requires 4 values, got 8",
        {"inputs": [_tensor([SETOSA, OTHER], shape=[1, 4])]},
    ),
    "fewer nested rows than the shape has": (
        "inputs[0].data: shape requires 3 rows, got 2",
        {"inputs": [_tensor([SETOSA, OTHER], shape=[3, 4], flat=False)]},
    ),
    "a short row": (
        "inputs[0].data, row 1: expected array of length 4, got 3",
        {"inputs": [_tensor([SETOSA, OTHER[:3]], flat=False)]},
    ),
    "a row among values": (
        "inputs[0].data, row 0 (petal_width_cm): expected float, got array",
        {"inputs": [_tensor([SETOSA], data=[*SETOSA[:3], [0.2]])]},
    ),
    "a value among rows": (
        "inputs[0].data, row 1: expected array, got float",
        {"inputs": [_tensor([SETOSA, OTHER], data=[SETOSA, 5.1])]},
    ),
    "no values": ("inputs[0].data: expected array of length >= 1", {"inputs": [_tensor([SETOSA], data=[])]}),
    "a string": (
        "inputs[0].data[3]: expected float | array, got str",
        {"inputs": [_tensor([SETOSA], data=[*SETOSA[:3], MARK])]},
    ),
    "out of bounds, flat": (
        "inputs[0].data, row 1 (petal_width_cm): expected float <= 4.0",
        _request([SETOSA, [5.1, 3.5, 1.4, math.nextafter(4, 5)]]),
    ),
    "out of bounds, nested": (
        "inputs[0].data, row 0 (sepal_length_cm): expected float >= 0.0",
        {"inputs": [_tensor([[-0.1, 3.5, 1.4, 0.2]], flat=False)]},
    ),
    "another output": (
        "outputs[1].name: expected prediction, class, probability, request_id",
        _request([SETOSA], outputs=[{"name": "class"}, {"name": MARK}]),
    ),
    "a number for an id": ("id: expected str | null, got int", _request([SETOSA], id=42)),
}
NOT_JSON = {
    "nothing": b"",
    "a word": MARK.encode(),
    "NaN": json.dumps(_request([[*SETOSA[:3], math.nan]])).encode(),
    "infinity": json.dumps(_request([[*SETOSA[:3], math.inf]])).encode(),
    "deep nesting": b'{"parameters":' + b"[" * 60_000,
}


@pytest.mark.parametrize("name", INVALID)
def test_the_error_of_an_invalid_request_says_what_is_wrong_and_where(
    shared_service: RunningService, served: Served, name: str
) -> None:
    error, request = INVALID[name]
    assert _error(shared_service, served, 400, json.dumps(request).encode()) == error


@pytest.mark.parametrize("name", NOT_JSON)
def test_a_body_that_is_not_json_is_rejected(shared_service: RunningService, served: Served, name: str) -> None:
    assert "the body is not JSON" in _error(shared_service, served, 400, NOT_JSON[name])


def test_a_number_out_of_float_range_is_rejected(shared_service: RunningService, served: Served) -> None:
    body = json.dumps(_request([SETOSA])).replace("5.1", "1e999").encode()
    assert _error(shared_service, served, 400, body) == "inputs[0].data[0]: number out of range"


def test_the_limits_of_predict_apply(shared_service: RunningService, served: Served) -> None:
    assert "larger than 112096 bytes" in _error(shared_service, served, 413, b" " * 112_097)
    assert "application/json" in _error(shared_service, served, 415, b"{}", {"Content-Type": "text/plain"})
    body = json.dumps(_request([SETOSA])).encode()
    key = {"Idempotency-Key": MARK}
    assert _error(shared_service, served, 400, body, key) == "Idempotency-Key must be a UUID"
    assert _error(shared_service, served, 405, body, method="PUT") == "only POST is allowed here"


@pytest.mark.parametrize(
    "path",
    [
        f"/v2/models/{MARK}",
        f"/v2/models/{MARK}/ready",
        f"/v2/models/{MARK}/infer",
        "{model}/versions/0",
        "{model}/versions/0/ready",
        "{model}/versions/0/infer",
        "{model}/",
        "/v2/models",
        f"/v2/{MARK}",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_404_for_another_model_or_version_names_the_one_that_exists(
    shared_service: RunningService, served: Served, method: str, path: str
) -> None:
    response = shared_service.client.request(method, path.format(model=served.address))
    assert response.status_code == 404
    message = response.json()["error"]
    assert list(response.json()) == ["error"]
    assert MARK not in message
    next_step = re.search(r"GET (\S+) describes it", message)
    assert next_step
    assert shared_service.client.get(next_step[1]).json()["versions"] == [served.version]


def test_other_methods_get_an_error_in_the_format_of_the_protocol(
    shared_service: RunningService, served: Served
) -> None:
    for path in ("/v2", "/v2/health/live", served.address):
        response = shared_service.client.post(path)
        assert (response.status_code, list(response.json())) == (405, ["error"])


def _error(
    service: RunningService,
    served: Served,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> str:
    """Return the error of the response. Assert that it quotes nothing and that nothing is logged."""
    written = service.metric("iris_journal_written_total")
    response = service.client.request(method, f"{served.address}/infer", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert len(response.content) < 4096
    assert MARK not in f"{response.headers}{response.text}"
    uuid.UUID(response.headers["x-request-id"])
    assert service.metric("iris_journal_written_total") == written
    assert MARK not in service.log.read_text()
    error: str = response.json()["error"]
    return error


# Log, metrics, idempotency and overload, as for /predict.


def test_each_row_is_logged_with_the_values_of_its_answer(service: RunningService, served: Served) -> None:
    columns = _columns(_infer(service, served, _request([SETOSA, OTHER], id="not a key of the log")))
    service.wait_shipped()
    logged = service.client.get("/logs").json()["logs"][::-1]
    for name in ("request_id", "prediction", "probability"):
        assert [row[name] for row in logged] == columns[name]
    assert _features(logged) == [SETOSA, OTHER]
    assert {(row["model_name"], row["model_version"]) for row in logged} == {tuple(served)}


def test_requests_rows_and_errors_are_counted_as_for_predict(service: RunningService, served: Served) -> None:
    for address in served.addresses:
        service.client.post(f"{address}/infer", json=_request([SETOSA, SETOSA, OTHER]))
        service.client.post(f"{address}/infer", json={})
        service.client.post(f"{address}0/infer", json={})
        labels = {"method": "POST", "endpoint": f"{address}/infer"}
        assert service.metric("iris_requests_total", status="200", **labels) == 1
        assert service.metric("iris_requests_total", status="400", **labels) == 1
        assert service.metric("iris_request_latency_seconds_count", endpoint=f"{address}/infer") == 2
    assert service.metric("iris_requests_total", endpoint="other", status="404") == 2
    assert service.metric("iris_errors_total", kind="client") == 4
    assert service.metric("iris_predictions_total", prediction="setosa") == 4
    assert service.metric("iris_predictions_total", prediction="virginica") == 2
    assert service.metric("iris_prediction_latency_seconds_count") == 6


def test_rules_and_dashboards_select_all_inference_endpoints_and_no_others(
    shared_service: RunningService, served: Served
) -> None:
    shared_service.predict()
    shared_service.client.post("/predict/batch", json={"features": [SETOSA]})
    for address in served.addresses:
        shared_service.client.post(f"{address}/infer", json=_request([SETOSA]))
        shared_service.client.get(address)
        shared_service.client.get(f"{address}/ready")
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/healthz", "/docs", "/v2/nowhere"):
        shared_service.client.get(path)
    metrics = shared_service.client.get("/metrics").text
    exported = set(re.findall(r'^iris_requests_total\{endpoint="([^"]+)"', metrics, re.MULTILINE))
    files = [ROOT / "monitoring/rules.yml", *(ROOT / "monitoring/grafana/dashboards").glob("*.json")]
    selectors = {
        selector for file in files for selector in re.findall(r'endpoint=~\\?"(.+?)\\?"', file.read_text())
    }
    (selector,) = selectors  # all are equal
    inference = {f"{address}/infer" for address in served.addresses}
    assert {endpoint for endpoint in exported if re.fullmatch(selector, endpoint)} == {
        "/predict",
        "/predict/batch",
        *inference,
    }


def test_a_repeat_under_a_key_gets_an_identical_answer_and_adds_no_row(
    service: RunningService, served: Served
) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first, again = (_infer(service, served, _request([SETOSA, OTHER]), **key) for _ in range(2))
    assert again.content == first.content
    another = _infer(service, served, _request([OTHER, SETOSA]), **key)
    assert another.status_code == 409
    assert "Idempotency-Key" in another.json()["error"]
    assert service.client.get("/logs").json()["count"] == 2


def test_a_key_is_shared_with_predict(service: RunningService, served: Served) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = service.predict(**key).json()
    again = _columns(_infer(service, served, _request([SETOSA]), **key))
    assert [again[name] for name in ("request_id", "probability")] == [
        [first["request_id"]],
        [first["probability"]],
    ]
    assert service.client.get("/logs").json()["count"] == 1


def test_a_request_id_is_not_an_idempotency_key(service: RunningService, served: Served) -> None:
    # A client may number its requests from 1 again after each start.
    request = _request([SETOSA], id=str(uuid.uuid4()))
    ids = [_columns(_infer(service, served, request))["request_id"][0] for _ in range(2)]
    assert len({*ids, request["id"]}) == 3
    service.wait_shipped()
    assert service.client.get("/logs").json()["count"] == 2


def test_too_many_rows_at_once_get_503(model: Path, database: str, served: Served, tmp_path: Path) -> None:
    with (
        RunningService(model, database, tmp_path / "journal", max_waiting="1000") as narrow,
        ThreadPoolExecutor(8) as pool,
    ):
        responses: list[httpx.Response] = []

        def some_are_rejected() -> bool:
            responses.extend(pool.map(lambda _: _infer(narrow, served, _request([SETOSA] * 1000)), range(8)))
            return {response.status_code for response in responses} == {200, 503}

        wait_until(some_are_rejected, "the overload")
        rejected = [response for response in responses if response.status_code == 503]
        assert {response.headers["retry-after"] for response in rejected} == {"1"}
        assert {response.text for response in rejected} == {
            '{"error":"too many predictions are waiting; retry in a second"}'
        }
        narrow.wait_shipped()
        assert narrow.metric("iris_journal_shipped_total") == 1000 * (len(responses) - len(rejected))


def test_a_full_journal_ends_readiness_but_not_liveness(model: Path, served: Served, tmp_path: Path) -> None:
    unavailable = f"postgresql://user@127.0.0.1:{free_port()}/database"
    with RunningService(
        model, unavailable, tmp_path / "journal", journal_max_mib="1", drain_seconds="0"
    ) as service:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        assert "PostgreSQL" in _infer(service, served, _request([SETOSA]), **key).json()["error"]
        request = _request([SETOSA] * 1000)
        wait_until(lambda: _infer(service, served, request).status_code == 503, "a 503 response")
        rejected = _infer(service, served, request)
        assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "5")
        assert rejected.json() == {"error": "the prediction log cannot be written; retry"}
        for path in ("/v2/health/ready", *(f"{address}/ready" for address in served.addresses)):
            wait_until(lambda: service.client.get(path).status_code == 503, "readiness to end")  # noqa: B023
            assert service.client.get(path).json()["error"].startswith("the journal cannot be written: ")
        assert service.client.get("/v2/health/live").status_code == 200
