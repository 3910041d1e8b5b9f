"""Golden gate: check that the canary is the model that git names and reproduces the recorded answers.

A Job runs this before the canary gets any traffic, with the standard library alone. Arguments: the canary's
Service, the path of git's model.json (version, sha256, recorded answers), and the canary's pod-template hash.
For a moment after a release the Service may still lead to pods of the previous version. The gate therefore asks a
pod for its hash first, and sends every other request over the same connection.
"""

import http.client
import json
import sys
import time
from pathlib import Path

PATIENCE = 30.0  # seconds until the Service has to lead to the canary
SHOWN = 10  # differences to print
PIECE = 10  # rows in a request, whose body may have 64 KiB: enough for 300 features


def ask(connection, path, body=None):
    """Return the pod's JSON answer. Raises OSError for an unanswered request and for any status but 200."""
    data = None if body is None else json.dumps(body)
    try:
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    except http.client.HTTPException as error:
        raise OSError(f"{path} got no answer ({error!r})") from error
    if response.status != http.HTTPStatus.OK:
        raise OSError(f"{path} returned HTTP {response.status}")
    return json.loads(text)


def connect(service, template_hash):
    """Return a connection to a pod with this template hash, and the pod's /info. Exits if there is no such pod."""
    deadline = time.monotonic() + PATIENCE
    last = "no pod"
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(service, timeout=10)
        try:
            connection.connect()
            connection.auto_open = 0  # do not reconnect: a new connection could reach another pod
            info = ask(connection, "/info")
            last = f"a pod of {info['pod_template_hash']!r}"
            if info["pod_template_hash"] == template_hash:
                return connection, info
        except OSError as error:
            last = f"no pod ({error})"
        connection.close()
        time.sleep(0.5)
    sys.exit(
        f"no pod of {template_hash!r} answered at {service} within {PATIENCE:.0f} s; the last to answer: {last}"
    )


def differences(connection, info, metadata):
    """Yield one sentence for each difference between the canary and git's model.json."""
    for name in ("version", "sha256"):
        if info[name] != metadata[name]:
            yield f"{name}: git expects {metadata[name]}, the canary reports {info[name]}"
    expected = metadata["golden"]
    answers = []
    for start in range(0, len(expected), PIECE):
        features = [row["features"] for row in expected[start : start + PIECE]]
        answers += ask(connection, "/predict/batch", {"features": features})["predictions"]
    for row, answer in zip(expected, answers, strict=True):
        close = abs(answer["probability"] - row["probability"]) <= metadata["golden_tolerance"]  # false for NaN
        if not close or answer["prediction"] != row["prediction"]:
            expectation = f"class {row['prediction']} with probability {row['probability']:.5f}"
            reply = f"class {answer['prediction']} with probability {answer['probability']:.5f}"
            yield f"{row['features']}: expected {expectation}, the canary answered {reply}"


if __name__ == "__main__":
    metadata = json.loads(Path(sys.argv[2]).read_text())
    if "golden_tolerance" not in metadata:
        sys.exit(
            "git's model.json has no golden_tolerance; export the model again with `python -m pipeline export`"
        )
    try:
        found = list(differences(*connect(sys.argv[1], sys.argv[3]), metadata))
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = [f"the canary's answers could not be checked: {error}"]
    sys.stdout.write("\n".join(found[:SHOWN] or ["the canary reproduces the recorded answers"]) + "\n")
    sys.exit(1 if found else 0)
