"""The endpoints, over HTTP, as a client sees them."""

from tests.running import SETOSA, RunningService


def test_a_prediction_is_in_the_log_with_the_values_that_were_answered(service: RunningService) -> None:
    answer = service.predict().json()
    service.wait_shipped()
    logs = service.client.get("/logs").json()
    assert logs["count"] == 1
    (row,) = logs["logs"]
    assert row["request_id"] == answer["request_id"]
    assert row["features"] == " ".join(map(str, SETOSA))
    assert (row["prediction"], row["probability"], row["latency_ms"]) == (
        answer["prediction"],
        answer["probability"],
        answer["latency_ms"],
    )
