"""The golden gate: does the canary answer what the registry recorded, and is it the model that git says?

Run by a Job before the canary has traffic, with the standard library alone. argv: the canary's address, and the
model.json that git holds beside the digest of the image: version, sha256, and the recorded answers.
"""

import json
import sys
import urllib.request
from pathlib import Path

TOLERANCE = 1e-5


def ask(url, body=None):
    """Return the JSON that the canary answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - argv's, from git
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.load(answer)
    except (OSError, ValueError) as error:
        sys.exit(f"{url} did not answer as it should: {error}")


def problems(address, facts):
    """Yield each difference between what the canary answers and what was recorded."""
    info = ask(f"{address}/info")
    for name in ("version", "sha256"):
        if info[name] != facts[name]:
            yield f"{name}: git says {facts[name]}, the canary {info[name]}"
    recorded = facts["golden"]
    answers = ask(f"{address}/predict/batch", {"features": [row["features"] for row in recorded]})["predictions"]
    for row, answer in zip(recorded, answers, strict=True):
        far = abs(answer["probability"] - row["probability"]) > TOLERANCE
        if far or answer["prediction"] != row["prediction"]:
            yield (
                f"{row['features']}: recorded is class {row['prediction']} with {row['probability']:.5f}, "
                f"the canary says {answer['prediction']} with {answer['probability']:.5f}"
            )


if __name__ == "__main__":
    found = list(problems(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))
    sys.stdout.write("\n".join(found[:10] or ["the canary answers what was recorded"]) + "\n")
    sys.exit(1 if found else 0)
