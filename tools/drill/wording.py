"""Events in words, for the console and the report."""

from tools.drill.recording import Event, Measurement


def describe(event: Event) -> str:
    """Return one line that says what happened."""
    commit = event.commit[:10]
    return {
        "commit": f"{commit} {event.subject}",
        "revert": f"{commit} {event.subject}",
        "sync": f"Argo CD synced prod to {commit}",
        "gate": ", ".join(map(_measurement, event.measurements)),
        "weight": f"{event.weight} % of the traffic to the canary",
        "promoted": f"model {event.model_version} is the stable version",
        "abort": "all traffic back to the stable version",
    }[event.kind]


def _measurement(measurement: Measurement) -> str:
    value = measurement.phase if measurement.value is None else f"{measurement.value:.3g}"
    return f"{measurement.metric} {value}"
