"""Read an Argo Rollouts Rollout: which image it asks for, how far it is, and whether it was aborted."""

from delivery.kubernetes import KubernetesObject


def digest(rollout: KubernetesObject) -> str:
    """Return the digest of the image that the Rollout asks for, empty if the image is not named by digest."""
    image: str = rollout["spec"]["template"]["spec"]["containers"][0]["image"]
    return image.partition("@")[2]


def is_blue_green(rollout: KubernetesObject) -> bool:
    """Return whether the Rollout's strategy is blue-green; otherwise it is canary."""
    return "blueGreen" in rollout["spec"]["strategy"]


def is_observed(rollout: KubernetesObject) -> bool:
    """Return whether the controller has processed the current spec; until then its status is outdated."""
    observed = rollout.get("status", {}).get("observedGeneration")
    return str(observed) == str(rollout["metadata"]["generation"])


def is_aborted(rollout: KubernetesObject) -> bool:
    """Return whether the controller or a person has aborted the Rollout."""
    return bool(rollout.get("status", {}).get("abort"))


def is_settled(rollout: KubernetesObject) -> bool:
    """Return whether the newest version is the stable one: no release is in progress."""
    status = rollout.get("status", {})
    return bool(status.get("stableRS")) and status.get("currentPodHash") == status["stableRS"]


def is_promoted(rollout: KubernetesObject) -> bool:
    """Return whether the newest version serves all traffic and is healthy."""
    status = rollout.get("status", {})
    return (
        is_observed(rollout)
        and is_settled(rollout)
        and not is_aborted(rollout)
        and status.get("phase") == "Healthy"
    )


def weight(rollout: KubernetesObject) -> int:
    """Return the percentage of the traffic that goes to the newest version."""
    status = rollout.get("status", {})
    if not status.get("currentPodHash"):  # the controller refused the spec, or has not seen it yet
        return 0
    if is_blue_green(rollout):  # it gets all traffic at once, before it becomes the stable version
        is_active = status.get("blueGreen", {}).get("activeSelector") == status["currentPodHash"]
        return 100 if is_active else 0
    if is_settled(rollout):
        return 100
    if is_aborted(rollout):
        return 0
    return weight_at(rollout, status.get("currentStepIndex", 0))


def weight_at(rollout: KubernetesObject, step: int) -> int:
    """Return the weight in percent that a canary has when it reaches that step."""
    steps = rollout["spec"]["strategy"].get("canary", {}).get("steps", [])
    weights = [one["setWeight"] for one in steps[:step] if "setWeight" in one]
    return weights[-1] if weights else 0
