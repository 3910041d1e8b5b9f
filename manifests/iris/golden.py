"""The golden gate: does the canary answer what the registry recorded, and is it the model that git says?

Run by a Job before the canary has traffic, with the standard library alone. argv: the canary's Service; the
model.json that git holds beside the digest of the image (version, sha256, and the recorded answers); the canary's
pod-template hash. For a moment after a release the Service may still lead to the pods of the one before: whoever
answers has to say that it is of this hash, and is asked everything else over the same connection.
"""

import http.client
import json
import sys
import time
from pathlib import Path

PATIENCE = 30.0  # seconds for the Service to lead to the canary


def ask(connection, path, body=None):
    """Return the JSON that the pod at the other end answers."""
    data = None if body is None else json.dumps(body)
    try:
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{path} was not answered ({error!r})") from error
    if answer.status != http.HTTPStatus.OK:
        raise OSError(f"{path} was answered with HTTP {answer.status}")
    return json.loads(text)


def find(service, version):
    """Return a connection to a pod of that hash, and what it says of itself."""
    deadline = time.monotonic() + PATIENCE
    last = "nobody"
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(service, timeout=10)
        try:
            connection.connect()
            connection.auto_open = 0  # never another one, which might lead elsewhere
            info = ask(connection, "/info")
            last = f"a pod of {info['pod_template_hash']!r}"
            if info["pod_template_hash"] == version:
                return connection, info
        except OSError as error:
            last = f"nobody ({error})"
        connection.close()
        time.sleep(0.5)
    sys.exit(f"no pod of {version!r} answered for {service} in {PATIENCE:.0f} s; the last was {last}")


def problems(connection, info, facts):
    """Yield each difference between what the canary answers and what was recorded."""
    for name in ("version", "sha256"):
        if info[name] != facts[name]:
            yield f"{name}: git says {facts[name]}, the canary {info[name]}"
    recorded = facts["golden"]
    features = [row["features"] for row in recorded]
    answers = ask(connection, "/predict/batch", {"features": features})["predictions"]
    for row, answer in zip(recorded, answers, strict=True):
        far = (
            not abs(answer["probability"] - row["probability"]) <= facts["golden_tolerance"]
        )  # so that NaN is far, too
        if far or answer["prediction"] != row["prediction"]:
            yield (
                f"{row['features']}: recorded is class {row['prediction']} with {row['probability']:.5f}, "
                f"the canary says {answer['prediction']} with {answer['probability']:.5f}"
            )


if __name__ == "__main__":
    facts = json.loads(Path(sys.argv[2]).read_text())
    if "golden_tolerance" not in facts:
        sys.exit(
            "git's model.json has no golden_tolerance; export the model anew with `python -m pipeline export`"
        )
    try:
        found = list(problems(*find(sys.argv[1], sys.argv[3]), facts))
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = [f"the canary did not answer as it should: {error}"]
    sys.stdout.write("\n".join(found[:10] or ["the canary answers what was recorded"]) + "\n")
    sys.exit(1 if found else 0)
