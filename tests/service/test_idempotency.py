"""Idempotency-Key: a repeated request gets the first answer, and the log has it once."""

import json
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg2.extensions
import pytest

from tests.support.running import SETOSA, RunningService, query, wait_until
from tools.postgres import temporary

OTHER = [6.5, 3.0, 5.8, 2.2]
HEADER = "Idempotency-Key"
DISCONNECT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"


@pytest.fixture
def key() -> str:
    """A new key."""
    return str(uuid.uuid4())


@pytest.fixture(scope="module")
def pods(
    model: Path, module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunningService]]:
    """Two pods with one database. The second pod serves a newer version of the model."""
    folder = tmp_path_factory.mktemp("pods")
    newer = _other_version(model, folder / "model", version="newer")
    with (
        RunningService(model, module_database, folder / "one") as one,
        RunningService(newer, module_database, folder / "two") as two,
    ):
        yield [one, two]


def test_a_prediction_under_a_key_is_logged_before_the_answer(
    pods: list[RunningService], module_database: str, key: str
) -> None:
    response = pods[0].predict(**{HEADER: key})
    assert response.status_code == 200
    statement = "SELECT features, prediction, probability, latency_ms FROM predictions WHERE request_id = %s"
    answer = response.json()
    assert query(module_database, statement, answer["request_id"]) == [
        (SETOSA, answer["prediction"], answer["probability"], answer["latency_ms"])
    ]


def test_a_repeat_gets_an_identical_answer(pods: list[RunningService], module_database: str, key: str) -> None:
    # Also in another notation of the UUID and of the numbers.
    first = pods[0].predict(**{HEADER: key})
    again = [
        pods[0].predict(**{HEADER: key}),
        pods[0].predict(**{HEADER: key.upper()}),
        pods[0].predict([5.10, 35e-1, 1.4, 0.2], **{HEADER: key.replace("-", "")}),
    ]
    assert {response.content for response in again} == {first.content}
    assert _rows(module_database, first) == 1


def test_a_repeat_at_another_pod_gets_the_first_answer_with_its_version(
    pods: list[RunningService], module_database: str, key: str
) -> None:
    first, again = (pod.predict(**{HEADER: key}) for pod in pods)
    assert pods[1].predict().json()["version"] == "newer"
    assert again.content == first.content
    assert _rows(module_database, first) == 1


def test_a_repeat_at_a_version_with_other_classes_gets_the_class_of_the_first_answer(
    pods: list[RunningService], model: Path, module_database: str, tmp_path: Path, key: str
) -> None:
    first = pods[0].predict(**{HEADER: key})
    batch_key = str(uuid.uuid4())
    batch = _batch(pods[0], batch_key, [SETOSA, OTHER])
    renamed = _other_version(model, tmp_path / "model", version="renamed", classes=["c", "b", "a"])
    with RunningService(renamed, module_database, tmp_path / "journal") as service:
        assert service.predict().json()["class"] == "c"
        assert service.predict(**{HEADER: key}).content == first.content
        assert _batch(service, batch_key, [SETOSA, OTHER]).content == batch.content
        own = service.predict(OTHER, **{HEADER: str(uuid.uuid4())})
        assert own.json()["class"] in {"a", "b"}
    assert pods[1].predict(**{HEADER: key}).content == first.content


def test_a_repeat_whose_class_is_unknown_gets_409(
    pods: list[RunningService], module_database: str, key: str
) -> None:
    """An earlier version of the service, which did not log its classes, has answered with a fourth class."""
    first = pods[0].predict(**{HEADER: key})
    change = "UPDATE predictions SET model_version = 'early', prediction = %s WHERE request_id = %s"
    query(module_database, change, 3, first.json()["request_id"])
    refused = pods[0].predict(**{HEADER: key})
    assert refused.status_code == 409
    assert "iris-classifier early, has a class that this version does not know" in refused.json()["detail"]
    query(module_database, change, 2, first.json()["request_id"])
    answer = pods[0].predict(**{HEADER: key})
    assert answer.json() == {**first.json(), "version": "early", "prediction": 2, "class": "virginica"}


def test_a_hundred_simultaneous_requests_to_both_pods_get_one_answer(
    pods: list[RunningService], module_database: str, key: str
) -> None:
    responses = _at_once(pods, key, {"features": SETOSA}, "/predict")
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    assert _rows(module_database, responses[0]) == 1


def test_a_batch_gets_the_same_answers_from_both_pods(
    pods: list[RunningService], module_database: str, key: str
) -> None:
    before = _all_rows(module_database)
    responses = _at_once(pods, key, {"features": [SETOSA, OTHER, SETOSA]}, "/predict/batch", count=20)
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    ids = [answer["request_id"] for answer in responses[0].json()["predictions"]]
    assert len({*ids, key}) == 4
    assert _all_rows(module_database) == before + 3


def test_a_repeated_batch_of_1000_rows_gets_an_identical_answer(
    pods: list[RunningService], module_database: str, key: str
) -> None:
    before = _all_rows(module_database)
    first, again = (_batch(pod, key, [SETOSA] * 1000) for pod in pods)
    assert first.status_code == 200
    assert again.content == first.content
    assert _all_rows(module_database) == before + 1000


def test_another_row_under_the_same_key_gets_409(
    pods: list[RunningService], module_database: str, key: str
) -> None:
    first = pods[0].predict(**{HEADER: key})
    for pod in pods:
        for row in (OTHER, [*SETOSA[:3], 0.3]):
            response = pod.predict(row, **{HEADER: key})
            assert response.status_code == 409
            assert "Idempotency-Key" in response.json()["detail"]
    assert _rows(module_database, first) == 1


@pytest.mark.parametrize(
    "repeat",
    [[SETOSA, OTHER], [SETOSA, OTHER, OTHER, OTHER], [SETOSA], [OTHER, SETOSA, OTHER], [SETOSA, OTHER, SETOSA]],
    ids=["shorter", "longer", "one row", "in another order", "another last row"],
)
def test_another_batch_under_the_same_key_gets_409_and_is_not_logged(
    pods: list[RunningService], module_database: str, key: str, repeat: list[list[float]]
) -> None:
    assert _batch(pods[0], key, [SETOSA, OTHER, OTHER]).status_code == 200
    before = _all_rows(module_database)
    assert {_batch(pod, key, repeat).status_code for pod in pods} == {409}
    assert _all_rows(module_database) == before


def test_of_two_simultaneous_bodies_under_one_key_one_gets_409(
    pods: list[RunningService], module_database: str
) -> None:
    for _ in range(10):
        key = str(uuid.uuid4())
        with ThreadPoolExecutor(2) as pool:
            responses = list(pool.map(lambda pod, row: pod.predict(row, **{HEADER: key}), pods, (SETOSA, OTHER)))  # noqa: B023
        answered, refused = sorted(responses, key=lambda response: response.status_code)
        assert (answered.status_code, refused.status_code) == (200, 409)
        assert _rows(module_database, answered) == 1


def test_a_key_equal_to_the_id_of_another_prediction_takes_no_place_in_the_log(
    service: RunningService, database: str
) -> None:
    # At once: the journal has not shipped the first prediction yet.
    for _ in range(20):
        first = service.predict()
        under_key = service.predict(OTHER, **{HEADER: first.json()["request_id"]})
        assert under_key.status_code == 200
        service.wait_shipped()
        assert (_rows(database, first), _rows(database, under_key)) == (1, 1)
    assert _all_rows(database) == 40


def test_a_key_equal_to_the_id_of_a_row_of_a_batch_is_a_key_of_its_own(
    pods: list[RunningService], key: str
) -> None:
    batch = _batch(pods[0], key, [SETOSA, OTHER]).json()["predictions"]
    for row in batch:
        assert pods[0].predict([6.0, 2.9, 4.5, 1.5], **{HEADER: row["request_id"]}).status_code == 200
    assert _batch(pods[1], key, [SETOSA, OTHER]).json()["predictions"] == batch


def test_a_key_may_be_quoted(pods: list[RunningService], key: str) -> None:
    first = pods[0].predict(**{HEADER: key})
    assert pods[1].predict(**{HEADER: f'"{key}"'}).content == first.content


def test_two_keys_or_another_text_get_400(pods: list[RunningService], key: str) -> None:
    two = httpx.Headers([(HEADER, key), (HEADER, str(uuid.uuid4()))])
    assert pods[0].client.post("/predict", json={"features": SETOSA}, headers=two).status_code == 400
    for value in ("", '"', '""', f'"{key}', f'""{key}""', f"{key}, {key}"):
        assert pods[0].predict(**{HEADER: value}).status_code == 400


def test_a_malformed_request_does_not_use_its_key(pods: list[RunningService], key: str) -> None:
    assert pods[0].predict([1], **{HEADER: key}).status_code == 422
    assert pods[0].predict(**{HEADER: key}).status_code == 200


def test_a_key_survives_a_restart(service: RunningService, key: str) -> None:
    first = service.predict(**{HEADER: key})
    service.kill()
    service.start()
    assert service.predict(**{HEADER: key}).content == first.content
    service.stop()
    service.start()
    assert service.predict(**{HEADER: key}).content == first.content
    assert service.predict(OTHER, **{HEADER: key}).status_code == 409


def test_without_postgresql_a_key_gets_503_until_postgresql_is_back(model: Path, tmp_path: Path, key: str) -> None:
    with temporary() as postgres, RunningService(model, postgres.url, tmp_path / "journal") as service:
        used = str(uuid.uuid4())
        first = service.predict(**{HEADER: used})
        postgres.stop()
        for response in (service.predict(**{HEADER: key}), service.predict(**{HEADER: used})):
            _assert_unavailable(response)
        assert service.metric("iris_errors_total", kind="database") == 2
        assert service.metric("iris_errors_total", kind="server") == 0
        assert service.predict().status_code == 200
        postgres.start()
        wait_until(lambda: service.predict(**{HEADER: key}).status_code == 200, "an answer under the key")
        assert service.predict(**{HEADER: used}).content == first.content
        service.wait_shipped()
        assert _all_rows(postgres.url) == 3


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("ALTER TABLE predictions RENAME latency_ms TO other", "server"),
        ("ALTER TABLE predictions ADD CHECK (latency_ms < 0) NOT VALID", "server"),
        ("ALTER TABLE model_classes RENAME classes TO other", "server"),
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", "database"),
    ],
)
def test_only_an_unavailable_postgresql_is_counted_as_an_error_of_the_database(
    service: RunningService, database: str, key: str, change: str, kind: str
) -> None:
    """A release whose own statements fail must not look like an outage of PostgreSQL."""
    assert service.predict(**{HEADER: str(uuid.uuid4())}).status_code == 200
    name = psycopg2.extensions.parse_dsn(database)["dbname"]
    query(database, change.format(name=name))
    query(database.replace(name, "postgres"), DISCONNECT, name)
    _assert_unavailable(service.predict(**{HEADER: key}))
    counts = {found: service.metric("iris_errors_total", kind=found) for found in ("client", "server", "database")}
    assert counts == {"client": 0, "server": 0, "database": 0, kind: 1}
    logged = "PostgreSQL refused a statement" in service.log.read_text()
    assert logged == (kind == "server")
    service.kill()


def test_a_silent_postgresql_delays_only_requests_with_a_key(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(16) as pool:
        url = f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/database"
        with RunningService(model, url, tmp_path / "journal", drain_seconds="0") as service:
            started = time.monotonic()
            keyed = [pool.submit(service.predict, **{HEADER: str(uuid.uuid4())}) for _ in range(16)]
            seconds = []
            while not all(future.done() for future in keyed):
                before = time.monotonic()
                assert service.predict().status_code == 200
                seconds.append(time.monotonic() - before)
            assert time.monotonic() - started < 10
            assert sorted(seconds)[len(seconds) // 2] < 0.25
            for future in keyed:
                _assert_unavailable(future.result())
            service.kill()


def _other_version(model: Path, folder: Path, **changes: object) -> Path:
    """Copy the model and change its metadata."""
    shutil.copytree(model, folder)
    document = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**document, **changes}))
    return folder


def _assert_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "PostgreSQL" in response.json()["detail"]


def _batch(service: RunningService, key: str, rows: Sequence[Sequence[float]]) -> httpx.Response:
    return service.client.post("/predict/batch", json={"features": rows}, headers={HEADER: key})


def _at_once(
    pods: Sequence[RunningService], key: str, body: object, path: str, count: int = 100
) -> list[httpx.Response]:
    """Send the same request from many threads, to the pods in turn."""

    def send(number: int) -> httpx.Response:
        return pods[number % len(pods)].client.post(path, json=body, headers={HEADER: key})

    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(send, range(count)))


def _rows(database: str, response: httpx.Response) -> int:
    statement = "SELECT count(*) FROM predictions WHERE request_id = %s"
    ((count,),) = query(database, statement, response.json()["request_id"])
    return int(count)


def _all_rows(database: str) -> int:
    ((count,),) = query(database, "SELECT count(*) FROM predictions")
    return int(count)
